"""The report of a classifier: what it takes for what, how far its probabilities hold, and what it looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cutline.data.images import Transform
from cutline.evaluation.classes import UNKNOWN, ClassScores, Curve, Reliability, curve, score_classes, softmax
from cutline.report.charts import COLOURS, curves, plot
from cutline.report.document import Section, facts_list, table, write_document
from cutline.report.embedding import pca, tsne
from cutline.report.figures import bars, matrix, scatter, sheet
from cutline.report.html import Html, join, tag
from cutline.report.pictures import SMALL_SIDE, data_url, looks, shown

if TYPE_CHECKING:
    from cutline.report.inside import Inside

_MISTAKES, _RIGHT = 24, 8
_IN_MATRIX = 40
"""Classes of a matrix that can still be read; of more, those that are mistaken most."""
_WITH_CURVES = 100
"""Classes up to which each has its curves."""
_MAPPED = 1000
"""Pictures in the map: t-SNE takes a time that grows with their square."""
_GUESSES = 3
_CURVE_POINTS = 200


@dataclass(frozen=True)
class Classified:
    """Pictures, what they are, and what a classifier made of them."""

    pictures: Sequence[Path]
    labels: NDArray[np.int64]
    """(N,) numbers into `names`, or UNKNOWN."""
    logits: NDArray[np.floating]
    """(N,K), or logarithms of probabilities."""
    names: Sequence[str]
    temperature: float = 1.0
    """What the logits are divided by, so that the probabilities hold."""

    @property
    def probabilities(self) -> NDArray[np.float64]:
        return softmax(self.logits, self.temperature)

    def scores(self) -> ClassScores:
        return score_classes(self.probabilities, self.labels, self.names)


def write_class_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    found: Classified,
    events: Sequence[Mapping[str, Any]],
    transform: Transform | None = None,
    inside: Inside | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the page to `path`. With the classifier itself (`inside`), it also shows what that looks at."""
    page = _Page(found, transform, inside)
    charts = curves(events)
    looking = "Beside each picture is what spoke for the class named first: bright where it lies (Grad-CAM)."
    looking = looking if inside and inside.looks else ""
    mistaken = (
        f"What it is in bold, what it was taken for below; the surest first. A label may be wrong, too. {looking}"
    )
    sections = [
        Section("Scores", page.headlines()),
        Section("Surest mistakes", page.mistakes(), mistaken),
        Section("Found rightly", page.right(), looking),
        Section("What is taken for what", page.confusion(), "A row is what it is, a column what it was taken for."),
        Section("Classes", page.classes(), "The hardest come first."),
        Section("Calibration", page.calibration(), page.told_of_calibration()),
        Section("Curves of classes", page.curves()),
        Section("Map of the pictures", page.map(), "Pictures that are alike to the model lie together."),
        Section("Inside", page.filters()),
        Section("Learning", tag("div", *charts, class_="charts") if charts else None),
        Section("Settings", facts_list(facts)),
    ]
    return write_document(path, title, notes, sections)


