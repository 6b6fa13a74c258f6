"""Checkpoints that are either whole or not there.

A checkpoint is a folder `step-00001234`: tensors as safetensors, all else as JSON, and a manifest of sizes and hashes
that names its run and is sealed by a hash of its own. It is written to a temporary folder beside it, each file fsynced,
the manifest last, then the folder; renamed, and the parent fsynced. Then it is read back, and only when that gives what
was written are older ones removed. The latest is the highest step whose manifest verifies. Nothing is unpickled.

Written by hand because the usual ways fail at this: with one bit flipped, `torch.load` and safetensors load wrong
values without a word, and a process killed while it saves over one file leaves nothing to go back to.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from cutline import durable
from cutline.errors import ModelError

FORMAT = 2
MANIFEST = "manifest.json"
CHUNK = 2**20
"""Bytes written or read at once: few enough that they are still in the cache when they are hashed."""
Buffer = bytes | memoryview
_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose manifest is in order; what is read of it is checked against that."""

    path: Path
    step: int
    files: Mapping[str, Mapping[str, Any]]

    def read(self, name: str) -> bytes:
        # Read rather than map: a mapped file that is cut short kills the process (SIGBUS).
        data, facts = (self.path / name).read_bytes(), self.files[name]
        if why := _wrong_size(name, len(data), facts) or _wrong_hash(name, _hash(data), facts):
            raise ModelError(f"{self.path}: {why}", fix="start again: an older checkpoint is used then")
        return data

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.read("state.json"))
        return state

    @property
    def stage(self) -> int:
        """The stage, from 0, in which its weights were learned."""
        return int(self.state["progress"]["stage"])

    @property
    def bytes(self) -> int:
        return sum(int(facts["bytes"]) for facts in self.files.values())


