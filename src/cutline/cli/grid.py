"""`cutline grid`: from several settings to a run for each, and one table of them all."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cutline.cli.arguments import parse
from cutline.console import say
from cutline.errors import ConfigError, CutlineError

if TYPE_CHECKING:
    from cutline.config import Config
    from cutline.engine.grid import Grid, Trial

_ABOUT = """Train a run for each of several settings, one after another, and put what comes out into one table.

Takes what cutline train takes beside what is said here, and trains the same with the base alone. The same command goes
on where it was stopped."""


@dataclass(frozen=True)
class Switches:
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """For the runs, a folder each, and for table.md and table.json."""
    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="SETTING=V1,V2,…")] = ()
    """A setting and its values, as in decoder.kind=lstm,gru; of several of these, all combinations."""
    rows: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Named rows, each a table of what it changes, as TOML; the first row is always the base itself."""
    seeds: Annotated[str, tyro.conf.arg(metavar="N,N,…")] = "0"
    """Learn each row once with each of these."""
    scores: Annotated[str, tyro.conf.arg(metavar="NAME,NAME,…")] = ""
    """Show these scores, as the events name them, or "all"."""
    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Start from these settings, as cutline train does."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Then take what this file says."""
    gpus: Annotated[str, tyro.conf.arg(metavar="N|all")] = ""
    """Share the work of each run among GPUs of this machine."""
    dry_run: bool = False
    """Say which runs there are and how long each would take, and stop."""
    quiet: bool = False
    """Print nothing but the table."""


def main(arguments: list[str]) -> int:
    from cutline.cli.train import form

    given = parse(form("Grid", _ABOUT, Switches, without=("name", "seed", "output")), arguments, verb="grid")
    from cutline.cli import grid_table
    from cutline.engine import folder, grid

    planned = _planned(given)
    if given.dry_run:
        return _dry_run(planned, given.quiet)
    _see_data([trial.config for trial in planned.trials if trial.result is None])
    _make(given.out)
    with folder.held(given.out):
        grid.open_or_begin(planned)
        failed: dict[str, str] = {}
        code = _do_all(planned, given, failed)
    rows = _rows(planned, failed)
    grid_table.show(planned, rows, grid_table.columns(rows, given.scores, bool(given.rows)))
    return code


def _planned(given: Any) -> Grid:
    from cutline.cli.train import settle
    from cutline.engine import grid

    if bool(given.vary) == bool(given.rows):
        raise ConfigError(
            "a grid needs to know what is to differ", expected="--vary SETTING=V1,V2,… or --rows FILE, one of the two"
        )
    base, seeds = settle(given), grid.seeds(given.seeds)
    if given.rows:
        return grid.Grid(base, grid.rows(base, given.rows), seeds, given.out, "row")
    cells, heading = grid.varied(base, given.vary)
    return grid.Grid(base, cells, seeds, given.out, heading)


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made: {error.strerror}", fix="another --out") from None


def _dry_run(planned: Grid, quiet: bool) -> int:
    """What is left to do, and what that would take; 1 where a run could not begin."""
    from cutline.cli.grid_table import ToDo, show_plan
    from cutline.engine.estimate import dry_run

    plan = []
    for cell in planned.cells:
        left = [trial for trial in planned.trials if trial.cell == cell and trial.result is None]
        if not left:
            plan.append(ToDo(cell.name, 0, note="done"))
        elif (learner := left[0].learner) != left[0]:
            plan.append(ToDo(cell.name, len(left), note=f"with the weights of {learner.cell.name}"))
        else:
            say(f"trying {cell.name}", quiet=quiet)
            try:
                plan.append(ToDo(cell.name, len(left), dry_run(left[0].config, quiet=True)))
            except CutlineError as error:
                plan.append(ToDo(cell.name, len(left), wrong=str(error)))
    show_plan(planned, plan)
    return 1 if any(each.wrong for each in plan) else 0


# Doing it -----------------------------------------------------------------------------------------------------------


