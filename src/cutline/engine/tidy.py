"""Whether every byte of a run's checkpoints is as it was written, and what of a run can go."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from cutline.engine import folder
from cutline.engine.checkpoint import troubled, unsealed, why_set_aside
from cutline.engine.runs import Run, size_of
from cutline.errors import CutlineError


@dataclass(frozen=True)
class Finding:
    """What was found of one thing in a run folder."""

    what: str
    state: Literal["ok", "damaged", "set aside", "left over"]
    why: str = ""
    step: int | None = None
    bytes: int = 0


def verify(run: Run) -> Iterator[Finding]:
    """Read every checkpoint whole, and look at what belongs to them."""
    if not folder.identity(run.path):
        yield Finding("run.json", "damaged", "it does not name the run, so no checkpoint can be told to be its own")
    checkpoints = run.checkpoints()
    newest = None
    for saved in run.saved:
        why = checkpoints.problem(saved.path)
        if why and not saved.path.exists():
            continue  # the run has replaced it meanwhile
        newest = newest if why or newest else saved
        yield Finding(saved.path.name, "damaged" if why else "ok", why, saved.step, saved.bytes)
    if newest:
        why = _log_lacks(run, newest.path)
        yield Finding("events.jsonl", "damaged" if why else "ok", why, bytes=size_of(run.path / "events.jsonl"))
    for path in sorted(run.path.glob("encoder-*.safetensors")):
        why = unsealed(path)
        yield Finding(path.name, "damaged" if why else "ok", why, bytes=size_of(path))
    for path in checkpoints.set_aside():
        yield Finding(f"quarantine/{path.name}", "set aside", why_set_aside(path), bytes=size_of(path))
    if run.state != "running":  # else it is the save under way
        for path in checkpoints.leftovers():
            yield Finding(path.name, "left over", "a save or removal that was cut short", bytes=size_of(path))


@dataclass(frozen=True)
class Removal:
    """Something that a run does not need, and why not."""

    path: Path
    why: str
    bytes: int


def removable(run: Run) -> list[Removal]:
    """What can go from a run that nobody works on: what stays has been read whole first.

    The newest checkpoint that verifies stays, with the best and the last from before any trouble that the run is in; of
    a finished run that has its bundle, the best alone. So does what `training.keep_every` was asked to keep. Where no
    checkpoint verifies, all stay: something may still be got out of them by hand.
    """
    checkpoints = run.checkpoints()
    gone = dict.fromkeys(checkpoints.leftovers(), "left over from a save or removal that was cut short")
    gone |= {path: f"set aside: {why_set_aside(path)}" for path in checkpoints.set_aside()}
    whole = checkpoints.verified()
    newest = next(whole, None)
    if newest:
        found = checkpoints.of_step(newest.state.get("progress", {}).get("best_step", -1))
        best = found.path if found else newest.path
        sound = next((saved.path for saved in chain([newest], whole) if not troubled(saved.state)), newest.path)
        done = run.state == "finished" and (run.path / "bundle" / "bundle.json").exists()
        staying = [best] if done else [*dict.fromkeys((newest.path, best, sound))]
        asked = {*staying, *checkpoints.first_of_each(run.keep_every)}
        why = f"not needed beside {' and '.join(path.name for path in staying)}"
        gone |= {path: why for path in checkpoints.candidates() if path not in asked}
    return [Removal(path, why, size_of(path)) for path, why in gone.items()]


def remove(removals: list[Removal]) -> int:
    """Remove what was listed; how many bytes that has freed."""
    freed = 0
    for removal in removals:
        path = removal.path
        try:
            if not path.name.startswith("."):
                path = path.rename(path.with_name(f".{path.name}.gone.tmp"))  # never seen half there
            shutil.rmtree(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CutlineError(f"{path} could not be removed: {error.strerror}") from None
        freed += removal.bytes
    return freed


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Keep everybody from working on the run, those included whose supervisor is gone; an error when somebody does."""
    with folder.held(run), folder.held(run, folder.WORKERS_LOCK):
        yield


def _log_lacks(run: Run, newest: Path) -> str:
    """What the event log lacks of what it had when the checkpoint was made; empty when all is there."""
    try:
        wanted = json.loads((newest / "state.json").read_bytes()).get("progress", {}).get("events", 0)
    except FileNotFoundError:
        return ""  # the run has replaced it meanwhile
    size = size_of(run.path / "events.jsonl")
    if size < wanted:
        return f"has {size} bytes, {wanted} when {newest.name} was made"
    with (run.path / "events.jsonl").open("rb") as file:
        file.seek(max(wanted - 1, 0))
        return "" if not wanted or file.read(1) == b"\n" else f"no line ends where one did when {newest.name} was made"
