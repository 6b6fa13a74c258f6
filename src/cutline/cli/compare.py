"""`cutline compare RUN RUN …`: one table of what runs score and what they cost, captioners or classifiers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from cutline.cli.arguments import parse
from cutline.cli.telling import add_row, new_console, new_table, number, size
from cutline.errors import ConfigError, CutlineError, ModelError, require

if TYPE_CHECKING:
    from cutline.evaluation.cost import Timing

_OF_CLASSES = {"accuracy": "accuracy", "top5": "best five", "macro_f1": "macro F1", "ece": "ECE, uncalibrated"}
_OF_CAPTIONS = {"cider": "CIDEr-D", "bleu_4": "BLEU-4"}
_PICTURES = 8
"""Pictures that the time is measured on, one after the other."""
_APART = ("name", "seed", "output", "threads", "device", "processes", "health")
"""Settings in which runs may differ and still be the same but for luck."""


@dataclass(frozen=True)
class Compare:
    """Compare runs by their best validation, their size and their time for a picture; the best comes first.

    Runs that differ in nothing but their seed are also shown together, with their mean and how far it can be trusted.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """Run folders, or folders of them."""
    no_time: bool = False
    """Measure no time, which takes a second or two for each run."""
    format: Literal["table", "json"] = "table"
    """A table to read, or JSON with all that is known."""


@dataclass(frozen=True)
class Row:
    """What is known of a run; None where it is not."""

    name: str
    model: str
    scores: dict[str, float]
    """By what they are called in a table."""
    pictures: int | None
    """That the scores are of; of a run that has learned both, those of its classes."""
    parameters: int | None
    bytes: int | None
    """Of its bundle."""
    time: Timing | None
    data: str | None
    """A hash of the data: scores of different data cannot be compared."""
    seed: int
    settings: dict[str, Any]
    """Those that make a run what it is, its seed apart."""


def main(arguments: list[str]) -> int:
    form = parse(Compare, arguments, verb="compare")
    rows = sorted((_row(run, form) for run in _found(form.runs)), key=_best_first)
    groups = _seeds(rows)
    if form.format == "json":
        shown = [{key: value for key, value in asdict(row).items() if key != "settings"} for row in rows]
        print(json.dumps({"runs": shown, "seeds": groups}, indent=1))
    else:
        _show(rows, groups)
    return 0


def _found(places: Sequence[Path]) -> list[Path]:
    require("xxhash", "train", "comparing runs")
    from cutline.engine.runs import find, is_run

    found: dict[Path, Path] = {}
    for place in places:
        if not place.exists():
            raise ConfigError(f"there is no {place}", expected="a run folder, or a folder of them")
        runs = find(place)
        if not runs:
            raise ConfigError(f"{place} holds no run", expected="a folder that cutline train made")
        found |= {run.resolve(): run for run in runs if is_run(run)}
    return list(found.values())


def _row(path: Path, form: Compare) -> Row:
    from cutline import config as configuration
    from cutline.engine.runs import Run, size_of

    run = Run(path)
    settings = configuration.load(path / "config.toml") if (path / "config.toml").exists() else configuration.Config()
    best, bundle = run.curve.best, path / "bundle"
    classes = "accuracy" in best
    scores = {shown: float(best[key]) for key, shown in _OF_CLASSES.items() if isinstance(best.get(key), int | float)}
    for ending, shown in _OF_CAPTIONS.items():
        by_language = {key.removesuffix(f"_{ending}"): v for key, v in best.items() if key.endswith(f"_{ending}")}
        scores |= {f"{shown} {lang}": float(value) for lang, value in by_language.items()}
    counts = [best.get("count", 0)] if classes else [v for key, v in best.items() if key.endswith("_count")]
    encoder = settings.encoder.name
    return Row(
        name=run.name,
        model=encoder if classes else f"{encoder} + {settings.decoder.kind}",
        scores=scores,
        pictures=int(max(counts, default=0)) or None,
        parameters=_parameters(run),
        bytes=size_of(bundle) if bundle.exists() else None,
        time=_time(bundle, settings) if bundle.exists() and not form.no_time else None,
        data=run.data,
        seed=settings.seed,
        settings={key: value for key, value in configuration.to_dict(settings).items() if key not in _APART},
    )


