"""How runs are told to people, in `cutline runs` and `cutline watch`."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cutline.config import Config
    from cutline.engine.lines import Entry
    from cutline.engine.runs import Run

COLOURS = {
    "running": "green", "finished": "cyan", "failed": "bold red", "interrupted": "yellow",
    "ok": "green", "damaged": "bold red", "set aside": "yellow", "left over": "yellow",
}  # fmt: skip


def scores(run: Run, validations: Sequence[Entry]) -> Table:
    """A row a validation: the score of each language, and the best marked."""
    validations = list(validations)
    ending = run.ending
    languages = list(
        dict.fromkeys(key.removesuffix(ending) for row in validations for key in row if key.endswith(ending))
    )
    table = new_table(
        "epoch", "step", *(f"{run.metric} {lang}" for lang in languages), *(["mean"] * (len(languages) > 1)), ""
    )
    for row in validations:
        values = [row.get(f"{lang}{ending}") for lang in languages]
        mean = [number(run.score(row))] * (len(languages) > 1)
        mark = "best so far" if row.get("best") else ""
        add_row(table, str(row.get("epoch", "–")), str(row.get("step", "–")), *map(number, values), *mean, mark)
    return table


def tell(entry: Entry) -> str:
    """An entry of the journal in a line."""
    known = defaultdict(lambda: "?", entry)
    kind = str(entry["kind"])
    if kind in STORY:
        return STORY[kind].format_map(known)
    if "what" in entry:
        return str(entry["what"])
    details = (f"{key} {value}" for key, value in entry.items() if key not in ("time", "kind"))
    return f"{kind.replace('_', ' ')}: {', '.join(details)}".removesuffix(": ")


STORY = {
    "started": "started by process {pid} on {host}",
    "training": "training from step {step} of {total} on {device}",
    "resumed": "went on from {path}",
    "quarantined": "{path} set aside: {why}",
    "save_failed": "step {step} could not be saved: {why}",
    "alert": "alert {name}: {what}",
    "alert_over": "alert {name} is over",
    "failed": "process {rank} ended badly: {cause}",
    "restarting": "starting again in {wait} s",
    "stopped": "stopped at step {step}: {why}",
    "gave_up": "gave up: {cause}",
    "learned": "learned for {seconds} s, to step {step}",
    "finished": "finished at step {step}",
}


def steps(run: Run) -> str:
    """`1200/3000 (40 %)`"""
    step, total = run.curve.step, run.total
    return f"{step}/{total} ({100 * step // total} %)" if total else str(step) if step else "–"


def learning(config: Config) -> str:
    """How a run learned; of one in stages, its last."""
    last = config.all_stages[-1].training
    told = f"{last.epochs} epoch{'s' * (last.epochs != 1)}, {last.batch} pictures a step, seed {config.seed}"
    return told + (f", the last of {len(config.stages)} stages" if config.stages else "")


def number(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else "–"


def count(things: int, name: str) -> str:
    return f"{things:,} {name}{'s' * (things != 1)}"


def age(seconds: float) -> str:
    """`40 s`, `12 min`, `5 h`, `9 d`: what it is about, in few letters."""
    for unit, name, until in ((1, "s", 100), (60, "min", 100), (3600, "h", 48)):
        if seconds < until * unit:
            return f"{max(seconds, 0) / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} d"


def size(count: float) -> str:
    """`12 kB`, `240 MB`, `1.5 GB`"""
    for power, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= power:
            return f"{count / power:.{1 if count < 10 * power else 0}f} {name}"
    return f"{count} B"


def when(entry: Entry, form: str) -> str:
    try:
        return f"{datetime.fromtimestamp(entry['time']):{form}}"
    except (KeyError, TypeError, ValueError, OverflowError, OSError):  # none, or none that a clock has
        return "?"


def coloured(state: str) -> Text:
    from rich.text import Text

    return Text(state, style=COLOURS.get(state, ""))


def new_console() -> Console:
    """As wide as the terminal; where there is none, as wide as what is written."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=1000)


def new_table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    style = box.HORIZONTALS if sys.stdout.isatty() and headings else None
    table = Table(*headings, box=style, show_edge=False, pad_edge=False, padding=(0, 1), show_header=bool(headings))
    for column in table.columns:
        column.overflow = "fold"
    return table


def add_row(table: Table, *cells: str | Text) -> None:
    """Cells are text, not markup: a folder's name may hold brackets."""
    from rich.text import Text

    table.add_row(*(Text(cell, overflow="fold") if isinstance(cell, str) else cell for cell in cells))
