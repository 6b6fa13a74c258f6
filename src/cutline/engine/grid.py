"""A grid of settings: which runs it is made of, which of them are done, and what each has shown."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cutline import config as configuration
from cutline import durable
from cutline.config import Config
from cutline.engine import folder, journal, runs
from cutline.errors import ConfigError

ABOUT = "grid.json"
BASE = "base"
"""The row that changes nothing."""
OWN = ("name", "seed", "output")
"""Settings that a grid gives to each of its runs."""
_NOTHING = "–"

Tables = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A row of the table: some changes to the base, learned once with each seed."""

    name: str
    changes: Tables

    @property
    def slug(self) -> str:
        """Its name as part of a folder's."""
        return re.sub(r"[^A-Za-z0-9._=+-]+", "-", self.name).strip("-.") or "cell"


@dataclass(frozen=True)
class Grid:
    base: Config
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    out: Path
    heading: str = "row"
    """What the names of the cells are the values of."""

    @property
    def trials(self) -> list[Trial]:
        return [Trial(self, cell, seed) for cell in self.cells for seed in self.seeds]


@dataclass(frozen=True)
class Trial:
    """One run of a grid."""

    grid: Grid
    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        return f"{self.cell.slug}-seed{self.seed}"

    @property
    def place(self) -> Path:
        return self.grid.out / self.name

    @property
    def config(self) -> Config:
        changed = configuration.from_dict(self.cell.changes, self.grid.base)
        return replace(changed, name=self.name, seed=self.seed, output=str(self.place.absolute()))

    @property
    def run(self) -> Path | None:
        """The newest of its folders in which learning has begun."""
        begun = [path.parent for path in self.place.glob(f"*/{folder.ABOUT}") if (path.parent / "config.toml").exists()]
        return max((path for path in begun if not path.parent.is_symlink()), default=None)


# Which cells ---------------------------------------------------------------------------------------------------------


def varied(base: Config, asked: Sequence[str]) -> tuple[tuple[Cell, ...], str]:
    """A cell for each combination of `SETTING=V1,V2,…`, and what their names are the values of.

    Combinations that mean the same are one cell: those of settings that a part of the model does not have.
    """
    choices = dict(_choices(each) for each in asked)
    if len(choices) < len(asked):
        raise ConfigError("--vary names a setting twice", expected="all its values in one: --vary SETTING=V1,V2")
    alike: dict[str, list[tuple[dict[str, str], Tables]]] = {}
    for combination in itertools.product(*choices.values()):
        changes: Tables = {}
        for setting, (_, value) in zip(choices, combination):
            _put(changes, setting, value)
        labels = {setting: label for setting, (label, _) in zip(choices, combination)}
        meaning = _meaning(_changed(base, changes, ", ".join(labels.values())))
        alike.setdefault(meaning, []).append((labels, changes))
    named = {setting: {} for setting in choices}  # type: dict[str, dict[str, str]]
    cells = []
    for members in alike.values():
        first = members[0][0]
        for setting in choices:
            free = len({labels[setting] for labels, _ in members}) > 1
            named[setting][", ".join(first.values())] = _NOTHING if free else first[setting]
        cells.append(Cell(", ".join(named[s][", ".join(first.values())] for s in choices), members[0][1]))
    for setting, labels in named.items():
        if set(labels.values()) == {_NOTHING}:
            raise ConfigError(f"'{setting}' makes no difference here: each of its values means the same{_staged(base)}")
    return _unique(cells), ", ".join(_short(choices))


