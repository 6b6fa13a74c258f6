"""What features are worth with next to nothing learned: the nearest pictures, and logistic regression.

Both have one setting, chosen on a seeded part of the training pictures and never on those that are judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cutline.errors import DataError, require
from cutline.evaluation.classes import UNKNOWN, ClassScores, score_classes

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Guess = Callable[[Floats], NDArray[np.floating[Any]]]
"""From features (n,P) to probabilities (n,K)."""

NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)
STRENGTHS = (10.0, 1.0, 0.1, 0.01, 1e-3)
"""Of the pull of logistic regression's weights towards zero, for a picture."""
HELD = 0.2
"""Share of each class's training pictures that a setting is chosen on."""
_SHARPNESS = 0.07
"""A neighbour counts e times as much as one whose cosine is smaller by this."""
_BLOCK = 512
"""Pictures compared with all others at a time."""


class Labelled(NamedTuple):
    """Features of pictures (N,P) and the number of each one's class (N,)."""

    features: ArrayLike
    labels: ArrayLike


@dataclass(frozen=True)
class Baseline:
    scores: ClassScores
    setting: float
    """The one that was chosen: how many neighbours, or how strong a pull."""
    tried: Mapping[float, float]
    """The accuracy of each setting on the training pictures that were held back to choose by."""
    seconds: float
    """That choosing and learning took."""
    guess: Guess


def nearest_pictures(known: Labelled, judged: Labelled, names: Sequence[str], *, seed: int = 0) -> Baseline:
    """The class that most of the pictures nearest in angle have, nearer ones counting for more."""
    return _chosen(_nearest, NEIGHBOURS, known, judged, names, seed)


def logistic_regression(known: Labelled, judged: Labelled, names: Sequence[str], *, seed: int = 0) -> Baseline:
    """One layer over all classes, as well as it can be fitted."""
    return _chosen(_regression, STRENGTHS, known, judged, names, seed)


def _chosen(
    fit: Callable[[Floats, Integers, int, Sequence[float]], list[Guess]],
    settings: Sequence[float],
    known: Labelled,
    judged: Labelled,
    names: Sequence[str],
    seed: int,
) -> Baseline:
    """Choose the setting on some of the known pictures, fit to all of them, and score the judged ones."""
    begun = time.perf_counter()
    features, labels = _checked(known)
    held = _held(labels, seed)
    tried = dict[float, float]()
    if held.any():
        guesses = fit(features[~held], labels[~held], len(names), settings)
        for setting, guess in zip(settings, guesses, strict=True):
            tried[setting] = 100 * float((guess(features[held]).argmax(1) == labels[held]).mean())
    setting = max(tried, key=lambda each: tried[each], default=settings[0])  # of equally good ones, the first
    (guess,) = fit(features, labels, len(names), [setting])
    seconds = time.perf_counter() - begun
    scores = score_classes(guess(_floats(judged.features)), judged.labels, names)
    return Baseline(scores, setting, tried, seconds, guess)


def _checked(known: Labelled) -> tuple[Floats, Integers]:
    features, labels = _floats(known.features), np.asarray(known.labels, np.int64)
    features, labels = features[labels != UNKNOWN], labels[labels != UNKNOWN]
    if len(np.unique(labels)) < 2:
        raise DataError(f"{len(labels)} pictures of {len(np.unique(labels))} classes", expected="at least two classes")
    if not np.isfinite(features).all():
        raise DataError("some features are no numbers", fix="build them again (cutline features build)")
    return features, labels


def _floats(features: ArrayLike) -> Floats:
    return np.asarray(features, np.float32)


def _held(labels: Integers, seed: int) -> NDArray[np.bool_]:
    """Which pictures to choose a setting on: the same share of each class, and of a class with one picture none."""
    held, random = np.zeros(len(labels), bool), np.random.default_rng(seed)
    for each in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == each))
        held[members[: min(round(HELD * len(members)), len(members) - 1)]] = True
    return held


def _nearest(features: Floats, labels: Integers, classes: int, settings: Sequence[float]) -> list[Guess]:
    known, spread = _of_length_one(features), np.bincount(labels, minlength=classes) / len(labels)
    return [lambda judged, k=int(each): _vote(known, labels, spread, judged, k) for each in settings]  # type: ignore[misc]


def _vote(known: Floats, labels: Integers, spread: NDArray[Any], judged: Floats, neighbours: int) -> NDArray[Any]:
    """Votes of the nearest pictures (n,K), with one more that is split as the classes are: no class is impossible."""
    neighbours = min(neighbours, len(known))
    blocks = []
    for start in range(0, len(judged), _BLOCK):
        near = _of_length_one(judged[start : start + _BLOCK]) @ known.T
        nearest = np.argpartition(-near, neighbours - 1, axis=1)[:, :neighbours]
        cosines = np.take_along_axis(near, nearest, 1)
        weights = np.exp((cosines - cosines.max(1, keepdims=True)) / _SHARPNESS)
        votes = np.zeros((len(near), len(spread)))
        np.add.at(votes, (np.arange(len(near))[:, None], labels[nearest]), weights)
        blocks.append((votes + spread) / (weights.sum(1, keepdims=True) + 1))
    return np.concatenate(blocks)


def _of_length_one(features: Floats) -> Floats:
    length: Floats = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12))


def _regression(features: Floats, labels: Integers, classes: int, settings: Sequence[float]) -> list[Guess]:
    """For each strength, strongest first, going on from the weights of the one before it."""
    linear = require("sklearn.linear_model", "train", "logistic regression on features")
    threads = require("threadpoolctl", "train", "logistic regression on features")  # scikit-learn itself needs it
    mean, spread = features.mean(0), features.std(0)
    scale = np.where(spread > 0, 1 / np.maximum(spread, 1e-12), 0).astype(np.float32)  # what never changes is no help
    there = np.unique(labels)
    model = linear.LogisticRegression(max_iter=300, tol=1e-4, warm_start=True)
    known, guesses = (features - mean) * scale, list[Guess]()
    for strength in settings:
        model.set_params(C=1 / (strength * len(labels)))
        with threads.threadpool_limits(1):  # threads that wait for each other cost more than these products take
            model.fit(known, labels)
        weights, bias = model.coef_.T.copy(), model.intercept_.copy()
        if len(there) == 2:  # of two classes only the second has weights
            weights, bias = np.hstack([0 * weights, weights]), np.array([0, *bias])
        guesses.append(lambda judged, w=weights, b=bias: _spread(((judged - mean) * scale) @ w + b, there, classes))  # type: ignore[misc]
    return guesses


def _spread(logits: NDArray[Any], there: Integers, classes: int) -> NDArray[Any]:
    """Probabilities of all classes (n,K) from logits of those that there are."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    chances = np.zeros((len(logits), classes))
    chances[:, there] = powers / powers.sum(1, keepdims=True)
    return chances
