"""What runs have come to, for tables of several: scores, parameters, time, memory; and the mean of those alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutline.engine import journal, runs


@dataclass(frozen=True)
class Result:
    """What a run has come to; None where that is not known."""

    scores: dict[str, float] = field(default_factory=dict)
    """Of the best validation, as the events name them."""
    pictures: int | None = None
    """That the scores are of."""
    data: str | None = None
    """A hash of all data."""
    learning: int | None = None
    """Parameters that learn, in the last stage."""
    parameters: int | None = None
    seconds: float | None = None
    """Of learning and validating, without pauses and preparation."""
    epoch_seconds: float | None = None
    memory: int | None = None
    """Bytes that the process held at the most."""
    best_epoch: int | None = None
    """Of the best validation; epochs are counted through all stages."""
    epochs: int | None = None


def result(path: Path) -> Result:
    """Of the run in this folder."""
    run, entries = runs.Run(path), journal.read(path)
    validations, best, plan = run.validations(), run.curve.best, run.history.plan
    epochs = _epochs(validations, _begins(entries))
    seconds = _seconds(entries)
    peaks = [entry.get(key) for entry in entries for key in ("peak_memory", "process_memory")]
    return Result(
        scores=scores_of(best),
        pictures=pictures_of(best),
        data=run.data,
        learning=plan.get("learning"),
        parameters=plan.get("parameters"),
        seconds=seconds,
        epoch_seconds=seconds / max(epochs.values()) if seconds and epochs else None,
        memory=max((peak for peak in peaks if isinstance(peak, int)), default=None),
        best_epoch=epochs.get(best.get("step", -1)),
        epochs=max(epochs.values(), default=None),
    )


def scores_of(validation: Mapping[str, Any]) -> dict[str, float]:
    plain = {key: value for key, value in validation.items() if type(value) in (int, float) and not _is_count(key)}
    return {key: float(value) for key, value in plain.items() if key not in ("step", "epoch")}


def pictures_of(validation: Mapping[str, Any]) -> int | None:
    counts = [value for key, value in validation.items() if type(value) in (int, float) and _is_count(key)]
    return int(max(counts)) if counts else None


def _is_count(key: str) -> bool:
    return key == "count" or key.endswith("_count")


def _begins(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """The steps after which each stage began."""
    first: dict[int, int] = {}
    for entry in entries:
        if entry["kind"] == "training":
            stage, step = entry.get("stage", 1), entry.get("step", 0)
            first[stage] = min(first.get(stage, step), step)
    return sorted(first.values())


def _epochs(validations: Sequence[Mapping[str, Any]], begins: Sequence[int]) -> dict[int, int]:
    """By its step, each validation's epoch, counted through all stages: events count those of a stage."""
    last: dict[int, int] = {}
    counted = {}
    for validation in validations:
        last[sum(begin < validation["step"] for begin in begins)] = validation["epoch"]
        counted[validation["step"]] = sum(last.values())
    return counted


def _seconds(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """From each beginning of a stage, or going on with it, to the last that was heard of it."""
    total, begun, last = 0.0, math.nan, math.nan
    for entry in [*entries, {"kind": "started"}]:
        if entry["kind"] in ("training", "started"):
            total += last - begun if last >= begun else 0.0
            begun = last = entry["time"] if entry["kind"] == "training" else math.nan
        elif entry["kind"] not in ("finished", "failed", "restarting", "gave_up"):
            last = entry["time"]
    return total or None


@dataclass(frozen=True)
class Figure:
    """The mean of what several runs have come to, and how far they lie apart."""

    mean: float
    spread: float | None
    """Standard deviation; None for a single run."""


def figure(values: Sequence[float | None]) -> Figure | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Figure(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)
