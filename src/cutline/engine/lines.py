"""Reading files of JSON lines that others write: from their end, and then what is added to them.

A line may be half there, so only whole ones count; a file may be not there yet, or be cut back by a run that goes on
from an older checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

BLOCK = 2**18


def backwards(path: Path, having: bytes = b"", end: int | None = None) -> Iterator[Entry]:
    """Entries from byte `end` to the beginning, last first; only those whose line holds `having`.

    A block without it is passed over unparsed, so that the last validation of a million steps is found at the speed of
    the disk.
    """
    return _entries(line for _, line in _lines(path, having, end) if having in line)


class Tail:
    """What is added to a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.at, self._last = path, 0, b""

    def skip(self) -> int:
        """Go behind the last whole line without reading those before it; where that is."""
        self.at, line = next(_lines(self.path, b"", None), (0, b""))
        self._last = line + b"\n" if self.at else b""
        return self.at

    def added(self) -> list[Entry] | None:
        """Entries since the last call; None when the file is no longer what was read: begin anew."""
        try:
            file = self.path.open("rb")
        except OSError:
            return [] if self.at == 0 else self._begin_anew()
        with file:
            file.seek(max(self.at - len(self._last), 0))
            if file.read(len(self._last)) != self._last:
                return self._begin_anew()
            lines, newline, _ = file.read().rpartition(b"\n")
        if newline:
            self.at += len(lines) + 1
            self._last = lines.rpartition(b"\n")[2] + b"\n"
        return list(_entries(lines.split(b"\n")))

    def _begin_anew(self) -> list[Entry] | None:
        self.at, self._last = 0, b""
        return None


def _lines(path: Path, having: bytes, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Whole lines, last first, each with where it ends; a block of the file without `having` is left out."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        start = file.seek(0, os.SEEK_END) if end is None else end
        front, whole = b"", False  # a line's beginning, for the block before; whether the end of a line was seen
        while start:
            size = min(BLOCK, start)
            start -= size
            file.seek(start)
            front, newline, rest = (file.read(size) + front).partition(b"\n")
            if not newline:
                front = front if whole else b""
                continue
            if having in rest:
                lines = rest.split(b"\n")
                if not whole:
                    lines.pop()  # what is behind the last newline
                stop = start + len(front) + 1 + sum(len(line) + 1 for line in lines)
                for line in reversed(lines):
                    yield stop, line
                    stop -= len(line) + 1
            whole = True
        if whole:
            yield len(front) + 1, front


def _entries(lines: Iterable[bytes]) -> Iterator[Entry]:
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "kind" in entry:
            yield entry
