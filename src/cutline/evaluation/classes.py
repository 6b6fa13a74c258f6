"""Scores of classifiers: how often they are right, how often for each class, and whether their probabilities hold.

    >>> scores = score_classes([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], [0, 1, 1], ("cat", "dog"))
    >>> scores.rows()["Accuracy"]
    '66.7 (20.8 to 93.9)'

All scores are on a scale of 0 to 100, but for nats. A label of `UNKNOWN` stands for a class that the model does not
know: no guess about such a picture is right, and it is in every figure that this can be said of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cutline import __version__
from cutline.errors import DataError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

UNKNOWN = -1
BINS = 15
"""Of confidence, as in the papers that calibration is compared with."""
_TEMPERATURES = (0.05, 20.0)
_TINY = 1e-12


@dataclass(frozen=True)
class Reliability:
    """Pictures in bins of equal width by the probability of the best guess; a bin without any has NaN."""

    confidence: Floats
    """(BINS,) mean probability of the best guess, 0 to 1."""
    accuracy: Floats
    """(BINS,) share of best guesses that are right, 0 to 1."""
    count: Integers

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 100: how far the two lie apart, in the mean over the pictures."""
        there = self.count > 0
        gaps = np.abs(self.confidence - self.accuracy)[there]
        return float(100 * np.average(gaps, weights=self.count[there]))


@dataclass(frozen=True)
class ClassScores:
    """One classifier's scores on one set of pictures."""

    accuracy: float
    top5: float
    """Share of pictures whose class is among the five best guesses."""
    macro_f1: float
    """Mean of the F1 of every class that has pictures: rare classes count as much as common ones."""
    ece: float
    nll: float
    """Nats that the right class was surprising by, in the mean over the pictures of known classes."""
    names: tuple[str, ...]
    precision: Floats = field(repr=False)
    """(K,) of the pictures guessed to be of a class, the share that is; NaN where none was guessed."""
    recall: Floats = field(repr=False)
    """(K,) of the pictures of a class, the share that was found; NaN where it has none."""
    f1: Floats = field(repr=False)
    support: Integers = field(repr=False)
    """(K,) pictures of a class."""
    confusion: Integers = field(repr=False)
    """(K,K) pictures by class and by best guess."""
    reliability: Reliability = field(repr=False)
    count: int
    unknown: int
    """Pictures of a class that the model does not know."""
    signature: str
    """How these figures came about, to print beside them."""

    @property
    def figures(self) -> dict[str, float]:
        """Those that say something: of five classes or fewer, the right one is always among the best five."""
        among = {"top5": self.top5} if len(self.names) > 5 else {}
        return {"accuracy": self.accuracy, **among, "macro_f1": self.macro_f1, "ece": self.ece, "nll": self.nll}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the figures, and those of each class."""
        values: dict[str, Any] = dict(self.figures)
        values["nll"] = self.nll if math.isfinite(self.nll) else None  # JSON has no infinity
        values |= {"count": self.count, "unknown": self.unknown, "signature": self.signature}
        return {**values, "classes": dict(zip(self.names, self._each()))}

    def rows(self) -> dict[str, str]:
        """The figures by name, as a table shows them to people."""
        low, high = wilson(round(self.accuracy * self.count / 100), self.count)
        rows = {
            "Accuracy": f"{self.accuracy:.1f} ({low:.1f} to {high:.1f})",
            **({"Among the best five": f"{self.top5:.1f}"} if "top5" in self.figures else {}),
            "Macro F1": f"{self.macro_f1:.1f}",
            "Calibration error": f"{self.ece:.1f}",
            "Nats": f"{self.nll:.3f}",
            "Classes": f"{np.count_nonzero(self.support):,} of {len(self.names):,}",
            "Pictures": f"{self.count:,}",
        }
        return rows | ({"Of classes not known": f"{self.unknown:,}"} if self.unknown else {})

    def confused(self, most: int = 10) -> list[tuple[str, str, int]]:
        """The commonest mistakes, as (class, what it was taken for, how often)."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = zip(*(axis.tolist() for axis in np.unravel_index(order, wrong.shape)))
        return [(self.names[i], self.names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]

    def _each(self) -> list[dict[str, float | None]]:
        columns = {"precision": self.precision, "recall": self.recall, "f1": self.f1, "support": self.support}
        cells = zip(*([None if v != v else v for v in column.tolist()] for column in columns.values()))
        return [dict(zip(columns, row)) for row in cells]


def score_classes(probabilities: ArrayLike, labels: ArrayLike, names: Sequence[str]) -> ClassScores:
    """Score the probabilities (N,K) of each picture's classes against its class (N,), a number into `names`."""
    found, true = _checked(probabilities, labels, names)
    count, classes = found.shape
    known = true != UNKNOWN
    said = found.argmax(1)
    right = said == true
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (true[known], said[known]), 1)
    hits, support = np.diag(confusion), confusion.sum(1)
    guessed = np.bincount(said, minlength=classes)
    f1 = np.where(support + guessed, 200 * hits / np.maximum(support + guessed, 1), np.nan)
    reliability = _reliability(found.max(1), right)
    return ClassScores(
        accuracy=100 * float(right.mean()),
        top5=100 * float((_rank(found, true) < 5).mean()),
        macro_f1=float(f1[support > 0].mean()) if known.any() else 0.0,
        ece=reliability.ece,
        nll=float(-np.log(np.maximum(found[known, true[known]], _TINY)).mean()) if known.any() else math.inf,
        names=tuple(names),
        precision=_share(hits, guessed),
        recall=_share(hits, support),
        f1=f1,
        support=support,
        confusion=confusion,
        reliability=reliability,
        count=count,
        unknown=int((~known).sum()),
        signature=_signature(count, classes, int((~known).sum()), support),
    )


