"""What is said of many pictures as text, JSON, JSON lines or CSV, one picture at a time as the results come."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from cutline.errors import CutlineError

if TYPE_CHECKING:
    from cutline.classify import Classified, Guess
    from cutline.predict import Caption, Captioned


class Result(Protocol):
    """A picture of many, or why nothing is said of it."""

    @property
    def path(self) -> Path: ...
    @property
    def error(self) -> CutlineError | None: ...


R = TypeVar("R", bound=Result)


class Form(NamedTuple, Generic[R]):
    """How what is said of a picture is put; none of it is asked of a picture with an error."""

    lines: Callable[[R], Iterable[str]]
    entries: Callable[[R], dict[str, Any]]
    columns: Sequence[str]
    cells: Callable[[R], Iterable[Sequence[str]]]
    """The rows of a table, without the path before and the error behind."""


class Begun(NamedTuple):
    """What is to be kept of results that were written before, and perhaps cut short."""

    text: str
    done: frozenset[str]
    """Whose they are, by path."""


NOTHING = Begun("", frozenset())


def text(form: Form[R], results: Iterable[R], begun: Begun = NOTHING) -> Iterator[str]:
    """`path: line`; a picture with an error is left out."""
    for result in results:
        if not result.error:
            yield from (f"{result.path}: {line}\n" for line in form.lines(result))


def bare(form: Form[R], results: Iterable[R], begun: Begun = NOTHING) -> Iterator[str]:
    """Lines only: for a single picture, whose path needs no saying."""
    for result in results:
        if not result.error:
            yield from (f"{line}\n" for line in form.lines(result))


def jsonl(form: Form[R], results: Iterable[R], begun: Begun = NOTHING) -> Iterator[str]:
    """`{"path": …}` with the entries, or with an `error`, a line."""
    return (_dump(form, result) + "\n" for result in results)


def json_list(form: Form[R], results: Iterable[R], begun: Begun = NOTHING) -> Iterator[str]:
    """One JSON list of what `jsonl` has in its lines."""
    lead = ",\n" if begun.done else "[\n"
    for result in results:
        yield lead + _dump(form, result)
        lead = ",\n"
    yield "\n]\n" if lead == ",\n" else "[]\n"


def csv_table(form: Form[R], results: Iterable[R], begun: Begun = NOTHING) -> Iterator[str]:
    """The rows of each picture, or one for its error."""
    if not begun.done:
        yield _csv_line(*_header(form))
    for result in results:
        path = str(result.path)
        if result.error:
            yield _csv_line(path, *("" for _ in form.columns), _one_line(result))
        else:
            yield from (_csv_line(path, *cells, "") for cells in form.cells(result))


Writer = Callable[..., Iterator[str]]
"""`write(form, results, begun)`: results to pieces of text; each piece is whole lines and can be shown at once."""
WRITERS: dict[str, Writer] = {"text": text, "json": json_list, "jsonl": jsonl, "csv": csv_table}


def reread(form: Form[Any], format: str, written: str) -> Begun:
    """What to keep of what was written in this format, perhaps to no end. Pictures with an error may be tried again,
    and of the last one nobody knows whether more was to come. ValueError where it is nothing of the kind.
    """
    lines = re.findall(r"[^\n]*\n", written)  # not what a cut has left of the last one
    rows = list({"csv": _table, "json": _list, "jsonl": _lines}[format](form, lines))
    again = {row.path for row in rows if row.failed or row.path == rows[-1].path}
    kept = [row.text for row in rows if row.path not in again]
    if not kept:
        return NOTHING
    done = frozenset(row.path for row in rows) - again
    if format == "json":
        return Begun("[\n" + ",\n".join(kept), done)
    head = _csv_line(*_header(form)) if format == "csv" else ""
    return Begun(head + "".join(kept), done)


class _Row(NamedTuple):
    path: str
    failed: bool
    text: str


def _table(form: Form[Any], lines: Sequence[str]) -> Iterator[_Row]:
    reader = csv.reader(lines, strict=True)
    try:
        if (header := next(reader, [])) and header != _header(form):
            raise ValueError(f"its first line does not name the columns {', '.join(_header(form))}")
        start = reader.line_num
        for row in reader:
            if len(row) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(row)} columns, not {len(header)}")
            yield _Row(row[0], bool(row[-1]), "".join(lines[start : reader.line_num]))
            start = reader.line_num
    except csv.Error as error:
        if reader.line_num < len(lines):  # else it is the one that was cut, within a cell of several lines
            raise ValueError(f"line {reader.line_num}: {error}") from None


def _list(form: Form[Any], lines: Sequence[str]) -> Iterator[_Row]:
    if not lines or lines[0] == "[]\n":
        return
    if lines[0] != "[\n":
        raise ValueError("line 1 does not begin such a list")
    rows = lines[1:-1] if lines[-1] == "]\n" else lines[1:]
    yield from _lines(form, [row.removesuffix("\n").removesuffix(",") for row in rows])


def _lines(form: Form[Any], lines: Sequence[str]) -> Iterator[_Row]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            yield _Row(row["path"], "error" in row, line)
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"row {number} is none of a picture") from None


def _header(form: Form[Any]) -> list[str]:
    return ["path", *form.columns, "error"]


def captions() -> Form[Captioned]:
    """A line, an entry or a row for each caption: `{"captions": [{"text": …, "score": …, "lang": …}]}`."""
    return Form(
        lines=lambda result: (caption.text for caption in _captions(result)),
        entries=lambda result: {"captions": [_caption(caption) for caption in _captions(result)]},
        columns=("caption", "score", "lang"),
        cells=lambda result: ((each.text, f"{each.score:.6f}", each.lang) for each in _captions(result)),
    )


def classes(top: int) -> Form[Classified]:
    """A line or a row for each picture, with so many classes: `{"classes": [{"label": …, "probability": …}]}`.

    A table has `label` and `probability` for the likeliest, `label_2` and `probability_2` for the next, and so on.
    """
    places = ("", *(f"_{place}" for place in range(2, top + 1)))
    return Form(
        lines=lambda result: [", ".join(_shown(result))],
        entries=lambda result: {
            "classes": [{"label": each.label, "probability": round(each.probability, 6)} for each in _guesses(result)]
        },
        columns=[f"{name}{place}" for place in places for name in ("label", "probability")],
        cells=lambda result: [[c for each in _guesses(result) for c in (each.label, f"{each.probability:.6f}")]],
    )


def _guesses(result: Classified) -> tuple[Guess, ...]:
    return result.guesses or ()


def _shown(result: Classified) -> Iterator[str]:
    """`cat 97.1 %`: the likeliest, and the others that come to anything."""
    for place, guess in enumerate(_guesses(result)):
        if not place or guess.probability >= LEAST_SHOWN:
            yield f"{' '.join(guess.label.split())} {100 * guess.probability:.1f} %"


LEAST_SHOWN = 0.01
"""Less likely classes are left out of a line of text."""


def _captions(result: Captioned) -> tuple[Caption, ...]:
    return (result.caption, *result.caption.alternatives) if result.caption else ()


def _caption(caption: Caption) -> dict[str, Any]:
    score = round(caption.score, 6) if math.isfinite(caption.score) else None
    entry: dict[str, Any] = {"text": caption.text, "score": score, "lang": caption.lang}
    if caption.attention is not None:
        looks = zip(caption.words, caption.attention.round(4).tolist())
        entry["attention"] = [{"word": word, "weights": weights} for word, weights in looks]
    return entry


def _one_line(result: Result) -> str:
    """The error without the path that its row already has."""
    assert result.error is not None
    return result.error.what.removeprefix(f"{result.path}: ")


def _dump(form: Form[R], result: R) -> str:
    said = {"error": _one_line(result)} if result.error else form.entries(result)
    row = {"path": str(result.path)} | said
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8: escaped, it can still be read back
        line = json.dumps(row)
    return line


def _csv_line(*cells: str) -> str:
    line = io.StringIO()
    # Before Python 3.13 a lone carriage return goes unquoted, and readers take it for the end of a row.
    lone = any("\r" in cell for cell in cells)
    csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL if lone else csv.QUOTE_MINIMAL).writerow(cells)
    return line.getvalue()
