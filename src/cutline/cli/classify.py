"""`cutline classify`: put pictures into classes with a bundle, and if you like into folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from cutline.cli.arguments import parse
from cutline.cli.pictures import find_model, named, output, write_all
from cutline.console import say
from cutline.errors import ConfigError, ModelError


@dataclass(frozen=True)
class Classify:
    """Put pictures into classes. Needs no torch and no network."""

    pictures: tyro.conf.Positional[tuple[str, ...]]
    """Pictures, folders, globs, or - for paths on standard input (or one picture's bytes)."""
    model: Path | None = None
    """A bundle or a run (default: $CUTLINE_CLASSIFIER, else the newest of classes under ./runs and ./demo)."""
    top: int = 5
    """Likeliest classes of each picture."""
    format: Literal["text", "json", "jsonl", "csv"] = "text"
    """How to write them."""
    out: Path | None = None
    """Write them to this file instead of standard output."""
    force: bool = False
    """Replace that file if it is there."""
    batch: int = 32
    """Pictures classified together."""
    backend: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """What computes."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is several times faster on a CPU that has it, with OpenVINO; probabilities may differ slightly."""
    threads: int = 0
    """CPU threads (0: all cores)."""
    quiet: bool = False
    """Show no progress; errors are still named."""


def main(arguments: list[str]) -> int:
    given = parse(Classify, arguments, verb="classify")
    if given.top < 1:
        raise ConfigError(f"--top {given.top}", expected="1 or more")
    files, total = named(given.pictures)
    model = given.model or find_model("classes", "CUTLINE_CLASSIFIER") or _none()
    with output(given.out, given.force) as stream:
        from cutline import writers
        from cutline.classify import load

        classifier = load(model, backend=given.backend, precision=given.precision, threads=given.threads)
        top = min(given.top, len(classifier.classes))
        results = classifier.classify_all(files, top=top, batch=given.batch)
        form = writers.classes(top)
        failed = write_all(results, total, form, given.format, stream, "classifying", quiet=given.quiet)
    if failed:
        say(f"{failed} of {total or 'the'} pictures could not be classified")
    return 1 if failed else 0


def _none() -> Path:
    raise ModelError(
        "there is no classifier under ./runs or ./demo",
        fix="--model BUNDLE names one; cutline train --preset transfer --data PICTURES makes one",
    )
