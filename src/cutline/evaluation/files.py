"""Predictions and references from the files that captioning systems and data sets come in."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cutline.data.corpus import Corpus, Problem
from cutline.data.draft import UNKNOWN_LANGUAGE, summary
from cutline.data.files import unique
from cutline.data.images import is_picture
from cutline.data.readers import read_corpus
from cutline.data.tables import csv_header
from cutline.errors import DataError, choose
from cutline.evaluation.text import some

STANDARD_INPUT = "-"
PREDICTIONS = """one of
  [{"image_id": 139, "caption": "…"}, …]                       COCO results (JSON)
  {"139": "…", …}                                              a JSON object
  {"path": "a.jpg", "captions": [{"text": "…"}]}               an object a line (JSONL)
  image,caption                                                a table with a header (CSV)"""

# In this order, since "id" beside a file's name often only numbers the rows.
_NAMES = ("image_id", "image", "path", "file_name", "filename", "file", "picture", "photo", "id")
_CAPTIONS = ("caption", "captions", "text", "prediction")


@dataclass(frozen=True)
class References:
    """What is known to be right."""

    captions: Mapping[str, tuple[str, ...]]
    """The captions of each picture, by its id."""
    pictures: Mapping[str, str]
    """What each picture's file is called, where that is known; of all splits, also where one is asked for."""
    problems: tuple[Problem, ...] = ()
    """What was left out because it could not be read."""


@dataclass(frozen=True)
class _Row:
    """A prediction as it stands in a file: whose it is, and whatever holds the text."""

    line: int | None
    where: str
    """Its place in words, where lines do not tell."""
    name: Any
    caption: Any
    lang: str = UNKNOWN_LANGUAGE
    failed: bool = False
    """The system wrote an error in place of a caption, or classes alone, so there is no prediction."""


class _OtherLanguagesError(ValueError):
    """There are captions, but none in the language that is asked for."""


# Predictions ------------------------------------------------------------------------------------------------------


def read_predictions(source: str, lang: str = "") -> dict[str, str]:
    """One caption for each picture, in any of the forms of PREDICTIONS; "-" is standard input.

    `lang` picks that language's captions where a file has several.
    """
    lang = lang.lower()
    data, label = _read(source)
    text = _decode(data, label)
    problems: list[Problem] = []
    elsewhere: list[Problem] = []
    """Rows that have captions in other languages only."""
    captions: dict[str, str] = {}
    places: dict[str, str] = {}
    for row in _rows(text, label, problems):
        if row.failed or (lang and row.lang not in (lang, UNKNOWN_LANGUAGE)):
            continue
        place = f"line {row.line}" if row.line else row.where
        try:
            name, caption = _name(row.name), _caption(row.caption, lang)
        except ValueError as error:
            kind = elsewhere if isinstance(error, _OtherLanguagesError) else problems
            kind.append(Problem(label, row.line, f"{error}{f' ({row.where})' if row.where else ''}"))
            continue
        if name in captions:
            problems.append(Problem(label, row.line, f"second prediction: '{name}' has one already, {places[name]}"))
        captions.setdefault(name, caption)
        places.setdefault(name, place)
    if problems := problems or ([] if captions else elsewhere):
        raise DataError(summary(str(label), problems), expected="one caption for each picture")
    if not captions:
        raise DataError(f"{label} has no predictions{f' in {lang}' if lang else ''}", expected=PREDICTIONS)
    return captions


def _rows(text: str, label: Path, problems: list[Problem]) -> Iterator[_Row]:
    start = text.lstrip()[:1]
    if start == "[":
        items = _json(text, label)
        yield from (_row(item, None, f"entry {number}") for number, item in enumerate(items, 1))
    elif start == "{":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        whole = len(lines) == 1 or not _is_object(lines[0][1])
        content = _json(text, label) if whole else {}
        if whole and not _has_name_and_caption(content):
            if "images" in content and "annotations" in content:
                raise DataError(f"{label} holds COCO annotations, which are references", expected=PREDICTIONS)
            yield from (_Row(None, f"'{name}'", name, caption) for name, caption in content.items())
        else:
            yield from _json_lines(lines, label, problems)
    elif start:
        yield from _table(text, label, problems)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _has_name_and_caption(row: Iterable[str]) -> bool:
    names = {str(name).strip().lower() for name in row}
    return not names.isdisjoint(_NAMES) and not names.isdisjoint(_CAPTIONS)


