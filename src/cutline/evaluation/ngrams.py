"""BLEU, ROUGE-L and CIDEr-D over whole arrays, equal to pycocoevalcap's on equal tokens.

Words become whole numbers once, runs of n words become whole numbers from the runs of n - 1 before them, and
counting, clipping and weighting are then sorts and sums of arrays. Captions stand in one order throughout:
every picture's candidate first (caption `p` is picture `p`'s candidate), then all references, picture by picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ORDERS = 4
BETA = 1.2
SIGMA = 6.0


@dataclass(frozen=True)
class Counts:
    """How often each n-gram of one order stands in each caption; rows are sorted by caption, then n-gram."""

    caption: Ints
    gram: Ints
    count: Ints
    kinds: int
    """Number of distinct n-grams."""


@dataclass(frozen=True)
class Captions:
    """Candidates and references of `pictures` pictures as numbers."""

    words: Ints
    """The words of all captions, end to end."""
    lengths: Ints
    """Words in each caption."""
    picture: Ints
    """The picture that each caption is of."""
    pictures: int
    counts: tuple[Counts, ...]
    """For n-grams of 1 to ORDERS words."""

    @classmethod
    def of(cls, candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Captions:
        """Number the words of one candidate, and of at least one reference, for each picture."""
        pictures = len(candidates)
        captions = [*candidates, *chain.from_iterable(references)]
        lengths = np.fromiter(map(len, captions), np.int64, len(captions))
        texts = list(chain.from_iterable(captions))
        number = {word: i for i, word in enumerate(dict.fromkeys(texts))}
        words = np.fromiter(map(number.__getitem__, texts), np.int64, len(texts))
        each = np.arange(pictures)
        picture = np.concatenate([each, np.repeat(each, [len(group) for group in references])])
        return cls(words, lengths, picture, pictures, _count(words, lengths, len(number)))


def _count(words: Ints, lengths: Ints, vocabulary: int) -> tuple[Counts, ...]:
    caption = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words from here to the caption's end
    gram, kinds = words, vocabulary
    counts = []
    at = np.arange(len(words))
    for n in range(1, ORDERS + 1):
        if n > 1:
            longer = left[at] >= n
            at, gram = at[longer], gram[longer]
            # Two numbers below the number of words, so their combination is far from overflowing.
            distinct, gram = np.unique(gram * vocabulary + words[at + n - 1], return_inverse=True)
            kinds = len(distinct)
        rows, count = np.unique(caption[at] * kinds + gram, return_counts=True)
        counts.append(Counts(rows // max(kinds, 1), rows % max(kinds, 1), count, kinds))
    return tuple(counts)


def bleu(captions: Captions) -> tuple[Floats, Floats]:
    """BLEU-1..ORDERS of the corpus (ORDERS,) and of each picture (pictures, ORDERS), 0 to 1.

    The reference length is the closest one, the shorter of two as close.
    """
    pictures = captions.pictures
    length, closest = captions.lengths[:pictures], _closest_lengths(captions)
    guessed = np.maximum(length[:, None] - np.arange(ORDERS), 0)
    correct = np.stack([_correct(counts, captions) for counts in captions.counts], axis=1)
    each = _bleu(correct, guessed, length, closest)
    whole = _bleu(correct.sum(0), guessed.sum(0), length.sum(), closest.sum())
    return whole, each


def _correct(counts: Counts, captions: Captions) -> Ints:
    """For each picture, the candidate's n-grams that stand as often in one of its references."""
    candidate = counts.caption < captions.pictures
    key = captions.picture[counts.caption] * counts.kinds + counts.gram
    wanted, given = key[candidate], counts.count[candidate]
    matching = ~candidate
    place, found = _find(key[matching], wanted)
    most = np.zeros(len(wanted), np.int64)
    np.maximum.at(most, place[found], counts.count[matching][found])
    clipped = np.zeros(captions.pictures, np.int64)
    np.add.at(clipped, counts.caption[candidate], np.minimum(given, most))
    return clipped


def _closest_lengths(captions: Captions) -> Ints:
    of, length = captions.picture[captions.pictures :], captions.lengths[captions.pictures :]
    distance = np.abs(length - captions.lengths[of])
    order = np.lexsort((length, distance, of))
    first = np.searchsorted(of, np.arange(captions.pictures))  # `of` is sorted, so order keeps the groups' places
    return length[order][first]


