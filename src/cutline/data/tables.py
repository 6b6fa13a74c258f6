"""CSV and JSONL: a row for each picture or for each caption, with the column names that people use."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cutline.data.draft import UNKNOWN_LANGUAGE, Draft, Entry, split_in
from cutline.data.files import files_in, read_lines, unique
from cutline.errors import DataError

_NAMES = {
    "image": "image img picture photo path file filename file_name filepath file_path image_file image_path "
    "image_name imagepath img_path",
    "id": "id image_id",
    "lang": "lang language locale",
    "label": "label class category",
    "split": "split subset partition",
}
_ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}
# "caption", "captions", "caption_2", "caption_de", …
_CAPTION = re.compile(
    r"(?:captions?|texts?|sentences?|descriptions?|comments?|alt|alt_text)"
    r"(?:_?(?P<number>\d+)|_(?!(?:len|num|raw|src|tok|url)$)(?P<lang>[a-z]{2,3}))?"
)
_DELIMITER = re.compile(r"(?i)sep=.")
"""The line that Excel puts before a header."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns mean what."""

    roles: dict[str, str]
    """Role -> column's name as written."""
    captions: tuple[tuple[str, str], ...]
    """Columns that hold captions, each with its language, if its name has one."""


@lru_cache(maxsize=256)
def columns(names: tuple[str, ...]) -> Columns:
    """What the columns mean; refused where that is not clear."""
    roles: dict[str, str] = {}
    captions: list[tuple[str, str]] = []
    for name in names:
        plain = re.sub(r"[\s\-]+", "_", name.strip().lower())
        if match := _CAPTION.fullmatch(plain):
            if name in dict(captions):
                raise DataError(f"unclear columns: two are called '{name}'", fix=f"call them {name}_1 and {name}_2")
            captions.append((name, match["lang"] or ""))
        elif role := _ROLES.get(plain):
            if role in roles:
                raise DataError(f"unclear columns: both '{roles[role]}' and '{name}' may be the {role}")
            roles[role] = name
    found = ", ".join(f"'{name}'" for name in names) or "none"
    if "image" not in roles:
        raise DataError(f"no column for the picture: found {found}", expected=_NAMES["image"].replace(" ", ", "))
    if not captions and "label" not in roles:
        raise DataError(f"no column for captions: found {found}", expected="caption, captions, text, … or a label")
    return Columns(roles, tuple(captions))


def read_csv(path: Path, draft: Draft) -> None:
    for file in table_files(path, (".csv", ".tsv")):
        read_csv_file(file, draft, UNKNOWN_LANGUAGE)


def read_csv_file(file: Path, draft: Draft, language: str, only: Collection[str] = ()) -> set[str]:
    """Read the rows of one file; returns the pictures that are passed over because they are not among `only`."""
    lines = read_lines(file, draft.problem)
    top = 1 if _DELIMITER.fullmatch(lines[0].strip()) and len(lines) > 1 else 0
    try:
        delimiter, header = csv_header(lines[top])
        meaning = columns(header)
    except DataError as error:
        raise DataError(f"{file}:{top + 1}: {error.what}", expected=error.expected, fix=error.fix) from None
    split = split_in(file.stem)
    passed_over: set[str] = set()
    for line, row in _csv_rows(lines, top + 1, delimiter, file, draft):
        if len(row) != len(header):
            hint = "; text with a comma needs quotes" if len(row) > len(header) else ""
            draft.problem(file, line, f"malformed row: {len(row)} values for {len(header)} columns{hint}")
            continue
        values = dict(zip(header, row))
        if only and values[meaning.roles["image"]] not in only:
            passed_over.add(values[meaning.roles["image"]])
        elif entry := _describe(values, meaning, split, draft, file, line):
            lang = values.get(meaning.roles.get("lang", ""), "")
            for name, its_lang in meaning.captions:
                # Of several columns, those not needed for a picture are left blank.
                if (values[name].strip() or len(meaning.captions) == 1) and not _counts(values[name], its_lang):
                    for text in _listed(values[name]):
                        draft.caption(entry, text, draft.language(its_lang or lang, language), file, line)
    return passed_over


def csv_header(line: str) -> tuple[str, tuple[str, ...]]:
    """The delimiter that parts the header into the most columns, and the columns."""
    rows = []
    for mark in ",;\t|":
        with suppress(csv.Error):
            rows.append((mark, next(csv.reader([line], delimiter=mark, strict=True), [])))
    if not rows:
        return ",", (line,)  # no header at all
    mark, row = max(rows, key=lambda item: len(item[1]))
    return mark, tuple(name.strip() for name in row)


