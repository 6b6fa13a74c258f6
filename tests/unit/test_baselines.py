"""Nearest pictures and logistic regression: what they guess, and by what their one setting is chosen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from cutline.errors import DataError
from cutline.evaluation import baselines
from cutline.evaluation.baselines import Baseline, Labelled, logistic_regression, nearest_pictures

NAMES = ("ash", "birch", "cedar")
BOTH: list[Callable[..., Baseline]] = [nearest_pictures, logistic_regression]


def clouds(count: int, seed: int, noise: float = 1.0) -> Labelled:
    """Pictures around a point for each of three classes, of very different sizes in their eight channels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = 1.5 * np.eye(3, 8)
    features = (centres[labels] + noise * random.normal(size=(count, 8))) * 10.0 ** -np.arange(8)
    return Labelled(features.astype(np.float16 if noise < 0.5 else np.float32), labels)


@pytest.mark.parametrize("method", BOTH)
def test_clear_classes_are_told_apart(method: Callable[..., Baseline]) -> None:
    found = method(clouds(60, 0, 0.1), clouds(30, 1, 0.1), NAMES)
    assert found.scores.accuracy == 100.0
    assert found.scores.names == NAMES
    assert found.seconds > 0


@pytest.mark.parametrize("method", BOTH)
def test_the_same_seed_chooses_the_same(method: Callable[..., Baseline]) -> None:
    first, again, other = (method(clouds(90, 0), clouds(60, 1), NAMES, seed=seed) for seed in (0, 0, 1))
    assert (first.tried, first.setting) == (again.tried, again.setting)
    assert first.tried != other.tried
    assert first.tried[first.setting] == max(first.tried.values())


@pytest.mark.parametrize("method", BOTH)
def test_what_is_judged_has_no_part_in_the_choice(method: Callable[..., Baseline]) -> None:
    known, judged = clouds(90, 0), clouds(60, 1)
    wrong = Labelled(judged.features, (np.asarray(judged.labels) + 1) % 3)
    told, lied_to = (method(known, each, NAMES) for each in (judged, wrong))
    assert (told.tried, told.setting) == (lied_to.tried, lied_to.setting)


def test_neighbours_are_the_nearest_by_angle() -> None:
    random = np.random.default_rng(0)
    known, judged = random.normal(size=(40, 5)), random.normal(size=(15, 5))
    labels = random.integers(0, 3, 40)
    (guess,) = baselines._nearest(known.astype(np.float32), labels, 3, [1])
    lengths = np.linalg.norm(judged, axis=1)[:, None] * np.linalg.norm(known, axis=1)
    expected = labels[(judged @ known.T / lengths).argmax(1)]
    np.testing.assert_array_equal(guess(judged.astype(np.float32)).argmax(1), expected)
    np.testing.assert_allclose(guess(7 * judged.astype(np.float32)), guess(judged.astype(np.float32)), rtol=1e-4)


def test_nearer_neighbours_count_for_more_and_no_class_is_impossible() -> None:
    angles = np.array([0.0, 0.6, 0.61])
    known = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    (guess,) = baselines._nearest(known, np.array([0, 1, 1]), 3, [50])  # more than there are: all of them
    chances = guess(known[:1])[0]
    assert chances[0] > chances[1] > chances[2] == 0  # the third is nowhere to be seen
    assert chances.sum() == pytest.approx(1)


def test_logistic_regression_is_that_of_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    known, judged = clouds(90, 0), np.asarray(clouds(20, 1).features)
    features, labels = np.asarray(known.features), np.asarray(known.labels)
    (guess,) = baselines._regression(features, labels, 3, [0.01])
    mean, spread = features.mean(0), features.std(0)
    plain = linear.LogisticRegression(C=1 / (0.01 * 90), max_iter=1000).fit((features - mean) / spread, labels)
    np.testing.assert_allclose(guess(judged), plain.predict_proba((judged - mean) / spread), atol=2e-3)


def test_two_classes_a_missing_one_and_a_dead_channel() -> None:
    features = np.zeros((20, 3), np.float32)
    features[:, 0] = np.repeat([-1, 1], 10) + np.linspace(-0.5, 0.5, 20)
    labels = np.repeat([0, 2], 10)
    for method in BOTH:
        found = method(Labelled(features, labels), Labelled(features, labels), NAMES)
        assert found.scores.accuracy == 100.0
        assert found.guess(features)[:, 1].max() == 0


def one_each(found: Labelled) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return np.asarray(found.features, np.float32)[:3], np.asarray(found.labels)[:3]


@pytest.mark.parametrize("method", BOTH)
def test_a_class_with_one_picture_is_learned_and_not_held_back(method: Callable[..., Baseline]) -> None:
    features, labels = one_each(clouds(3, 0, 0.1))
    found = method(Labelled(features, labels), Labelled(features, labels), NAMES)
    assert found.tried == {}  # nothing to choose by
    assert found.scores.accuracy == 100.0


def test_what_cannot_be_learned_from_is_refused() -> None:
    features, labels = one_each(clouds(3, 0, 0.1))
    with pytest.raises(DataError, match="3 pictures of 1 classes"):
        nearest_pictures(Labelled(features, 0 * labels), Labelled(features, labels), NAMES)
    with pytest.raises(DataError, match="no numbers"):
        logistic_regression(Labelled(np.full((3, 8), np.nan), labels), Labelled(features, labels), NAMES)
