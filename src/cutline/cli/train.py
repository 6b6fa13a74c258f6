"""`cutline train`: from a folder of captioned pictures to a run folder with a bundle in it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cutline import config as configuration
from cutline.cli.arguments import parse
from cutline.cli.evaluate import show
from cutline.config import Config
from cutline.errors import choose

FLAGS = {
    "data": "data.path",
    "format": "data.format",
    "languages": "data.languages",
    "skip_bad": "data.skip_bad",
    "encoder": "encoder.name",
    "weights": "encoder.weights",
    "train_encoder": "encoder.train",
    "decoder": "decoder.kind",
    "attention": "decoder.attention",
    "hidden": "decoder.hidden",
    "words": "words.kind",
    "embeddings": "words.embeddings",
    "epochs": "training.epochs",
    "batch": "training.batch",
    "rate": "training.rate",
    "precision": "training.precision",
    "patience": "training.patience",
    "workers": "training.workers",
    "beam": "search.beam",
    "name": "name",
    "output": "output",
    "device": "device",
    "seed": "seed",
}
"""Settings that have a flag; every other one stands in the config file."""


@dataclass(frozen=True)
class Switches:
    preset: str = "frozen"
    """Start from these settings: scenes, frozen, or finetuned."""
    config: Path | None = None
    """Then take what this file says (every setting has its place in it)."""
    resume: Path | None = None
    """Go on with this run from its newest valid checkpoint; its own settings hold."""
    print_config: bool = False
    """Print all settings as a config file, and stop."""
    dry_run: bool = False
    """Check data, shapes, memory and disk, and say how long it will take, and stop."""
    tensorboard: bool = False
    """Also write every figure to RUN/tensorboard."""
    quiet: bool = False
    """Print nothing but the run folder."""


def main(arguments: list[str]) -> int:
    given = parse(_form(), arguments, verb="train")
    if given.resume:
        return _go_on(given)
    config = resolve(given)
    if given.print_config:
        print(configuration.to_toml(config), end="")
        return 0
    if given.dry_run:
        from cutline.engine.estimate import dry_run

        print(dry_run(config, quiet=given.quiet))
        return 0
    from cutline.engine import run

    prepared = run.prepare(config, quiet=given.quiet)
    folder = run.create(prepared)
    print(folder, flush=True)
    return _train(run.trainer(prepared, folder), prepared.corpus, given)


def resolve(given: Any) -> Config:
    """The preset, then the config file, then the flags."""
    from cutline.presets import PRESETS

    config = PRESETS[choose(given.preset, PRESETS, "preset")]()
    if given.config:
        config = configuration.load(given.config, config)
    tables: dict[str, Any] = {}
    for flag, setting in FLAGS.items():
        value = getattr(given, flag)
        if flag == "languages" and value is not None:
            value = [lang.strip() for lang in value.split(",")]
        if value is not None and value is not False:  # 0 is a value
            *sections, key = setting.split(".")
            table = tables
            for section in sections:
                table = table.setdefault(section, {})
            table[key] = value
    return configuration.from_dict(tables, config)


def _form() -> type[Any]:
    """A form with a flag for each of FLAGS (nothing unless given) and the switches, each with its own words."""
    import tyro

    fields: list[tuple[str, Any, Any]] = []
    for switch in dataclasses.fields(Switches):
        kind = get_type_hints(Switches)[switch.name]
        fields.append((switch.name, Annotated[kind, tyro.conf.arg(help=_words(Switches, switch.name))], switch))
    for flag, setting in FLAGS.items():
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
    made = dataclasses.make_dataclass("Train", fields, frozen=True)
    made.__doc__ = "Teach a captioner. The run folder is the first and the last line printed."
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


def _go_on(given: Any) -> int:
    from cutline.engine import run

    trainer, corpus = run.resume(given.resume, quiet=given.quiet)
    print(given.resume, flush=True)
    return _train(trainer, corpus, given)


def _train(trainer: Any, corpus: Any, given: Any) -> int:
    from cutline.cli.finish import finish
    from cutline.engine.events import tensorboard
    from cutline.engine.loop import train

    sinks = [tensorboard(trainer.run / "tensorboard")] if given.tensorboard else []
    train(trainer, *sinks, quiet=given.quiet)
    finished = finish(trainer.run, corpus, trainer.task.config, "val", quiet=given.quiet)
    if not given.quiet:
        show({lang: each.scores for lang, each in finished.judged.items()})
    print(trainer.run)
    return 0