def rows(base: Config, path: Path) -> tuple[Cell, ...]:
    """The base, and a cell for each table of the file: its name, and what it changes."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    known = {_meaning(base): BASE}
    cells = [Cell(BASE, {})]
    for name, changes in tables.items():
        if not isinstance(changes, dict):
            raise ConfigError(f"{path}: '{name}' is no row", expected=f'["{name}"], and below it what it changes')
        if name == BASE and not changes:
            continue
        meaning = _meaning(_changed(base, changes, f"{path}: row '{name}'"))
        if meaning in known:
            raise ConfigError(f"{path}: row '{name}' means the same as row '{known[meaning]}'{_staged(base)}")
        known[meaning] = name
        cells.append(Cell(name, changes))
    return _unique(cells)


def seeds(text: str) -> tuple[int, ...]:
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isdecimal() for piece in pieces) or len(set(map(int, pieces))) < len(pieces):
        raise ConfigError(f"--seeds {text}", expected="whole numbers, each once, with commas: 0,1,2")
    return tuple(map(int, pieces))


def _choices(asked: str) -> tuple[str, list[tuple[str, Any]]]:
    """A setting and its values, each as it was written and as TOML has it; bare words are text."""
    setting, equals, text = asked.partition("=")
    if not equals or not setting.strip() or not text.strip():
        raise ConfigError(f"--vary {asked}", expected="SETTING=V1,V2,…, as in decoder.kind=lstm,gru")
    try:
        values = tomllib.loads(f"values = [{text}]")["values"]
        written = [value if isinstance(value, str) else json.dumps(value, default=str) for value in values]
    except tomllib.TOMLDecodeError:
        written = [piece.strip() for piece in text.split(",")]
        values = [_value(piece) for piece in written]
    if len({json.dumps(value, default=str) for value in values}) < len(values):
        raise ConfigError(f"--vary {asked} names a value twice")
    if "" in written:
        written = [label or '""' for label in written]
    return setting.strip(), [(Path(label).name or label, value) for label, value in zip(written, values)]


def _value(piece: str) -> Any:
    try:
        return tomllib.loads(f"value = {piece}")["value"]
    except tomllib.TOMLDecodeError:
        return piece


def _put(tables: Tables, setting: str, value: Any) -> None:
    *sections, key = setting.split(".")
    for section in sections:
        tables = tables.setdefault(section, {})
    tables[key] = value


def _changed(base: Config, changes: Tables, where: str) -> Config:
    if own := [key for key in changes if key in OWN]:
        raise ConfigError(f"{where} changes '{own[0]}'", expected="other settings; --seeds and --out say these")
    try:
        return configuration.from_dict(changes, base)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.what}", expected=error.expected, fix=error.fix) from None


def _meaning(config: Config) -> str:
    """All settings of all stages that have a part in what is learned or scored."""
    stages = []
    for number in range(max(1, len(config.stages))):
        tables = configuration.to_dict(config.stage(number))
        for key in (*OWN, "health", "stages", *_UNUSED[config.task]):
            tables.pop(key, None)
        if "decoder" in tables:
            tables["decoder"].pop("attention" if config.decoder.kind == "transformer" else "heads")
        if "classes" in tables and config.classes.head == "linear":
            tables["classes"].pop("hidden")
        stages.append(tables)
    return json.dumps(stages, sort_keys=True)


_UNUSED = {"captions": ("classes",), "classes": ("decoder", "words", "search"), "both": ()}


def _staged(base: Config) -> str:
    return " (a stage's own settings replace those of the base)" if base.stages else ""


def _short(settings: Mapping[str, Any]) -> list[str]:
    """The last part of each setting's name, where that is enough to tell them apart."""
    last = [setting.rpartition(".")[2] for setting in settings]
    return [short if last.count(short) == 1 else whole for short, whole in zip(last, settings)]


