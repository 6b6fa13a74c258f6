"""Reading files of JSON lines that others write: from their end, and then what is added to them.

A line may be half there, so only whole ones count; a file may be not there yet, or be cut back by a run that goes on
from an older checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

Entry = dict[str, Any]

BLOCK = 2**18


def backwards(path: Path, having: bytes = b"", end: int | None = None) -> Iterator[Entry]:
    """Entries from byte `end` to the beginning, last first; only those whose line holds `having`.

    A block without it is passed over unparsed, so that the last validation of a million steps is found at the speed of
    the disk.
    """
    return _entries(line for line in _lines(path, having, _end(path) if end is None else end) if having in line)


class Tail:
    """What is added to a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.at, self._last = path, 0, b""

    def skip(self) -> int:
        """Go behind the last whole line without reading those before it; where that is."""
        self.at = _end(self.path)
        self._last = b"".join(line + b"\n" for line in islice(_lines(self.path, b"", self.at), 1))
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


def _end(path: Path) -> int:
    """Where the last whole line ends."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        while start:
            size = min(BLOCK, start)
            start -= size
            file.seek(start)
            if (last := file.read(size).rfind(b"\n")) >= 0:
                return start + last + 1
    return 0


def _lines(path: Path, having: bytes, end: int) -> Iterator[bytes]:
    """The lines before byte `end`, where one ends, last first; a block of the file without `having` is left out."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        start, front = end - 1, b""  # without the last newline; the front of a line belongs to the block before
        while start > 0:
            size = min(BLOCK, start)
            start -= size
            file.seek(start)
            front, newline, rest = (file.read(size) + front).partition(b"\n")
            if newline and having in rest:
                yield from reversed(rest.split(b"\n"))
        if end:
            yield front


def _entries(lines: Iterable[bytes]) -> Iterator[Entry]:
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "kind" in entry:
            yield entry
