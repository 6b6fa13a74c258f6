"""Networks against each other on one data set, under the same minutes: what each has learned, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutline import config as configuration
from cutline.config import Config, PicturesConfig
from cutline.console import say
from cutline.data.corpus import Sample
from cutline.data.images import Transform
from cutline.engine import folder, journal, results, run, runs, trained
from cutline.engine.classes import numbered
from cutline.engine.grid import Cell, Grid, Trial, apart, write
from cutline.engine.sources import PictureSource, Source, load_readable
from cutline.engine.weights import Model
from cutline.errors import DataError
from cutline.evaluation import cost
from cutline.evaluation.baselines import Baseline, Labelled, logistic_regression, nearest_pictures
from cutline.models.encoders import Encoder

ENDLESS = 10_000
"""Epochs, where it is the minutes that end the learning."""
MEASURED = "measured.json"
HEAD = 0.1
"""Share of the minutes for the stages before the last: those in which a head is put on given weights."""
METHODS: dict[str, Callable[..., Baseline]] = {
    "nearest pictures": nearest_pictures,
    "logistic regression": logistic_regression,
}
_SIDE = 16
"""Of the pictures whose pixels are compared as they are."""
_TOGETHER = 32
"""Pictures encoded at a time where the time of encoding many is measured."""


# Which networks -----------------------------------------------------------------------------------------------------


def plan(
    scratch: Config,
    given: Mapping[str, Config],
    networks: Sequence[str],
    minutes: float,
    seeds: tuple[int, ...],
    out: Path,
) -> Grid:
    """A cell for each network that learns from nothing, as `scratch` does, and for each way to use `given` weights."""
    base = by_the_clock(scratch, minutes)
    encoders = {name: replace(base.encoder, name=name, weights="none") for name in networks}
    configs = {name: replace(base, encoder=encoder) for name, encoder in encoders.items()}
    configs |= {name: by_the_clock(config, minutes) for name, config in given.items()}
    plain = configuration.to_dict(base)
    cells = []
    for name, config in configs.items():
        tables = configuration.to_dict(config)
        cells.append(Cell(name, _difference(plain, tables), json.dumps(tables, sort_keys=True)))
    return Grid(base, apart(cells), seeds, out, "network")


def by_the_clock(config: Config, minutes: float) -> Config:
    """Learn for so many minutes at the most, and look at the validation pictures once, in the end.

    So nothing is chosen on the pictures that are judged, neither when to stop nor whose weights to take.
    """
    once = {"validate_every": ENDLESS, "validate_limit": 0, "patience": 0}
    if not config.stages:
        frozen = config.encoder.train == "nothing"
        epochs = config.training.epochs if frozen else ENDLESS
        return configuration.from_dict({"training": {**once, "epochs": epochs, "minutes": minutes}}, config)
    *before, last = config.stages
    share = minutes * HEAD / max(len(before), 1)
    stages = [_learning(stage, **once, minutes=share) for stage in before]
    stages.append(_learning(last, **once, minutes=minutes * (1 - HEAD * bool(before)), epochs=ENDLESS))
    return configuration.from_dict({"stages": stages}, config)


def _learning(stage: Mapping[str, Any], **training: Any) -> dict[str, Any]:
    return {**stage, "training": {**stage.get("training", {}), **training}}


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    return {key: _difference(old[key], each) if isinstance(each, dict) else each for key, each in changed.items()}


# What they are worth ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What has come of a network with one seed, or of a baseline; None where that is not known."""

    of: str
    """Whose these are: the run's identity, or a hash of what a baseline was made of."""
    data: str
    """A hash of all pictures with their labels and splits."""
    scores: dict[str, float]
    pictures: int
    """That the scores are of."""
    parameters: int
    """All numbers that are kept; of the nearest pictures, their features are among them."""
    multiply_adds: int
    """For a picture."""
    seconds: float
    """Of learning, with the encoding of every training picture where that is done once."""
    picture_seconds: float
    """For a picture by itself, decoded and of the right size, in PyTorch."""
    memory: int | None = None
    """Bytes that the learning process held at the most."""
    epochs: int | None = None
    chosen: str = ""
    """The setting of a baseline, as it was chosen on some of the training pictures."""


