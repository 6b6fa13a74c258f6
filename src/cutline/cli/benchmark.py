"""`cutline benchmark classify`: our networks and well-known ones on one data set, under the same minutes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cutline.cli.arguments import dispatch, parse
from cutline.console import say
from cutline.errors import ConfigError, CutlineError, require_workshop

if TYPE_CHECKING:
    from cutline.config import Config
    from cutline.engine.benchmark import Measured, Seen
    from cutline.engine.grid import Grid

_ABOUT = """Teach our networks and well-known ones to classify the same pictures, each for the same minutes.

They learn from nothing; with --weights, the encoders whose weights those are are also used as they are and learn on.
Beside them stand the nearest pictures and logistic regression. Nothing is chosen on the pictures that are judged. The
same command goes on where it was stopped. Of cutline train it takes what has to do with the data and the learning."""
_WITHOUT = (
    *("name", "seed", "output", "task", "languages", "encoder", "weights", "train_encoder", "decoder", "attention"),
    *("hidden", "words", "embeddings", "epochs", "patience", "beam"),
)
NETWORKS = ("dnn", "cnn:width=32", "cnn", "cnn:depth=2", "resnet18", "mobilenetv2_100", "efficientnet_b0")
MINUTES = 10.0


@dataclass(frozen=True)
class Switches:
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """For the runs, a folder each, and for table.md, table.json and plot.png."""
    networks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME …")] = NETWORKS
    """Learn these from nothing: dnn and cnn, with or without arguments, and models of timm."""
    weights: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE …")] = ()
    """Weights learned elsewhere: files, runs of cutline train, or hub."""
    encoder: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME …")] = ()
    """The encoders whose weights those are, in their order (default: mobilenetv2_100)."""
    seeds: Annotated[str, tyro.conf.arg(metavar="N,N,…")] = "0"
    """Learn each network once with each of these."""
    size: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Side of the pictures for what learns from nothing (default: 64)."""
    encoder_size: Annotated[int | None, tyro.conf.arg(metavar="PIXELS")] = None
    """Side of the pictures for the encoders with weights (default: their own)."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Settings for all of them, as a config file of cutline train."""
    gpus: Annotated[str, tyro.conf.arg(metavar="N|all")] = ""
    """Share the work of each run among GPUs of this machine."""
    dry_run: bool = False
    """Say what there is to learn and how long it would take, and stop."""
    quiet: bool = False
    """Print nothing but the table."""


def main(arguments: list[str]) -> int:
    return dispatch("benchmark", TASKS, arguments)


def _classify(arguments: list[str]) -> int:
    from cutline.cli.train import form

    made = form("Classify", _ABOUT, Switches, without=_WITHOUT)
    given = parse(made, arguments, verb="benchmark classify")
    require_workshop("training")
    from cutline.cli import benchmark_table, trials
    from cutline.engine import folder, grid

    planned, baselines = _planned(given)
    if given.dry_run:
        return trials.dry_run(planned, given.quiet)
    trials.see_data([trial.config for trial in planned.trials if trial.result is None])
    trials.make(given.out)
    failed: dict[str, str] = {}

    def write() -> None:
        benchmark_table.write(planned, _rows(planned, baselines, failed))

    with folder.held(given.out):
        grid.open_or_begin(planned)
        for each in baselines:
            _measure(each, planned, failed, given.quiet)
        code = trials.do_all(planned, failed, write, quiet=given.quiet)
    benchmark_table.show(planned, _rows(planned, baselines, failed))
    return code or (1 if failed else 0)


# What there is to do ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Baseline:
    """A method on what is seen in some way."""

    name: str
    method: str
    config: Config
    see: Callable[[], Seen]

    def place(self, out: Path, seed: int) -> Path:
        return out / f"{self.name.replace(', ', '-').replace(' ', '-')}-seed{seed}"

    @property
    def of(self) -> str:
        """A hash of what it is made of."""
        from cutline import config as configuration

        tables = configuration.to_dict(replace(self.config, health=type(self.config.health)()))
        return hashlib.sha256(json.dumps([self.name, tables], sort_keys=True).encode()).hexdigest()[:32]


