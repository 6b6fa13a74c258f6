"""A store while it is being built: arrays of full size, a plan, and a journal of the batches that are finished.

A batch counts as finished when the journal has its line, whole, and the rows on disk have the hashes that the line
says. So whatever ends the process, and whenever, the next one computes again exactly what is not certain.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cutline import durable
from cutline.data.corpus import Sample
from cutline.errors import CutlineError, ModelError, require
from cutline.features.store import (
    GRID,
    INDEX,
    POOLED,
    VERSION,
    Half,
    StoreKey,
    check_array,
    digest,
    hash_file,
    hash_row,
    write_header,
)

PLAN, JOURNAL, OWNER = "plan.json", "journal.jsonl", "owner.json"


@dataclass(frozen=True)
class Plan:
    """All that a builder must do alike for the result to be the same bytes."""

    key: StoreKey
    ids: str
    """Digest of the pictures' ids, in order."""
    backend: str
    backend_version: str
    error: float
    batch: int
    threads: int
    grid: tuple[int, ...]
    pooled: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return 2 * int(np.prod(self.grid, dtype=np.int64) + np.prod(self.pooled, dtype=np.int64))

    @classmethod
    def read(cls, folder: Path) -> Plan | None:
        try:
            table = json.loads((folder / PLAN).read_text(encoding="ascii"))
            table |= {"key": StoreKey(**table["key"]), "grid": tuple(table["grid"]), "pooled": tuple(table["pooled"])}
            return cls(**table)
        except (OSError, ValueError, TypeError, KeyError):
            return None  # there is none, or not one of ours: nothing to go on with


@dataclass
class Entry:
    """A finished batch. What could not be read has a reason, no hash, and rows of nothing."""

    batch: int
    pictures: list[tuple[int, int, str]]
    """Size, time and hash of each file."""
    hashes: list[str]
    bad: dict[str, str] = field(default_factory=dict)


