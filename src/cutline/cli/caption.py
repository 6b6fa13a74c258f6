"""`cutline caption`: describe pictures with a bundle."""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import tyro

from cutline.cli.arguments import parse
from cutline.console import Advance, progress, say
from cutline.errors import ConfigError

if TYPE_CHECKING:
    from cutline.predict import Captioned, Captioner


@dataclass(frozen=True)
class Caption:
    """Describe pictures. Needs no torch and no network."""

    pictures: tyro.conf.Positional[tuple[str, ...]]
    """Pictures, folders, globs, or - for paths on standard input (or one picture's bytes)."""
    model: Path | None = None
    """A bundle or a run (default: $CUTLINE_MODEL, else the newest under ./runs and ./demo, else the one in the box)."""
    format: Literal["text", "json", "jsonl", "csv"] = "text"
    """How to write the captions."""
    out: Path | None = None
    """Write them to this file instead of standard output."""
    force: bool = False
    """Replace that file if it is there."""
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
    if not given.pictures:
        raise ConfigError("no pictures named", expected="pictures, folders, globs, or -")
    if given.attention and given.format not in ("json", "jsonl"):
        raise ConfigError(f"--attention has no place in {given.format}", fix="--format jsonl")
    model = given.model or find_model()
    with _output(given.out, given.force) as stream:
        from cutline.predict import load
        from cutline.writers import WRITERS, bare

        captioner = load(model, backend=given.backend, precision=given.precision, threads=given.threads)
        results, total = _results(captioner, given)
        write = bare if given.format == "text" and total == 1 else WRITERS[given.format]
        failed: list[Captioned] = []
        # On a terminal the captions themselves show how far it is; a bar would only be written over.
        shown = (total or 0) > 1 and not (stream is sys.stdout and stream.isatty())
        bar = progress("captioning", total or 0, "pictures") if shown and not given.quiet else nullcontext()
        with bar as advance:
            for piece in write(_watched(results, advance, failed)):
                stream.write(piece)
                stream.flush()
    if failed:
        say(f"{len(failed)} of {total or 'the'} pictures could not be captioned")
    return 1 if failed else 0


def find_model() -> Path:
    """$CUTLINE_MODEL, or the newest bundle in the usual places below this folder, or the one in the box."""
    if named := os.environ.get("CUTLINE_MODEL"):
        return Path(named)
    found = [path for place in ("runs", "demo") for path in Path(place).glob("**/bundle.json")]
    found += [path for place in ("runs", "demo") for path in Path(place).glob("**/*.cutline")]
    if not found:
        from cutline.starter import starter

        say("model: the one that comes with Cutline (--model BUNDLE for another)")
        return starter()
    newest = max(found, key=lambda path: path.stat().st_mtime)
    model = newest.parent if newest.name == "bundle.json" else newest
    say(f"model: {model}")
    return model


def _results(captioner: Captioner, given: Caption) -> tuple[Iterable[Captioned], int | None]:
    """The captions to come, and of how many pictures, where that is known."""
    from cutline.data.images import find_pictures
    from cutline.predict import Options

    options: Options = {
        "lang": given.lang,
        "num": given.num,
        "beam": given.beam,
        "method": given.method,
        "seed": given.seed,
        "attention": given.attention,
    }
    if "-" in given.pictures:
        if len(given.pictures) > 1:
            raise ConfigError("- stands for all pictures, and there are others", fix="name - alone")
        source = sys.stdin.buffer
        assert isinstance(source, io.BufferedReader)
        if _looks_like_a_picture(source.peek(512)[:512]):
            return captioner.caption_all([source.read()], **options), 1
        lines = (line.rstrip(b"\r\n") for line in source)
        paths: Iterable[str | Path] = (os.fsdecode(line) for line in lines if line)
        return captioner.caption_all(paths, batch=given.batch, **options), None
    found = list(itertools.chain.from_iterable(find_pictures(argument) for argument in given.pictures))
    return captioner.caption_all(found, batch=given.batch, **options), len(found)


def _looks_like_a_picture(head: bytes) -> bool:
    """Paths are text; every picture format but PNM's plain header soon has a byte that is not."""
    return any(byte < 9 for byte in head) or bool(re.match(rb"P[1-6]\s", head))


def _watched(results: Iterable[Captioned], advance: Advance | None, failed: list[Captioned]) -> Iterator[Captioned]:
    """The results as they pass, each counted, those without a caption named."""
    for result in results:
        if result.error:
            failed.append(result)
            say(str(result.error.what))
        if advance:
            advance()
        yield result


@contextmanager
def _output(out: Path | None, force: bool) -> Iterator[TextIO]:
    """Standard output, or a file that takes its name only once it is complete; what an interruption leaves is kept."""
    if out is None:
        # A file name that is not UTF-8 goes out as it came in.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
        yield sys.stdout
        return
    partial = out.with_name(out.name + ".partial")
    for path in (out, partial):
        if path.exists() and not force:
            raise ConfigError(f"{path} is already there", fix="name another file, or --force to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    stream = partial.open("w", encoding="utf-8", errors="surrogateescape", newline="")
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        if partial.stat().st_size:
            say(f"what was captioned until then is in {partial}")
        else:
            partial.unlink()
        raise
    partial.replace(out)