def _planned(given: Any) -> tuple[Grid, list[Baseline]]:
    from cutline import config as configuration
    from cutline.cli.train import settle
    from cutline.engine import benchmark, grid
    from cutline.presets import PRESETS

    minutes = MINUTES if given.minutes is None else given.minutes
    if minutes <= 0:
        raise ConfigError(f"--minutes {minutes:g}", expected="more than 0: all networks learn as long as each other")

    def recipe(preset: str, size: int | None, **own: Any) -> Config:
        base = PRESETS[preset]()
        data = replace(base.data, val_share=0.2, test_share=0.0)
        found = settle(
            SimpleNamespace(**{**vars(given), "encoder": None, "weights": None, "minutes": None, **own}),
            replace(base, data=data),
        )
        if size is not None:
            found = configuration.from_dict({"pictures": {"size": size}}, found)
        found = configuration.from_dict({"training": {"validate_limit": 0}}, found)  # as for the networks
        if found.task != "classes":
            raise ConfigError(f"the task is '{found.task}'", expected='"classes"')
        return found

    scratch = recipe("scratch", given.size)
    ways = {"fine-tuned": "transfer", "as it is": "probe"}
    weighted = _named(
        [{way: recipe(preset, given.encoder_size, **own) for way, preset in ways.items()} for own in _weighted(given)]
    )
    named = {f"{name}, {way}": config for name, each in weighted.items() for way, config in each.items()}
    names = list(dict.fromkeys(given.networks))
    planned = benchmark.plan(scratch, named, names, minutes, grid.seeds(given.seeds), given.out)
    seen: list[tuple[str, Config, Callable[[Config], Seen]]] = [("pixels", scratch, benchmark.see_pixels)]
    seen += [(name, each["as it is"], benchmark.see_features) for name, each in weighted.items()]
    return planned, [
        Baseline(f"{name}, {method}", method, config, see)
        for name, config, look in seen
        for see in [cache(lambda look=look, config=config: look(config))]
        for method in benchmark.METHODS
    ]


def _weighted(given: Any) -> list[dict[str, str | None]]:
    """Each encoder with its weights; without a name it is the usual one, and that of a run is the run's in any case."""
    from cutline.config import EncoderConfig
    from cutline.engine import taught

    runs = {weights for weights in given.weights if taught.by(EncoderConfig(weights=weights))}
    others = [weights for weights in given.weights if weights not in runs]
    encoders = given.encoder or (None,) * len(others)
    if len(encoders) != len(others):
        raise ConfigError(
            f"{len(encoders)} of --encoder, {len(others)} of --weights" + " that are no runs" * bool(runs),
            expected="the weights of each encoder, in the same order",
            fix="runs bring their own names; --networks NAME … lets encoders learn from nothing",
        )
    named = iter(encoders)
    return [{"encoder": None if weights in runs else next(named), "weights": weights} for weights in given.weights]


def _named(weighted: list[dict[str, Config]]) -> dict[str, dict[str, Config]]:
    """By the encoder's name, with that of its weights where the same encoder has several."""
    encoders = [next(iter(each.values())).encoder for each in weighted]
    plain = [encoder.name.partition(":")[0] for encoder in encoders]
    names = [
        name if plain.count(name) == 1 else f"{name} ({Path(encoder.weights).stem})"
        for name, encoder in zip(plain, encoders, strict=True)
    ]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two weights are called {twice[0]}", fix="give their files different names")
    return dict(zip(names, weighted, strict=True))


# What comes of it ---------------------------------------------------------------------------------------------------


def _measure(each: Baseline, planned: Grid, failed: dict[str, str], quiet: bool) -> None:
    """With every seed, what is not there yet."""
    from cutline.engine import benchmark

    for seed in planned.seeds:
        place = each.place(planned.out, seed)
        if benchmark.load(place, each.of):
            continue
        try:
            found = benchmark.keep(place, benchmark.baseline(each.method, each.see(), seed, each.of))
            say(f"{each.name}: accuracy {found.scores['accuracy']:.1f} with {found.chosen}", quiet=quiet)
        except CutlineError as error:
            failed[place.name] = error.what
            say(f"{each.name} failed: {error.what}", quiet=quiet)


def _rows(planned: Grid, baselines: list[Baseline], failed: dict[str, str]) -> list[Any]:
    from cutline.cli.benchmark_table import Row
    from cutline.engine import benchmark

    def found() -> Iterator[tuple[str, int, str, Measured | None]]:
        for trial in planned.trials:
            try:
                measured = None if trial.name in failed else benchmark.of_trial(trial)
            except (CutlineError, RuntimeError) as error:  # learned, but not to be measured
                measured, failed[trial.name] = None, str(error).splitlines()[0]
            yield trial.cell.name, trial.seed, trial.name, measured
        for each in baselines:
            for seed in planned.seeds:
                place = each.place(planned.out, seed)
                yield each.name, seed, place.name, benchmark.load(place, each.of)

    rows: dict[str, Row] = {}
    for name, seed, key, measured in found():
        row = rows.setdefault(name, Row(name, {}, {}))
        if measured:
            row.results[seed] = measured
        else:
            row.missing[seed] = failed.get(key, "")
    return list(rows.values())


TASKS = {"classify": (_classify, "our networks and well-known ones, as classifiers of the same pictures")}
