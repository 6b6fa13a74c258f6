"""`cutline classify`: put pictures into classes with a bundle and, if you like, into folders."""

from __future__ import annotations

import glob
import itertools
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from cutline.cli.arguments import parse
from cutline.cli.pictures import Named, find_model, named
from cutline.cli.sheet import Out, output, write_all
from cutline.console import progress, say
from cutline.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from cutline.classify import Classified

Picture = str | Path | bytes


@dataclass(frozen=True)
class Classify:
    """Put pictures into classes, and into folders of them. Needs no torch and no network."""

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
    resume: bool = False
    """Keep what that file, or what an interruption has left of it, says already, and classify the other pictures."""
    sort: Path | None = None
    """Copy each picture into a folder of its class in this one. Nothing is ever written over."""
    move: bool = False
    """Move instead of copy."""
    least: float | None = None
    """A picture whose likeliest class is less probable than this goes into the folder unsure (default: 0.5)."""
    undo: Path | None = None
    """Take back what --sort did, by the undo.jsonl that it left in its folder."""
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


LEAST = 0.5
"""A class that is likelier than all others together."""


def main(arguments: list[str]) -> int:
    given = parse(Classify, arguments, verb="classify")
    _check(given)
    if given.undo:
        return _undo(given.undo, quiet=given.quiet)
    sort, quiet = given.sort, given.quiet
    pictures = _to_sort(given.pictures, sort, quiet=quiet) if sort else named(given.pictures, quiet=quiet)
    model = given.model or find_model("classes", "CUTLINE_CLASSIFIER") or _none()
    failed, total = _classify(pictures, model, given)
    if failed:
        say(f"{failed} of {total or 'the'} pictures could not be {'sorted' if sort else 'classified'}")
    return 1 if failed else 0


def _check(given: Classify) -> None:
    if given.undo and (given.pictures or given.sort):
        raise ConfigError("--undo stands alone", fix=f"cutline classify --undo {given.undo}")
    if given.top < 1:
        raise ConfigError(f"--top {given.top}", expected="1 or more")
    if not given.sort and (given.move or given.least is not None):
        raise ConfigError(f"--{'move' if given.move else 'least'} says how to sort", fix="--sort FOLDER")
    if given.resume and given.move:
        raise ConfigError(
            "--resume takes the last picture again, and --move has taken it away", fix="--out ANOTHER FILE"
        )
    if given.least is not None and not 0 <= given.least <= 1:
        raise ConfigError(f"--least {given.least:g}", expected="a probability, 0 to 1")


def _none() -> Path:
    raise ModelError(
        "there is no classifier under ./runs or ./demo",
        fix="--model BUNDLE names one; cutline train --preset transfer --data PICTURES makes one",
    )


def _classify(pictures: Named, model: Path, given: Classify) -> tuple[int, int | None]:
    """Write the classes of the pictures, and sort them if that is wanted; how many failed, and of how many."""
    from cutline import writers
    from cutline.classify import load

    classifier = load(model, backend=given.backend, precision=given.precision, threads=given.threads)
    top = min(given.top, len(classifier.classes))
    out = Out(given.out, given.format, given.force, given.resume)
    with output(out, writers.classes(top), quiet=given.quiet) as sheet:
        missing = sheet.missing(pictures)
        results = classifier.classify_all(missing.files, top=top, batch=given.batch)
        write = partial(write_all, sheet=sheet, total=missing.total, doing="classifying", quiet=given.quiet)
        failed = _sort(results, write, given, classifier.classes) if given.sort else write(results)
        return failed, missing.total


def _sort(
    results: Iterable[Classified], write: Callable[[Iterable[Classified]], int], given: Classify, classes: Sequence[str]
) -> int:
    """Put the pictures into folders as their results are written; how many failed."""
    from cutline.sorting import UNDO, sort_into

    assert given.sort
    least = LEAST if given.least is None else given.least
    with sort_into(given.sort, classes, move=given.move, least=least) as sorting:
        for label, name in sorting.folders.items():
            if label != name:
                say(f"the folder of {label!r} is {name}, a name that every file system takes", quiet=given.quiet)
        try:
            return write(sorting.sort(results))
        finally:
            if sorting.put_into or sorting.there:
                say(str(sorting), quiet=given.quiet)
            if sorting.put_into:
                undo = shlex.quote(str(given.sort / UNDO))
                say(f"to take it back: cutline classify --undo {undo}", quiet=given.quiet)


def _to_sort(arguments: Sequence[str], folder: Path, *, quiet: bool) -> Named:
    """The pictures that are named, each once; of what is in the folder already, only what is named in it."""
    outside = partial(_outside, folder=folder.resolve(), quiet=quiet)
    if not arguments or "-" in arguments:
        return Named(_once(outside(named(arguments, quiet=quiet).files)), None)
    found: list[Picture] = []
    for argument in arguments:
        files = named([argument], quiet=quiet).files  # refuses what cannot be expanded
        begin = path = Path(argument).expanduser()
        if not path.exists():  # a glob: what it begins with
            begin = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        if begin.resolve() == folder.resolve():
            raise ConfigError(f"{folder} would be sorted into itself", fix=f"--sort {folder / 'sorted'}")
        found += files if folder.resolve() in begin.resolve().parents else outside(files)
    once = list(_once(found))
    return Named(once, len(once))


def _outside(files: Iterable[Picture], folder: Path, *, quiet: bool) -> Iterator[Picture]:
    """Those that are not in the folder."""

    @cache
    def within(place: Path) -> bool:
        return folder in (place.resolve() / "any").parents

    passed_over = 0
    for file in files:
        if isinstance(file, bytes):
            raise ConfigError("a picture on standard input is no file that could be sorted", fix="name its file")
        if within(Path(file).parent):
            passed_over += 1
        else:
            yield file
    if passed_over:
        say(f"passed over: {passed_over} pictures that are in {folder} already", quiet=quiet)


def _once(files: Iterable[Picture]) -> Iterator[Picture]:
    seen = set()
    for file in files:
        place = Path(file).absolute() if not isinstance(file, bytes) else file
        if place not in seen:
            seen.add(place)
            yield file


def _undo(file: Path, *, quiet: bool) -> int:
    from cutline.sorting import UNDO, bring_back
    from cutline.undo import held

    back = left = 0
    with (
        held(file / UNDO if file.is_dir() else file) as undo,
        progress("bringing back", len(undo.entries) + len(undo.unreadable), "pictures", quiet=quiet) as advance,
    ):
        for reason in bring_back(undo):
            advance()
            if reason:
                left += 1
                say(reason)
            else:
                back += 1
    say(f"{back} pictures are back" + (f", {left} are left as they are" if left else ""), quiet=quiet)
    return 1 if left else 0