def _row(item: Any, line: int | None, where: str = "") -> _Row:
    if not isinstance(item, dict):
        item = {}
    values = {str(key).strip().lower(): value for key, value in item.items()}
    name = next((values[key] for key in _NAMES if key in values), None)
    caption = next((values[key] for key in _CAPTIONS if key in values), None)
    lang = str(values.get("lang") or UNKNOWN_LANGUAGE).lower()
    other = bool(values.get("error") or values.get("guesses"))
    return _Row(line, where, name, caption, lang, failed=other and not caption)


def _json_lines(lines: list[tuple[int, str]], label: Path, problems: list[Problem]) -> Iterator[_Row]:
    for number, line in lines:
        try:
            yield _row(json.loads(line, object_pairs_hook=unique), number)
        except DataError as error:
            problems.append(Problem(label, number, error.what))
        except (ValueError, RecursionError) as error:
            problems.append(Problem(label, number, f"not JSON: {error}"))


def _table(text: str, label: Path, problems: list[Problem]) -> Iterator[_Row]:
    delimiter, header = csv_header(re.split(r"[\r\n]", text, maxsplit=1)[0])
    names = [name.lower() for name in header]
    if not _has_name_and_caption(names):
        found = ", ".join(f"'{name}'" for name in header)
        raise DataError(
            f"{label}:1: no column for the picture and one for its caption in {found}", expected=PREDICTIONS
        )
    if twice := [name for name in {*_NAMES, *_CAPTIONS} if names.count(name) > 1]:
        raise DataError(f"{label}:1: two columns are called '{twice[0]}'", fix="leave one out, or call it otherwise")
    # Strict, or a quote that is never closed would swallow the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 0
    try:
        next(reader)
        line = reader.line_num
        for values in reader:
            line, first = reader.line_num, line + 1
            if len(values) == len(names):
                yield _row(dict(zip(names, values)), first)
            elif any(value.strip() for value in values):
                hint = "; text with a comma needs quotes" if len(values) > len(names) else ""
                problems.append(
                    Problem(label, first, f"malformed row: {len(values)} values for {len(names)} columns{hint}")
                )
    except csv.Error as error:
        problems.append(Problem(label, line + 1, f"malformed row: {error}"))


def _name(name: Any) -> str:
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if isinstance(name, str) and name.strip():
        return name.strip()
    raise ValueError(f"no picture named: {json.dumps(name)} is not an id")