def _do_all(planned: Grid, given: Any, failed: dict[str, str]) -> int:
    """Learn what is not learned yet, and note what failed; 128 + the signal, at once, when stopped."""
    trials = planned.trials
    left = [trial for trial in trials if trial.result is None]
    _write(planned, given, failed)
    if not left:
        return 0
    from torch.distributed.elastic.multiprocessing import SignalException

    trial = left[0]
    try:
        for trial in left:
            say(f"{trials.index(trial) + 1} of {len(trials)}: {_title(trial)}", quiet=given.quiet)
            code = _do(trial, given.quiet, failed)
            if code >= 128:
                return _stopped(code, trial, given.out)
            if trial.name in failed:
                say(f"{_title(trial)} failed: {failed[trial.name]}", quiet=given.quiet)
            _write(planned, given, failed)
    except SignalException as stopped:  # between two runs: who has supervised one has taken over the signals
        return _stopped(128 + int(stopped.sigval), trial, given.out)
    except KeyboardInterrupt:
        return _stopped(128 + signal.SIGINT, trial, given.out)
    return 1 if failed else 0


def _title(trial: Trial) -> str:
    return f"{trial.cell.name}, seed {trial.seed}"


def _stopped(code: int, trial: Trial, out: Path) -> int:
    say(f"the grid in {out} was stopped at {_title(trial)}; the same command goes on from there")
    return code


def _see_data(configs: list[Config]) -> None:
    """Look at all data before anything is learned: a mistake there is better told now than in the last row."""
    from cutline.data.sources import read

    seen = []
    for config in configs:
        if (config.data, config.pictures.size) not in seen:
            seen.append((config.data, config.pictures.size))
            read(config, quiet=True)


def _do(trial: Trial, quiet: bool, failed: dict[str, str]) -> int:
    """Learn the run of a trial, or go on with it; or search with the weights of another's."""
    learner, code = trial.learner, 0
    if learner.name in failed:  # it was tried a moment ago
        failed[trial.name] = failed[learner.name]
        return 1
    if learner.learned is None:
        code, why = _learn(learner, quiet)
        if code:
            failed[trial.name] = why
    if code == 0 and learner != trial:
        trial.keep(_search(trial, quiet))
    return code


def _learn(trial: Trial, quiet: bool) -> tuple[int, str]:
    """As cutline train does, and with its care; how it ended, and why if badly."""
    from cutline import config as configuration
    from cutline.engine import folder, journal
    from cutline.engine.supervise import supervise

    trial.place.mkdir(exist_ok=True)
    settings = trial.place / "settings.toml"
    settings.write_text(configuration.to_toml(trial.config), encoding="utf-8")
    command = ["cutline", "train", "--config", str(settings), "--no-bundle", *["--quiet"] * quiet]
    try:
        run = trial.run or folder.make(trial.config)
        try:
            with _printing_aside():
                code = supervise(run, trial.config, command, quiet=quiet)
            causes = [str(entry["cause"]) for entry in journal.read(run) if entry.get("cause")]
        finally:
            folder.unmake(run)
    except CutlineError as error:
        code, causes = 2, [error.what]
    return code, causes[-1] if code and causes else ""


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


def _search(trial: Trial, quiet: bool) -> dict[str, float]:
    """The validation scores of another's best weights, with the search of this one."""
    from cutline.engine import run, weights
    from cutline.engine.known import Known

    config, path = trial.config, trial.learner.learned
    assert path
    start, last = weights.named(run.load_model(path)[0]), max(len(config.stages) - 1, 0)
    prepared = run.prepare(config, known=Known.load(path, config.task), stage=last, start=start, quiet=True)
    batch = prepared.task.config.training.batch
    validation = prepared.task.validate(batch, prepared.device.torch, lambda count: None)
    assert validation
    say(f"with the weights of {trial.learner.name}: {validation}", quiet=quiet)
    return validation.to_dict()


# Telling it ---------------------------------------------------------------------------------------------------------


def _rows(planned: Grid, failed: dict[str, str]) -> list[Any]:
    from cutline.cli.grid_table import Row

    rows = []
    for cell in planned.cells:
        trials = [trial for trial in planned.trials if trial.cell == cell]
        results = {trial.seed: trial.result for trial in trials}
        rows.append(
            Row(
                cell,
                {seed: result for seed, result in results.items() if result},
                {trial.seed: failed.get(trial.name, "") for trial in trials if not results[trial.seed]},
                trials[0].learner.cell.name,
            )
        )
    return rows


def _write(planned: Grid, given: Any, failed: dict[str, str]) -> None:
    from cutline.cli import grid_table

    rows = _rows(planned, failed)
    grid_table.write(planned, rows, grid_table.columns(rows, given.scores, bool(given.rows)))
