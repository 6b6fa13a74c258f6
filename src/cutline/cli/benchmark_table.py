"""What a benchmark has shown: as a table for a terminal, as Markdown, as JSON, and as a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from cutline import durable
from cutline.cli.grid_table import Column, columns_as_markdown, show_columns
from cutline.cli.telling import count, size
from cutline.console import duration
from cutline.engine import grid
from cutline.engine.benchmark import Measured
from cutline.engine.grid import Grid
from cutline.errors import require
from cutline.evaluation.classes import interval, wilson

_UNKNOWN = "–"
_MARKS = "osD^v"
_COSTS = {"parameters": "parameters", "multiply_adds": "multiply-adds for a picture", "picture_seconds": "ms a picture"}


@dataclass(frozen=True)
class Row:
    name: str
    results: dict[int, Measured]
    """By seed, as far as they are done."""
    missing: dict[int, str]
    """The other seeds, and why they are not done, where that is known."""

    def score(self, name: str) -> float | None:
        known = [each.scores[name] for each in self.results.values() if name in each.scores]
        return fmean(known) if known else None

    def cost(self, name: str) -> float | None:
        """The mean over the seeds; of memory the most, since that is what a machine must have."""
        known = [value for each in self.results.values() if (value := getattr(each, name)) is not None]
        return (max(known) if name == "memory" else fmean(known)) if known else None

    @property
    def accuracies(self) -> list[float]:
        return [each.scores["accuracy"] for each in self.results.values()]

    @property
    def spread(self) -> bool:
        """Whether the seeds tell anything of luck: not where there is one, or all have come to the same."""
        return len(set(self.accuracies)) > 1

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Where the accuracy lies, 19 times in 20: by the spread of the seeds, or else by the count of pictures."""
        if not self.results:
            return None
        if not self.spread:
            pictures = next(iter(self.results.values())).pictures
            return wilson(round(self.accuracies[0] * pictures / 100), pictures)
        found = interval(self.accuracies)
        half = found.half or 0.0
        return max(found.mean - half, 0.0), min(found.mean + half, 100.0)


def show(planned: Grid, rows: Sequence[Row]) -> None:
    show_columns(planned.heading, *_table(planned, rows))


def write(planned: Grid, rows: Sequence[Row]) -> None:
    text = columns_as_markdown(planned.heading, *_table(planned, rows))
    durable.put(planned.out / "table.md", text.encode())
    told = [
        {
            "name": row.name,
            "accuracy": row.score("accuracy"),
            "bounds": row.bounds,
            "seeds": {seed: asdict(each) for seed, each in row.results.items()},
            "missing": row.missing,
        }
        for row in rows
    ]
    grid.write(planned.out / "table.json", {"minutes": planned.base.training.minutes, "rows": told})
    if any(row.results for row in rows):
        plot(rows, planned.out / "plot.png")


def _table(planned: Grid, rows: Sequence[Row]) -> tuple[list[str], list[list[Column]], list[str]]:
    """Names, columns and notes; the best network comes first."""
    ordered = sorted(rows, key=lambda row: -(row.score("accuracy") or 0.0))
    names = []
    for row in ordered:
        done, asked = len(row.results), len(row.results) + len(row.missing)
        names.append(row.name if done == asked else f"{row.name} ({done} of {asked})")
    shown = {"top5": "best five", "macro_f1": "macro F1"}
    shown = {name: heading for name, heading in shown.items() if any(row.score(name) is not None for row in rows)}
    scores = [_score(ordered, name, heading) for name, heading in shown.items()]
    costs = [
        _cost(ordered, "parameters", "parameters", _amount),
        _cost(ordered, "multiply_adds", "multiply-adds", _amount),
        _cost(ordered, "seconds", "learned in", duration),
        _cost(ordered, "picture_seconds", "a picture", lambda seconds: f"{1000 * seconds:.3g} ms"),
        _cost(ordered, "memory", "memory", size),
    ]
    return names, [[_accuracy(ordered), *scores], costs], _notes(planned, ordered)


def _accuracy(rows: Sequence[Row]) -> Column:
    texts = []
    for row in rows:
        mean, bounds = row.score("accuracy"), row.bounds
        if mean is None or bounds is None:
            texts.append(_UNKNOWN)
        elif row.spread:
            texts.append(str(interval(row.accuracies)))
        else:
            texts.append(f"{mean:.1f} ({bounds[0]:.1f} to {bounds[1]:.1f})")
    return Column("accuracy", texts, _best([row.score("accuracy") for row in rows]))


