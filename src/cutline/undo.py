"""The undo file: what was about to be done to pictures, on the disk before it is done.

A line of JSON each. A crash can only spoil the last line, and what it would have said was not begun.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cutline import durable
from cutline.errors import CutlineError, DataError

_HEADER = b'{"cutline": "undo", "format": 1}\n'


class Print(NamedTuple):
    """What tells the contents of a file from any other's."""

    bytes: int
    sha256: str


class Entry(NamedTuple):
    """A picture that was put into a folder, or was about to be."""

    source: Path
    """Absolute. What lies below the folder of the undo file is written relative to it, as it moves along."""
    target: str
    """Below the folder of the undo file, which may be moved as a whole: `cat/1.jpg`."""
    print: Print
    moved: bool = False
    """Not copied. Undo files of earlier versions do not say it."""


class Undo:
    """An undo file, held by this process alone."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.folder, self._handle = path, path.parent, handle
        self._place = self.folder.resolve()
        self.entries: dict[int, Entry] = {}
        """What is to be undone, by its line."""
        self.made: list[str] = []
        """Folders below this one that were not there before; "." is this one itself."""
        self.above: list[Path] = []
        """Folders that were made to hold this one. It may have been moved out of them."""
        self.unreadable: list[int] = []
        """Lines that someone has damaged."""
        data = path.read_bytes()
        if not data.startswith(_HEADER) and not _HEADER.startswith(data):
            raise DataError(f"{path} is not an undo file", expected="one that cutline classify --sort has written")
        self._size = _sound(data)
        os.ftruncate(handle, self._size)
        if not self._size:
            self._write(_HEADER)
            durable.sync(self.folder)
        self._line = 1
        for line in data[: self._size].split(b"\n")[1:-1]:
            self._read(line)

    def source(self, picture: Path) -> Path:
        """The place of a picture as entries have it: below this folder always the same, by whatever links one came."""
        place = picture.parent.resolve() / picture.name
        return place if place.is_relative_to(self._place) else picture.absolute()

    def add(self, entry: Entry) -> int:
        """What is about to be done. Returns its line."""
        below = entry.source.is_relative_to(self._place)
        source = entry.source.relative_to(self._place).as_posix() if below else str(entry.source)
        about = {"source": source, "target": entry.target, **entry.print._asdict()}
        return self._append(about | ({"moved": True} if entry.moved else {}))

    def drop(self, lines: Sequence[int]) -> None:
        """They were undone, or never done. This may be forgotten: the pictures themselves show it."""
        for line in lines:
            self.entries.pop(line, None)
        with contextlib.suppress(OSError):
            self._append({"undone": list(lines)})

    def make(self, name: str) -> None:
        """A folder below this one, "." for this one itself, or the whole path of one that holds it."""
        path = self.folder / name
        if os.path.lexists(path) and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        self._append({"made": name})
        durable.make(path)

    def in_use(self) -> set[Path]:
        """The folders of what is to be undone."""
        return {(self.folder / entry.target).parent for entry in self.entries.values()}

    def tidy(self) -> None:
        """Remove the folders that were made and are empty, and the undo file where nothing is left to undo."""
        _remove({self.folder / name for name in self.made} - {self.folder} - self.in_use())
        if self.entries or self.unreadable:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
        _remove([self.folder] if "." in self.made else [])
        _remove(sorted(self.above, key=lambda place: len(place.parts), reverse=True))

    def _append(self, about: dict[str, Any]) -> int:
        line = json.dumps(about).encode() + b"\n"
        self._write(line)
        self._read(line)
        return self._line

    def _write(self, data: bytes) -> None:
        try:
            durable.write_all(self._handle, data)
            os.fsync(self._handle)
        except OSError:
            os.ftruncate(self._handle, self._size)  # half a line would spoil the next
            raise
        self._size += len(data)

    def _read(self, line: bytes) -> None:
        self._line += 1
        try:
            about = json.loads(line)
            if "undone" in about:
                for number in about["undone"]:
                    self.entries.pop(int(number), None)
            elif "made" in about:
                if (place := Path(about["made"])).is_absolute():
                    self.above.append(place)
                else:
                    self.made.append(_below(about["made"]))
            else:
                source, print = Path(about["source"]), Print(int(about["bytes"]), str(about["sha256"]))
                if not source.is_absolute():
                    source = self._place / _below(about["source"])
                moved = about.get("moved") is True
                self.entries[self._line] = Entry(source, _below(about["target"]), print, moved)
        except (ValueError, TypeError, KeyError):
            self.unreadable.append(self._line)


def _remove(folders: Iterable[Path]) -> None:
    """Those that are empty; none is worth an error."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _sound(data: bytes) -> int:
    """How many bytes are lines of ours. What follows was cut short, or is what a power loss left: it was not begun.

    A power loss may leave any bytes, line ends among them. What can all be printed is rather what a person has written.
    """
    lines = data.split(b"\n")[:-1]
    sound = len(lines)
    while sound and not _is_object(lines[sound - 1]):
        sound -= 1
    rest = b"".join(lines[sound:])
    if rest and all(32 <= byte <= 126 for byte in rest):
        sound = len(lines)
    return sum(len(line) + 1 for line in lines[:sound])


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _below(name: str) -> str:
    """A path that leads nowhere but down, whoever wrote it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(name)
    return name


@contextlib.contextmanager
def held(path: Path, *, new: bool = False) -> Iterator[Undo]:
    """An undo file as its only user."""
    import fcntl

    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if new else 0), 0o644)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", expected="" if new else "an undo file") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed it in the end.
            ours = os.path.samestat(os.fstat(handle), path.stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise CutlineError(f"{path} is in use by another process", fix="wait for it, or end it")
        try:
            undo = Undo(path, handle)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        yield undo
    finally:
        os.close(handle)
