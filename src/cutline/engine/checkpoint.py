"""Checkpoints that are either whole or not there.

A checkpoint is a folder `step-00001234`: tensors as safetensors, all else as JSON, and a manifest of sizes and hashes.
It is written to a temporary folder beside it, each file fsynced, the manifest last, then renamed and the parent
fsynced; only then are older ones removed. The latest is the highest step whose manifest verifies. Nothing is unpickled.

Written by hand because the usual ways fail at this: with one bit flipped, `torch.load` and safetensors load wrong
values without a word, and a process killed while it saves over one file leaves nothing to go back to.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from torch import Tensor

from cutline.errors import ModelError

FORMAT = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        return state

    def tensors(self, name: str) -> dict[str, Tensor]:
        # Read rather than map: a mapped file that is cut short kills the process (SIGBUS).
        return safetensors.torch.load((self.path / f"{name}.safetensors").read_bytes())

    def has(self, name: str) -> bool:
        return (self.path / f"{name}.safetensors").exists()


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Checkpoint:
    """Write a checkpoint; once this returns, it survives a power loss."""
    target = folder / f"step-{step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    files: dict[str, bytes] = {
        f"{name}.safetensors": safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in group.items()})
        for name, group in tensors.items()
    }
    files["state.json"] = json.dumps(state).encode()
    listing = {name: {"bytes": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)} for name, data in files.items()}
    files[MANIFEST] = json.dumps({"format": FORMAT, "step": step, "files": listing}).encode()
    for name, data in files.items():
        _write_synced(temporary / name, data)
    _sync_folder(temporary)
    replaced = temporary.with_suffix(".old.tmp")
    if target.exists():  # a run that went back and came here again: the new state is the true one
        target.rename(replaced)
    temporary.rename(target)
    _sync_folder(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return Checkpoint(target, step)


def problem(path: Path) -> str:
    """What is wrong with a checkpoint, in words; empty when it verifies."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this version reads {FORMAT}"
        if path.name != f"step-{manifest['step']:08d}":
            return f"holds step {manifest['step']}, which its name does not say"
        for name, facts in files.items():
            data = (path / name).read_bytes()
            if len(data) != facts["bytes"]:
                return f"{name} has {len(data)} bytes, the manifest says {facts['bytes']}"
            if xxhash.xxh3_128_hexdigest(data) != facts["xxh3"]:
                return f"{name} does not match its hash"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read: {error!r}"
    return ""


def candidates(folder: Path) -> list[tuple[int, Path]]:
    """Every checkpoint folder, newest first, verified or not."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def verified(folder: Path) -> Iterator[Checkpoint]:
    """Checkpoints that verify, newest first."""
    return (Checkpoint(path, step) for step, path in candidates(folder) if not problem(path))


def latest(folder: Path) -> Checkpoint:
    """The newest checkpoint that verifies, or an error that lists why each was refused."""
    for checkpoint in verified(folder):
        return checkpoint
    refused = [f"{path.name}: {problem(path)}" for _, path in candidates(folder)]
    raise ModelError(
        f"no valid checkpoint in {folder}" + "".join(f"\n  {line}" for line in refused),
        expected="a folder step-N whose files match its manifest" if refused else "at least one folder step-N",
    )


def retain(folder: Path, newest: Checkpoint, keep: int, also: set[int]) -> None:
    """Remove all but the `keep` newest and those named, and only when the newest verifies."""
    if why := problem(newest.path):
        raise ModelError(f"{newest.path} was just written and is already damaged: {why}", fix="check the disk")
    staying = [step for step, _ in candidates(folder)][: max(keep, 1)]
    for step, path in candidates(folder):
        if step not in staying and step not in also:
            shutil.rmtree(path)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state as flat tensors, and its groups as JSON."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, state["param_groups"]


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[Any]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
