"""`cutline export`: from a run to a bundle that captions or classifies without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from cutline.cli.arguments import parse
from cutline.console import say
from cutline.errors import ConfigError, DataError, ModelError, require_workshop

if TYPE_CHECKING:
    from cutline.data.corpus import Sample


@dataclass(frozen=True)
class Export:
    """Write a run's best captioner or classifier as a bundle, and check that it does as PyTorch does."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    out: Path | None = None
    """Where to (default: RUN/bundle, or RUN/NAME.cutline for one file; with classes beside captions, RUN/bundle-classes
    or RUN/NAME-classes.cutline)."""
    classes: bool = False
    """The classifier of a run that has learned captions as well."""
    weights: Literal["fp32", "fp16", "int8"] = "fp32"
    """How to store the weights: in two bytes each, or most in one, rounded. Computing stays fp32."""
    one_file: bool = False
    """One file instead of a folder."""
    force: bool = False
    """Replace what is there."""
    card: Path | None = None
    """Text (Markdown) that goes into the model card: sources, terms, limits."""
    check: int = 200
    """Pictures of the run's data to try both ways (0: no check)."""
    step: int | None = None
    """Checkpoint to take (default: the best)."""
    quiet: bool = False
    """Print nothing but the bundle's path."""


def main(arguments: list[str]) -> int:
    given = parse(Export, arguments, verb="export")
    if given.check < 0:
        raise ConfigError(f"--check {given.check}", expected="0 or more")
    require_workshop("exporting")
    from cutline.cli import finish, finish_classes
    from cutline.engine import folder
    from cutline.export import accept, check_bundle, check_classifier, unchecked

    task = folder.settings(given.run).task
    classes = given.classes or task == "classes"
    out = given.out or given.run / _name(given, "-classes" if classes and task == "both" else "")
    if out.exists() and not given.force:
        raise ConfigError(f"{out} is already there", fix="--out another place, or --force to replace it")
    say("writing the bundle", quiet=given.quiet)
    export, draft = finish_classes.export if classes else finish.export, unchecked(out)
    model: Any = export(
        given.run, draft, step=given.step, weights=given.weights, about=_text(given.card),
        one_file=given.one_file, force=True,
    )  # fmt: skip
    if pictures := _pictures(given.run, given.check):
        say(f"checking it on {len(pictures)} pictures", quiet=given.quiet)
        agreement = (check_classifier if classes else check_bundle)(model, draft, pictures)
        if given.weights == "fp32" and not agreement.reached:
            raise ModelError(f"the bundle {draft} does not do as PyTorch does: {agreement}")
        if given.weights != "fp32":
            told = f"{agreement}; weights are rounded, and what that costs says: cutline evaluate {out}"
        else:
            told = str(agreement)
        say(told, quiet=given.quiet)
    else:
        say("not checked against PyTorch: no pictures to do it with", quiet=given.quiet)
    accept(out)
    print(out)
    return 0


def _name(given: Export, suffix: str) -> str:
    return f"{given.run.resolve().name}{suffix}.cutline" if given.one_file else f"bundle{suffix}"


def _text(file: Path | None) -> str:
    try:
        return file.read_text(encoding="utf-8").strip() if file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--card {file} cannot be read: {error}", expected="a text file") from None


def _pictures(run: Path, count: int) -> list[Path]:
    """Pictures of the run's data, those that it did not learn from first; none where they are gone."""
    from cutline import config
    from cutline.data.images import readable
    from cutline.data.labels import evenly
    from cutline.data.sources import read

    if not count:
        return []
    try:
        corpus = read(config.load(run / "config.toml"), quiet=True)
    except DataError:
        return []
    samples: Sequence[Sample] = [*corpus.split("test"), *corpus.split("val")] or corpus.split("train")
    if not corpus.languages:  # of all classes
        samples = evenly(samples, count)
    return list(islice(readable(sample.image for sample in samples), count))