def _checked(probabilities: ArrayLike, labels: ArrayLike, names: Sequence[str]) -> tuple[Floats, Integers]:
    found, true = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    if not len(true):
        raise DataError("there is nothing to score: no picture has a label")
    if found.shape != (len(true), len(names)):
        raise DataError(
            f"probabilities of shape {found.shape} for {len(true)} pictures and {len(names)} classes",
            expected="a row for each picture and a column for each class",
        )
    if true.min() < UNKNOWN or true.max() >= len(names):
        raise DataError(f"labels from {true.min()} to {true.max()}", expected=f"0 to {len(names) - 1}, or {UNKNOWN}")
    if not (found >= 0).all() or np.abs(found.sum(1) - 1).max() > 1e-3:
        raise DataError("these are no probabilities", expected="in each row, numbers from 0 on that add up to 1")
    return found, true


def _rank(found: Floats, true: Integers) -> Floats:
    """How many classes are likelier than the right one; of equally likely ones, those that come first count."""
    at = np.where(true == UNKNOWN, 0, true)
    own = found[np.arange(len(true)), at][:, None]
    before = np.arange(found.shape[1]) < at[:, None]
    ranks = ((found > own) | ((found == own) & before)).sum(1)
    return np.asarray(np.where(true == UNKNOWN, math.inf, ranks))


def _share(part: Integers, whole: Integers) -> Floats:
    return np.where(whole > 0, 100 * part / np.maximum(whole, 1), np.nan)


def _reliability(confidence: Floats, right: NDArray[np.bool_]) -> Reliability:
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    sums = [np.bincount(bins, weights=values, minlength=BINS) for values in (confidence, right)]
    mean, share = (np.where(count > 0, total / np.maximum(count, 1), np.nan) for total in sums)
    return Reliability(mean, share, count)


def _signature(count: int, classes: int, unknown: int, support: Integers) -> str:
    there = support[support > 0]
    spread = f" ({there.min()}-{there.max()} pictures each)" if len(there) else ""
    parts = [f"cutline {__version__}", f"classes:{classes}{spread}", f"pictures:{count}"]
    parts += [f"without pictures:{classes - len(there)}"] * (len(there) < classes)
    parts += [f"of classes not known:{unknown}"] * (unknown > 0)
    return " | ".join([*parts, f"ece:{BINS} bins", "scale:0-100"])


