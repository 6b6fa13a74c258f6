"""What a person sees while work goes on: a bar on a terminal, plain lines anywhere else, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]
"""`advance(done=1, note="")`: so much more is done; the note stands behind the figures."""

gone_on: list[Callable[[], None]] = []
"""Called whenever some work has gone on, shown or not: how a watchdog knows that nothing hangs."""

LINE_SECONDS = 10.0
"""Seconds between plain lines, so that a log stays readable."""


def go_on() -> None:
    """Some work has gone on."""
    for listener in gone_on:
        listener()


def say(text: str, *, quiet: bool = False) -> None:
    """A line about what is going on: on standard error, since standard output is for results."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: int, unit: str, *, done: int = 0, quiet: bool = False) -> Iterator[Advance]:
    """Show `what` from `done` to `total`, with the rate since the start and the time left."""
    with _shown(what, total, unit, done, quiet) as show:

        def advance(count: int = 1, note: str = "") -> None:
            go_on()
            show(count, note)

        yield advance


@contextmanager
def _shown(what: str, total: int, unit: str, done: int, quiet: bool) -> Iterator[Advance]:
    if quiet:
        yield lambda count=1, note="": None
    elif sys.stderr.isatty():
        with _bar(what, total, unit, done) as advance:
            yield advance
    else:
        yield _lines(what, total, unit, done)


def speed(count: float, seconds: float, unit: str) -> str:
    """`1.4 steps/s`, `210 pictures/s`; of seconds themselves nothing, as they all take as long."""
    if unit == "s":
        return ""
    rate = count / max(seconds, 1e-9)
    return f"{rate:.{0 if rate >= 10 else 1}f} {unit}/s"


def duration(seconds: float) -> str:
    """`0:07`, `12:05`, `3:12:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def _bar(what: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    start, count = time.monotonic(), 0
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=total, completed=done, rate="", note="")

        def advance(more: int = 1, note: str = "") -> None:
            nonlocal count
            count += more
            fields = {"rate": speed(count, time.monotonic() - start, unit)} | ({"note": note} if note else {})
            bars.update(task, advance=more, **fields)  # type: ignore[arg-type]

        yield advance


def _lines(what: str, total: int, unit: str, done: int) -> Advance:
    start, count, shown = time.monotonic(), 0, 0.0

    def advance(more: int = 1, note: str = "") -> None:
        nonlocal count, shown
        count += more
        now = time.monotonic()
        finished = done + count >= total
        if now - shown < LINE_SECONDS and not (finished and more):
            return
        shown = now
        took = now - start
        left = "" if finished or count <= 0 else f", {duration((total - done - count) * took / count)} left"
        share = 100 * (done + count) // total if total else 100
        behind = f"  {note}" if note else ""
        rate = speed(count, took, unit)
        rest = f" ({share} %), {rate}" if rate else f" {unit} ({share} %)"
        say(f"{what}: {done + count}/{total}{rest}{left}{behind}")

    return advance