class Draft:
    """The files of an unfinished store. One process writes it, one thread of that process at a time."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.entries: dict[int, Entry] = {}
        self._journal = (folder / JOURNAL).open("a", encoding="ascii")
        self.grid = np.lib.format.open_memmap(folder / GRID, "r+")
        self.pooled = np.lib.format.open_memmap(folder / POOLED, "r+")

    @classmethod
    def begin(cls, folder: Path, plan: Plan) -> Draft:
        """Take the disk space for the whole store now, rather than run out of it in the middle."""
        if folder.exists():
            shutil.rmtree(folder)
        free = shutil.disk_usage(folder.parent).free
        if plan.bytes > free:
            raise CutlineError(
                f"the features need {plan.bytes / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free",
                fix="free some space, or name a folder on another disk: --out, or CUTLINE_CACHE for all of them",
            )
        folder.mkdir(parents=True)
        for name, shape in ((GRID, plan.grid), (POOLED, plan.pooled)):
            _reserve(folder / name, shape)
        write_text(folder / PLAN, json.dumps(asdict(plan)))
        return cls(folder, plan)

    @classmethod
    def resume(cls, folder: Path, plan: Plan, samples: Sequence[Sample]) -> Draft | None:
        """The draft with every batch that is certainly finished, or None where it cannot be gone on with."""
        try:
            lines = (folder / JOURNAL).read_text(encoding="ascii", errors="replace").splitlines()
            check_array(folder / GRID, plan.grid)
            check_array(folder / POOLED, plan.pooled)
        except (OSError, ValueError):
            return None
        draft = cls(folder, plan)
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):  # torn by the end of its writer
                entry = Entry(**json.loads(line))
                if draft._certain(entry, samples):
                    draft.entries[entry.batch] = entry
        # Written anew, so that a torn last line is not continued.
        text = "".join(json.dumps(asdict(entry)) + "\n" for entry in draft.entries.values())
        draft._journal.close()
        write_text(folder / JOURNAL, text)
        draft._journal = (folder / JOURNAL).open("a", encoding="ascii")
        return draft

    def write(self, batch: int, entry: Entry, grid: Half, pooled: Half, good: Sequence[int]) -> None:
        """Rows `good` of this batch; the journal speaks of them only when they are on the disk."""
        first = batch * self.plan.batch
        count = len(entry.pictures)
        for array, values in ((self.grid, grid), (self.pooled, pooled)):
            rows = array[first : first + count]
            rows[:] = 0
            rows[list(good)] = values
            array.flush()
        for place, row in enumerate(good):
            entry.hashes[row] = hash_row(grid[place], pooled[place])
        self._journal.write(json.dumps(asdict(entry)) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self.entries[batch] = entry

    def finish(self, out: Path, samples: Sequence[Sample]) -> None:
        """Make a store of it in one step: whoever looks sees what was there before, or all of the new one."""
        entries = [self.entries[number] for number in sorted(self.entries)]
        hashes = [value for entry in entries for value in entry.hashes]
        files = [value for entry in entries for value in entry.pictures]
        left_out = {name: reason for entry in entries for name, reason in entry.bad.items()}
        kept = [row for row, sample in enumerate(samples) if sample.id not in left_out]
        self.close()
        ready = self._without_gaps(kept) if left_out else self.folder
        plan = self.plan
        index: dict[str, Any] = {
            "format": "cutline-features",
            "version": VERSION,
            **asdict(plan.key),
            "backend": plan.backend,
            "backend_version": plan.backend_version,
            "error": plan.error,
            "grid": [len(kept), *plan.grid[1:]],
            "pooled": [len(kept), *plan.pooled[1:]],
            "ids": [samples[row].id for row in kept],
            "pictures": [files[row] for row in kept],
            "hashes": [hashes[row] for row in kept],
            "left_out": left_out,
            "digest": "",
        }
        index["digest"] = digest(index)
        write_text(ready / INDEX, json.dumps(index))
        for name in (GRID, POOLED):
            durable.sync(ready / name)
        durable.sync(ready)
        old = out.with_name(f"{out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)  # whoever has it mapped keeps what is mapped
        ready.rename(out)
        durable.sync(out.parent)
        for name in (PLAN, JOURNAL, OWNER):  # not before: what is there without them would be begun anew
            (out / name).unlink(missing_ok=True)
        for left in (old, self.folder):
            shutil.rmtree(left, ignore_errors=True)

    def close(self) -> None:
        self._journal.close()
        self.grid.flush()
        self.pooled.flush()
        del self.grid, self.pooled

    def _certain(self, entry: Entry, samples: Sequence[Sample]) -> bool:
        """The rows are what was written, of files that are what was read; a picture that was bad gets a new chance."""
        first = entry.batch * self.plan.batch
        mine = samples[first : first + self.plan.batch]
        if entry.bad or not len(mine) == len(entry.pictures) == len(entry.hashes):
            return False
        for row, (sample, file, value) in enumerate(zip(mine, entry.pictures, entry.hashes), start=first):
            if hash_row(self.grid[row], self.pooled[row]) != value or not same_file(sample.image, file):
                return False
        return True

    def _without_gaps(self, kept: Sequence[int]) -> Path:
        """A copy with the rows of the pictures that could be read; the draft stays until that has taken its place."""
        slim = self.folder / "slim"
        shutil.rmtree(slim, ignore_errors=True)
        slim.mkdir()
        for name, shape in ((GRID, self.plan.grid), (POOLED, self.plan.pooled)):
            _reserve(slim / name, (len(kept), *shape[1:]))
            source, target = np.load(self.folder / name, mmap_mode="r"), np.lib.format.open_memmap(slim / name, "r+")
            for place in range(0, len(kept), 256):
                target[place : place + 256] = source[kept[place : place + 256]]
            target.flush()
            del source, target
        return slim


def stamp(path: Path) -> tuple[int, int, str]:
    """What a picture's file is now: size, time and hash."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, hash_file(path)


def same_file(path: Path, recorded: Sequence[Any]) -> bool:
    """Whether `path` holds what was recorded: by size and time, and by its hash where those differ."""
    try:
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == tuple(recorded[:2]) or hash_file(path) == recorded[2]
    except OSError:
        return False


@contextlib.contextmanager
def only_builder(out: Path, draft: Path) -> Iterator[None]:
    """Hold the right to build `out`, which the system takes back from a process that ends in any way."""
    filelock = require("filelock", "train", "building a feature store")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out.with_name(f".{out.name}.lock"))
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ModelError(
            f"{out} is being built by {_owner(draft)}", fix="wait for it, or name another store with --out"
        ) from None
    except OSError as error:
        raise CutlineError(f"cannot write {out}: {error.strerror or error}") from None
    try:
        yield
    except OSError as error:
        raise CutlineError(f"cannot build {out}: {error}") from error
    finally:
        lock.release()


def claim(draft: Path) -> None:
    """Leave word of who builds, for others to read."""
    write_text(draft / OWNER, json.dumps({"process": os.getpid(), "host": platform.node()}))


def _owner(draft: Path) -> str:
    try:
        owner: Mapping[str, Any] = json.loads((draft / OWNER).read_text(encoding="ascii"))
        return f"process {owner['process']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def write_text(path: Path, text: str) -> None:
    """`path` with this content, or as it was."""
    part = path.with_name(f"{path.name}.part")
    durable.write(part, text.encode("ascii"))
    part.replace(path)


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    begin = write_header(path, shape)
    size = begin + 2 * int(np.prod(shape, dtype=np.int64))
    with path.open("r+b") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            raise CutlineError(f"cannot reserve {size / 1e9:.1f} GB for {path}: {error.strerror}") from None