class Checkpoints:
    """The checkpoints of one run, in `RUN/checkpoints`."""

    def __init__(self, run: Path, identity: str) -> None:
        """`identity` is the run's own: a checkpoint of any other is refused."""
        self.folder, self.identity = run / "checkpoints", identity

    def write(self, step: int, files: Mapping[str, Buffer]) -> Checkpoint:
        """Write a checkpoint; once this returns, it survives a power loss."""
        self.folder.mkdir(exist_ok=True)  # but not the run's, which may have been moved away
        durable.sync(self.folder.parent)  # always: whoever made the folder may have been killed before it did this
        target = self._unused(step)
        temporary = self.folder / f".{target.name}.{os.getpid()}.tmp"
        _delete(temporary)
        os.mkdir(temporary)  # noqa: PTH102 - every step of the protocol is a call of `os`, which tests record
        try:
            listing = {name: _write(temporary / name, data) for name, data in files.items()}
            manifest = {"format": FORMAT, "run": self.identity, "step": step, "files": listing}
            _write(temporary / MANIFEST, _sealed(json.dumps(manifest).encode()))
            durable.sync(temporary)
            os.rename(temporary, target)  # noqa: PTH104
            durable.sync(self.folder)
        except BaseException:
            _delete(temporary)
            raise
        return Checkpoint(target, step, listing)

    def candidates(self) -> list[Path]:
        """Every checkpoint folder, newest first, verified or not."""
        if not self.folder.is_dir():
            return []
        found = [(_place(path), path) for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return [path for _, path in sorted(found, reverse=True)]

    def problem(self, path: Path) -> str:
        """What is wrong with a checkpoint, in words; empty when every byte is as it was written."""
        found = self._open(path)
        if isinstance(found, str):
            return found
        for name, facts in found.files.items():
            try:
                why = _fault(path / name, facts)
            except FileNotFoundError:
                return f"{name} is missing"
            except OSError as error:
                return f"{name} cannot be read: {error.strerror}"
            if why:
                return why
        return ""

    def verified(self) -> Iterator[Checkpoint]:
        """Checkpoints of which every byte is as it was written, newest first."""
        for path in self.candidates():
            if not self.problem(path):
                found = self._open(path)
                assert isinstance(found, Checkpoint)
                yield found

    def latest(self) -> Checkpoint:
        """The newest checkpoint that verifies, or an error that lists why each was refused."""
        for found in self.verified():
            return found
        refused = [f"{path.name}: {self.problem(path)}" for path in self.candidates()]
        refused += [f"{path.name}: set aside, {why_set_aside(path)}" for path in self.set_aside()]
        raise ModelError(
            f"no valid checkpoint in {self.folder}" + "".join(f"\n  {line}" for line in refused),
            expected="a folder step-N whose files match its manifest" if refused else "at least one folder step-N",
            fix="cutline runs verify shows every file; a copy of an older checkpoint can be put there",
        )

    def of_step(self, step: int) -> Checkpoint | None:
        """The newest of this step that verifies."""
        for path in self._of_step(step):
            found = "" if self.problem(path) else self._open(path)
            if isinstance(found, Checkpoint):
                return found
        return None

    def has(self, step: int) -> bool:
        """Whether there is one of this step, verified or not."""
        return bool(self._of_step(step))

    def best(self) -> Checkpoint:
        """The one of the best weights; where that is not there, the latest."""
        newest = self.latest()
        return self.of_step(newest.state["progress"]["best_step"]) or newest

    def retain(self, newest: Checkpoint, keep: int, every: int, best: int, sound: int = -1) -> list[Path]:
        """Remove all but the `keep` newest, the best, the last sound one and the first of each `every` steps.

        The newest must verify.
        """
        if why := self.problem(newest.path):
            raise OSError(f"{newest.path} was just written and is already damaged: {why}")
        there = self.candidates()
        staying = {newest.path, *there[: max(keep, 1)], *self._of_steps(best, sound), *self.first_of_each(every)}
        return self._remove([path for path in there if path not in staying])

    def first_of_each(self, every: int) -> list[Path]:
        """The first checkpoint of each `every` steps, the newest first; of 0 steps, none."""
        first: dict[int, Path] = {}
        for path in self.candidates() if every else ():  # newest first, so the first of them is what is left standing
            first[_place(path)[0] // every] = path
        return list(first.values())

    def thin(self, best: int, sound: int = -1) -> list[Path]:
        """Remove all but the newest that verifies, the best and the sound: what is promised when the disk is full."""
        newest = next(self.verified(), None)
        if newest is None:
            return []
        staying = {newest.path, *self._of_steps(best, sound)}
        return self._remove([path for path in self.candidates() if path not in staying])

    def forget_after(self, kept: Checkpoint) -> list[Path]:
        """Remove what is newer than `kept`: the run goes another way from there."""
        return self._remove([path for path in self.candidates() if _place(path) > _place(kept.path)])

    def quarantine(self, path: Path, why: str) -> Path:
        """Set a checkpoint aside, so that it is neither used nor lost."""
        there = self.folder / "quarantine"
        there.mkdir(exist_ok=True)
        names = itertools.chain([path.name], (f"{path.name}-{count}" for count in itertools.count(1)))
        aside = next(there / name for name in names if not os.path.lexists(there / name))
        path.rename(aside)
        with contextlib.suppress(OSError):  # on a full disk, or of what is no folder at all: out of the way is enough
            (aside / "why.txt").write_text(why + "\n", encoding="utf-8")
        for folder in (there, self.folder):  # in this order: its new name lasts before its old one goes
            durable.sync(folder)
        return aside

    def set_aside(self) -> list[Path]:
        there = self.folder / "quarantine"
        return sorted(there.iterdir()) if there.is_dir() else []

    def leftovers(self) -> list[Path]:
        """What saves and removals that were cut short have left; nobody may be saving now."""
        return sorted(self.folder.glob(".step-*.tmp"))

    def sweep(self) -> list[Path]:
        found = self.leftovers()
        for path in found:
            _delete(path)
        return found

    def _open(self, path: Path) -> Checkpoint | str:
        """The checkpoint by its manifest, its files not looked at yet; or what is wrong with that, in words."""
        try:
            whole = (path / MANIFEST).read_bytes()
        except FileNotFoundError:
            return f"{MANIFEST} is missing"
        except OSError as error:
            return f"{MANIFEST} cannot be read: {error.strerror}"
        text = whole.partition(b"\n")[0]
        if whole != _sealed(text):
            return f"{MANIFEST} does not match its seal"
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this version reads {FORMAT}"
        if manifest["run"] != self.identity:
            return "it belongs to another run"
        if _place(path)[0] != manifest["step"]:
            return f"holds step {manifest['step']}, which its name does not say"
        return Checkpoint(path, manifest["step"], manifest["files"])

    def _unused(self, step: int) -> Path:
        # A run that went back may come to a step again. Each has a name of its own, so that none is ever written over.
        taken = [_place(path)[1] for path in self._of_step(step)]
        return self.folder / (f"step-{step:08d}.{max(taken) + 1}" if taken else f"step-{step:08d}")

    def _of_step(self, step: int) -> list[Path]:
        return [path for path in self.candidates() if _place(path)[0] == step]

    def _of_steps(self, *steps: int) -> list[Path]:
        """The newest of each."""
        return [path for step in steps for path in self._of_step(step)[:1]]

    def _remove(self, paths: list[Path]) -> list[Path]:
        """Out of sight first, and for good: neither half there nor, after a power loss, there again."""
        hidden = {path: path.with_name(f".{path.name}.gone.tmp") for path in paths}
        for path, gone in hidden.items():
            _delete(gone)  # of an earlier removal that was cut short
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, gone)  # noqa: PTH104
        if hidden:
            durable.sync(self.folder)
        for gone in hidden.values():
            _delete(gone)
        return paths


def troubled(state: Mapping[str, Any]) -> bool:
    """Whether a state is from after steps that were no numbers: none to go back to."""
    return bool(state.get("progress", {}).get("trouble"))


def _place(path: Path) -> tuple[int, int]:
    """Which step, and which of its checkpoints."""
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, 0)


