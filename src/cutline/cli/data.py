"""`cutline data`: look at captioned or labelled pictures, list the formats that are read, or draw scenes."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cutline.cli.arguments import dispatch, parse
from cutline.console import progress
from cutline.data.corpus import SPLITS
from cutline.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

    from cutline.data.inspect import Inspection, Range

_LISTED = 20
_CLASSES = 10
"""Of the commonest and of the rarest, as many are shown."""
_BAR = 20
"""Letters in the bar of the commonest class."""
_UNEVEN = 3.0
"""Times that the commonest class has more pictures than the rarest, from which on it is worth a word."""


@dataclass(frozen=True)
class Inspect:
    """Show what is in a folder or file of captioned or labelled pictures, and everything that is wrong with it.

    The exit code is 0 if all is well and 1 if there are problems.
    """

    path: tyro.conf.Positional[Path]
    """Folder or file."""
    format: str = "auto"
    """How to read it: a name from `cutline data formats`, or "auto" to look."""
    images: str = ""
    """The folder from which a table or JSON file names its pictures (default: the one it lies in)."""
    languages: str = ""
    """Look only at captions in these languages, such as "en,de"."""
    skip_bad: bool = False
    """Exit with 0 despite problems, as training goes on with its own --skip-bad."""
    check_pictures: bool = False
    """Decode every picture as well."""
    all: bool = False
    """List every problem rather than the first 20."""
    json: bool = False
    """Write JSON, with every problem."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class Formats:
    """List the formats that are read."""


@dataclass(frozen=True)
class Scenes:
    """Draw pictures of coloured shapes with captions in several languages: something to learn from, at once."""

    out: tyro.conf.Positional[Path]
    """Folder to make."""
    count: int = 3000
    """How many pictures."""
    languages: str = ""
    """Languages of the captions, such as "en,de" (empty: all that there are)."""
    size: int = 96
    """Side of a picture in pixels."""
    seed: int = 0
    """Another seed draws other pictures."""
    quiet: bool = False
    """Show no progress."""


def main(arguments: list[str]) -> int:
    return dispatch("data", TASKS, arguments)


def _inspect(arguments: list[str]) -> int:
    form = parse(Inspect, arguments, verb="data inspect")
    from rich.console import Console

    from cutline.data.inspect import inspect

    found = inspect(
        form.path,
        form.format,
        images=form.images,
        languages=_listed(form.languages),
        check_pictures=form.check_pictures,
        quiet=form.quiet,
    )
    if form.json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _show(found, Console(highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty()), form.all)
    return 1 if found.problems and not form.skip_bad else 0


def _formats(arguments: list[str]) -> int:
    parse(Formats, arguments, verb="data formats")
    from cutline.data.readers import FORMATS

    for name, format in FORMATS.items():
        print(f"{name:<9} {format.description}")
    return 0


def _scenes(arguments: list[str]) -> int:
    form = parse(Scenes, arguments, verb="data scenes")
    from cutline.data.grammar import LANGUAGES
    from cutline.data.scenes import draw

    if form.count < 1 or form.size < 1:
        raise DataError(f"cannot draw {form.count} pictures of {form.size} pixels", expected="numbers above 0")
    languages = _listed(form.languages) or LANGUAGES
    with progress("drawing", form.count, "pictures", quiet=form.quiet) as advance:
        folder = draw(
            form.out,
            count=form.count,
            languages=languages,
            size=form.size,
            seed=form.seed,
            progress=lambda done: advance(),
        )
    print(folder)
    return 0


