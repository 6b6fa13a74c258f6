"""`cutline train`: from a folder of captioned pictures to a run folder with a bundle in it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from cutline import config as configuration
from cutline.cli.arguments import parse
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
    quiet: bool = False
    """Print nothing but the run folder."""


def main(arguments: list[str]) -> int:
    given = parse(_form(), arguments, verb="train")
    if given.resume:
        return _go_on(given.resume, given.quiet)
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
    return _train(run.trainer(prepared, folder), given.quiet)


def resolve(given: Any) -> Config:
    """The preset, then the config file, then the flags."""
    from cutline.presets import PRESETS

    config = PRESETS[choose(given.preset, PRESETS, "preset")]()
    if given.config:
        config = configuration.load(given.config, config)
    tables: dict[str, Any] = {}
    for flag, setting in FLAGS.items():
        value = getattr(given, flag)
        if value is not None:
            *sections, key = setting.split(".")
            table = tables
            for section in sections:
                table = table.setdefault(section, {})
            table[key] = value
    return configuration.from_dict(tables, config)


def _form() -> type[Any]:
    """A form with a flag for each of FLAGS (nothing unless given), and the switches."""
    hints = {"": get_type_hints(Config)}
    fields = []
    for flag, setting in FLAGS.items():
        section, _, key = setting.rpartition(".")
        if section not in hints:
            hints[section] = get_type_hints(hints[""][section])
        fields.append((flag, hints[section][key] | None, dataclasses.field(default=None)))
    own = [(f.name, get_type_hints(Switches)[f.name], f) for f in dataclasses.fields(Switches)]
    made = dataclasses.make_dataclass("Train", [*own, *fields], frozen=True)
    made.__doc__ = "Teach a captioner. The run folder is the first and the last line printed."
    return made


def _go_on(folder: Path, quiet: bool) -> int:
    from cutline.engine import run

    trainer = run.resume(folder, quiet=quiet)
    print(folder, flush=True)
    return _train(trainer, quiet)


def _train(trainer: Any, quiet: bool) -> int:
    from cutline.engine.finish import finish
    from cutline.engine.loop import train

    train(trainer, quiet=quiet)
    finish(trainer.run, quiet=quiet)
    print(trainer.run)
    return 0