def _bleu(correct: Ints, guessed: Ints, length: Ints, closest: Ints) -> Floats:
    # The two small constants are the reference implementation's; they keep empty captions from dividing by zero.
    tiny, small = 1e-15, 1e-9
    precisions = np.cumprod((correct + tiny) / (guessed + small), axis=-1)
    ratio = np.asarray((length + tiny) / (closest + small))
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    result: Floats = precisions ** (1 / np.arange(1, ORDERS + 1)) * brevity[..., None]
    return result


def cider(captions: Captions) -> tuple[float, Floats]:
    """CIDEr-D of the corpus and of each picture, 0 to 10; document frequencies are the references' own."""
    pictures, lengths = captions.pictures, captions.lengths
    of = captions.picture[pictures:]
    similar = np.zeros(len(of))
    for counts in captions.counts:
        similar += _cosines(counts, captions)
    # The reference implementation measures length in bigrams.
    bigrams = np.maximum(lengths - 1, 0)
    difference = bigrams[:pictures][of] - bigrams[pictures:]
    similar *= np.exp(-(difference**2) / (2 * SIGMA**2)) / ORDERS
    each = 10 * np.bincount(of, similar, minlength=pictures) / np.bincount(of, minlength=pictures)
    return float(each.mean()), each


def _cosines(counts: Counts, captions: Captions) -> Floats:
    """Clipped cosine of each reference with its picture's candidate, weighting n-grams by rarity."""
    pictures = captions.pictures
    candidate = counts.caption < pictures
    key = captions.picture[counts.caption] * counts.kinds + counts.gram
    seen = np.bincount(np.unique(key[~candidate]) % max(counts.kinds, 1), minlength=counts.kinds)
    rarity = np.log(pictures) - np.log(np.maximum(1, seen))
    weight = counts.count * rarity[counts.gram]
    norm = np.sqrt(np.bincount(counts.caption, weight**2, minlength=len(captions.lengths)))

    place, found = _find(key[~candidate], key[candidate])
    theirs = weight[~candidate][found]
    ours = weight[candidate][place[found]]
    reference = counts.caption[~candidate][found] - pictures
    of = captions.picture[pictures:]
    product = np.bincount(reference, np.minimum(ours, theirs) * theirs, minlength=len(of))
    size = norm[:pictures][of] * norm[pictures:]
    cosines: Floats = np.divide(product, size, out=np.zeros(len(of)), where=size > 0)
    return cosines


def _find(keys: Ints, table: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each key stands in the sorted table, and whether it does."""
    place = np.searchsorted(table, keys)
    place[place == len(table)] = 0
    return place, (table[place] == keys) if len(table) else np.zeros(len(keys), bool)


def rouge_l(captions: Captions) -> tuple[float, Floats]:
    """ROUGE-L of the corpus and of each picture, 0 to 1: best precision and best recall over the references."""
    pictures = captions.pictures
    of = captions.picture[pictures:]
    common = _common_lengths(captions)
    # An empty caption counts as one empty word, as in the reference implementation.
    lengths = np.maximum(captions.lengths, 1)
    first = np.searchsorted(of, np.arange(pictures))
    precision = np.maximum.reduceat(common / lengths[:pictures][of], first)
    recall = np.maximum.reduceat(common / lengths[pictures:], first)
    size = recall + BETA**2 * precision
    each = np.divide((1 + BETA**2) * precision * recall, size, out=np.zeros(pictures), where=size > 0)
    return float(each.mean()), each


def _common_lengths(captions: Captions) -> Ints:
    """Length of the longest common subsequence of each reference with its picture's candidate.

    Bit-parallel: a set bit of `row` says that the subsequence does not grow at that word of the candidate, so a
    whole row of the usual table is one whole number, and a word of the reference costs three operations on it.
    Python's numbers have any width, so captions may have any length.
    """
    words = captions.words.tolist()
    ends = np.cumsum(captions.lengths).tolist()
    starts = [0, *ends]
    common = []
    candidate = -1
    places: dict[int, int] = {}
    full = 0
    for caption, picture in enumerate(captions.picture[captions.pictures :].tolist(), captions.pictures):
        if picture != candidate:
            candidate = picture
            places = {}
            bit = 1
            for word in words[starts[picture] : ends[picture]]:
                places[word] = places.get(word, 0) | bit
                bit <<= 1
            full = bit - 1
        row = full
        for word in words[starts[caption] : ends[caption]]:
            if word in places:
                match = row & places[word]
                row = (row + match) | (row - match)
        empty = full == 0 and starts[caption] == ends[caption]
        common.append(1 if empty else (~row & full).bit_count())
    return np.array(common, np.int64)
