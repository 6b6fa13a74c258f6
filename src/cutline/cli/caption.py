"""`cutline caption`: describe pictures with a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from cutline.cli.arguments import parse
from cutline.cli.pictures import find_model, named
from cutline.cli.sheet import Out, output, write_all
from cutline.console import say
from cutline.errors import ConfigError


@dataclass(frozen=True)
class Caption:
    """Describe pictures. Needs no torch and no network."""

    pictures: tyro.conf.Positional[tuple[str, ...]]
    """Pictures, folders, globs, or - for paths on standard input (or one picture's bytes)."""
    model: Path | None = None
    """A bundle or a run, or "starter" for the one in the box (default: $CUTLINE_MODEL, else the newest under ./runs and
    ./demo, else the one in the box)."""
    format: Literal["text", "json", "jsonl", "csv"] = "text"
    """How to write the captions."""
    out: Path | None = None
    """Write them to this file instead of standard output."""
    force: bool = False
    """Replace that file if it is there."""
    resume: bool = False
    """Keep what that file, or what an interruption has left of it, says already, and caption the other pictures."""
    lang: str | None = None
    """Language (default: the model's first)."""
    num: int | None = None
    """Captions of each picture."""
    beam: int | None = None
    """Beams; more find better captions, more slowly."""
    method: Literal["beam", "greedy", "diverse", "sample"] | None = None
    """How to search."""
    seed: int | None = None
    """Seed of the draws (method sample)."""
    attention: bool = False
    """Also write what each word looked at (json and jsonl)."""
    batch: int = 32
    """Pictures captioned together."""
    backend: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """What computes."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is several times faster on a CPU that has it, with OpenVINO; captions may differ slightly."""
    threads: int = 0
    """CPU threads (0: all cores)."""
    quiet: bool = False
    """Show no progress; errors are still named."""


def main(arguments: list[str]) -> int:
    given = parse(Caption, arguments, verb="caption")
    if given.attention and given.format not in ("json", "jsonl"):
        raise ConfigError(f"--attention has no place in {given.format}", fix="--format jsonl")
    from cutline import writers
    from cutline.predict import Options, load

    pictures = named(given.pictures, quiet=given.quiet)
    model = given.model or find_model("captions", "CUTLINE_MODEL") or _in_the_box()
    out = Out(given.out, given.format, given.force, given.resume)
    with output(out, writers.captions(), quiet=given.quiet) as sheet:
        missing = sheet.missing(pictures)
        options: Options = {
            "lang": given.lang,
            "num": given.num,
            "beam": given.beam,
            "method": given.method,
            "seed": given.seed,
            "attention": given.attention,
        }
        captioner = load(model, backend=given.backend, precision=given.precision, threads=given.threads)
        results = captioner.caption_all(missing.files, batch=given.batch, **options)
        failed = write_all(results, sheet, total=missing.total, doing="captioning", quiet=given.quiet)
    if failed:
        say(f"{failed} of {missing.total or 'the'} pictures could not be captioned")
    return 1 if failed else 0


def _in_the_box() -> Path:
    from cutline.starter import starter

    say("model: the one that comes with Cutline (--model BUNDLE for another)")
    return starter()