def _score(rows: Sequence[Row], name: str, heading: str) -> Column:
    values = [row.score(name) for row in rows]
    return Column(heading, [_UNKNOWN if value is None else f"{value:.1f}" for value in values], _best(values))


def _cost(rows: Sequence[Row], name: str, heading: str, text: Callable[[float], str]) -> Column:
    """None is the best: what costs next to nothing may know next to nothing."""
    values = [row.cost(name) for row in rows]
    return Column(heading, [_UNKNOWN if value is None else text(value) for value in values], [False] * len(values))


def _amount(number: float) -> str:
    """`3,845`, `0.31 M`, `5.2 M`, `1,820 M`."""
    millions = number / 1e6
    return (
        f"{number:,.0f}" if millions < 0.1 else f"{millions:,.{2 if millions < 1 else 1 if millions < 100 else 0}f} M"
    )


def _best(values: Sequence[float | None]) -> list[bool]:
    known = [value for value in values if value is not None]
    return [len(known) > 1 and value == max(known) for value in values]


def _notes(planned: Grid, rows: Sequence[Row]) -> list[str]:
    results = [each for row in rows for each in row.results.values()]
    pictures, seeds = {each.pictures for each in results}, len(planned.seeds)
    how = "in brackets where it lies 19 times in 20, by the count of pictures"
    if seeds > 1:
        alike = f"; {how}, of one seed or of those that come to the same"
        any_alike = any(row.results and not row.spread for row in rows)
        how = f"the mean over {seeds} seeds, and where it lies 19 times in 20{alike * any_alike}"
    lines = [
        f"{count(max(pictures), 'validation picture')}, looked at once, in the end. Accuracy: {how}."
        if pictures
        else "",
        f"Each network learned for {planned.base.training.minutes:g} minutes at the most; validation is not counted.",
        "Features that are stored before it come on top." if any("as it is" in row.name for row in rows) else "",
    ]
    if len(pictures) > 1 or len({each.data for each in results}) > 1:
        lines.append("The data have changed between the rows: their scores cannot be compared.")
    for row in rows:
        chosen = dict.fromkeys(each.chosen for each in row.results.values() if each.chosen)
        lines += [f"{row.name}: {', '.join(chosen)}."] if chosen else []
        lines += [f"{row.name}, seed {seed} failed: {why}" for seed, why in row.missing.items() if why]
    if left := sum(not why for row in rows for why in row.missing.values()):
        lines.append(f"{count(left, 'cell')} not finished yet.")
    return [line for line in lines if line]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against what it costs, in three ways; the bars are where it lies 19 times in 20."""
    figures = require("matplotlib.figure", "train", "the plot of a benchmark")
    done = sorted((row for row in rows if row.results), key=lambda row: -(row.score("accuracy") or 0.0))
    figure = figures.Figure(figsize=(16, 5), layout="constrained")
    for axes, (name, heading) in zip(figure.subplots(1, 3, sharey=True), _COSTS.items(), strict=True):
        for place, row in enumerate(done):
            mean, bounds, cost = row.score("accuracy"), row.bounds, row.cost(name)
            if mean is None or bounds is None or not cost:
                continue
            across = 1000 * cost if name == "picture_seconds" else cost
            ends = [[max(mean - bounds[0], 0.0)], [max(bounds[1] - mean, 0.0)]]
            look = {"color": f"C{place % 10}", "marker": _MARKS[place // 10 % len(_MARKS)]}
            axes.errorbar(across, mean, yerr=ends, capsize=3, linestyle="none", label=row.name, **look)
        axes.set(xscale="log", xlabel=heading)
        axes.tick_params(axis="x", which="both", labelrotation=45)  # of a short axis there are many
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy (validation)")
    # Names beside their points would lie over one another: what is alike costs about the same.
    told = {name: point for axes in figure.axes for point, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if told:
        figure.legend(told.values(), told.keys(), loc="outside right center", fontsize=9)
    draft = path.with_name(f".{path.name}.draft")
    figure.savefig(draft, format="png", dpi=120)
    draft.replace(path)
