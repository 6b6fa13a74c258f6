"""`cutline watch`: follow a run while it learns."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cutline.cli.arguments import parse
from cutline.cli.telling import add_row, age, coloured, count, number, size, steps, tell, when
from cutline.console import LINE_SECONDS, duration

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderResult
    from rich.measure import Measurement
    from rich.table import Table

    from cutline.engine.lines import Entry
    from cutline.engine.runs import Run

BLOCKS = "▁▂▃▄▅▆▇█"
LOOK_SECONDS = 1.0
PACE_SECONDS = 60.0
"""How far back the speed is taken from."""
STORY = 5


@dataclass(frozen=True)
class Watch:
    """Follow a run until it ends; Ctrl-C leaves it alone and stops looking."""

    run: tyro.conf.Positional[Path] = Path("runs/latest")
    """The run folder."""
    once: bool = False
    """Show how it stands now, and leave."""


def main(arguments: list[str]) -> int:
    form = parse(Watch, arguments, verb="watch")
    from rich.console import Console

    from cutline.cli.runs import open_run

    watched, out = Watched(open_run(form.run)), Console(highlight=False)
    from cutline.engine.runs import making_sense  # not before: opening names the extra that it needs

    with contextlib.suppress(KeyboardInterrupt), making_sense(form.run):
        if form.once:
            out.print(view(watched))
        elif sys.stdout.isatty():
            _live(watched, out)
            out.print(view(watched))
        else:
            _lines(watched)
    return 0


class Watched:
    """A run, and how fast it was in the last minute."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._steps: deque[tuple[float, int]] = deque()
        self._note()

    def refresh(self) -> None:
        self.run.refresh()
        self._note()

    @property
    def speed(self) -> float | None:
        """Steps a second; before it was watched for long enough, since the run began its work."""
        (then, first), (now, last) = self._steps[0], self._steps[-1]
        watched = last > first and now - then > PACE_SECONDS / 4 and self.run.state == "running"
        return (last - first) / (now - then) if watched else self.run.speed

    @property
    def over(self) -> bool:
        return self.run.state not in ("running", "new", "unknown") or not self.run.path.exists()

    def _note(self) -> None:
        now, step = self.run.now, self.run.curve.step
        if self._steps and step < self._steps[-1][1]:  # it went on from an older checkpoint
            self._steps.clear()
        self._steps.append((now, step))
        while now - self._steps[0][0] > PACE_SECONDS:
            self._steps.popleft()


def _live(watched: Watched, out: Console) -> None:
    from rich.live import Live

    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            live.update(view(watched), refresh=True)
            if watched.over:
                return
            time.sleep(LOOK_SECONDS)
            watched.refresh()


def _lines(watched: Watched) -> None:
    """For a log: a line every ten seconds, if something happened in them, and at the end."""
    shown, said = "", -LINE_SECONDS
    while True:
        told, now = line(watched), time.monotonic()
        if told != shown and (watched.over or now - said >= LINE_SECONDS):
            print(told, flush=True)
            shown, said = told, now
        if watched.over:
            return
        time.sleep(LOOK_SECONDS)
        watched.refresh()


def line(watched: Watched) -> str:
    """How the run stands in one line. It changes only when the run does, so nothing in it counts the time."""
    run, history = watched.run, watched.run.history
    parts = [run.state, f"step {steps(run)}"]
    if run.curve.losses:
        parts.append(f"loss {run.curve.losses[-1]:.3f}")
    if run.best is not None:
        parts.append(f"best {run.metric} {run.best:.1f}")
    if run.saved:
        parts.append(f"saved at {run.saved[0].step}")
    if history.restarts:
        parts.append(count(history.restarts, "restart"))
    parts += [f"alert {name}: {alert.get('what', '')}" for name, alert in run.alerts.items()]
    if run.state == "failed":
        parts.append(history.cause)
    return ", ".join(parts)


