"""What a disk may hold after the power fails, worked out from the calls that were made to it.

The rules, which are POSIX's and weaker than those of any file system in use:

- The bytes of a file are safe once the file has been fsynced. Until then each write may be there or not, whole, cut
  short, with only its end, or as zeros or garbage of the right length, whatever became of the others.
- The names in a folder (made, renamed or removed) are safe once that folder has been fsynced. Until then each name is,
  by itself, whatever it has been since: a rename may leave both names, or neither. That an fsync of the file keeps its
  name, or that the calls take effect in their order, is not counted on.

`record` notes the calls of a piece of real code, `crash_states` gives what the disk may hold after each of them.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

Tree = bytes | tuple[tuple[str, Any], ...]
"""A file's bytes, or a folder's names and what each stands for."""


@dataclass(frozen=True)
class Call:
    kind: str
    """mkdir, create, write, sync, rename, link, remove; or returned: what the user was promised holds from here on."""
    path: Path = Path()
    target: Path = Path()
    offset: int = 0
    data: bytes = b""

    def __str__(self) -> str:
        return f"{self.kind} {self.path}" + (f" -> {self.target}" if self.kind in ("rename", "link") else "")


class Recorder:
    """Stands in for functions of `os`: each does its work, and those that change what is below `root` are noted."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[Call]()
        self._open: dict[int, Path] = {}
        self._offset: dict[int, int] = {}
        self._real = {name: getattr(os, name) for name in self.names}

    names = ("mkdir", "open", "close", "write", "fsync", "rename", "link", "unlink", "rmdir")

    def returned(self) -> None:
        self.calls.append(Call("returned"))

    def mkdir(self, path: Any, *arguments: Any, dir_fd: int | None = None) -> None:
        self._real["mkdir"](path, *arguments, dir_fd=dir_fd)
        self._note("mkdir", self._place(path, dir_fd))

    def open(self, path: Any, flags: int, *arguments: Any, dir_fd: int | None = None) -> int:
        place = self._place(path, dir_fd)
        new = bool(flags & os.O_CREAT) and not place.exists()
        assert not flags & os.O_TRUNC, "the model knows no truncation"
        handle = int(self._real["open"](path, flags, *arguments, dir_fd=dir_fd))
        self._open[handle], self._offset[handle] = place, os.fstat(handle).st_size if flags & os.O_APPEND else 0
        if new:
            self._note("create", place)
        return handle

    def close(self, handle: int) -> None:
        self._open.pop(handle, None)
        self._real["close"](handle)

    def write(self, handle: int, data: Any) -> int:
        count = int(self._real["write"](handle, data))
        if handle in self._open:
            self._note("write", self._open[handle], offset=self._offset[handle], data=bytes(data)[:count])
            self._offset[handle] += count
        return count

    def fsync(self, handle: int) -> None:
        self._real["fsync"](handle)
        self._note("sync", self._open[handle])

    def rename(self, source: Any, target: Any) -> None:
        self._real["rename"](source, target)
        self._note("rename", Path(source), target=Path(target).relative_to(self.root))

    def link(self, source: Any, target: Any) -> None:
        self._real["link"](source, target)
        self._note("link", Path(source), target=Path(target).relative_to(self.root))

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._real["unlink"](path, dir_fd=dir_fd)
        self._note("remove", self._place(path, dir_fd))

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._real["rmdir"](path, dir_fd=dir_fd)
        self._note("remove", self._place(path, dir_fd))

    def _place(self, path: Any, folder: int | None) -> Path:
        return Path(path) if folder is None else self._open[folder] / path

    def _note(self, kind: str, path: Path, **more: Any) -> None:
        if path.is_relative_to(self.root):
            self.calls.append(Call(kind, path.relative_to(self.root), **more))


@contextmanager
def record(root: Path) -> Iterator[Recorder]:
    recorder = Recorder(root)
    with mock.patch.multiple(os, **{name: getattr(recorder, name) for name in Recorder.names}):
        yield recorder


@dataclass(eq=False)
class File:
    safe: bytes = b""
    writes: list[Call] = field(default_factory=list)
    """Since the last fsync."""

    def count(self) -> int:
        return len(FATES) ** len(self.writes)

    def state(self, index: int) -> Tree:
        """The `index`th of the `count` contents it may have; the last is that of a disk that did as it was told."""
        found = bytearray(self.safe)
        for write in self.writes:
            index, fate = divmod(index, len(FATES))
            FATES[fate](found, write.offset, write.data)
        return bytes(found)

    def sync(self) -> None:
        self.safe, self.writes = bytes(self.state(self.count() - 1)), []