def _caption(value: Any, lang: str) -> str:
    """The text in `value`: text itself, or the first (best) of `[{"text": …, "lang": …}]`."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        langs = [str(item.get("lang") or UNKNOWN_LANGUAGE).lower() for item in value]
        stated = ", ".join(dict.fromkeys(its_lang for its_lang in langs if its_lang != UNKNOWN_LANGUAGE))
        if not lang and "," in stated:
            raise ValueError(f"captions in several languages: {stated}; say which by --lang")
        fitting = [item for item, its_lang in zip(value, langs) if not lang or its_lang in (lang, UNKNOWN_LANGUAGE)]
        if not fitting:
            raise _OtherLanguagesError(f"no caption in {lang}: only in {stated}")
        return _caption(fitting[0].get("text"), lang)
    if isinstance(value, list) and len(value) == 1:
        return _caption(value[0], lang)
    if isinstance(value, list) and len(value) > 1:
        raise ValueError(f"several captions: {len(value)} for one picture; are these the references?")
    raise ValueError(f"no caption: {json.dumps(value)} is not text")


# References -------------------------------------------------------------------------------------------------------


def read_references(
    source: str, *, reader: str = "auto", lang: str = "", split: str = "", skip_bad: bool = False
) -> References:
    """The references at `source`: `{"id": ["reference", …]}`, or whatever `read_corpus` reads; no picture is opened.

    `lang` and `split` restrict them; with `skip_bad` what cannot be read is left out and listed.
    """
    if source == STANDARD_INPUT:
        return _from_standard_input(reader, lang, split, skip_bad)
    if (content := _json_object(source, reader)) is not None:
        return _plain(content, Path(source), split)
    corpus = _corpus(source, reader, lang, skip_bad, divide=bool(split))
    return _from_corpus(corpus, split)


def read_training(source: str, lang: str = "", reader: str = "auto", *, divide: bool = False) -> list[str]:
    """The captions that a system learned from: of a corpus's train split, or all where it is not divided, unless
    training is to `divide` it.
    """
    if (content := _json_object(source, reader)) is not None:
        captions = _plain(content, Path(source), "").captions
    else:
        captions = _from_corpus(_corpus(source, reader, lang, True, divide=divide), "train").captions
    return [text for texts in captions.values() for text in texts]


def _json_object(source: str, reader: str) -> Any:
    """What a JSON file holds that is of no data set's format; None for any other file."""
    path = Path(source).expanduser()
    if reader != "auto" or not path.is_file() or path.suffix.lower() != ".json":
        return None
    data, label = _read(source)
    return None if b'"images"' in data else _json(_decode(data, label), label)


def _corpus(source: str, reader: str, lang: str, skip_bad: bool, divide: bool) -> Corpus:
    share = 0.1 if divide else 0.0  # undivided captions stay together unless one part of them is asked for
    languages = (lang,) if lang else ()
    return read_corpus(
        source, reader, languages=languages, val_share=share, test_share=share, skip_bad=skip_bad, pictures=False
    )


def _from_corpus(corpus: Corpus, split: str) -> References:
    if split:
        choose(split, {sample.split for sample in corpus.samples}, f"split of {corpus.source}")
    samples = corpus.split(split) if split else corpus.samples
    if len(corpus.languages) > 1:
        raise DataError(
            f"{corpus.source}: captions are in {', '.join(corpus.languages)}",
            expected="references in one language",
            fix=f"say which: --lang {corpus.languages[0]}",
        )
    captions = {s.id: texts for s in samples for texts in s.captions.values() if texts}
    if not captions:
        raise DataError(f"{corpus.source}: there are no captions{f' in split {split}' if split else ''}")
    return References(captions, {s.id: s.image.as_posix() for s in corpus.samples}, corpus.problems)


def _plain(content: Any, label: Path, split: str) -> References:
    expected = '{"id": ["reference", …], …}, or a format that `cutline data inspect` reads'
    if not isinstance(content, dict):
        raise DataError(f"{label} holds a {type(content).__name__} instead of an object", expected=expected)
    if split:
        raise DataError(f"{label} has no splits", fix="leave out --split")
    captions = {id: (texts,) if isinstance(texts, str) else texts for id, texts in content.items()}
    bad = [
        Problem(label, None, f"no references: '{id}' is not given a list of texts")
        for id, texts in captions.items()
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) and t.strip() for t in texts)
    ]
    if bad or not captions:
        what = summary(str(label), bad) if bad else f"{label} has no references"
        raise DataError(what, expected=expected)
    return References({id: tuple(texts) for id, texts in captions.items()}, {})


def _from_standard_input(reader: str, lang: str, split: str, skip_bad: bool) -> References:
    """By way of a file, since readers look at files."""
    data, label = _read(STANDARD_INPUT)
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    one_line_each = len([line for line in lines if line.strip()]) > 1 and _is_object(
        lines[0].decode("utf-8", "replace")
    )
    ending = ".jsonl" if one_line_each else ".json" if lines[0].lstrip()[:1] in (b"{", b"[") else ".csv"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"references{ending}")
        file.write_bytes(data)
        try:
            return read_references(str(file), reader=reader, lang=lang, split=split, skip_bad=skip_bad)
        except DataError as error:
            what = error.what.replace(str(file), str(label))
            raise DataError(what, expected=error.expected, fix=error.fix) from None


