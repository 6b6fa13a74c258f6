"""`cutline runs`: list, show, verify or tidy run folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from cutline.cli.arguments import dispatch, parse
from cutline.cli.telling import (
    add_row,
    age,
    coloured,
    count,
    new_console,
    new_table,
    number,
    scores,
    size,
    steps,
    tell,
    when,
)
from cutline.console import duration, say
from cutline.errors import ConfigError, CutlineError, DataError, nearest, require

if TYPE_CHECKING:
    from rich.text import Text

    from cutline.engine.runs import Run


@dataclass(frozen=True)
class List:
    """List the runs of a folder, the newest last; `cutline runs` and `cutline runs FOLDER` do the same."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """A folder of run folders (or of folders of them), or a run folder."""
    format: Literal["table", "json"] = "table"
    """A table to read, or JSON with all that is known."""


@dataclass(frozen=True)
class Show:
    """Show what is known of a run: how far it is, what it met, its scores and its checkpoints."""

    run: tyro.conf.Positional[Path] = Path("runs/latest")
    """The run folder."""
    format: Literal["text", "json"] = "text"
    """Text to read, or JSON."""


@dataclass(frozen=True)
class Verify:
    """Read every byte of every checkpoint; exits with 1 where something is damaged."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs/latest"),)
    """Run folders, or folders of them."""


@dataclass(frozen=True)
class Clean:
    """List what a run does not need, and remove it with --yes; a running run is left alone.

    The newest checkpoint that verifies and the best stay; of a finished run with a bundle, the best alone.
    """

    folder: tyro.conf.Positional[Path]
    """A run folder, or a folder of them."""
    yes: bool = False
    """Remove what is listed."""


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help", *TASKS):
        return dispatch("runs", TASKS, arguments)
    word = arguments[0] if arguments else ""
    if word and not word.startswith("-") and not Path(word).exists():
        raise ConfigError(
            f"there is neither a folder nor a task {word}{nearest(word, TASKS)}",
            expected=f"a folder of runs, or a task: {', '.join(TASKS)}",
        )
    return _list(arguments)


def _list(arguments: list[str]) -> int:
    form = parse(List, arguments, verb="runs list")
    runs, damaged = _runs(form.folder)
    if form.format == "json":
        odd = [{"name": path.name, "path": str(path), "state": "damaged", "cause": why} for path, why in damaged]
        print(json.dumps([*(run.to_dict() for run in runs), *odd], indent=1))
        return 0
    if not runs and not damaged:
        print(f"no runs in {form.folder}; cutline train makes one")
        return 0
    table = new_table("name", "state", "step", "score", "saved", "active")
    for run in runs:
        name = _name(run.path, form.folder)
        saved = age(run.now - run.saved[0].time) if run.saved else "–"
        active = "now" if run.state == "running" else age(run.now - run.active)
        add_row(table, name, coloured(run.state), steps(run), number(run.best), saved, active)
    for path, _ in damaged:
        add_row(table, _name(path, form.folder), coloured("damaged"), *"––––")
    new_console().print(table)
    for _, why in damaged:
        say(why)
    return 0


def _name(run: Path, place: Path) -> str:
    return run.resolve().name if run == place else str(run.relative_to(place))


def _show(arguments: list[str]) -> int:
    form = parse(Show, arguments, verb="runs show")
    run = open_run(form.run)
    from cutline.engine.runs import making_sense

    with making_sense(run.path):
        _tell_all(run, form)
    return 0


def _tell_all(run: Run, form: Show) -> None:
    if form.format == "json":
        kept = [{"step": s.step, "bytes": s.bytes, "time": s.time, "kept": run.kept_why(s)} for s in run.saved]
        more = {"checkpoints": kept, "validations": run.validations(), "story": run.history.story}
        print(json.dumps(run.to_dict() | more, indent=1, default=str))
        return
    from rich.text import Text

    out = new_console()
    for name, line in _facts(run).items():
        out.print(Text(f"{name:<13}", style="dim"), line, sep="", soft_wrap=True)
    if validations := run.validations():
        out.print("\n[bold]scores[/bold]", scores(run, validations), sep="\n")
    if run.saved:
        table = new_table("checkpoint", "size", "age", "kept as")
        for each in run.saved:
            add_row(table, each.path.name, size(each.bytes), age(run.now - each.time), run.kept_why(each) or "–")
        out.print("\n[bold]checkpoints[/bold]", table, sep="\n")
    out.print("\n[bold]story[/bold]")
    for entry in run.history.story:
        out.print(Text(f"{when(entry, '%Y-%m-%d %H:%M:%S')}  {tell(entry)}"), soft_wrap=True)
    if skipped := run.history.counts["skipped"]:
        out.print(f"{count(skipped, 'step')} skipped: loss or gradient was no number", soft_wrap=True)


