"""BLEU, ROUGE-L and CIDEr-D over whole arrays, equal to pycocoevalcap's on equal words.

Words become whole numbers once, runs of n words become whole numbers from the runs of n - 1 before them, and
counting, clipping and weighting are then sorts and sums of arrays. Captions stand in one order throughout:
every picture's candidate first (caption `p` is picture `p`'s candidate), then all references, picture by picture.
"""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ORDERS = 4
"""Longest n-grams that BLEU and CIDEr-D look at, in words."""
BETA = 1.2
"""How much more recall weighs than precision in ROUGE-L."""
SIGMA = 6.0
"""Width of CIDEr-D's penalty for a difference in length."""


@dataclass(frozen=True)
class Counts:
    """How often each n-gram of one order stands in each caption; rows are sorted by caption, then n-gram."""

    caption: Ints
    gram: Ints
    count: Ints
    key: Ints
    """One number for the picture and the n-gram together."""
    kinds: int
    """Number of distinct n-grams."""
    candidates: int
    """The first so many rows are of candidates, the rest of references."""


@dataclass(frozen=True)
class Captions:
    """One candidate and at least one reference of each of `pictures` pictures, as numbers."""

    words: Ints
    """The words of all captions, end to end."""
    lengths: Ints
    """Words in each caption."""
    picture: Ints
    """The picture that each caption is of."""
    pictures: int

    @classmethod
    def of(cls, candidates: Iterable[Sequence[str]], references: Iterable[Iterable[Sequence[str]]]) -> Captions:
        """Number the words of each picture's candidate and references, a caption at a time."""
        number: defaultdict[str, int] = defaultdict(itertools.count().__next__)
        words = array("q")
        lengths: list[int] = []
        picture: list[int] = []
        alone = ((candidate,) for candidate in candidates)
        for of, group in itertools.chain(enumerate(alone), enumerate(references)):
            for caption in group:
                words.extend(map(number.__getitem__, caption))
                lengths.append(len(caption))
                picture.append(of)
        return cls(np.array(words), np.array(lengths), np.array(picture), max(picture, default=-1) + 1)

    @cached_property
    def counts(self) -> tuple[Counts, ...]:
        """The n-grams of 1 to ORDERS words."""
        caption = np.repeat(np.arange(len(self.lengths)), self.lengths)
        at = np.arange(len(self.words))
        left = np.repeat(np.cumsum(self.lengths), self.lengths) - at  # words from here to the caption's end
        gram, kinds = self.words, int(self.words.max(initial=-1)) + 1
        vocabulary = kinds
        counts = []
        for n in range(1, ORDERS + 1):
            if n > 1:
                longer = left[at] >= n
                at, gram = at[longer], gram[longer]
                # Both numbers are below the number of words, so their combination is far from overflowing.
                distinct, gram = np.unique(gram * vocabulary + self.words[at + n - 1], return_inverse=True)
                kinds = len(distinct)
            counts.append(self._count(caption[at], gram, kinds))
        return tuple(counts)

    def _count(self, caption: Ints, gram: Ints, kinds: int) -> Counts:
        rows, count = np.unique(caption * kinds + gram, return_counts=True)
        caption, gram = np.divmod(rows, max(kinds, 1))
        candidates = int(np.searchsorted(caption, self.pictures))
        return Counts(caption, gram, count, self.picture[caption] * kinds + gram, kinds, candidates)


def bleu(captions: Captions) -> tuple[Floats, Floats]:
    """BLEU-1 to BLEU-ORDERS of the corpus (ORDERS,) and of each picture (pictures, ORDERS), 0 to 1."""
    length, closest = captions.lengths[: captions.pictures], _closest_lengths(captions)
    guessed = np.maximum(length[:, None] - np.arange(ORDERS), 0)
    correct = np.stack([_correct(counts, captions.pictures) for counts in captions.counts], axis=1)
    whole = _bleu(correct.sum(0), guessed.sum(0), length.sum(), closest.sum())
    return whole, _bleu(correct, guessed, length, closest)


def _bleu(correct: Ints, guessed: Ints, length: Ints, closest: Ints) -> Floats:
    # The two small constants are the reference implementation's: no division by zero when a caption is empty.
    tiny, small = 1e-15, 1e-9
    precisions = np.cumprod((correct + tiny) / (guessed + small), axis=-1)
    ratio = np.asarray((length + tiny) / (closest + small))
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    scores: Floats = precisions ** (1 / np.arange(1, ORDERS + 1)) * brevity[..., None]
    return scores


