"""`cutline train`: from a folder of captioned or labelled pictures to a run folder with a bundle in it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import textwrap
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cutline import config as configuration
from cutline.cli.arguments import parse
from cutline.config import Config
from cutline.console import say
from cutline.errors import ConfigError, choose, require_workshop

FLAGS = {
    "task": "task",
    "data": "data.path",
    "format": "data.format",
    "images": "data.images",
    "divide": "data.divide",
    "languages": "data.languages",
    "skip_bad": "data.skip_bad",
    "encoder": "encoder.name",
    "weights": "encoder.weights",
    "train_encoder": "encoder.train",
    "decoder": "decoder.kind",
    "attention": "decoder.attention",
    "hidden": "decoder.hidden",
    "head": "classes.head",
    "balance": "classes.balance",
    "words": "words.kind",
    "embeddings": "words.embeddings",
    "epochs": "training.epochs",
    "minutes": "training.minutes",
    "batch": "training.batch",
    "rate": "training.rate",
    "precision": "training.precision",
    "patience": "training.patience",
    "workers": "training.workers",
    "beam": "search.beam",
    "name": "name",
    "output": "output",
    "device": "device",
    "processes": "processes",
    "seed": "seed",
}
"""Settings that have a flag; every other one stands in the config file."""
_ABOUT = "Teach a captioner, a classifier, or both at once. The run folder is the first and last line printed."


@dataclass(frozen=True)
class Switches:
    preset: str = ""
    """Start from these settings: for captions scenes, frozen (unless said otherwise), finetuned, flickr8k or coco; for
    classes probe, transfer or scratch."""
    config: Path | None = None
    """Then take what this file says (every setting has its place in it)."""
    resume: Path | None = None
    """Go on with this run from its newest valid checkpoint, with its own settings."""
    new: bool = False
    """Begin a new run, also where the same command has left one unfinished."""
    allow_changes: bool = False
    """Go on with a run although its settings, data, vocabulary or number of processes are no longer the same."""
    gpus: str = ""
    """Share the work among GPUs of this machine, a process each: "all", or how many."""
    print_config: bool = False
    """Print all settings as a config file, and stop."""
    dry_run: bool = False
    """Check data, shapes, memory and disk, and say how long it will take, and stop."""
    no_bundle: bool = False
    """End with the weights: no bundle, no scores of it and no report page; cutline export makes a bundle later."""
    tensorboard: bool = False
    """Also write every figure to RUN/tensorboard."""
    quiet: bool = False
    """Print nothing but the run folder."""


def main(arguments: list[str]) -> int:
    given = parse(form("Train", _ABOUT, Switches), arguments, verb="train")
    require_workshop("training")
    if given.resume:  # by its own name: a link may be to another run before this one ends
        given = dataclasses.replace(given, resume=_itself(given.resume))
    config = resolve(given)
    if given.print_config:
        from cutline.cli.explained import explained

        print(explained(config), end="")
        return 0
    from cutline.engine import health

    health.check(config.health)
    if given.dry_run:
        from cutline.engine.estimate import dry_run

        print(dry_run(config, quiet=given.quiet))
        return 0
    if "RANK" in os.environ:  # one of the processes that our own supervisor, or torchrun, has started
        from cutline.cli.work import work

        return work(given, config)
    from cutline.engine import folder
    from cutline.engine.supervise import supervise

    run = given.resume or (None if given.new else folder.unfinished(config))
    if run is None:
        run = folder.make(config)
    elif not given.resume:
        say(f"going on with {run}, which the same command has begun (--new begins another)", quiet=given.quiet)
    try:
        return supervise(run, config, ["cutline", "train", *arguments])
    finally:
        folder.unmake(run)


def _itself(run: Path) -> Path:
    from cutline.engine.watch import RUN

    begun = os.environ.get(RUN)  # as the supervisor has found it
    return Path(begun) if begun else run.resolve() if run.is_symlink() else run


def resolve(given: Any) -> Config:
    """The preset, or the settings of the run to go on with; then the config file, then the flags."""
    if not given.resume:
        return settle(given)
    if given.preset:
        raise ConfigError("--resume goes on with a run's own settings, so no preset can be given")
    from cutline.engine import folder

    return settle(given, folder.settings(given.resume))


def settle(given: Any, base: Config | None = None) -> Config:
    """The base, or else the preset; then what the config file says, then the flags."""
    from cutline.engine import folder, taught
    from cutline.presets import PRESETS

    base = base or PRESETS[choose(given.preset or "frozen", PRESETS, "preset")]()
    weights = Path(getattr(given, "weights", None) or "")
    if weights.name == folder.LATEST and weights.is_symlink() and weights.is_dir():
        raise ConfigError(
            f"--weights {weights} is a link, which the run that begins may move",
            fix=f"--weights {os.path.relpath(weights.resolve())}",
        )
    config = configuration.load(given.config, base) if given.config else base
    tables: dict[str, Any] = {}
    for flag, setting in FLAGS.items():
        value = getattr(given, flag, None)
        if flag == "languages" and value is not None:
            value = [lang.strip() for lang in value.split(",")]
        if value is not None and value is not False:  # 0 is a value
            *sections, key = setting.split(".")
            table = tables
            for section in sections:
                table = table.setdefault(section, {})
            table[key] = value
    if given.gpus:
        tables |= {"processes": _gpus(given.gpus)}
    whole = configuration.from_dict(tables, config)
    _see_that_stages_heed(given, whole)
    return taught.named(whole, base, keep=given.encoder is not None)


def _see_that_stages_heed(given: Any, config: Config) -> None:
    """A stage's own settings come after the flags: refuse one that none would heed, and tell of those that some do."""
    for flag, setting in FLAGS.items():
        section, _, key = setting.partition(".")
        value = getattr(given, flag, None)
        if value is None or value is False:  # 0 is a value
            continue
        own = [number for number, stage in enumerate(config.stages, 1) if key in stage.get(section, {})]
        if own and len(own) == len(config.stages):
            raise ConfigError(
                f"--{flag.replace('_', '-')} would change nothing: each stage has its own {setting}",
                fix="change it in the [[stages]] of a config file; --print-config shows them",
            )
        for number in own:
            quiet = getattr(given, "quiet", False) or "RANK" in os.environ
            say(f"note: stage {number} keeps its own {setting}", quiet=quiet)