def _parameters(run: Any) -> int | None:
    """Of the newest checkpoint, with the encoder that is kept beside it where it does not learn."""
    from cutline.evaluation.cost import stored_parameters

    if not run.saved:
        return None
    folder = run.saved[0].path
    stage = run.facts.get("progress", {}).get("stage", 0)
    files = [folder / "model.safetensors", run.path / f"encoder-{stage}.safetensors"]
    try:
        return stored_parameters(*(file for file in files if file.exists()))
    except ModelError:  # damaged: cutline runs verify is the one to tell of it
        return None


def _time(bundle: Path, settings: Any) -> Timing | None:
    """Of one picture at a time from the run's own validation, already decoded; None where those are not to be had."""
    import cutline
    from cutline.data.images import open_picture, readable
    from cutline.data.sources import read
    from cutline.evaluation.cost import time_per_picture

    try:
        images = (sample.image for sample in read(settings, quiet=True).split("val"))
        pictures = [open_picture(image) for image in islice(readable(images), _PICTURES)]
        model = cutline.load(bundle)
    except CutlineError:
        return None
    if not pictures:
        return None
    use = getattr(model, "classify", None) or model.caption
    return time_per_picture(lambda: [use([picture]) for picture in pictures], len(pictures), least=3)


def _best_first(row: Row) -> tuple[bool, float]:
    ciders = [score for name, score in row.scores.items() if name.startswith(_OF_CAPTIONS["cider"])]
    best = [row.scores["accuracy"]] if "accuracy" in row.scores else ciders
    return "accuracy" not in row.scores, -sum(best) / len(best) if best else 0.0


def _seeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Runs on the same data that differ in luck alone, as the mean of each score with its interval."""
    from cutline.evaluation.classes import interval

    alike: dict[str, dict[int, Row]] = {}
    for row in sorted(rows, key=lambda row: row.name, reverse=True):
        key = json.dumps([row.data, row.settings], sort_keys=True, default=str)
        alike.setdefault(key, {}).setdefault(row.seed, row)  # of the same seed the newest, and not the best
    groups = []
    for members in (list(by_seed.values()) for by_seed in alike.values()):
        names = [name for name in members[0].scores if all(name in row.scores for row in members)]
        if len(members) > 1 and names:
            means = {name: interval([row.scores[name] for row in members]) for name in names}
            scores = {name: {"mean": each.mean, "half": each.half} for name, each in means.items()}
            groups.append({"model": members[0].model, "runs": [row.name for row in members], "scores": scores})
    return groups


def _show(rows: Sequence[Row], groups: Sequence[dict[str, Any]]) -> None:
    out = new_console()
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    table = new_table("run", "model", *names, "parameters", "size", "time")
    for row in rows:
        cells = [number(row.scores.get(name)) for name in names]
        cells += [f"{row.parameters / 1e6:.2f} M" if row.parameters else "–", size(row.bytes) if row.bytes else "–"]
        add_row(table, row.name, row.model, *cells, f"{1000 * row.time.median:.3g} ms" if row.time else "–")
    out.print(table)
    for group in groups:
        told = ", ".join(f"{name} {each['mean']:.1f} ± {each['half']:.1f}" for name, each in group["scores"].items())
        out.print(f"{group['model']}, {len(group['runs'])} seeds: {told}", style="bold", markup=False, soft_wrap=True)
    _warn(out, rows)


def _warn(out: Any, rows: Sequence[Row]) -> None:
    """What makes a comparison hollow."""
    from cutline.evaluation.classes import wilson

    known = {row.data for row in rows if row.data}
    if len(known) > 1 or len({row.pictures for row in rows if row.pictures}) > 1:
        out.print("these runs were not scored on the same pictures: their scores cannot be compared", style="yellow")
    judged = [row for row in rows if "accuracy" in row.scores and row.pictures]
    if judged:
        best = judged[0]
        low, high = wilson(round(best.scores["accuracy"] * (best.pictures or 0) / 100), best.pictures or 0)
        out.print(
            f"of {best.pictures:,} pictures, an accuracy of {best.scores['accuracy']:.1f} means {low:.1f} to "
            f"{high:.1f}, 19 times in 20",
            style="dim",
            soft_wrap=True,
        )
    out.print("scores are of each run's best validation, 0 to 100; the time is one picture's, decoded", style="dim")
