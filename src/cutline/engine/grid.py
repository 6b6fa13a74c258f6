"""A grid of settings: which runs it is made of, where they are, and which of them are done."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cutline import config as configuration
from cutline import durable
from cutline.config import Config
from cutline.engine import folder, results
from cutline.engine.results import Result
from cutline.errors import ConfigError

ABOUT = "grid.json"
BASE = "base"
"""The row that changes nothing."""
OWN = ("name", "seed", "output")
"""Settings that a grid gives to each of its runs."""
VALIDATION = "validation.json"
"""What a search has scored that is not the one of a run's own validations."""
_NOTHING = "–"
_LONGEST = 120

Tables = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A row of the table: some changes to the base, learned once with each seed."""

    name: str
    changes: Tables
    learning: str
    """All settings that have a part in what is learned: cells that agree in them can share a run."""

    @property
    def slug(self) -> str:
        """Its name as part of a folder's."""
        return re.sub(r"[^\w.+=-]+", "-", self.name).strip("-.")[:_LONGEST]


@dataclass(frozen=True)
class Grid:
    base: Config
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    out: Path
    heading: str
    """What the names of the cells are the values of."""

    @property
    def trials(self) -> list[Trial]:
        return [Trial(self, cell, seed) for cell in self.cells for seed in self.seeds]


@dataclass(frozen=True)
class Trial:
    """A cell with one of the seeds."""

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
        folders = [path.parent for path in self.place.glob(f"*/{folder.ABOUT}")]
        return max(
            (path for path in folders if (path / "config.toml").exists() and not path.is_symlink()), default=None
        )

    @property
    def learned(self) -> Path | None:
        """Its run, if that was brought to its end."""
        return self.run if self.run and folder.ended(self.run) == "finished" else None

    @property
    def learner(self) -> Trial:
        """Whose run it is: its own or, where another differs in its search alone, that one's."""
        alike = [replace(self, cell=cell) for cell in self.grid.cells if cell.learning == self.cell.learning]
        return next((each for each in alike if each.run), alike[0])

    @property
    def searches(self) -> bool:
        """Whether it searches when all is learned: with another's weights, or with a consensus, which comes last."""
        agrees = self.config.task != "classes" and self.config.search.consensus > 0
        return agrees or self.learner != self

    @property
    def result(self) -> Result | None:
        """None while it is not done."""
        learner = self.learner
        if learner.learned is None:
            return None
        result = results.result(learner.learned)
        if not self.searches:
            return result
        try:
            told = json.loads((self.place / VALIDATION).read_text(encoding="utf-8"))
            if told["run"] != folder.identity(learner.learned):
                return None
            scores = told["scores"]
            return replace(result, scores=results.scores_of(scores), pictures=results.pictures_of(scores))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep(self, scores: Mapping[str, float]) -> None:
        """What its search has scored with the weights of its run, or of another's."""
        run = self.learner.learned
        assert run
        self.place.mkdir(exist_ok=True)
        write(self.place / VALIDATION, {"run": folder.identity(run), "of": run.parent.name, "scores": dict(scores)})


# Which cells --------------------------------------------------------------------------------------------------------


