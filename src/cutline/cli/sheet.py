"""Where what is said of pictures is written: to standard output, or to a file that an interruption does not cost."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TextIO, TypedDict

from cutline.cli.pictures import Named
from cutline.console import Advance, progress, say
from cutline.errors import ConfigError
from cutline.writers import NOTHING, WRITERS, Begun, Form, R, bare, reread


class _Text(TypedDict):
    encoding: str
    errors: str
    newline: str


_AS_IS: _Text = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


class Sheet(NamedTuple, Generic[R]):
    """Where results go, and what is there already."""

    stream: TextIO
    form: Form[R]
    format: str
    begun: Begun

    def missing(self, pictures: Named) -> Named:
        """The pictures of which nothing is there yet."""
        done = self.begun.done
        if not done:
            return pictures
        files = (file for file in pictures.files if isinstance(file, bytes) or str(file) not in done)
        if pictures.total is None:
            return Named(files, None)
        left = list(files)
        return Named(left, len(left))


def write_all(results: Iterable[R], sheet: Sheet[R], *, total: int | None, doing: str, quiet: bool) -> int:
    """Write each result as it comes, with a bar that says what is being done; how many have an error."""
    write = bare if sheet.format == "text" and total == 1 else WRITERS[sheet.format]
    failed: list[R] = []
    # On a terminal the results themselves show how far it is; a bar would only be written over.
    shown = (total or 0) > 1 and not (sheet.stream is sys.stdout and sheet.stream.isatty())
    bar = progress(doing, total or 0, "pictures") if shown and not quiet else nullcontext()
    with bar as advance:
        for piece in write(sheet.form, _watched(results, advance, failed), sheet.begun):
            sheet.stream.write(piece)
            sheet.stream.flush()
    return len(failed)


def _watched(results: Iterable[R], advance: Advance | None, failed: list[R]) -> Iterator[R]:
    """The results as they pass, each counted, those with an error named."""
    for result in results:
        if result.error:
            failed.append(result)
            say(str(result.error.what))
        if advance:
            advance()
        yield result


@dataclass(frozen=True)
class Out:
    """Where a command line wants its results."""

    file: Path | None
    format: str
    force: bool
    resume: bool

    def check(self) -> None:
        if self.resume and not self.file:
            raise ConfigError("--resume goes on with a file", fix="--out FILE")
        if self.resume and self.force:
            raise ConfigError("--resume keeps what is there, and --force does not", fix="one of them")
        if self.resume and self.format == "text":
            raise ConfigError("--resume needs rows that say whose they are", fix="--format csv, jsonl or json")
        if self.file and self.file.exists() and not self.file.is_file():
            raise ConfigError(f"{self.file} is no file", expected="a file to write, for --out")


@contextmanager
def output(out: Out, form: Form[R], *, quiet: bool) -> Iterator[Sheet[R]]:
    """Standard output, or a file that takes its name only once it is complete; what an interruption leaves is kept."""
    out.check()
    if out.file is None:
        # A file name that is not UTF-8 goes out as it came in.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        yield Sheet(sys.stdout, form, out.format, NOTHING)
        return
    partial = out.file.with_name(out.file.name + ".partial")
    there = [path for path in (partial, out.file) if path.exists()]
    if there and not (out.force or out.resume):
        fix = "--resume to add what it lacks, --force to replace it, or name another file"
        raise ConfigError(f"{there[0]} is already there", fix=fix)
    out.file.parent.mkdir(parents=True, exist_ok=True)
    begun = _reread(there[0], out.format, form) if there and out.resume else NOTHING
    if begun.done:
        say(f"kept: {len(begun.done)} pictures of {there[0]}", quiet=quiet)
    # Not the one that is there, until all of it that counts is in the new one.
    fresh = partial.with_name(partial.name + ".new")
    fresh.write_text(begun.text, **_AS_IS)
    fresh.replace(partial)
    stream = partial.open("a", **_AS_IS)
    try:
        with stream:
            yield Sheet(stream, form, out.format, begun)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        if partial.stat().st_size:
            way = "" if out.format == "text" else "; the same command with --resume goes on with it"
            say(f"what was written until then is in {partial}{way}")
        else:
            partial.unlink()
        raise
    partial.replace(out.file)


def _reread(path: Path, format: str, form: Form[R]) -> Begun:
    try:
        return reread(form, format, path.read_bytes().decode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise ConfigError(
            f"{path}: {error}", expected=f"what the same command with --format {format} has left",
            fix="the same options as then; or --force to begin anew",
        ) from None  # fmt: skip