def _correct(counts: Counts, pictures: int) -> Ints:
    """For each picture, how many of the candidate's n-grams stand, as often, in one of its references."""
    split = counts.candidates
    place, found = _find(counts.key[split:], counts.key[:split])
    most = np.zeros(split, np.int64)
    np.maximum.at(most, place[found], counts.count[split:][found])
    correct = np.zeros(pictures, np.int64)
    np.add.at(correct, counts.caption[:split], np.minimum(counts.count[:split], most))
    return correct


def _closest_lengths(captions: Captions) -> Ints:
    """Length of the reference closest in length to each candidate; of two as close, the shorter."""
    of, length = captions.picture[captions.pictures :], captions.lengths[captions.pictures :]
    order = np.lexsort((length, np.abs(length - captions.lengths[of]), of))
    return length[order][_first_reference(captions)]


def _first_reference(captions: Captions) -> Ints:
    """Where each picture's references begin among all references."""
    return np.searchsorted(captions.picture[captions.pictures :], np.arange(captions.pictures))


def _find(keys: Ints, table: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each key stands in the sorted table, and whether it does."""
    if len(table) == 0:
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return place, table[place] == keys


def cider(captions: Captions) -> tuple[float, Floats]:
    """CIDEr-D of the corpus and of each picture, 0 to 10; document frequencies are the references' own."""
    pictures = captions.pictures
    of = captions.picture[pictures:]
    difference = captions.lengths[of] - captions.lengths[pictures:]
    similar = sum(_cosines(counts, captions) for counts in captions.counts) / ORDERS
    similar = similar * np.exp(-(difference**2) / (2 * SIGMA**2))
    each = 10 * np.bincount(of, similar, minlength=pictures) / np.bincount(of, minlength=pictures)
    return float(each.mean()), each


def _cosines(counts: Counts, captions: Captions) -> Floats:
    """Clipped cosine of each reference with its picture's candidate, where n-grams weigh by their rarity."""
    pictures, split = captions.pictures, counts.candidates
    of = captions.picture[pictures:]
    # Distinct (picture, n-gram) pairs of the references; with counts, because that way numpy sorts, which is faster.
    pairs, _ = np.unique(counts.key[split:], return_counts=True)
    seen = np.bincount(pairs % max(counts.kinds, 1), minlength=counts.kinds)
    rarity = np.log(pictures / np.maximum(1, seen))  # exactly 0 for what every picture's references say
    weight = counts.count * rarity[counts.gram]
    norm = np.sqrt(np.bincount(counts.caption, weight**2, minlength=len(captions.lengths)))

    place, found = _find(counts.key[split:], counts.key[:split])
    theirs, ours = weight[split:][found], weight[place[found]]
    reference = counts.caption[split:][found] - pictures
    product = np.bincount(reference, np.minimum(ours, theirs) * theirs, minlength=len(of))
    size = norm[of] * norm[pictures:]
    cosines: Floats = np.divide(product, size, out=np.zeros(len(of)), where=size > 0)
    return cosines


def rouge_l(captions: Captions) -> tuple[float, Floats]:
    """ROUGE-L of the corpus and of each picture, 0 to 1: best precision and best recall over the references."""
    pictures, first = captions.pictures, _first_reference(captions)
    common = _common_lengths(captions)
    # An empty caption counts as one empty word, as in the reference implementation.
    lengths = np.maximum(captions.lengths, 1)
    precision = np.maximum.reduceat(common / lengths[captions.picture[pictures:]], first)
    recall = np.maximum.reduceat(common / lengths[pictures:], first)
    size = recall + BETA**2 * precision
    each = np.divide((1 + BETA**2) * precision * recall, size, out=np.zeros(pictures), where=size > 0)
    return float(each.mean()), each


def _common_lengths(captions: Captions) -> Ints:
    """Length of the longest common subsequence of each reference and its picture's candidate.

    Bit-parallel: a whole row of the usual table is one whole number, in which a cleared bit says that the
    subsequence grows at that word of the candidate, and a word of the reference costs three operations on it.
    Python's numbers have any width, so captions have any length.
    """
    words = captions.words.tolist()
    ends = np.cumsum(captions.lengths).tolist()
    starts = [0, *ends]
    references = iter(range(captions.pictures, len(ends)))
    common = []
    for picture, number in enumerate(np.bincount(captions.picture[captions.pictures :]).tolist()):
        places: dict[int, int] = {}
        bit = 1
        for word in words[starts[picture] : ends[picture]]:
            places[word] = places.get(word, 0) | bit
            bit <<= 1
        full = bit - 1
        for _ in range(number):
            caption = next(references)
            row = full
            for place in filter(None, map(places.get, words[starts[caption] : ends[caption]])):
                match = row & place
                row = (row + match) | (row - match)
            both_empty = not full and starts[caption] == ends[caption]
            common.append(1 if both_empty else (~row & full).bit_count())
    return np.array(common, np.int64)