@dataclass(eq=False)
class Folder:
    names: dict[str, list[File | Folder | None]] = field(default_factory=dict)
    """What each name has stood for since the last fsync, oldest first."""

    def count(self) -> int:
        return math.prod(sum(each.count() if each else 1 for each in self._options(name)) for name in self.names)

    def state(self, index: int) -> Tree:
        found = []
        for name in sorted(self.names):
            options = self._options(name)
            index, rest = divmod(index, sum(each.count() if each else 1 for each in options))
            for each in options:
                size = each.count() if each else 1
                if rest < size:
                    break
                rest -= size
            if each:
                found.append((name, each.state(rest)))
        return tuple(found)

    def sync(self) -> None:
        self.names = {name: [history[-1]] for name, history in self.names.items() if history[-1]}

    def set(self, name: str, node: File | Folder | None) -> None:
        self.names.setdefault(name, [None]).append(node)

    def _options(self, name: str) -> list[File | Folder | None]:
        """Each once, what it stands for now at the end."""
        return list(dict.fromkeys(reversed(self.names[name])))[::-1]


def _put(found: bytearray, offset: int, data: bytes) -> None:
    found.extend(b"\0" * (offset + len(data) - len(found)))
    found[offset : offset + len(data)] = data


FATES: list[Callable[[bytearray, int, bytes], None]] = [
    lambda found, offset, data: None,
    lambda found, offset, data: _put(found, offset, data[:1]),
    lambda found, offset, data: _put(found, offset, data[: len(data) // 2]),
    lambda found, offset, data: _put(found, offset, data[:-1]),
    lambda found, offset, data: _put(found, offset + len(data) // 2, data[len(data) // 2 :]),
    lambda found, offset, data: _put(found, offset, bytes(len(data))),
    lambda found, offset, data: _put(found, offset, _garbage(len(data))),
    _put,
]
"""What may become of a write."""


def _garbage(size: int) -> bytes:
    """Much of it what a reader of lines, of JSON or of text would trip over."""
    return bytes(random.Random(size).choices(b'\n\n\r{"a1 \0\x80\xff', k=size))


def crash_states(before: Folder, calls: Iterable[Call], most: int) -> Iterator[tuple[int, str, Tree]]:
    """All that the disk may hold after each call, each once: how often it had `returned`, the last call, the tree.

    Where one call leaves more than `most` states, so many of them are drawn. That of a disk which did as it was told,
    as when only the process is killed, is always among them.
    """
    rng, seen, promises = random.Random(0), set[tuple[int, Tree]](), 0
    for call in [Call("nothing"), *calls]:
        promises += call.kind == "returned"
        _apply(before, call)
        count = before.count()
        drawn = range(count) if count <= most else [count - 1, *(rng.randrange(count) for _ in range(most - 1))]
        for index in drawn:
            tree = before.state(index)
            if (promises, tree) not in seen:
                seen.add((promises, tree))
                yield promises, str(call), tree


def _apply(root: Folder, call: Call) -> None:
    parent = _find(root, call.path.parent)
    if call.kind in ("mkdir", "create"):
        parent.set(call.path.name, Folder() if call.kind == "mkdir" else File())
    elif call.kind == "write":
        _find(root, call.path).writes.append(call)
    elif call.kind == "sync":
        _find(root, call.path).sync()
    elif call.kind == "rename":
        _find(root, call.target.parent).set(call.target.name, _find(root, call.path))
        parent.set(call.path.name, None)
    elif call.kind == "link":
        _find(root, call.target.parent).set(call.target.name, _find(root, call.path))
    elif call.kind == "remove":
        parent.set(call.path.name, None)


def _find(root: Folder, path: Path) -> Any:
    node: Any = root
    for name in path.parts:
        node = node.names[name][-1]
    return node


def read_disk(path: Path) -> File | Folder:
    """What lies there, all of it safe."""
    if path.is_dir():
        return Folder({each.name: [read_disk(each)] for each in path.iterdir()})
    return File(path.read_bytes())


def build(tree: Tree, path: Path) -> None:
    """Put a state on a real disk."""
    if isinstance(tree, bytes):
        path.write_bytes(tree)
    else:
        path.mkdir()
        for name, each in tree:
            build(each, path / name)