def varied(base: Config, asked: Sequence[str]) -> tuple[tuple[Cell, ...], str]:
    """A cell for each combination of `SETTING=V1,V2,…`, and what their names are the values of.

    Combinations that mean the same are one cell: of two attentions, say, that a decoder has not.
    """
    choices: dict[str, list[tuple[str, Any]]] = {}
    for each in asked:
        setting, values = _choices(each)
        if setting in choices:
            raise ConfigError(f"--vary names '{setting}' twice", expected="all values in one: --vary SETTING=V1,V2")
        choices[setting] = values
    alike: dict[str, list[tuple[dict[str, str], Cell]]] = {}
    for combination in itertools.product(*choices.values()):
        labels = {setting: label for setting, (label, _) in zip(choices, combination, strict=True)}
        changes: Tables = {}
        for setting, (_, value) in zip(choices, combination, strict=True):
            _put(changes, setting, value)
        config = _changed(base, changes, "--vary")
        alike.setdefault(_meaning(config), []).append((labels, Cell("", changes, _learning(config))))
    cells, meant = [], set[str]()
    for members in alike.values():
        said = {setting: {labels[setting] for labels, _ in members} for setting in choices}
        common = {setting: labels.pop() for setting, labels in said.items() if len(labels) == 1}
        meant |= common.keys()
        cells.append(replace(members[0][1], name=", ".join(common.get(setting, _NOTHING) for setting in choices)))
    if idle := [setting for setting in choices if setting not in meant]:
        raise ConfigError(f"'{idle[0]}' makes no difference here: all its values mean the same{_staged(base)}")
    return apart(cells), ", ".join(_short(list(choices)))


def alone(base: Config) -> Cell:
    """The base itself as a row."""
    return Cell(BASE, {}, _learning(base))


def rows(base: Config, path: Path) -> tuple[Cell, ...]:
    """The base, and a cell for each table of the file: its name, and what it changes."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    cells, known = [alone(base)], {_meaning(base): BASE}
    for name, changes in tables.items():
        if not isinstance(changes, dict):
            raise ConfigError(
                f"{path}: '{name}' is no row", expected='["NAME OF THE ROW"], and below it what it changes'
            )
        if name == BASE and not changes:
            continue
        config = _changed(base, changes, f"{path}: row '{name}'")
        if other := known.get(_meaning(config)):
            raise ConfigError(f"{path}: row '{name}' means the same as row '{other}'{_staged(base)}")
        known[_meaning(config)] = name
        cells.append(Cell(name, changes, _learning(config)))
    if len(cells) == 1:
        raise ConfigError(f"{path} has no rows", expected='["NAME OF A ROW"], and below it what it changes')
    return apart(cells)


def seeds(text: str) -> tuple[int, ...]:
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isdecimal() for piece in pieces) or len(set(map(int, pieces))) < len(pieces):
        raise ConfigError(f"--seeds {text}", expected="whole numbers, each once, with commas: 0,1,2")
    return tuple(map(int, pieces))


def _choices(asked: str) -> tuple[str, list[tuple[str, Any]]]:
    """A setting, and its values with their labels: values of TOML, and bare words for text."""
    setting, _, text = asked.partition("=")
    try:
        values = list(tomllib.loads(f"values = [{text}]")["values"])
    except tomllib.TOMLDecodeError:
        values = [_value(piece.strip()) for piece in text.split(",")]
    if not setting.strip() or not values or "" in text.split(","):
        raise ConfigError(f"--vary {asked}", expected="SETTING=V1,V2,…, as in decoder.kind=lstm,gru")
    labels = [_label(value) for value in values]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"--vary {asked} has a value twice")
    return setting.strip(), list(zip(labels, values, strict=True))


def _value(piece: str) -> Any:
    try:
        return tomllib.loads(f"value = {piece}")["value"]
    except tomllib.TOMLDecodeError:
        return piece


def _label(value: Any) -> str:
    """Of a path, its last part."""
    return Path(value).name or '""' if isinstance(value, str) else json.dumps(value, default=str)


def _put(tables: Tables, setting: str, value: Any) -> None:
    *sections, key = setting.split(".")
    for section in sections:
        tables = tables.setdefault(section, {})
        if not isinstance(tables, dict):
            raise ConfigError(f"--vary names '{setting}' and also '{section}'")
    tables[key] = value


def _changed(base: Config, changes: Tables, where: str) -> Config:
    if own := [key for key in changes if key in OWN]:
        raise ConfigError(f"{where} changes '{own[0]}'", expected="other settings: --seeds and --out say these")
    try:
        return configuration.from_dict(changes, base)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.what}", expected=error.expected, fix=error.fix) from None


def _meaning(config: Config) -> str:
    """All settings of all stages that have a part in what is learned or scored."""
    return json.dumps([_used(stage) for stage in config.all_stages], sort_keys=True)


def _learning(config: Config) -> str:
    """The same, without the search where that has no part in the learning itself."""
    stages = [_used(stage) for stage in config.all_stages]
    if not any(stage["training"]["objective"] == "self_critical" for stage in stages):
        for stage in stages:
            stage.pop("search", None)
    return json.dumps(stages, sort_keys=True)


def _used(config: Config) -> Tables:
    tables = configuration.to_dict(config)
    for key in (*OWN, "health", "stages", *_WITHOUT[config.task]):
        tables.pop(key)
    if "decoder" in tables:
        tables["decoder"].pop("attention" if config.decoder.kind == "transformer" else "heads")
    if "classes" in tables and config.classes.head == "linear":
        tables["classes"].pop("hidden")
    return tables


_WITHOUT = {"captions": ("classes",), "classes": ("decoder", "words", "search"), "both": ()}
"""Tables that a task has no use for."""


def _staged(base: Config) -> str:
    return " (what a stage sets replaces what the base does)" if base.stages else ""


def _short(settings: Sequence[str]) -> list[str]:
    """The last part of each setting's name, where that is enough to tell them apart."""
    last = [setting.rpartition(".")[2] for setting in settings]
    return [short if last.count(short) == 1 else whole for short, whole in zip(last, settings, strict=True)]


