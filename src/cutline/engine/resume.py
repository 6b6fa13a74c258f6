"""Going on with a run: from its newest valid checkpoint, and only if it is still the same run."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutline import config as configuration
from cutline import durable
from cutline.console import say
from cutline.engine.checkpoint import Checkpoint, Checkpoints
from cutline.engine.journal import Journal
from cutline.engine.runtime import out_of_memory
from cutline.engine.trainer import Trainer
from cutline.errors import ConfigError, CutlineError

UNLEARNED = {
    "name", "output", "threads", "processes", "data.path", "data.format", "data.images", "data.skip_bad",
    "training.workers", "training.save_steps", "training.save_minutes", "training.keep", "training.keep_every",
    "training.unreadable",
}  # fmt: skip
"""Settings that have no part in what is learned (the data itself is compared by its hash, processes as ranks)."""


def resume(trainer: Trainer, *, allow_changes: bool = False, quiet: bool = False) -> Checkpoint:
    """Restore the newest valid checkpoint, if the run goes on as it was, or may change."""
    saved = _chosen(trainer)
    state = saved.state
    changes = differences(state, {**trainer.facts, "world": trainer.ranks.world})
    if changes and not allow_changes:
        raise ConfigError(
            f"{trainer.run} was not learned like this: " + "; ".join(changes),
            expected="what it was, so that it goes on as if it had never stopped",
            fix="put it back; or --allow-changes to go on all the same; or --new for a new run",
        )
    if changes:
        _load_changed(trainer, saved, changes)
        _note_changes(trainer, changes, quiet)
        adapt(trainer, saved)
    else:
        _load(trainer, saved)
    if trainer.ranks.first:
        Journal(trainer.run).write("resumed", step=saved.step, path=saved.path.name)
    say(f"resuming {trainer.run} at step {saved.step}", quiet=quiet)
    return saved


def adapt(trainer: Trainer, saved: Checkpoint) -> None:
    """Make the position that was restored one of the run as it is now, which may have changed since."""
    if not trainer.facts:  # it says nothing of itself
        return
    if _order(saved.state, saved.stage) != _order(trainer.facts, saved.stage):
        trainer.at.batch = 0  # the epoch begins again, in its new order
    trainer.count_anew()
    # Scores of two metrics or of other pictures cannot be compared.
    if (_metric(saved.state), saved.state["data"]) != (_metric(trainer.facts), trainer.facts["data"]):
        trainer.at.best, trainer.at.best_step, trainer.at.bad = -math.inf, -1, 0


def _load_changed(trainer: Trainer, saved: Checkpoint, changes: list[str]) -> None:
    """Restore it as far as it fits: what does not is the changes' fault, not the checkpoint's."""
    try:
        trainer.restore(saved)
    except (CutlineError, OSError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ConfigError(
            f"{trainer.run} cannot go on with what was changed: {'; '.join(changes)} ({error})",
            fix="put back what the weights or their optimizer hang on; or --new for a new run",
        ) from error


def _note_changes(trainer: Trainer, changes: list[str], quiet: bool) -> None:
    say("changed: " + "; ".join(changes), quiet=quiet)
    if trainer.ranks.first:
        Journal(trainer.run).write("changed", settings=changes)
        settings = configuration.to_toml(configuration.from_dict(trainer.facts["config"]))
        durable.put(trainer.run / "config.toml", settings.encode())


def _order(facts: Mapping[str, Any], stage: int) -> tuple[Any, ...]:
    """All that the order of an epoch of a stage hangs on."""
    config = facts["config"]
    changes = config["stages"][stage].get("training", {}) if config.get("stages") else {}
    batch = changes.get("batch", config["training"]["batch"])
    return (
        facts["data"]["hash"],
        facts["data"]["train"],
        batch,
        config["seed"],
        config.get("classes", {}).get("balance", "none"),
    )


def _metric(facts: Mapping[str, Any]) -> str:
    config = facts["config"]
    own = {"task": config["task"], "training": {"metric": config["training"]["metric"]}}
    return configuration.from_dict(own).metric


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was when a checkpoint was saved, each in words."""
    found = []
    if any(before["data"][what] != now["data"][what] for what in ("hash", "train")):
        was, is_now = (f"{f['data']['train']} to learn from, {f['data']['val']} to validate on" for f in (before, now))
        found.append(f"the pictures or captions are others (they were {was}; now {is_now})")
    for unit, what in (("words", "the vocabulary is another"), ("classes", "the classes are others")):
        then, there = before.get(unit), now.get(unit)
        if then and there and then["hash"] != there["hash"]:
            found.append(f"{what} ({then['count']} {unit}, now {there['count']})")
    if before["world"] != now["world"]:
        found.append(f"{before['world']} processes learned together, now {now['world']}")
    old, new = configuration.flat(_whole(before["config"])), configuration.flat(now["config"])
    compared = sorted(key for key in {*old, *new} - UNLEARNED if not key.startswith("health."))
    changed = [key for key in compared if old.get(key) != new.get(key)]
    return [*found, *(f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in changed)]


def _whole(tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the settings that there were not when it was written: nothing is what they have changed."""
    try:
        return configuration.to_dict(configuration.from_dict(dict(tables)))
    except ConfigError:  # one is no longer there, or has another meaning: let the comparison say which
        return tables


FAILURES = 2
"""Failures to load a checkpoint before it is set aside."""
LOADING = "loading.json"


class LoadError(Exception):
    """A checkpoint is whole and cannot be loaded all the same."""


def set_aside_failing(run: Path, checkpoints: Checkpoints) -> None:
    """Set aside a checkpoint that keeps failing to load, before anybody asks which is the newest."""
    told = loading(run)
    if told.get("failures", 0) >= FAILURES and (bad := checkpoints.folder / told["name"]).exists():
        why = f"it failed to load {told['failures']} times: {told['why']}"
        aside = checkpoints.quarantine(bad, why)
        Journal(run).write("quarantined", path=str(aside), why=why)
        say(f"{bad.name} is set aside as {aside}: {why}")


def _chosen(trainer: Trainer) -> Checkpoint:
    """The newest checkpoint that verifies, as the first rank sees it."""
    name = trainer.ranks.told(trainer.checkpoints.latest().path.name if trainer.ranks.first else "")
    return next(each for each in trainer.checkpoints.verified() if each.path.name == name)


def _load(trainer: Trainer, saved: Checkpoint) -> None:
    """Restore it; should the process die or fail on it, there is a note of that."""
    note = saved.path.parent / LOADING
    if trainer.ranks.first:
        before = loading(trainer.run)
        failures = before["failures"] if before.get("name") == saved.path.name else 0
        with contextlib.suppress(OSError):  # a full disk keeps nobody from going on
            note.write_text(json.dumps({"name": saved.path.name, "failures": failures}), encoding="utf-8")
    try:
        trainer.restore(saved)
    except Exception as error:
        if out_of_memory(error):  # which says nothing of the checkpoint
            raise
        if trainer.ranks.first:
            load_failed(trainer.run, f"{type(error).__name__}: {error}")
        raise LoadError(f"{saved.path} could not be loaded: {error}") from error
    if trainer.ranks.first:
        note.unlink(missing_ok=True)


def loading(run: Path) -> dict[str, Any]:
    """Which checkpoint is being loaded, or was when its process ended, and how often that has failed."""
    try:
        told = json.loads((run / "checkpoints" / LOADING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def load_failed(run: Path, why: str) -> None:
    told = loading(run)
    if told:
        told |= {"failures": told["failures"] + 1, "why": why}
        (run / "checkpoints" / LOADING).write_text(json.dumps(told), encoding="utf-8")