def load(place: Path, of: str) -> Measured | None:
    """What was measured there, unless that was of something else."""
    try:
        found = Measured(**json.loads((place / MEASURED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.of == of else None


def keep(place: Path, measured: Measured) -> Measured:
    place.mkdir(exist_ok=True)
    write(place / MEASURED, asdict(measured))
    return measured


def of_trial(trial: Trial) -> Measured | None:
    """None while its run is not at its end."""
    if trial.learned is None:
        return None
    return load(trial.place, folder.identity(trial.learned)) or keep(trial.place, _measure(trial.learned))


def _measure(path: Path) -> Measured:
    result, last = results.result(path), runs.Run(path).validations()[-1]
    classifier, _, _ = trained.load_classifier(path)
    side = classifier.encoder.transform.size
    picture = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    learned = {entry["stage"]: entry["seconds"] for entry in journal.read(path) if entry["kind"] == "learned"}
    seconds = sum(learned.values())
    if any(path.glob("encoder-*.safetensors")):  # encoded once, before the learning
        seconds += _encoding(classifier.encoder) * _learned_from(path)
    with torch.inference_mode():
        time = cost.time_per_picture(lambda: classifier((picture,)))
    return Measured(
        of=folder.identity(path),
        data=str(result.data),
        scores=results.scores_of(last),
        pictures=results.pictures_of(last) or 0,
        parameters=cost.parameters(classifier),
        multiply_adds=cost.multiply_adds(classifier, (picture,)),
        seconds=seconds,
        picture_seconds=time.median,
        memory=result.memory,
        epochs=result.epochs,
    )


def _learned_from(path: Path) -> int:
    state = runs.Run(path).checkpoints().latest().state
    return int(state["data"]["train"])


def _encoding(encoder: Encoder) -> float:
    """Seconds for a picture where many are encoded."""
    side = encoder.transform.size
    pictures = torch.zeros(_TOGETHER, 3, side, side, dtype=torch.uint8)
    with torch.inference_mode():
        return cost.time_per_picture(lambda: encoder(pictures), _TOGETHER, least=3).median


# Baselines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Each picture as a row of numbers, what its class is, and what it costs to come by the numbers."""

    known: Labelled
    judged: Labelled
    names: tuple[str, ...]
    data: str
    parameters: int = 0
    multiply_adds: int = 0
    seconds: float = 0.0
    """For a picture of many."""
    picture_seconds: float = 0.0
    """For one by itself."""


def see_pixels(config: Config) -> Seen:
    """The pixels themselves, of pictures made very small."""
    small = Transform(_SIDE, config.pictures.fit, "bicubic", 1.0, (0.5,) * 3, (0.5,) * 3)

    def shrunk(config: Config, model: Model, learn: list[Sample], judge: list[Sample], quiet: bool) -> Any:
        return tuple(PictureSource(samples, small, config.pictures) for samples in (learn, judge))

    seen, _ = _see(config, shrunk)
    return seen


def see_features(config: Config) -> Seen:
    """What an encoder that stays as it is has seen in each picture."""
    plain = PicturesConfig(size=config.pictures.size, fit=config.pictures.fit)  # what changes is not stored
    config = replace(config, pictures=plain, training=replace(config.training, features=True))
    seen, model = _see(config, run.stored_or_pictures)
    encoder = model.encoder.cpu().eval()
    side = encoder.transform.size
    picture = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    with torch.inference_mode():
        alone = cost.time_per_picture(lambda: encoder(picture)).median
    return replace(
        seen,
        parameters=cost.parameters(encoder),
        multiply_adds=cost.multiply_adds(encoder, picture),
        seconds=_encoding(encoder),
        picture_seconds=alone,
    )


def _see(config: Config, sources: run.Sources) -> tuple[Seen, Model]:
    kept: list[tuple[Source, list[Sample]]] = []

    def noting(config: Config, model: Model, learn: list[Sample], judge: list[Sample], quiet: bool) -> Any:
        found = sources(config, model, learn, judge, quiet)
        kept.extend(zip(found, (learn, judge), strict=True))
        return found

    prepared = run.prepare(config, sources=noting, quiet=True)
    names = prepared.known.classes
    known, judged = (_rows(source, samples, names) for source, samples in kept)
    data = run.fingerprint(prepared.corpus, labels=True)
    return Seen(known, judged, names, data), prepared.model


def _rows(source: Source, samples: Sequence[Sample], names: Sequence[str]) -> Labelled:
    """The numbers of all pictures that can be read and have a label."""
    there = np.flatnonzero([sample.label is not None for sample in samples])
    rows, places, bad = [], [], list[str]()
    for start in range(0, len(there), 256):
        part = there[start : start + 256]
        inputs, kept, reasons = load_readable(source, part, None)
        bad += reasons.values()
        if kept:
            found = inputs[-1].flatten(1)  # the pooled features, or the pictures themselves
            rows.append((found / 127.5 - 1 if found.dtype == torch.uint8 else found).float().numpy())
            places.append(part[kept])
    if not rows:
        raise DataError("none of the pictures can be read", expected="at least one")
    if bad:
        say(f"left out of what needs no learning: {len(bad)} pictures that cannot be read, first {bad[0]}")
    return Labelled(np.concatenate(rows), numbered(samples, names)[np.concatenate(places)])


def baseline(method: str, seen: Seen, seed: int, of: str) -> Measured:
    """What next to no learning makes of it."""
    found = METHODS[method](seen.known, seen.judged, seen.names, seed=seed)
    count, channels = np.shape(seen.known.features)
    near = method == "nearest pictures"
    kept = count * channels if near else (channels + 1) * len(seen.names)
    one = np.asarray(seen.judged.features, np.float32)[:1]
    scores = found.scores
    return Measured(
        of=of,
        data=seen.data,
        scores=scores.figures,
        pictures=scores.count,
        parameters=seen.parameters + kept,
        multiply_adds=seen.multiply_adds + (count if near else len(seen.names)) * channels,
        seconds=found.seconds + seen.seconds * count,
        picture_seconds=seen.picture_seconds + cost.time_per_picture(lambda: found.guess(one), seconds=0.2).median,
        chosen=f"{found.setting:g} neighbour{'s' * (found.setting != 1)}"
        if near
        else f"weight decay {found.setting:g}",
    )
