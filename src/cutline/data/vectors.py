"""Ready-made word vectors: GloVe's text, word2vec's text and word2vec's binary form, any of them gzipped.

The files are large and a vocabulary is small, so they are read line by line and only the wanted words are kept.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from cutline.data.words import whole_words
from cutline.errors import DataError

Matrix = NDArray[np.float32]
Found = NDArray[np.bool_]

_LONGEST_WORD = 4096
"""Bytes after which a "word" shows that the file is not what it was taken for."""
_WIDEST = 100_000
_HEADER = "a first line of two numbers (words, dimensions), or a word and its numbers"


@dataclass(frozen=True)
class Coverage:
    """How much of a vocabulary the vectors know."""

    found: int
    words: int

    def __str__(self) -> str:
        return f"{self.found:,} of {self.words:,} words ({self.found / max(self.words, 1):.0%})".replace("%", " %")


def load_vectors(path: Path, pieces: Sequence[str]) -> tuple[Matrix, Found, Coverage]:
    """The vectors (V,E) of a vocabulary's pieces, zero where there is none, and which of them have one (V,).

    A word that is only there in lower case has that one's vector. Special tokens, and byte-pair pieces that are not
    whole words, have none and do not count.
    """
    words = whole_words(pieces)
    wanted: dict[bytes, list[int]] = {}
    lowered: dict[bytes, list[int]] = {}
    for row, word in words.items():
        wanted.setdefault(word.encode(), []).append(row)
        if word.lower() != word:
            lowered.setdefault(word.lower().encode(), []).append(row)
    exact: dict[int, Matrix] = {}
    lower: dict[int, Matrix] = {}
    with _opened(path) as file:
        form = _form(path, file)
        read = _binary if form.binary else _text
        for spelt, vector in read(path, file, form, wanted.keys() | lowered.keys()):
            # Where a word is there twice, its first vector counts, as it does for other readers.
            for row in wanted.get(spelt, ()):
                exact.setdefault(row, vector)
            for row in lowered.get(spelt, ()):
                lower.setdefault(row, vector)
    matrix = np.zeros((len(pieces), form.width), np.float32)
    known = np.zeros(len(pieces), np.bool_)
    for row, vector in (lower | exact).items():
        matrix[row], known[row] = vector, True
    return matrix, known, Coverage(int(known.sum()), len(words))


class _Form(NamedTuple):
    """What the beginning of a file tells."""

    width: int
    words: int | None
    """How many its first line promises, if it does."""
    binary: bool


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:  # some editors begin a file with that mark
                file.seek(0)
            yield file
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read word vectors from {path}: {reason}") from None


def _form(path: Path, file: IO[bytes]) -> _Form:
    """Look at the first lines, and leave `file` where the words begin."""
    begin = file.tell()
    first = _line(path, file, 1)
    fields = first.split()
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        count, width = int(fields[0]), int(fields[1])
        if not 1 <= width <= _WIDEST:
            raise DataError(f"{path}:1: vectors of {width} dimensions", expected=_HEADER)
        start = file.tell()
        second = file.readline(_LONGEST_WORD + 64 * width)
        file.seek(start)
        return _Form(width, count, binary=not _is_text(second, width))
    if len(fields) < 2 or not _is_text(first, len(fields) - 1):
        raise DataError(f"{path}:1: not word vectors", expected=_HEADER)
    file.seek(begin)
    return _Form(len(fields) - 1, None, binary=False)


def _line(path: Path, file: IO[bytes], number: int) -> bytes:
    line = file.readline(1 << 24)
    if len(line) == 1 << 24:
        raise DataError(f"{path}:{number}: the line has no end", expected=_HEADER)
    return line


def _is_text(line: bytes, width: int) -> bool:
    numbers = line.rstrip().split(b" ")[-width:]
    try:
        line.decode()
        return len(numbers) == width < len(line.split(b" ")) and all(map(_finite, numbers))
    except ValueError:
        return False


def _finite(number: bytes) -> bool:
    return bool(np.isfinite(float(number)))


def _text(path: Path, file: IO[bytes], form: _Form, wanted: Set[bytes]) -> Iterator[tuple[bytes, Matrix]]:
    """Lines of a word and its numbers. Words may hold spaces (some of GloVe's do), so they end where numbers begin."""
    before = 0 if form.words is None else 1
    number = before
    while line := _line(path, file, number + 1):
        number += 1
        word, *numbers = line.rstrip(b" \r\n").rsplit(b" ", form.width)
        if len(numbers) != form.width:
            there = max(len(line.split()) - 1, 0)
            raise DataError(f"{path}:{number}: a word and {there} numbers", expected=f"{form.width} numbers")
        if word in wanted:
            yield word, _numbers(path, number, numbers)
    if form.words not in (None, number - before):
        what = f"{path} has {number - before} words where its first line says {form.words}"
        raise DataError(what, fix="get the file again: it is not whole")


def _numbers(path: Path, number: int, fields: list[bytes]) -> Matrix:
    try:
        vector = np.array([float(field) for field in fields], np.float32)
    except ValueError as error:
        raise DataError(f"{path}:{number}: {error}", expected=f"{len(fields)} numbers") from None
    if not np.isfinite(vector).all():
        raise DataError(f"{path}:{number}: not all its numbers are finite")
    return vector


def _binary(path: Path, file: IO[bytes], form: _Form, wanted: Set[bytes]) -> Iterator[tuple[bytes, Matrix]]:
    """A word, a space, its numbers as little-endian floats, and, from some writers, a line end."""
    size = 4 * form.width
    block, at = b"", 0
    for index in range(form.words or 0):
        if len(block) - at < _LONGEST_WORD + size:
            block, at = block[at:] + file.read(max(1 << 20, 4 * size)), 0
        end = block.find(b" ", at, at + _LONGEST_WORD)
        if end < 0 or len(block) < end + 1 + size:
            raise DataError(
                f"{path}: word {index + 1} of {form.words} is not there whole",
                expected="word2vec's binary form",
                fix="get the file again: it is not whole, or of another form",
            )
        word = block[at:end].lstrip(b"\n")
        if word in wanted:
            vector = np.frombuffer(block, "<f4", form.width, end + 1).astype(np.float32)
            if not np.isfinite(vector).all():
                raise DataError(f"{path}: word {index + 1}: not all its numbers are finite")
            yield word, vector
        at = end + 1 + size
