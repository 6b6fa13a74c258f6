"""Files that survive a power loss: nothing is there for certain until it was synced, and its folder too."""

from __future__ import annotations

import itertools
import os
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write a file; once this returns, its bytes last. Its name does when its folder is synced as well."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def put(path: Path, data: bytes) -> None:
    """Write a file in place of the one that may be there: at any moment it is the old one or the new one, whole."""
    draft = path.with_name(f".{path.name}.draft")
    write(draft, data)
    draft.replace(path)
    sync(path.parent)


def write_all(handle: int, data: bytes) -> None:
    """Also where the disk takes a part at a time."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def make(folder: Path) -> None:
    """A folder whose name lasts, and those of the folders that are made to hold it."""
    missing = list(itertools.takewhile(lambda each: not each.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync(each.parent)


def sync(path: Path) -> None:
    """Make a file's bytes last, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