TASKS = {
    "inspect": (_inspect, "show what is there, and everything wrong with it"),
    "formats": (_formats, "list the formats that are read"),
    "scenes": (_scenes, "draw pictures with captions to learn from"),
}


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _show(found: Inspection, console: Console, everything: bool) -> None:
    from rich.markup import escape

    from cutline.data.draft import summary

    console.print(f"[bold]{escape(found.source)}[/bold]")
    splits = ", ".join(f"{count:,} {split}" for split, count in found.splits.items())
    console.print(f"{found.pictures:,} pictures: {splits}\n")
    if found.languages:
        _show_languages(found, console)
    if found.labels:
        _show_classes(found, console, everything)
    if found.copies:
        count = sum(len(group) - 1 for group in found.copies)
        example = " = ".join(f"{path.parent.name}/{path.name}" for path in found.copies[0][:2])
        what = "1 file is a copy of another" if count == 1 else f"{count:,} files are copies of others"
        console.print(f"{what}, such as\n  {escape(example)}", overflow="fold")
    else:
        console.print("no file is a copy of another")
    opened = "every picture was opened" if found.decoded else "no picture was opened: --check-pictures does that"
    console.print(opened)
    if found.problems:
        listed = len(found.problems) if everything else _LISTED
        head, *lines = summary("", found.problems, listed).split("\n")
        console.print(f"\n[bold red]{escape(head.removeprefix(': '))}[/bold red]")
        console.print("\n".join(map(escape, lines)), soft_wrap=True)
        if not everything and len(found.problems) > listed:
            console.print("  (--all lists them all)")
    else:
        console.print("[green]no problems[/green]")


def _show_languages(found: Inspection, console: Console) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.HORIZONTALS, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("language", no_wrap=True)
    for heading in ("captions", "pictures", "each", "length", "vocabulary", "once"):
        table.add_column(heading, justify="right", no_wrap=True)
    for lang, facts in found.languages.items():
        once = f"{100 * facts.once / max(facts.words, 1):.0f} %"
        numbers = (f"{facts.captions:,}", f"{facts.pictures:,}", _spread(facts.per_picture), _spread(facts.length))
        table.add_row(lang, *numbers, f"{facts.words:,}", once)
    console.print(table)
    console.print("each: captions of a picture; length: words in a caption (least / median / most)", style="dim")
    console.print("once: share of the vocabulary seen only once\n", style="dim")
    for lang, facts in found.languages.items():
        if facts.repeated:
            share = 100 * facts.repeated / facts.captions
            console.print(
                f"{lang}: {facts.repeated:,} captions ({share:.1f} %) repeat another word for word, most often"
            )
            for text, count in facts.commonest:
                console.print(f"  {count:>5,} × {escape(text)}", no_wrap=True, overflow="ellipsis")
    console.print()


def _show_classes(found: Inspection, console: Console, everything: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    even = found.balance
    assert even
    rows = [(label, sum(splits.values()), splits) for label, splits in found.labels.items()]
    if len(rows) > 2 * _CLASSES and not everything:
        skipped = ("…", 0, dict.fromkeys(SPLITS, 0))
        rows = [*rows[:_CLASSES], skipped, *rows[-_CLASSES:]]
    table = Table(box=box.HORIZONTALS, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("class", overflow="fold")
    for heading in ("pictures", *SPLITS):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for label, total, splits in rows:
        cells = [f"{count:,}" for count in (total, *splits.values())] if total else [""] * 4
        table.add_row(escape(label), *cells, "▇" * round(_BAR * total / even.most))
    console.print(table)
    each = f"{even.least:,} to {even.most:,}" if even.ratio > 1 else f"{even.most:,}"
    ratio = f" ({even.ratio:.3g} to 1)" if even.ratio > 1 else ""
    chance = f"always guessing '{escape(even.commonest)}' would be right {100 * even.share:.1f} times in 100"
    console.print(f"{even.classes:,} classes of {each} pictures{ratio}; {chance}")
    unjudged = sum(1 for by_split in found.labels.values() if by_split["train"] and not by_split["val"])
    if 0 < unjudged < even.classes:
        console.print(f"no picture in val, so never judged: {unjudged:,} of {even.classes:,} classes")
    if even.ratio >= _UNEVEN:
        console.print("rare classes can be given more weight, or shown more often: classes.balance", style="dim")
    if len(found.labels) > 2 * _CLASSES and not everything:
        console.print("(--all lists every class)", style="dim")
    console.print()


def _spread(numbers: Range) -> str:
    return f"{numbers.least} / {numbers.median:g} / {numbers.most}"