class _Page:
    """The parts of the page, from figures that several of them share."""

    def __init__(self, found: Classified, transform: Transform | None, inside: Inside | None) -> None:
        self.found, self.transform, self.inside = found, transform, inside
        self.chances, self.scores = found.probabilities, found.scores()
        self.said = self.chances.argmax(1)
        sure = self.chances.max(1)
        self.surest = np.argsort(-sure, kind="stable")
        self.wrong = [int(at) for at in self.surest if self.said[at] != found.labels[at]]
        self.curve_of: dict[int, Curve] = {}
        if len(found.names) <= _WITH_CURVES:
            made = {k: curve(self.chances[:, k], found.labels == k) for k in range(len(found.names))}
            self.curve_of = {k: each for k, each in made.items() if each is not None}

    def headlines(self) -> Html:
        rows = self.scores.rows()
        first = ["Accuracy", "Macro F1"]
        figures = (("Accuracy", self.scores.accuracy), ("Macro F1", self.scores.macro_f1))
        large = tag("dl", *(tag("div", tag("dt", name), tag("dd", f"{value:.1f}")) for name, value in figures))
        card = tag("article", large, tag("p", self.scores.signature, class_="signature"))
        others = {"Accuracy, 19 times in 20": rows["Accuracy"].partition("(")[2].rstrip(")")}
        others |= {name: value for name, value in rows.items() if name not in first}
        return join(tag("div", card, class_="headlines"), facts_list(others) or "")

    def mistakes(self) -> Html | None:
        return self._gallery(self.wrong[:_MISTAKES])

    def right(self) -> Html | None:
        """One each of several classes, in the classes' order, so that not only the easiest is shown."""
        first = {int(self.said[at]): int(at) for at in self.surest[::-1] if self.said[at] == self.found.labels[at]}
        classes = sorted(first)
        step = max(1, len(classes) // _RIGHT)
        return self._gallery([first[k] for k in classes[::step][:_RIGHT]])

    def _gallery(self, chosen: Sequence[int]) -> Html | None:
        chosen = [at for at in chosen if self.found.pictures[at].is_file()]
        if not chosen:
            return None
        heats: Sequence[NDArray[Any] | None] = [None] * len(chosen)
        if self.inside:
            named = [int(self.said[at]) for at in chosen]
            heats = self.inside.heats([self.found.pictures[at] for at in chosen], named)
        return tag("div", *(self._card(at, heat) for at, heat in zip(chosen, heats)), class_="gallery")

    def _card(self, at: int, heat: NDArray[Any] | None) -> Html:
        picture, name = shown(self.found.pictures[at], SMALL_SIDE), self._label(at)
        images = [picture] if heat is None else [picture, looks(picture, heat[None], self.transform)[0]]
        row = self.chances[at]
        best = np.argsort(-row, kind="stable")[:_GUESSES].tolist()
        drawn = [
            tag("img", src=data_url(image), alt=alt, width=image.width, height=image.height)
            for image, alt in zip(images, (name, "where it looked"))
        ]
        return tag(
            "article",
            tag("div", *drawn, class_="pair"),
            tag("p", name, class_="caption"),
            bars([(self.found.names[k], float(row[k])) for k in best]),
            tag("p", self.found.pictures[at].name, class_="muted"),
        )

    def _label(self, at: int) -> str:
        label = int(self.found.labels[at])
        return "a class it does not know" if label == UNKNOWN else self.found.names[label]

    def confusion(self) -> Html:
        counts, names = self.scores.confusion, np.array(self.found.names, object)
        chosen = np.arange(len(names))
        note = join()
        if len(names) > _IN_MATRIX:
            wrong = counts.sum(1) + counts.sum(0) - 2 * np.diag(counts)
            chosen = np.sort(np.argsort(-wrong, kind="stable")[:_IN_MATRIX])
            note = tag("p", f"Of {len(names):,} classes, the {_IN_MATRIX} that are mistaken most.", class_="muted")
        rows = [[is_, taken, f"{count:,}"] for is_, taken, count in self.scores.confused(12)]
        commonest = table(["Class", "Taken for", "Pictures"], rows, about=2) if rows else join()
        drawing = matrix(counts[np.ix_(chosen, chosen)], names[chosen].tolist(), self.scores.support[chosen])
        return join(note, tag("div", drawing, class_="wide"), commonest)

    def classes(self) -> Html:
        scores, names = self.scores, self.found.names
        order = np.argsort(np.nan_to_num(scores.f1, nan=np.inf), kind="stable").tolist()
        head = ["Class", "Pictures", "Precision", "Recall", "F1"] + ["ROC area", "Average precision"] * bool(
            self.curve_of
        )
        rows = []
        for k in order:
            row = [names[k], f"{scores.support[k]:,}"]
            row += [_figure(values[k]) for values in (scores.precision, scores.recall, scores.f1)]
            if self.curve_of:
                each = self.curve_of.get(k)
                row += [_figure(100 * each.auc), _figure(100 * each.average_precision)] if each else ["–", "–"]
            rows.append(row)
        if len(rows) <= _IN_MATRIX:
            return table(head, rows)
        whole = tag("details", tag("summary", f"All {len(rows):,} classes"), table(head, rows))
        return join(table(head, rows[:_IN_MATRIX]), whole)

    def calibration(self) -> Html:
        lines = {"as good as said": [(0.0, 0.0), (1.0, 1.0)], "as found": _met(self.scores.reliability)}
        if self.found.temperature != 1:
            before = score_classes(softmax(self.found.logits), self.found.labels, self.found.names)
            lines["before the temperature"] = _met(before.reliability)
        counts = self.scores.reliability.count
        middles = (np.arange(len(counts)) + 0.5) / len(counts)
        many = {"": [(float(x), float(count)) for x, count in zip(middles, counts)]}
        charts = [
            plot("Share that is right", lines, "probability of the best guess"),
            plot("Pictures", many, "probability of the best guess"),
        ]
        return tag("div", *charts, class_="charts")

    def told_of_calibration(self) -> str:
        told = f"What it is sure of is off by {self.scores.ece:.1f} points in the mean"
        if self.found.temperature == 1:
            return f"{told}."
        before = score_classes(softmax(self.found.logits), self.found.labels, self.found.names).ece
        return f"{told}; before the temperature of {self.found.temperature:.2f} it was {before:.1f}."

    def curves(self) -> Html | None:
        if not self.curve_of:
            return None
        hardest = sorted(self.curve_of, key=lambda k: self.curve_of[k].average_precision)[:COLOURS]
        roc = {self.found.names[k]: _thin(c.false_positives, c.recall) for k in hardest if (c := self.curve_of[k])}
        pr = {self.found.names[k]: _thin(c.recall, c.precision) for k in hardest if (c := self.curve_of[k])}
        of = "" if len(hardest) == len(self.curve_of) else f" of the {len(hardest)} hardest classes"
        charts = [plot(f"ROC{of}: found", roc, "others taken for it"), plot(f"Precision{of}", pr, "found")]
        return tag("div", *charts, class_="charts")

    def map(self) -> Html | None:
        if self.inside is None:
            return None
        there = [at for at, path in enumerate(self.found.pictures) if path.is_file()]
        chosen = there[:: max(1, -(-len(there) // _MAPPED))]
        features = self.inside.features([self.found.pictures[at] for at in chosen])
        if len(features) < 4:
            return None
        groups = [self._label(at) for at in chosen]
        told = [f"{self._label(at)}: {self.found.pictures[at].name}" for at in chosen]
        maps = [("By t-SNE", tsne(features)), ("By the two principal components", pca(features, 2))]
        return join(*(scatter(name, points, groups, told) for name, points in maps))

    def filters(self) -> Html | None:
        if self.inside is None:
            return None
        parts = []
        if (filters := self.inside.filters()) is not None:
            drawing = sheet(list(filters[:64]), scale=max(1, 32 // filters.shape[1]), columns=16)
            parts.append(_framed(f"The first layer's filters ({min(len(filters), 64)} of {len(filters)})", drawing))
        example = next((path for path in self.found.pictures if path.is_file()), None)
        maps = self.inside.maps(example) if example else {}
        if maps and example:
            picture = shown(example, SMALL_SIDE)
            seen = tag("img", src=data_url(picture), alt=example.name, width=picture.width)
            parts.append(_framed("What the layers make of this picture", seen))
        for where, channels in maps.items():
            strongest = np.argsort(-channels.mean((1, 2)), kind="stable")[:16]
            drawing = sheet([channels[k] for k in strongest], scale=max(1, 56 // channels.shape[1]), columns=8)
            parts.append(_framed(f"{where}: 16 of {len(channels)} channels", drawing))
        return join(*parts) if parts else None


def _framed(title: str, content: Html) -> Html:
    return tag("figure", tag("figcaption", tag("b", title)), content, class_="chart")


def _met(found: Reliability) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y, n in zip(found.confidence, found.accuracy, found.count) if n]


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Some of a curve's points, its ends among them."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _CURVE_POINTS)).round().astype(int))
    return list(zip(x[chosen].tolist(), y[chosen].tolist()))


def _figure(value: float) -> str:
    return f"{value:.1f}" if np.isfinite(value) else "–"
