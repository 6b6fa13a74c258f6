"""`cutline grid`: from a set of settings to a run for each, and one table of them all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cutline.cli.arguments import parse
from cutline.cli.telling import add_row, new_console, new_table, size
from cutline.console import duration, say
from cutline.errors import ConfigError, CutlineError

if TYPE_CHECKING:
    from cutline.engine.grid import Figure, Grid, Shown, Trial

ABOUT = """Train a run for each of several settings, one after another, and put what comes out into one table.

Beside what is said here it takes what `cutline train` takes. The same command goes on where it was stopped."""


@dataclass(frozen=True)
class Switches:
    out: Path
    """Folder for the runs, a folder each, and for table.md and table.json."""
    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """SETTING=V1,V2,…, as in decoder.kind=lstm,gru; given several times, all combinations."""
    rows: Path | None = None
    """A TOML file of named rows, each a table of what it changes; the first row is always the base itself."""
    seeds: str = "0"
    """Learn each row once with each of these seeds, with commas."""
    scores: str = ""
    """Scores to show, as the events name them, with commas; or "all"."""
    preset: str = ""
    """Start from these settings, as cutline train does."""
    config: Path | None = None
    """Then take what this file says."""
    gpus: str = ""
    """Share the work of a run among GPUs of this machine: "all", or how many."""
    dry_run: bool = False
    """Say which runs there are and how long each would take, and stop."""
    quiet: bool = False
    """Print nothing but the table."""


def main(arguments: list[str]) -> int:
    from cutline.cli.train import form
    from cutline.engine import folder, grid

    given = parse(form("Grid", ABOUT, Switches, without=grid.OWN), arguments, verb="grid")
    planned = _planned(given)
    if given.dry_run:
        return _dry_run(planned, given.quiet)
    given.out.mkdir(parents=True, exist_ok=True)
    with folder.held(given.out):
        grid.open_or_begin(planned)
        code = _train_all(planned, given)
    rows = [_row(planned, number) for number in range(len(planned.cells))]
    if code < 128:
        _show(planned, rows, _columns(rows, given.scores))
    return code


def _planned(given: Any) -> Grid:
    from cutline.cli.train import settle
    from cutline.engine import grid

    if bool(given.vary) == bool(given.rows):
        raise ConfigError("a grid needs what to vary", expected="--vary SETTING=V1,V2 or --rows FILE, one of the two")
    base = settle(given)
    seeds = grid.seeds(given.seeds)
    if given.rows:
        return grid.Grid(base, grid.rows(base, given.rows), seeds, given.out)
    cells, heading = grid.varied(base, given.vary)
    return grid.Grid(base, cells, seeds, given.out, heading)


# Training -----------------------------------------------------------------------------------------------------------


def _train_all(planned: Grid, given: Any) -> int:
    """Learn what is not learned yet; 1 where some of it failed, and at once with 128 + the signal when stopped."""
    from cutline.engine import folder

    failed = 0
    for number, trial in enumerate(planned.trials, 1):
        run = trial.run
        if run and folder.ended(run) == "finished":
            continue
        say(f"{number} of {len(planned.trials)}: {trial.cell.name}, seed {trial.seed}", quiet=given.quiet)
        code, why = _train(trial, given.quiet)
        if code >= 128:
            say(f"stopped at {trial.cell.name}, seed {trial.seed}; the same command goes on from there")
            return code
        if code:
            failed += 1
            say(f"{trial.cell.name}, seed {trial.seed} failed: {why}")
        _write_tables(planned, given.scores)
    _write_tables(planned, given.scores)
    return 1 if failed else 0


def _train(trial: Trial, quiet: bool) -> tuple[int, str]:
    """Learn one run, or go on with it; how it ended, and why where it ended badly."""
    from torch.distributed.elastic.multiprocessing import SignalException

    from cutline import config as configuration
    from cutline.engine import folder, journal
    from cutline.engine.supervise import supervise

    config = trial.config
    trial.place.mkdir(exist_ok=True)
    settings = trial.place / "settings.toml"
    settings.write_text(configuration.to_toml(config), encoding="utf-8")
    try:
        run = trial.run or folder.make(config)
        command = ["cutline", "train", "--config", str(settings), "--no-bundle", *["--quiet"] * quiet]
        try:
            with _printing_aside():
                code = supervise(run, config, command, quiet=quiet)
            causes = [str(entry["cause"]) for entry in journal.read(run) if entry.get("cause")]
        finally:
            folder.unmake(run)
    except SignalException as stopped:
        return 128 + int(stopped.sigval), ""
    except CutlineError as error:
        code, causes = 2, [error.what]
    why = causes[-1] if code and causes else ""
    (trial.place / "failed.txt").write_text(why, encoding="utf-8") if code else None
    return code, why


@contextmanager
def _printing_aside() -> Iterator[None]:
    """What a run prints is news here, for standard error: standard output is for the table."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _dry_run(planned: Grid, quiet: bool) -> int:
    from cutline.engine.estimate import dry_run

    for cell in planned.cells:
        trial = next(each for each in planned.trials if each.cell == cell)
        print(f"{cell.name}, {len(planned.seeds)} seed{'s' * (len(planned.seeds) != 1)}")
        for line in dry_run(trial.config, quiet=quiet).splitlines():
            print(f"  {line}")
    return 0


