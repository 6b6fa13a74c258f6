"""How good each of many captions of a picture is: what learning by reward is paid in.

CIDEr-D as the scores have it, but with document frequencies of all training captions, known beforehand, so that a
caption has a score of its own. The end of a caption counts as a word: without it, the cheapest way to a high reward is
to break off in front of a word that might be wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutline.evaluation.ngrams import ORDERS, SIGMA

END = "\n"
"""Stands for the end of a caption; no tokenizer leaves it in a word."""

Gram = tuple[str, ...]
Words = Sequence[str]


class Reward:
    """Knows from a corpus what is rare; scores captions against references of their pictures."""

    def __init__(self, references: Sequence[Sequence[Words]], *, bleu: float = 0.0) -> None:
        """The corpus's by picture, as words. `bleu` is the weight of BLEU-4 (0 to 1) beside CIDEr-D (0 to 10)."""
        self.bleu = bleu
        seen: Counter[Gram] = Counter()
        for group in references:
            seen.update({gram for words in group for gram in _grams(words)})
        # What stands in one picture only weighs as much as what stands in none, so it need not be kept.
        self.frequency = {gram: count for gram, count in seen.items() if count > 1}
        # A picture of which nothing is said, in this language, says nothing of how rare a word is.
        self.most = math.log(max(sum(map(bool, references)), 1))

    def __call__(
        self, references: Iterable[Sequence[Words]], captions: Iterable[Sequence[Words]]
    ) -> NDArray[np.float64]:
        """Rewards (pictures, captions) of as many captions of each picture, by the references of each."""
        return np.array([self._picture(given, group) for given, group in zip(references, captions, strict=True)])

    def _picture(self, given: Sequence[Words], captions: Sequence[Words]) -> list[float]:
        references = [self._vector(words) for words in given]
        rewards = []
        for words in captions:
            own = self._vector(words)
            reward = 10 * sum(_likeness(own, other) for other in references) / max(len(references), 1)
            if self.bleu:
                reward += self.bleu * _bleu4(own, references)
            rewards.append(reward)
        return rewards

    def _vector(self, words: Words) -> _Vector:
        counts = _grams(words)
        weights = {gram: count * (self.most - math.log(self.frequency.get(gram, 1))) for gram, count in counts.items()}
        squares = [0.0] * ORDERS
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight * weight
        return _Vector(len(words) + 1, counts, weights, [math.sqrt(square) for square in squares])


@dataclass(frozen=True)
class _Vector:
    """A caption as its n-grams: how often, how heavy, and the length of the vector of each order."""

    length: int
    counts: Mapping[Gram, int]
    weights: Mapping[Gram, float]
    norms: Sequence[float]


def _likeness(own: _Vector, other: _Vector) -> float:
    """Clipped cosine of two captions, the mean of all orders, less where their lengths differ."""
    products = [0.0] * ORDERS
    for gram, weight in own.weights.items():
        theirs = other.weights.get(gram)
        if theirs:
            products[len(gram) - 1] += min(weight, theirs) * theirs
    sizes = [one * two for one, two in zip(own.norms, other.norms, strict=True)]
    cosines = sum(product / size for product, size in zip(products, sizes, strict=True) if size)
    return cosines / ORDERS * math.exp(-((own.length - other.length) ** 2) / (2 * SIGMA**2))


def _bleu4(own: _Vector, references: Sequence[_Vector]) -> float:
    """BLEU-4 of one caption, each order's count raised by one so that a missing order does not make it nothing."""
    right, said = [1.0] * ORDERS, [1.0] * ORDERS
    for gram, count in own.counts.items():
        right[len(gram) - 1] += min(count, max((other.counts.get(gram, 0) for other in references), default=0))
        said[len(gram) - 1] += count
    closest = min((other.length for other in references), key=lambda length: (abs(length - own.length), length))
    brevity = math.exp(min(0.0, 1 - closest / own.length))
    return brevity * math.prod(one / all for one, all in zip(right, said, strict=True)) ** (1 / ORDERS)


def _grams(words: Words) -> Counter[Gram]:
    ended = (*words, END)
    return Counter(ended[at : at + n] for n in range(1, ORDERS + 1) for at in range(len(ended) - n + 1))