def _verify(arguments: list[str]) -> int:
    form = parse(Verify, arguments, verb="runs verify")
    found = [_some_runs(path) for path in form.runs]
    runs = [run for some, _ in found for run in some]
    from rich.text import Text

    from cutline.engine.tidy import verify

    damaged, out = sum(count for _, count in found), new_console()
    for run in runs:
        out.print(Text(str(run.path), style="bold"), soft_wrap=True)
        table = new_table()
        for each in verify(run):
            damaged += each.state == "damaged"
            add_row(table, each.what, size(each.bytes), coloured(each.state), each.why)
        out.print(table if table.row_count else "there is nothing to verify yet")
    print(f"{count(damaged, 'thing')} damaged" if damaged else "all is as it was written", flush=True)
    return 1 if damaged else 0


def _clean(arguments: list[str]) -> int:
    form = parse(Clean, arguments, verb="runs clean")
    runs, _ = _some_runs(form.folder)
    from rich.text import Text

    from cutline.engine import tidy

    things, freed, out = 0, 0, new_console()
    for run in runs:
        try:
            with tidy.held(run.path):
                removals = tidy.removable(run)
                freed += tidy.remove(removals) if form.yes else sum(each.bytes for each in removals)
        except CutlineError as error:
            print(f"{run.path} is left alone: {error.what}")
            continue
        if removals:
            things += len(removals)
            table = new_table()
            for removal in removals:
                add_row(table, str(removal.path.relative_to(run.path)), size(removal.bytes), removal.why)
            out.print(Text(str(run.path), style="bold"), soft_wrap=True)
            out.print(table)
    if not things:
        print("there is nothing to remove")
    elif form.yes:
        print(f"removed {count(things, 'thing')}: {size(freed)} freed")
    else:
        print(f"nothing is removed yet: --yes removes {count(things, 'thing')} and frees {size(freed)}")
    return 0


TASKS = {
    "list": (_list, "list the runs of a folder; a folder alone does the same"),
    "show": (_show, "show how far a run is, what it met, its scores and checkpoints"),
    "verify": (_verify, "read every byte of every checkpoint"),
    "clean": (_clean, "remove what a run does not need"),
}


def open_run(path: Path) -> Run:
    require("xxhash", "train", "looking at runs")
    from cutline.engine.runs import Run

    return Run(path)


def _runs(folder: Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The runs of a folder; and the folders of those that are damaged, each with what is odd about it."""
    require("xxhash", "train", "looking at runs")
    from cutline.engine.runs import Run, find

    if not folder.is_dir() and folder != List.folder:  # where that is not there, nothing was trained yet
        raise ConfigError(f"there is no folder {folder}", expected="a folder that holds runs")
    runs, damaged = [], []
    for path in find(folder):
        try:
            runs.append(Run(path))
        except DataError as error:
            damaged.append((path, error.what))
    return runs, damaged


def _some_runs(folder: Path) -> tuple[list[Run], int]:
    """The runs of a folder, and how many are damaged, each of which is told of."""
    runs, damaged = _runs(folder)
    for _, why in damaged:
        say(why)
    if not runs and not damaged:
        raise ConfigError(f"there are no runs in {folder}", expected="a run folder, or a folder of them")
    return runs, len(damaged)


def _facts(run: Run) -> dict[str, Text]:
    from rich.text import Text

    history, newest = run.history, run.saved[0] if run.saved else None
    by = f", process {history.pid} on {history.host}" if run.state == "running" and history.pid else ""
    left = f", {duration(run.left)} left" if run.left is not None else ""
    epochs = f", epoch {run.epoch}/{run.epochs}" if run.epoch else ""
    facts: dict[str, str | Text] = {
        "run": str(run.path),
        "state": coloured(run.state) + by,
        "step": f"{steps(run)}{epochs}{left}",
        "time": f"{duration(run.spent)} of work in {count(history.starts, 'start')}, "
        f"{count(history.restarts, 'restart')} after failures",
        "best": f"{run.metric} {number(run.best)} at step {run.curve.best.get('step', '–')}",
        "checkpoint": f"step {newest.step}, {age(run.now - newest.time)} old, {size(newest.bytes)}"
        if newest
        else "none",
    }
    if history.cause:
        facts["last failure"] = history.cause
    for name, alert in run.alerts.items():
        facts[f"alert {name}"] = f"{alert.get('what', '')}; to fix: {alert.get('fix', '')}"
    return {name: Text(line) if isinstance(line, str) else line for name, line in facts.items()}