# Probabilities that hold ------------------------------------------------------------------------------------------


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities (N,K) of logits (N,K); a temperature above 1 makes them less sure."""
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature at which the right classes are least surprising; 1 where there is nothing to tell it by.

    Where every guess is right, the surer the better, without end: then it makes none surer than it is.

    The nats are convex in the temperature's inverse, so Newton's method finds the one place where their slope is 0,
    halving what is left of the interval wherever a step would leave it.
    """
    scores, true = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    scores, true = scores[true != UNKNOWN], true[true != UNKNOWN]
    if not len(true) or not np.isfinite(scores).all():
        return 1.0
    faultless = (scores.argmax(1) == true).all()
    low, high = 1 / _TEMPERATURES[1], 1.0 if faultless else 1 / _TEMPERATURES[0]
    own = scores[np.arange(len(true)), true].mean()
    inverse = 1.0
    for _ in range(100):
        chances = softmax(scores, 1 / inverse)
        mean = (chances * scores).sum(1)
        slope = float(mean.mean() - own)
        curvature = float(((chances * scores**2).sum(1) - mean**2).mean())
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / max(curvature, _TINY)
        before, inverse = inverse, step if low < step < high else (low + high) / 2
        if abs(inverse - before) < 1e-6 * before:
            break
    return 1 / inverse


# Curves -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """What a class's probability tells, at every threshold that makes a difference, from the strictest on."""

    recall: Floats
    """0 to 1; also the rate of true positives."""
    false_positives: Floats
    """Share of the other pictures that are taken for this class, 0 to 1."""
    precision: Floats
    auc: float
    """Area under recall by false positives, 0 to 1: how often a picture of the class has more than another one."""
    average_precision: float
    """Area under precision by recall, 0 to 1."""


def curve(probability: ArrayLike, positive: ArrayLike) -> Curve | None:
    """The curves of one class (N,), or None where every picture is of it or none is."""
    score, truth = np.asarray(probability, np.float64), np.asarray(positive, bool)
    if truth.all() or not truth.any():
        return None
    order = np.argsort(-score, kind="stable")
    score, truth = score[order], truth[order]
    ends = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # pictures alike in probability go together
    hits, taken = np.cumsum(truth)[ends], ends + 1
    recall = np.append(0, hits / truth.sum())
    false = np.append(0, (taken - hits) / (~truth).sum())
    precision = np.append(1, hits / taken)
    area = float(((recall[1:] + recall[:-1]) / 2 * np.diff(false)).sum())
    return Curve(recall, false, precision, area, float((np.diff(recall) * precision[1:]).sum()))


# How sure a figure is ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean, and where the true one lies 19 times in 20."""

    mean: float
    half: float | None
    """Half its width; None where a single value tells nothing of it."""
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.half is None else f"{self.mean:.1f} ± {self.half:.1f}"


def interval(values: Sequence[float]) -> Interval:
    """Of a figure that several seeds gave, by Student's t; of one alone, nothing is known but itself."""
    count = len(values)
    if not count:
        raise DataError("there is nothing to take the mean of")
    mean = float(np.mean(values))
    if count == 1:
        return Interval(mean, None, 1)
    half = _student(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, half, count)


def wilson(right: int, count: int) -> tuple[float, float]:
    """Where the accuracy behind `right` of `count` lies, 0 to 100; it holds for few pictures and near both ends."""
    if not count:
        return 0.0, 100.0
    z, share = _student(10_000_000), right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def _student(freedom: int) -> float:
    """How many standard errors to either side hold 95 % of Student's t.

    Seen from one root of `freedom` away, its density is a power of a cosine, which is easy to sum.
    """
    widest = math.pi / 2 if freedom < 100 else math.atan(12 / math.sqrt(freedom))  # beyond 12 there is nothing
    angles = np.linspace(0, widest, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    within = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2))
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, within / within[-1], angles)))