def apart(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Each must have a folder of its own, also where capitals count for nothing."""
    known: dict[str, str] = {}
    for cell in cells:
        if not cell.slug or known.setdefault(cell.slug.lower(), cell.name) != cell.name:
            same = f" as well as '{known[cell.slug.lower()]}'" if cell.slug else ""
            raise ConfigError(f"'{cell.name}'{same} makes no name for a folder", fix="name it otherwise, with --rows")
    return tuple(cells)


# What is on disk ----------------------------------------------------------------------------------------------------


def open_or_begin(grid: Grid) -> None:
    """Note what the grid is made of in its folder; refuse one that was begun otherwise."""
    file = grid.out / ABOUT
    base = configuration.to_dict(grid.base)
    cells: Tables = {cell.slug: {"name": cell.name, "changes": cell.changes} for cell in grid.cells}
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            there = before["cells"]
            # A setting that there was not then has the value that changes nothing.
            _same(grid.out, "base", _flat(configuration.to_dict(Config())) | _flat(before["base"]), _flat(base))
            for slug in cells.keys() & there.keys():
                then, now = (_flat(each[slug]["changes"]) for each in (there, cells))
                _same(grid.out, f"row '{cells[slug]['name']}'", then, now)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"{file} is damaged", fix="remove it, if the runs beside it are of these very settings"
            ) from None
        cells = there | cells
    write(file, {"base": base, "cells": cells})


def write(path: Path, value: Any) -> None:
    """As JSON, whole or not at all."""
    durable.put(path, (json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n").encode())


def _same(out: Path, what: str, old: Tables, new: Tables) -> None:
    if changed := sorted(key for key in {*old, *new} if old.get(key) != new.get(key) and not _is_own(key)):
        told = [f"{key} was {old.get(key, _NOTHING)!r}, now {new.get(key, _NOTHING)!r}" for key in changed]
        raise ConfigError(
            f"{out} holds a grid with another {what}: {'; '.join(told)}",
            expected="the settings that it was begun with",
            fix="put them back, or take another --out",
        )


def _is_own(key: str) -> bool:
    """Whether it may be another for a grid that goes on: what each run has of its own, and how it is looked after."""
    return key in OWN or key.startswith("health.")


def _flat(tables: Tables) -> Tables:
    """As it comes back from the file."""
    return configuration.flat(json.loads(json.dumps(tables, default=str)))