# The table ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    name: str
    figures: dict[str, Figure | None]
    """By column: scores as the events name them, and what it costs."""
    done: int
    asked: int
    reasons: tuple[str, ...]


_COSTS = ("learning", "parameters", "epoch_seconds", "seconds", "memory", "best_epoch")
_FAVOURITES = ("_cider", "_bleu_4", "accuracy", "top5", "macro_f1")
_NAMES = {
    "learning": "learning", "parameters": "of", "epoch_seconds": "s/epoch", "seconds": "time", "memory": "memory",
    "best_epoch": "best epoch", "top5": "best five", "macro_f1": "macro F1",
}  # fmt: skip
_LESS_IS_BETTER = ("learning", "parameters", "epoch_seconds", "seconds", "memory", "ece", "nll")


def _row(planned: Grid, number: int) -> Row:
    from cutline.engine import folder, grid

    cell = planned.cells[number]
    trials = [trial for trial in planned.trials if trial.cell == cell]
    done = [trial.run for trial in trials if trial.run and folder.ended(trial.run) == "finished"]
    found: list[Shown] = [grid.shown(run) for run in done]
    keys = dict.fromkeys(key for each in found for key in each.scores)
    figures = {key: grid.figure([each.scores.get(key) for each in found]) for key in keys}
    figures |= {key: grid.figure([getattr(each, key) for each in found]) for key in _COSTS}
    notes = [trial.place / "failed.txt" for trial in trials if trial.run not in done]
    reasons = tuple(note.read_text(encoding="utf-8") for note in notes if note.exists())
    return Row(cell.name, figures, len(done), len(trials), reasons)


def _columns(rows: Sequence[Row], asked: str) -> list[str]:
    there = list(dict.fromkeys(key for row in rows for key in row.figures if key not in _COSTS))
    if asked == "all" or not there:
        return [*there, *_COSTS]
    if asked:
        wanted = [key.strip() for key in asked.split(",")]
        if odd := [key for key in wanted if key not in there]:
            raise ConfigError(f"no run has the score '{odd[0]}'", expected=", ".join(there))
        return [*wanted, *_COSTS]
    return [*([key for end in _FAVOURITES for key in there if key.endswith(end)] or there), *_COSTS]


def _heading(key: str) -> str:
    for ending, name in (("_cider", "CIDEr-D"), ("_bleu_4", "BLEU-4")):
        if key.endswith(ending):
            return f"{name} {key.removesuffix(ending)}"
    return _NAMES.get(key, key)


def _cell(key: str, figure: Figure | None) -> str:
    if figure is None:
        return "–"
    mean, spread = figure.mean, figure.spread
    if key in ("learning", "parameters"):
        return f"{mean / 1e6:.2f} M"
    if key == "memory":
        return size(mean)
    if key == "seconds":
        return duration(mean)
    return f"{mean:.1f}" + (f" ± {spread:.1f}" if spread is not None and key != "epoch_seconds" else "")


def _name(row: Row) -> str:
    if row.done == row.asked:
        return row.name
    state = "failed: " + row.reasons[0] if row.reasons else "not finished"
    return f"{row.name} ({row.done} of {row.asked}; {state})"


def _best(rows: Sequence[Row], key: str) -> str:
    """What the best of a column is shown as."""
    there = [figure for row in rows if (figure := row.figures.get(key))]
    if len(there) < 2 or key == "best_epoch":
        return ""
    choose = min if key.endswith(_LESS_IS_BETTER) else max
    return _cell(key, choose(there, key=lambda figure: figure.mean))


def _cells(rows: Sequence[Row], columns: Sequence[str]) -> list[list[tuple[str, bool]]]:
    """The text of each cell, and whether it is the best of its column."""
    best = {key: _best(rows, key) for key in columns}
    table = []
    for row in rows:
        texts = [(key, _cell(key, row.figures.get(key))) for key in columns]
        table.append([(text, text == best[key]) for key, text in texts])
    return table


def _show(planned: Grid, rows: Sequence[Row], columns: Sequence[str]) -> None:
    from rich.text import Text

    table = new_table(planned.heading, *map(_heading, columns))
    for row, cells in zip(rows, _cells(rows, columns)):
        add_row(table, _name(row), *(Text(text, style="bold" if best else "") for text, best in cells))
    out = new_console()
    out.print(table)
    out.print(_caption(planned), style="dim")


def _caption(planned: Grid) -> str:
    count = len(planned.seeds)
    spread = f"; ± is one standard deviation over {count} seeds" if count > 1 else ""
    return f"scores of each run's best validation, 0 to 100{spread}"


def _write_tables(planned: Grid, scores: str) -> None:
    from cutline.engine import grid

    rows = [_row(planned, number) for number in range(len(planned.cells))]
    columns = _columns(rows, scores)
    lines = [[planned.heading, *map(_heading, columns)], ["---"] * (len(columns) + 1)]
    for row, cells in zip(rows, _cells(rows, columns)):
        lines.append([_name(row), *(f"**{text}**" if best else text for text, best in cells)])
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    grid.put(planned.out / "table.md", f"{text}\n\n{_caption(planned)}\n")
    grid.write(planned.out / "table.json", {"rows": [asdict(row) for row in rows]})
