"""Captions of many pictures as text, JSON, JSON lines or CSV, one picture at a time as they come."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cutline.predict import Caption, Captioned

Writer = Callable[[Iterable[Captioned]], Iterator[str]]
"""Results to pieces of text; each piece is whole lines and can be shown at once."""


def text(results: Iterable[Captioned]) -> Iterator[str]:
    """`path: caption`, a line for each caption; a picture without one is left out."""
    for result in results:
        for caption in _captions(result):
            yield f"{result.path}: {caption.text}\n"


def bare(results: Iterable[Captioned]) -> Iterator[str]:
    """Captions only: for a single picture, whose path needs no saying."""
    for result in results:
        yield from (f"{caption.text}\n" for caption in _captions(result))


def jsonl(results: Iterable[Captioned]) -> Iterator[str]:
    """`{"path": …, "captions": [{"text": …, "score": …, "lang": …}]}` or `{"path": …, "error": …}` a line."""
    return (_dump(_row(result)) + "\n" for result in results)


def json_list(results: Iterable[Captioned]) -> Iterator[str]:
    """One JSON list of what `jsonl` has in its lines."""
    lead = "[\n"
    for result in results:
        yield lead + _dump(_row(result))
        lead = ",\n"
    yield "\n]\n" if lead == ",\n" else "[]\n"


def csv_table(results: Iterable[Captioned]) -> Iterator[str]:
    """A row for each caption, or for the error of a picture that has none."""
    yield _csv_line("path", "caption", "score", "lang", "error")
    for result in results:
        if result.error:
            yield _csv_line(str(result.path), "", "", "", _one_line(result))
        for caption in _captions(result):
            yield _csv_line(str(result.path), caption.text, f"{caption.score:.6f}", caption.lang, "")


WRITERS: dict[str, Writer] = {"text": text, "json": json_list, "jsonl": jsonl, "csv": csv_table}


def _captions(result: Captioned) -> tuple[Caption, ...]:
    return (result.caption, *result.caption.alternatives) if result.caption else ()


def _row(result: Captioned) -> dict[str, Any]:
    row: dict[str, Any] = {"path": str(result.path)}
    if result.error:
        return row | {"error": _one_line(result)}
    return row | {"captions": [_entry(caption) for caption in _captions(result)]}


def _entry(caption: Caption) -> dict[str, Any]:
    score = round(caption.score, 6) if math.isfinite(caption.score) else None
    entry: dict[str, Any] = {"text": caption.text, "score": score, "lang": caption.lang}
    if caption.attention is not None:
        looks = zip(caption.words, caption.attention.round(4).tolist())
        entry["attention"] = [{"word": word, "weights": weights} for word, weights in looks]
    return entry


def _one_line(result: Captioned) -> str:
    """The error without the path that its row already has."""
    assert result.error is not None
    return result.error.what.removeprefix(f"{result.path}: ")


def _dump(row: dict[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8: escaped, it can still be read back
        line = json.dumps(row)
    return line


def _csv_line(*cells: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