def _gpus(asked: str) -> int:
    import torch

    there = torch.cuda.device_count()
    count = there if asked == "all" else int(asked) if asked.isdecimal() else 0
    if not 0 < count <= there:
        raise ConfigError(f"--gpus {asked}: there are {there} CUDA GPUs", expected='"all", or a number of them')
    return count


def form(name: str, about: str, switches: type[Any], *, without: Collection[str] = ()) -> type[Any]:
    """A form with the switches and a flag for each of FLAGS (nothing unless given), each with its own words."""
    import tyro

    fields: list[tuple[str, Any, Any]] = []
    kinds = get_type_hints(switches, include_extras=True)
    for switch in dataclasses.fields(switches):
        help = tyro.conf.arg(help=_words(switches, switch.name))
        fields.append((switch.name, Annotated[kinds[switch.name], help], switch))
    for flag, setting in FLAGS.items():
        if flag in without:
            continue
        owner: Any = Config
        *sections, key = setting.split(".")
        for section in sections:
            owner = get_type_hints(owner)[section]
        kind = get_type_hints(owner)[key]
        help = f"{_words(owner, key)} [{setting}]".strip()
        kind = str if kind == tuple[str, ...] else kind  # written with commas
        if kind is bool:  # the flag turns it on; there is nothing to write behind it
            fields.append((flag, Annotated[bool, tyro.conf.arg(help=help)], dataclasses.field(default=False)))
            continue
        shape = tyro.conf.arg(help=help, help_behavior_hint="", metavar=_shape(kind))
        fields.append((flag, Annotated[kind | None, shape], dataclasses.field(default=None)))
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    made.__doc__ = about
    return made


def _shape(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {str: "TEXT", int: "N", float: "X"}[kind]


@cache
def _documented(owner: Any) -> dict[str, str]:
    """The words under each field of a dataclass, read from its source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(body, ast.ClassDef)
    words = {}
    for field, after in pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            words[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return words


def _words(owner: Any, key: str) -> str:
    return _documented(owner).get(key, "")