# Which prediction is of which picture -------------------------------------------------------------------------------


def align(predictions: Mapping[str, str], references: References) -> dict[str, str]:
    """Predictions under the references' ids.

    A picture may be called by its id or by its file's name, with or without folders and ending, as long as only one
    is called so: of all that there are, or else of those that have references. Predictions that fit none keep their
    names.
    """
    files = {id: references.pictures.get(id, id) for id in {**references.pictures, **references.captions}}
    finders = [_Finder(files), _Finder({id: files[id] for id in references.captions})]
    aligned: dict[str, str] = {}
    given: dict[str, str] = {}
    twice = []
    for name, caption in predictions.items():
        id = next(filter(None, (find(name) for find in finders)), name)
        if id in aligned:
            twice.append(f"{given[id]} = {name}")
        aligned[id], given[id] = caption, name
    if twice:
        raise DataError(f"two predictions for one picture: {some(twice, 'pair')}", expected="one for each picture")
    return aligned


class _Finder:
    """Finds the picture that a name means."""

    def __init__(self, pictures: Mapping[str, str]) -> None:
        self.ids = pictures.keys()
        self.ends: dict[str, str] = {}
        """Owners of what ids and files' names may be cut down to; empty where there are several."""
        self.wholes: dict[str, str] = {}
        """Owners of ids and files' own names, which may stand below folders that are known to nobody."""
        for id, file in pictures.items():
            for name in {*_called(id), *_called(file)}:
                self.ends[name] = id if self.ends.get(name, id) == id else ""
            path = PurePosixPath(id)
            base = PurePosixPath(file).name
            # Where a folder is part of the id, it is part of what the picture is called.
            for name in {*_whole(id), *(() if path.name == base and len(path.parts) > 1 else _whole(base))}:
                self.wholes[name] = id if self.wholes.get(name, id) == id else ""

    def __call__(self, name: str) -> str:
        """Its id; empty if it may be none or several."""
        if name in self.ids:
            return name
        found = [self.ends.get(each) for each in _whole(name)] + [self.wholes.get(each) for each in _called(name)]
        return next(filter(None, found), "")


def _whole(name: str) -> list[str]:
    """`a/b/1.jpg` and `a/b/1`."""
    path = PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")))
    plain = "/".join(part for part in path.parts if part not in ("/", ".", ".."))
    # Only the endings of pictures: "1.5" may be a name of its own.
    return [plain, plain[: -len(path.suffix)]] if path.suffix and is_picture(path.name) else [plain]


def _called(name: str) -> list[str]:
    """`a/b/1.jpg`, `b/1.jpg`, `1.jpg`, and the same without `.jpg`."""
    wholes = [whole.split("/") for whole in _whole(name)]
    return ["/".join(parts[start:]) for parts in wholes for start in range(len(parts))]


# Files --------------------------------------------------------------------------------------------------------------


def _read(source: str) -> tuple[bytes, Path]:
    """What is in a file or on standard input, and what to call it."""
    if source == STANDARD_INPUT:
        return sys.stdin.buffer.read(), Path("standard input")
    path = Path(source).expanduser()
    try:
        return path.read_bytes(), path
    except FileNotFoundError:
        raise DataError(f"there is no {path}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _decode(data: bytes, label: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise DataError(f"{label}:{line}: not UTF-8: byte 0x{byte:02x}", fix="save the file as UTF-8") from None


def _json(text: str, label: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique)
    except DataError as error:
        raise DataError(f"{label}: {error.what}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{label}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{label}: not JSON that can be read: {error}") from None
    except RecursionError:
        raise DataError(f"{label}: not JSON that can be read: nested too deeply") from None