def view(watched: Watched) -> Group:
    """Everything at a look; made for 80 columns, readable in 40."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    run, history = watched.run, watched.run.history
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    table.expand = True
    by = f", process {history.pid} on {history.host}" if history.pid and run.state == "running" else ""
    again = f", {count(history.restarts, 'restart')}" if history.restarts else ""
    add_row(table, "state", coloured(run.state) + by + again)
    _add_progress(table, watched)
    if run.curve.losses:
        add_row(table, "loss", f"{run.curve.losses[-1]:.3f}, rate {run.curve.rate or 0:.2g}")
        table.add_row("", Sparkline(run.curve.losses))
    for index, event in enumerate(reversed(run.curve.validations)):
        add_row(table, "" if index else "scores", Text(_validation(run, event), no_wrap=True, overflow="ellipsis"))
    if run.saved:
        newest = run.saved[0]
        add_row(table, "saved", f"step {newest.step}, {age(run.now - newest.time)} ago, {size(newest.bytes)}")
    for index, text in enumerate(_health(history.health)):
        add_row(table, "" if index else "machine", text)
    for host, other in run.machines.items():
        for text in _health(other.health):
            add_row(table, "", f"{host}: {text}")
    for name, alert in run.alerts.items():
        what = Text(f"{name}: {alert.get('what', '')}", style="bold red")
        add_row(table, "alert", what.append(f"\nto fix: {alert.get('fix', '')}", style="not bold"))
    if run.state == "failed":
        add_row(table, "failed", Text(history.cause, style="bold red"))
    for index, entry in enumerate(history.story[-STORY:]):
        told = Text(f"{when(entry, '%H:%M:%S')} {tell(entry)}", no_wrap=True, overflow="ellipsis")
        add_row(table, "" if index else "story", told)
    return Group(Text(run.name, style="bold", overflow="fold"), table)


class Sparkline:
    """A row of blocks as wide as there is room, each the mean of as many values."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(sparkline(self.values, options.max_width), style="cyan", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement(1, max(min(len(self.values), options.max_width), 1))


def sparkline(values: Sequence[float], width: int) -> str:
    """Between the lowest and the highest; the newest on the right."""
    columns = min(len(values), max(width, 1))
    edges = [len(values) * column // columns for column in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * (mean - low) / ((high - low) or 1))] for mean in means)


def _add_progress(table: Table, watched: Watched) -> None:
    from rich.progress_bar import ProgressBar

    run, speed = watched.run, watched.speed
    if run.total:
        table.add_row("", ProgressBar(total=run.total, completed=min(run.curve.step, run.total)))
    parts = [steps(run)]
    if run.epoch:
        parts.append(f"epoch {run.epoch}/{run.epochs}")
    if speed:
        parts.append(f"{speed:.{1 if speed < 10 else 0}f} steps/s")
    if run.left is not None:
        parts.append(f"{duration(run.left)} left")
    parts.append(f"{duration(run.spent)} spent")
    add_row(table, "step", ", ".join(parts))


def _validation(run: Run, event: Entry) -> str:
    each = [f"{key.removesuffix(run.ending)} {number(event[key])}" for key in event if key.endswith(run.ending)]
    languages = f" ({', '.join(each)})" if len(each) > 1 else ""
    mark = " best so far" if event.get("best") else ""
    return f"epoch {event.get('epoch', '–')}: {run.metric} {number(run.score(event))}{mark}{languages}"


def _health(entry: Entry) -> Iterator[str]:
    """Memory, disk and GPUs as the last look at the machine found them."""
    used, total = entry.get("limit_used", entry.get("memory_used")), entry.get("limit", entry.get("memory_total"))
    parts = [f"memory {size(used)} of {size(total)}"] if used and total else []
    if free := entry.get("disk_free"):
        parts.append(f"disk {size(free)} free")
    if parts:
        yield ", ".join(parts)
    for gpu in entry.get("gpus") or ():
        known = [f"GPU {gpu.get('index', 0)}"]
        if gpu.get("use") is not None:
            known.append(f"{100 * gpu['use']:.0f} %")
        if gpu.get("memory_used") and gpu.get("memory_total"):
            known.append(f"{size(gpu['memory_used'])} of {size(gpu['memory_total'])}")
        if gpu.get("celsius") is not None:
            known.append(f"{gpu['celsius']:.0f} °C")
        yield ", ".join(known)
