"""`cutline grid`: from several settings to a run for each, and one table of them all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cutline.cli.arguments import parse
from cutline.errors import ConfigError, require_workshop

if TYPE_CHECKING:
    from cutline.engine.grid import Grid

_ABOUT = """Train a run for each of several settings, and put what comes out into a table.

Takes the flags of cutline train. The same command goes on where it was stopped."""


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
    require_workshop("training")
    from cutline.cli import grid_table, trials
    from cutline.engine import folder, grid

    planned = _planned(given)
    grid_table.check(given.scores, planned.base.task)
    if given.dry_run:
        return trials.dry_run(planned, given.quiet)
    left = [trial.config for trial in planned.trials if trial.result is None]
    trials.see_data(left)
    trials.see_encoders(left)
    trials.make(given.out)
    with folder.held(given.out):
        grid.open_or_begin(planned)
        failed: dict[str, str] = {}
        code = trials.do_all(planned, failed, lambda: _write(planned, given, failed), quiet=given.quiet)
    rows = _rows(planned, failed)
    grid_table.show(planned, rows, grid_table.columns(rows, given.scores, bool(given.rows)))
    return code


def _planned(given: Any) -> Grid:
    from cutline.cli.train import settle
    from cutline.engine import grid

    base, seeds = settle(given), grid.seeds(given.seeds)
    if (given.vary and given.rows) or not (given.vary or given.rows or len(seeds) > 1):
        raise ConfigError(
            "a grid needs to know what is to differ",
            expected="--vary SETTING=V1,V2,… or --rows FILE, one of the two; or several --seeds alone",
        )
    if given.vary:
        cells, heading = grid.varied(base, given.vary)
        return grid.Grid(base, cells, seeds, given.out, heading)
    cells = grid.rows(base, given.rows) if given.rows else (grid.alone(base),)
    return grid.Grid(base, cells, seeds, given.out, "row")


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
