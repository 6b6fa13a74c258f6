"""Scores of classifiers against figures counted by hand, and against scikit-learn's."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics

from cutline.errors import DataError
from cutline.evaluation.classes import UNKNOWN, curve, fit_temperature, interval, score_classes, softmax, wilson

NAMES = ("cat", "dog", "cow")


def drawn(count: int = 600, classes: int = 12, sharp: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that know something of their labels, and are too sure of it."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), labels] += 1.5
    return sharp * logits, labels


def test_figures_that_can_be_counted() -> None:
    found = score_classes([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.7, 0.2]], [0, 1, 1, 0], NAMES)
    assert found.accuracy == 50
    assert found.confusion.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found.support.tolist() == [2, 2, 0]
    assert found.precision.tolist()[:2] == found.recall.tolist()[:2] == [50, 50]
    assert math.isnan(found.precision[2])
    assert math.isnan(found.recall[2])
    assert found.macro_f1 == 50  # the cows, which nobody showed, do not count
    assert found.nll == pytest.approx(-np.log([0.8, 0.3, 0.5, 0.1]).mean())
    # |0.8 - 1|, |0.6 - 0|, |0.5 - 1| and |0.7 - 0|, each in a bin of its own
    assert found.ece == pytest.approx(100 * (0.2 + 0.6 + 0.5 + 0.7) / 4)
    assert found.confused() == [("cat", "dog", 1), ("dog", "cat", 1)]
    assert found.rows()["Classes"] == "2 of 3"
    assert "without pictures:1" in found.signature


def test_the_same_as_scikit_learn() -> None:
    logits, labels = drawn()
    chances = softmax(logits)
    said = chances.argmax(1)
    found = score_classes(chances, labels, [f"class {k}" for k in range(12)])
    assert found.accuracy == pytest.approx(100 * metrics.accuracy_score(labels, said))
    assert found.top5 == pytest.approx(100 * metrics.top_k_accuracy_score(labels, chances, k=5))
    assert found.macro_f1 == pytest.approx(100 * metrics.f1_score(labels, said, average="macro"))
    assert found.nll == pytest.approx(metrics.log_loss(labels, chances))
    each = metrics.precision_recall_fscore_support(labels, said)
    for ours, theirs in zip((found.precision, found.recall, found.f1), each):
        np.testing.assert_allclose(ours, 100 * theirs)
    assert (found.confusion == metrics.confusion_matrix(labels, said)).all()


def test_pictures_of_a_class_that_the_model_does_not_know() -> None:
    found = score_classes([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]], [0, UNKNOWN], NAMES)
    assert (found.accuracy, found.top5, found.unknown, found.count) == (50, 50, 1, 2)
    assert found.nll == pytest.approx(-math.log(0.9))
    assert found.rows()["Of classes not known"] == "1"
    assert "of classes not known:1" in found.signature
    nothing_known = score_classes([[0.9, 0.1, 0.0]], [UNKNOWN], NAMES)
    assert (nothing_known.accuracy, nothing_known.macro_f1, nothing_known.nll) == (0, 0, math.inf)
    json.dumps(nothing_known.to_dict(), allow_nan=False)


def test_guesses_alike_are_ranked_as_they_are_shown() -> None:
    """Where a model says the same of all, the first five are the best five: no more than five can be right."""
    found = score_classes(np.full((10, 10), 0.1), range(10), [str(k) for k in range(10)])
    assert (found.accuracy, found.top5) == (10, 50)
    assert found.rows()["Among the best five"] == "50.0"
    few = score_classes([[0.9, 0.1, 0.0]], [0], NAMES)  # of three, all are
    assert "Among the best five" not in few.rows()
    assert "top5" not in few.to_dict()


def test_it_all_goes_into_json() -> None:
    found = score_classes([[0.9, 0.1, 0.0]], [0], NAMES).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["classes"]["dog"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert found["classes"]["cat"] == {"precision": 100, "recall": 100, "f1": 100, "support": 1}


@pytest.mark.parametrize(
    ("chances", "labels", "words"),
    [
        (np.zeros((0, 3)), [], "nothing to score"),
        ([[0.5, 0.5]], [0], r"shape \(1, 2\)"),
        ([[1, 0, 0]], [3], "labels from 3 to 3"),
        ([[1, 0, 0]], [-2], "labels from -2"),
        ([[2, 0, 0]], [0], "no probabilities"),
        ([[1.5, -0.5, 0]], [0], "no probabilities"),
        ([[float("nan"), 0.5, 0.5]], [0], "no probabilities"),
    ],
)
def test_what_cannot_be_scored(chances: list[list[float]], labels: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        score_classes(chances, labels, NAMES)


def test_a_thousand_classes() -> None:
    labels = np.arange(2000) % 1000
    chances = np.full((2000, 1000), 0.4 / 999)
    chances[np.arange(2000), (labels + (np.arange(2000) % 4 == 0)) % 1000] = 0.6
    found = score_classes(chances, labels, [str(k) for k in range(1000)])
    assert found.accuracy == 75
    assert len(found.confused(5)) == 5


def test_reliability_adds_up() -> None:
    logits, labels = drawn()
    chances = softmax(logits)
    found = score_classes(chances, labels, [str(k) for k in range(12)]).reliability
    sure, right = chances.max(1), chances.argmax(1) == labels
    off = [abs((sure - right)[np.floor(15 * sure).clip(0, 14) == k].sum()) for k in range(15)]
    assert found.ece == pytest.approx(100 * sum(off) / len(labels))
    assert found.count.sum() == len(labels)
    there = found.count > 0
    assert np.nansum(found.accuracy * found.count) == pytest.approx((logits.argmax(1) == labels).sum())
    assert (np.diff(found.confidence[there]) > 0).all()


# Temperature ------------------------------------------------------------------------------------------------------


def test_the_temperature_is_where_the_nats_are_fewest() -> None:
    logits, labels = drawn()
    best = fit_temperature(logits, labels)

    def nats(temperature: float) -> float:
        return metrics.log_loss(labels, softmax(logits, temperature))

    assert nats(best) < min(nats(best * 1.01), nats(best / 1.01), nats(1.0))
    before, after = (score_classes(softmax(logits, t), labels, range(12)).ece for t in (1.0, best))
    assert after < before / 3


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1, 40])
def test_the_temperature_follows_the_scale(scale: float) -> None:
    logits, labels = drawn(sharp=1.0)
    expected = min(max(scale * fit_temperature(logits, labels), 0.05), 20)
    assert fit_temperature(scale * logits, labels) == pytest.approx(expected, rel=1e-3)


def test_a_temperature_that_nothing_tells_or_nothing_bounds() -> None:
    assert fit_temperature(np.zeros((0, 3)), []) == 1
    assert fit_temperature([[1.0, 2.0]], [UNKNOWN]) == 1
    assert fit_temperature([[math.inf, 0.0]], [0]) == 1
    assert fit_temperature([[9.0, 0.0]] * 4, [0] * 4) == 1  # always right: ever sharper would be better
    assert fit_temperature([[9.0, 0.0]] * 4, [1] * 4) == pytest.approx(20, rel=0.01)  # always wrong


# Curves -----------------------------------------------------------------------------------------------------------


def test_curves_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.3
    chances = np.round(np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0, 1), 2)  # many alike
    found = curve(chances, truth)
    assert found
    assert found.auc == pytest.approx(metrics.roc_auc_score(truth, chances))
    assert found.average_precision == pytest.approx(metrics.average_precision_score(truth, chances))
    false, recall, _ = metrics.roc_curve(truth, chances, drop_intermediate=False)
    np.testing.assert_allclose(found.false_positives, false)
    np.testing.assert_allclose(found.recall, recall)


def test_a_class_that_all_or_none_are_of_has_no_curve() -> None:
    assert curve([0.1, 0.2], [True, True]) is None
    assert curve([0.1, 0.2], [False, False]) is None


# Intervals --------------------------------------------------------------------------------------------------------


def test_an_interval_by_students_t() -> None:
    found = interval([60.0, 62.0, 64.0])
    assert found.mean == 62
    assert found.half == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-5)
    assert str(found) == "62.0 ± 5.0"
    assert interval([1.0, 2.0]).half == pytest.approx(12.706205 * math.sqrt(0.5) / math.sqrt(2), rel=1e-5)
    assert str(interval([61.0])) == "61.0"
    assert interval([61.0]).half is None
    with pytest.raises(DataError):
        interval([])


def test_an_interval_of_one_accuracy() -> None:
    assert wilson(50, 100) == pytest.approx((40.383, 59.617), abs=1e-3)
    assert wilson(10, 10)[1] == 100
    assert wilson(10, 10)[0] == pytest.approx(72.247, abs=1e-3)
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-9)
    assert wilson(0, 0) == (0, 100)
