"""The table of a grid: for a terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from cutline import durable
from cutline.cli.telling import add_row, count, new_console, new_table, size
from cutline.console import duration
from cutline.engine import grid
from cutline.engine.grid import Cell, Grid
from cutline.engine.results import Figure, Result, figure
from cutline.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cutline.engine.estimate import Estimate

_FAVOURITES = ("_cider", "_bleu_4", "accuracy", "top5", "macro_f1")
"""What the names of the scores end with that are shown unless others are asked for."""
_NAMES = {"_cider": "CIDEr-D", "_bleu_4": "BLEU-4", "top5": "best five", "macro_f1": "macro F1", "ece": "calibration"}
_LESS_IS_BETTER = ("ece", "nll")
_UNKNOWN = "–"


@dataclass(frozen=True)
class Row:
    cell: Cell
    results: dict[int, Result]
    """By seed, as far as they are done."""
    missing: dict[int, str]
    """The other seeds, and why they are not done, where that is known."""
    learner: str
    """The row whose weights it has."""

    def figure(self, score: str) -> Figure | None:
        return figure([result.scores.get(score) for result in self.results.values()])

    def known(self, cost: str) -> list[float]:
        return [value for each in self.results.values() if (value := getattr(each, cost)) is not None]


@dataclass(frozen=True)
class Column:
    heading: str
    texts: list[str]
    best: list[bool]
    """Whether no other row is better here."""


def check(asked: str, task: str) -> None:
    """Refuse scores that no run of the task can have, before anything is learned."""
    from cutline.engine.classes import FIGURES
    from cutline.evaluation.text import Diversity

    own = [*(f"bleu_{n}" for n in range(1, 5)), "rouge_l", "cider", *(each.name for each in fields(Diversity)), "count"]
    known = [*FIGURES] * (task != "captions") + [f"LANG_{name}" for name in own] * (task != "classes")
    for key in (each.strip() for each in asked.split(",") if asked not in ("", "all")):
        if key not in known and f"LANG_{key.partition('_')[2]}" not in known:
            raise ConfigError(f"no run has the score '{key}'", expected=", ".join(known))


def columns(rows: Sequence[Row], asked: str, compare: bool) -> list[list[Column]]:
    """The scores that are asked for, and what they cost; where rows `compare`, with the difference to the first."""
    there = list(dict.fromkeys(key for row in rows for each in row.results.values() for key in each.scores))
    if asked == "all":
        wanted = there
    elif asked:
        wanted = [key.strip() for key in asked.split(",")]
    else:
        wanted = [key for ending in _FAVOURITES for key in there if key.endswith(ending)] or there
    return [[_score(key, rows, compare) for key in wanted], _costs(rows)]


def _score(key: str, rows: Sequence[Row], compare: bool) -> Column:
    figures = [row.figure(key) for row in rows]
    base, digits = figures[0], 3 if key.endswith("nll") else 1
    texts = []
    for number, each in enumerate(figures):
        text = _UNKNOWN if each is None else f"{each.mean:.{digits}f}"
        text += f" ± {each.spread:.{digits}f}" if each and each.spread is not None else ""
        texts.append(text + (f"\n{each.mean - base.mean:+.{digits}f}" if compare and number and each and base else ""))
    sign = -1 if key.endswith(_LESS_IS_BETTER) else 1
    return Column(_heading(key), texts, _best([sign * each.mean if each else None for each in figures], texts))


def _heading(key: str) -> str:
    for ending, name in _NAMES.items():
        if key.endswith(ending):
            return f"{name} {key.removesuffix(ending)}".strip()
    return key.replace("_", " ")


def _costs(rows: Sequence[Row]) -> list[Column]:
    def column(heading: str, cost: str, text: Callable[[float], str], of: Callable[[Sequence[float]], float]) -> Column:
        values = [of(known) if (known := row.known(cost)) else None for row in rows]
        texts = [_UNKNOWN if value is None else text(value) for value in values]
        return Column(heading, texts, _best([None if value is None else -value for value in values], texts))

    return [
        column("learned", "learning", _millions, max),
        column("parameters", "parameters", _millions, max),
        column("s/epoch", "epoch_seconds", lambda seconds: f"{seconds:.{1 if seconds < 100 else 0}f}", _mean),
        column("time", "seconds", duration, _mean),
        column("memory", "memory", size, max),
        Column("best epoch", [_epochs(row) for row in rows], [False] * len(rows)),
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f} M"


def _epochs(row: Row) -> str:
    """`7 of 12`, or of several seeds `5–9 of 12`."""
    best, all_ = (sorted({int(value) for value in row.known(name)}) for name in ("best_epoch", "epochs"))
    ends = [f"{each[0]}–{each[-1]}" if len(each) > 1 else f"{each[0]}" for each in (best, all_) if each]
    return " of ".join(ends) or _UNKNOWN


def _best(values: Sequence[float | None], texts: Sequence[str]) -> list[bool]:
    """Where the highest stands, or what is written like it; nowhere if all are."""
    figures = [text.split(" ±")[0].split("\n")[0] for text in texts]
    known = [(value, figure) for value, figure in zip(values, figures, strict=True) if value is not None]
    if len({figure for _, figure in known}) < 2:
        return [False] * len(figures)
    best = max(known)[1]
    return [figure == best for figure in figures]


# How it is shown ----------------------------------------------------------------------------------------------------


def show(planned: Grid, rows: Sequence[Row], parts: Sequence[Sequence[Column]]) -> None:
    show_columns(planned.heading, [_name(row) for row in rows], parts, notes(planned, rows))


def show_columns(heading: str, names: Sequence[str], parts: Sequence[Sequence[Column]], lines: Sequence[str]) -> None:
    """As one table or, where the terminal is too narrow for that, as several below each other; and lines below it."""
    out = new_console()
    whole = [column for part in parts for column in part]
    if _width(out, heading, names, whole) <= out.width:
        parts = [whole]
    for part in parts:
        left = list(part)
        while left:
            fits = next((n for n in range(len(left), 1, -1) if _width(out, heading, names, left[:n]) <= out.width), 1)
            out.print(_table(heading, names, left[:fits]))
            out.print()
            left = left[fits:]
    for line in lines:
        out.print(line, style="dim", markup=False)


def _table(heading: str, names: Sequence[str], shown: Sequence[Column]) -> Table:
    from rich.text import Text

    table = new_table(heading, *(column.heading for column in shown))
    for number, name in enumerate(names):
        add_row(table, name, *(Text(c.texts[number], style="bold" if c.best[number] else "") for c in shown))
    return table


def _width(out: Console, heading: str, names: Sequence[str], shown: Sequence[Column]) -> int:
    wide = out.options.update(max_width=1000)
    return out.measure(_table(heading, names, shown), options=wide).maximum


def markdown(planned: Grid, rows: Sequence[Row], parts: Sequence[Sequence[Column]]) -> str:
    return columns_as_markdown(planned.heading, [_name(row) for row in rows], parts, notes(planned, rows))


def columns_as_markdown(
    heading: str, names: Sequence[str], parts: Sequence[Sequence[Column]], notes: Sequence[str]
) -> str:
    shown = [column for part in parts for column in part]
    lines = [[heading, *(column.heading for column in shown)], ["---", *["---:"] * len(shown)]]
    for number, name in enumerate(names):
        cells = []
        for column in shown:
            value, *difference = column.texts[number].split("\n")
            cells.append(" ".join([f"**{value}**" if column.best[number] else value, *(f"({d})" for d in difference)]))
        lines.append([name, *cells])
    table = ["| " + " | ".join(_plain(cell).replace("|", r"\|") for cell in line) + " |" for line in lines]
    return "\n".join([*table, "", *(f"- {_plain(line)}" for line in notes)]) + "\n"


def _plain(text: str) -> str:
    """In one line and without markup, whatever a row is called or a run says of its end."""
    return " ".join(text.split()).replace("<", "&lt;")


def to_dict(planned: Grid, rows: Sequence[Row]) -> dict[str, Any]:
    """All that is known, for programs."""
    told = []
    for row in rows:
        keys = dict.fromkeys(key for each in row.results.values() for key in each.scores)
        figures = {key: each for key in keys if (each := row.figure(key))}
        base = {key: each for key in keys if (each := rows[0].figure(key))}
        told.append({
            "name": row.cell.name, "changes": row.cell.changes,
            "scores": {key: asdict(each) for key, each in figures.items()},
            "difference": {key: each.mean - base[key].mean for key, each in figures.items() if key in base},
            "seeds": {seed: asdict(result) for seed, result in row.results.items()},
            "missing": row.missing,
        })  # fmt: skip
    return {"heading": planned.heading, "rows": told}


def _name(row: Row) -> str:
    done, asked = len(row.results), len(row.results) + len(row.missing)
    return row.cell.name if done == asked else f"{row.cell.name} ({done} of {asked})"


def notes(planned: Grid, rows: Sequence[Row]) -> list[str]:
    """What one must know to read the table."""
    seeds = len(planned.seeds)
    lines = ["Scores are of each run's best validation, 0 to 100."]
    if seeds > 1:
        lines[0] = f"{lines[0][:-1]}: the mean over {seeds} seeds ± their standard deviation."
    results = [each for row in rows for each in row.results.values()]
    asked = any("data" in row.cell.changes for row in rows)
    if len({each.pictures for each in results if each.pictures}) > 1:
        lines.append("They are not of the same pictures in all rows, and cannot be compared.")
    elif len({each.data for each in results if each.data}) > 1 and not asked:
        lines.append("The data have changed between some of the runs: their scores cannot be compared.")
    shared = [row for row in rows if row.learner != row.cell.name]
    lines += [f"{row.cell.name}: the weights of {row.learner}; it differs in its search alone." for row in shared]
    for row in rows:
        for seed, why in row.missing.items():
            lines += [f"{row.cell.name}, seed {seed} failed: {why}"] if why else []
    if open_ := sum(not why for row in rows for why in row.missing.values()):
        lines.append(f"{count(open_, 'run')} not finished yet.")
    return lines


def write(planned: Grid, rows: Sequence[Row], parts: Sequence[Sequence[Column]]) -> None:
    durable.put(planned.out / "table.md", markdown(planned, rows, parts).encode())
    grid.write(planned.out / "table.json", to_dict(planned, rows))


@dataclass(frozen=True)
class ToDo:
    """What is left to do of a row."""

    name: str
    runs: int
    each: Estimate | None = None
    note: str = ""
    """In place of an estimate."""
    wrong: str = ""
    """Why it could not begin."""


def show_plan(planned: Grid, plan: Sequence[ToDo]) -> None:
    out, table = new_console(), new_table(planned.heading, "to do", "parameters", "steps", "time each")
    for row in plan:
        figures = [_UNKNOWN, _UNKNOWN, row.note or _UNKNOWN]
        if row.each:
            figures = [_millions(row.each.parameters), f"{row.each.steps:,}", duration(row.each.seconds)]
        add_row(table, row.name, f"{row.runs} of {len(planned.seeds)}", *figures)
    out.print(table)
    for row in plan:
        if row.wrong:
            out.print(f"{row.name}: {row.wrong}", markup=False)
    known = [row for row in plan if row.each]
    seconds = sum(row.runs * row.each.seconds for row in known if row.each)
    out.print(f"{count(sum(row.runs for row in known), 'run')}, {duration(seconds)} in all", style="bold")