def _csv_rows(lines: list[str], first: int, mark: str, file: Path, draft: Draft) -> Iterator[tuple[int, list[str]]]:
    """The rows from lines[first] on, each with the number of the line that it begins in."""
    while first < len(lines):
        given = (f"{lines[place]}\n" for place in range(first, len(lines)))
        # Strict: otherwise a quote that is never closed swallows the rest of the file without a word.
        reader = csv.reader(given, delimiter=mark, strict=True)
        line = first + 1
        try:
            for row in reader:
                if any(value.strip() for value in row):
                    yield line, row
                line = first + reader.line_num + 1
        except csv.Error as error:
            draft.problem(file, line, f"malformed row: {error}")
            first = line  # the lines that a quote has swallowed are rows of their own
        else:
            return


def _counts(value: Any, lang: str) -> bool:
    """Whether it numbers captions ("caption_id"), in a column whose ending might as well be a language."""
    return bool(lang) and (isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal()))


def _listed(text: str) -> list[str]:
    """The captions in a cell: the text itself, or each of a JSON list of texts."""
    if text.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            texts = json.loads(text)
            if texts and all(isinstance(each, str) for each in texts):
                return list(texts)
    return [text]


def read_jsonl(path: Path, draft: Draft) -> None:
    for file in table_files(path, (".jsonl", ".ndjson")):
        split = split_in(file.stem)
        for line, text in enumerate(read_lines(file, draft.problem), 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text, object_pairs_hook=unique)
                if not isinstance(row, dict):
                    raise DataError(f"malformed row: {type(row).__name__} instead of an object {{…}}")
                meaning = columns(tuple(row))
            except ValueError as error:
                draft.problem(file, line, f"malformed row: not JSON ({error})")
            except RecursionError:
                draft.problem(file, line, "malformed row: nested too deeply")
            except DataError as error:
                draft.problem(file, line, error.what)
            else:
                _read_row(row, meaning, split, draft, file, line)


def _read_row(row: dict[str, Any], meaning: Columns, split: str | None, draft: Draft, file: Path, line: int) -> None:
    for role, name in meaning.roles.items():
        if not isinstance(row[name], str | int | None) or (role == "image" and not isinstance(row[name], str)):
            draft.problem(file, line, f"malformed row: '{name}' is {type(row[name]).__name__} instead of text")
            return
    entry = _describe(row, meaning, split, draft, file, line)
    if entry is None:
        return
    lang = str(row.get(meaning.roles.get("lang", "")) or "")
    for name, its_lang in meaning.captions:
        if _counts(row[name], its_lang):
            continue
        try:
            texts = list(_texts(row[name], its_lang or lang))
        except TypeError as error:
            entry.described = True
            draft.problem(file, line, f"malformed row: '{name}' {error}")
            continue
        for text, stated in texts:
            draft.caption(entry, text, draft.language(stated), file, line)
        if not texts and "label" not in meaning.roles:
            draft.caption(entry, "", draft.language(lang), file, line)


def _texts(value: Any, lang: str) -> Iterator[tuple[str, str]]:
    """Captions with their language, from text, a list, `{"en": …}`, or the `{"text": …, "lang": …}` that we write."""
    if isinstance(value, str):
        yield value, lang
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, lang)
    elif isinstance(value, dict) and isinstance(value.get("text"), str):
        yield value["text"], str(value.get("lang") or lang)
    elif isinstance(value, dict):
        for its_lang, item in value.items():
            yield from _texts(item, its_lang)
    elif value is not None:
        raise TypeError(f"holds {type(value).__name__} instead of text, a list or {{language: …}}")


def _describe(
    values: dict[str, Any], meaning: Columns, split: str | None, draft: Draft, file: Path, line: int
) -> Entry | None:
    """The entry that a row is about, with the row's id, label and split."""
    entry = draft.picture(values[meaning.roles["image"]], file, line)
    if entry is None:
        return None
    stated = {role: str(v).strip() for role, name in meaning.roles.items() if (v := values[name]) is not None}
    if stated.get("id"):
        draft.identify(entry, stated["id"], file, line)
    if stated.get("label"):
        draft.label(entry, stated["label"], file, line)
    if stated.get("split") or split:
        draft.split(entry, stated.get("split") or split or "", file, line)
    return entry


def table_files(path: Path, endings: Iterable[str]) -> list[Path]:
    """The one table in a folder, or one for each split ("train.csv", "val.csv")."""
    if path.is_file():
        return [path]
    found = files_in(path, *endings)
    splits = [split_in(file.stem) for file in found]
    if len(found) > 1 and (None in splits or len(set(splits)) < len(splits)):
        raise DataError(
            f"{path} holds several tables: {', '.join(file.name for file in found)}",
            expected="one, or one for each split with its name (train.csv, val.csv, test.csv)",
            fix="name the file itself",
        )
    if not found:
        raise DataError(f"no {' or '.join(endings)} file in {path}")
    return found