def why_set_aside(path: Path) -> str:
    try:
        return (path / "why.txt").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return "the reason is lost"


def _hash(data: Buffer) -> str:
    return str(xxhash.xxh3_128_hexdigest(data))


def _wrong_size(name: str, size: int, facts: Mapping[str, Any]) -> str:
    return "" if size == facts["bytes"] else f"{name} has {size} bytes, the manifest says {facts['bytes']}"


def _wrong_hash(name: str, digest: str, facts: Mapping[str, Any]) -> str:
    return "" if digest == facts["xxh3"] else f"{name} does not match its hash"


def _sealed(text: bytes) -> bytes:
    return text + b"\n" + _hash(text).encode() + b"\n"


def _write(path: Path, data: Buffer) -> dict[str, Any]:
    """Write and fsync a file; returns its size and hash."""
    whole = memoryview(data).cast("B")
    digest = xxhash.xxh3_128()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for start in range(0, len(whole), CHUNK):
            part = whole[start : start + CHUNK]
            digest.update(part)
            while part:
                part = part[os.write(handle, part) :]
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):  # so that reading it back asks the disk, not the memory
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
    return {"bytes": len(whole), "xxh3": digest.hexdigest()}


def _fault(path: Path, facts: Mapping[str, Any]) -> str:
    """What of a file is not as the manifest says; its size first, which costs nothing."""
    with path.open("rb", buffering=0) as file:
        if why := _wrong_size(path.name, os.fstat(file.fileno()).st_size, facts):
            return why
        digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(CHUNK))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return _wrong_hash(path.name, digest.hexdigest(), facts)


def seal(file: Path, data: bytes) -> None:
    """Write a file of the run that never changes, with what tells later whether it has."""
    facts = {"bytes": len(data), "xxh3": xxhash.xxh3_128(data).hexdigest()}
    durable.write(file.with_suffix(".json"), json.dumps(facts).encode())
    durable.write(file, data)


def unsealed(file: Path) -> str:
    """What is wrong with such a file, in words; empty when every byte is as it was written, or nothing tells."""
    try:
        return _fault(file, json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read: {error}"


def _delete(path: Path) -> None:
    """As far as that is possible: what stays is hidden, and swept at the next start."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