def _unique(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Each with a folder of its own."""
    known: dict[str, str] = {}
    for cell in cells:
        if (other := known.setdefault(cell.slug.lower(), cell.name)) != cell.name:
            raise ConfigError(f"'{other}' and '{cell.name}' would have the same folder", fix="give one another name")
    return tuple(cells)


# What is on disk ----------------------------------------------------------------------------------------------------


def open_or_begin(grid: Grid) -> None:
    """Note what the grid is made of in its folder; refuse one that was begun otherwise."""
    file = grid.out / ABOUT
    base = {key: value for key, value in configuration.to_dict(grid.base).items() if key not in (*OWN, "health")}
    cells: Tables = {cell.slug: {"name": cell.name, "changes": cell.changes} for cell in grid.cells}
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            then, there = before["base"], before["cells"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{file} is damaged", fix="remove it if the runs beside it are of this very grid"
            ) from None
        _same(grid.out, "base", then, base)
        for slug in cells.keys() & there.keys():
            _same(grid.out, f"row '{cells[slug]['name']}'", there[slug]["changes"], cells[slug]["changes"])
        cells = there | cells
    write(file, {"base": base, "cells": cells})


def write(path: Path, value: Any) -> None:
    """As JSON, whole or not at all."""
    put(path, json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n")


def put(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    durable.write(draft, text.encode())
    draft.replace(path)
    durable.sync(path.parent)


def _same(out: Path, what: str, then: Tables, now: Tables) -> None:
    old, new = _flat(then), _flat(now)
    if changed := sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
        told = "; ".join(f"{key} was {_told(old, key)}, now {_told(new, key)}" for key in changed)
        raise ConfigError(
            f"{out} holds a grid with another {what}: {told}",
            expected="the settings that it was begun with",
            fix="put them back, or take another --out",
        )


def _told(flat: Tables, key: str) -> str:
    return repr(flat[key]) if key in flat else "not there"


def _flat(tables: Tables, before: str = "") -> Tables:
    flat: Tables = {}
    for key, value in json.loads(json.dumps(tables, default=str)).items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


# What runs have shown -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """What a run has shown so far; None where that is not known."""

    scores: dict[str, float] = field(default_factory=dict)
    """Of the best validation."""
    learning: int | None = None
    """Parameters that learn, in the last stage."""
    parameters: int | None = None
    seconds: float | None = None
    """Of learning and validating, without pauses and preparation."""
    epoch_seconds: float | None = None
    memory: int | None = None
    """Bytes at the peak."""
    best_epoch: int | None = None
    epochs: int | None = None


def shown(path: Path) -> Shown:
    run, entries = runs.Run(path), journal.read(path)
    validations, best, plan = run.validations(), run.curve.best, run.history.plan
    begins = _begins(entries)
    epochs = _epoch(validations, begins, len(validations) - 1)
    place = next((at for at, each in enumerate(validations) if each.get("step") == best.get("step")), -1)
    seconds = _seconds(entries)
    peaks = [entry.get(key) for entry in entries for key in ("peak_memory", "process_memory")]
    return Shown(
        scores={key: float(value) for key, value in best.items() if _is_score(key, value)},
        learning=plan.get("learning"),
        parameters=plan.get("parameters"),
        seconds=seconds,
        epoch_seconds=seconds / epochs if seconds and epochs else None,
        memory=max((peak for peak in peaks if isinstance(peak, int)), default=None),
        best_epoch=_epoch(validations, begins, place),
        epochs=epochs,
    )


def _is_score(key: str, value: object) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and key not in ("step", "epoch", "count") and not key.endswith("_count")


def _begins(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """The steps after which each stage began."""
    first: dict[int, int] = {}
    for entry in entries:
        if entry["kind"] == "training":
            stage, step = entry.get("stage", 1), entry.get("step", 0)
            first[stage] = min(first.get(stage, step), step)
    return sorted(first.values())


def _epoch(validations: Sequence[Mapping[str, Any]], begins: Sequence[int], place: int) -> int | None:
    """The epoch of a validation, counted through all stages."""
    if place < 0:
        return None
    last: dict[int, int] = {}
    for validation in validations[: place + 1]:
        stage = sum(begin < validation["step"] for begin in begins)
        last[stage] = validation["epoch"]
    return sum(last.values())


def _seconds(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """From each beginning of a stage, or going on with it, to the last that was heard of it."""
    total, begun, last = 0.0, math.nan, math.nan
    for entry in [*entries, {"kind": "started", "time": 0.0}]:
        if entry["kind"] in ("training", "started"):
            total += last - begun if last >= begun else 0.0
            begun = last = entry["time"] if entry["kind"] == "training" else math.nan
        elif entry["kind"] not in ("finished", "failed", "restarting", "gave_up"):
            last = entry["time"]
    return total or None


# A row of the table -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """The mean of what the seeds have shown, and how far they lie apart."""

    mean: float
    spread: float | None
    """Standard deviation; None for a single seed."""


def figure(values: Sequence[float | None]) -> Figure | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Figure(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)
