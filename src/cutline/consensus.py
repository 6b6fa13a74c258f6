"""What the people who describe a picture are likely to agree on, guessed from all of the picture at once.

A model that writes word by word finds many captions about equally likely, of which some are far better than others.
What makes a caption good is that it says what several people would have said. That can be learned directly: here each
caption is a vector of its runs of one and of two words, weighted as CIDEr-D weights them, and a linear map (ridge
regression, in closed form, of few ranks) guesses from the encoder's one vector of a picture how the mean of its
captions' vectors differs from that of all pictures'. Search then adds to the score of each finished beam how much of
the guess it says, and how rare its words are: of captions about as good, the one that says more than most do.

NumPy alone: it is fitted after training, and bundles choose by it.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cutline.errors import DataError, ModelError
from cutline.models.compact import rounded

Floats = NDArray[np.floating[Any]]
Caption = tuple[int, ...]
"""As the model's tokens."""
Run = tuple[int, ...]
"""One token of a caption, or two in a row."""

FORMAT = "cutline consensus 1"
ORDERS = (1, 2)
"""Lengths of runs. Longer ones are too rare to be guessed: with them it chooses no better."""
MOST = 2000
"""Runs of each length that are guessed, in each language, the commonest; all others count as absent."""
LEAST = 5
"""Pictures whose captions have a run, at the least, for it to be guessed."""
COMMON = 4.0
"""Rarity up to which a word is like any other: that of one in the captions of every 55th picture. Without it English
captions of Flickr8k use 220 different words, with 4.5 237, with 4 269, and with 3.5 292, but fit less well."""
RANKS, FEWER = 256, 128
"""Dimensions between a picture and what is said of it; the fewer are half the size, and choose a little worse."""
RIDGE = 600
"""Strength of the regression, for inputs of variance 1: as if so many pictures had been seen of which nothing is said
that is not said of all. Of 6,000 pictures 60 to 1,800 learn about as well; of 300, 600 learn better than 30."""
BLOCK = 1024
_DAMAGED = (ValueError, TypeError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What NumPy and zipfile raise of bytes that are not as they were written."""


class Runs:
    """Which runs of words are guessed in a language, and how rare they are."""

    def __init__(self, runs: Sequence[Run], rarity: Floats, unknown: float) -> None:
        self.places = {run: place for place, run in enumerate(runs)}
        self.rarity, self.unknown = rarity, unknown
        """Of each, and of any other: the logarithm of how many pictures there are for each whose captions have it."""

    @classmethod
    def of(cls, groups: Sequence[Sequence[Caption]]) -> Runs:
        """The commonest in these captions, a group for each picture."""
        counts: Counter[Run] = Counter()
        for group in groups:
            counts.update({run for caption in group for order in ORDERS for run in _runs(caption, order)})
        chosen: list[Run] = []
        for order in ORDERS:
            often = [run for run, count in counts.items() if len(run) == order and count >= LEAST]
            chosen += sorted(often, key=lambda run: (-counts[run], run))[:MOST]
        every = math.log(max(len(groups), 1))
        return cls(chosen, np.array([every - math.log(counts[run]) for run in chosen], np.float32), every)

    def weigh(self, caption: Caption) -> Iterator[tuple[list[int], Floats]]:
        """A caption as a vector of length 1 for each order of runs: the places that are not 0, and what is there.

        What is not guessed is left out, but has its part in the length.
        """
        for order in ORDERS:
            counts = Counter(_runs(caption, order))
            places = [self.places[run] for run in counts if run in self.places]
            weights = self.rarity[places] * np.array([n for run, n in counts.items() if run in self.places], np.float32)
            others = sum(n * n for run, n in counts.items() if run not in self.places)
            if length := math.sqrt(weights @ weights + others * self.unknown**2):
                yield places, weights / length

    def remarkable(self, caption: Caption) -> float:
        """How much rarer than common ones the words of a caption are, on the mean. What is never guessed is no gain."""
        rarity = [float(self.rarity[self.places[run]]) for run in _runs(caption, 1) if run in self.places]
        return sum(max(each - COMMON, 0) for each in rarity) / max(len(caption), 1)


def _runs(caption: Caption, order: int) -> Iterator[Run]:
    return zip(*(caption[start:] for start in range(order)))


class Opinion:
    """Says of captions in one language how much they say of what people are likely to, and in words of their own."""

    def __init__(self, projection: Floats, table: Floats, runs: Runs) -> None:
        self.projection, self.table, self.runs = projection, table, runs

    def __call__(self, seen: Floats, captions: Sequence[Sequence[Caption]]) -> list[list[float]]:
        """For each caption of each picture, about 10 at most, and 0 for common words that suit any picture as well;
        `seen` (B,P) is the encoder's vector of each.
        """
        guesses = _linear(_linear(seen, self.projection), self.table)
        return [[self._said(each, guess) for each in group] for guess, group in zip(guesses, captions, strict=True)]

    def _said(self, caption: Caption, guess: Floats) -> float:
        said = sum(float(guess[places] @ weights) for places, weights in self.runs.weigh(caption))
        return 10 * said / len(ORDERS) + self.runs.remarkable(caption)


@dataclass(frozen=True)
class Consensus:
    projection: Floats
    """(P+1,r): from the encoder's vector of a picture, and 1, to a code."""
    languages: Mapping[str, tuple[Floats, Runs]]
    """Of each, its table (r+1,G), from a code, and 1, to the guess, and what is guessed."""

    def opinions(self) -> dict[str, Opinion]:
        """By language, what search asks of captions."""
        return {lang: Opinion(self.projection, *each) for lang, each in self.languages.items()}

    def smaller(self) -> Consensus:
        """The same with fewer ranks: the first ones tell most."""
        languages = {}
        for lang, (table, runs) in self.languages.items():
            # Nothing is guessed for the mean of a language's pictures, so the constant tells that one's code.
            mean = np.linalg.lstsq(table[:-1].T, -table[-1], rcond=None)[0][:FEWER]
            weights = table[:-1][:FEWER]
            languages[lang] = _table(weights, -(mean @ weights)), runs
        return Consensus(self.projection[:, :FEWER], languages)

    def to_bytes(self) -> bytes:
        """Matrices in one byte a number, with a scale for each column: no score has changed by it."""
        arrays: dict[str, Any] = {"format": np.array(FORMAT), **_stored("projection", self.projection)}
        for lang, (table, runs) in self.languages.items():
            padded = [(*run, *[-1] * (max(ORDERS) - len(run))) for run in runs.places]
            arrays[f"{lang}.runs"] = np.array(padded, np.int32).reshape(-1, max(ORDERS))
            arrays[f"{lang}.rarity"] = np.append(runs.rarity, np.float32(runs.unknown))
            arrays |= _stored(f"{lang}.table", table)
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    @classmethod
    def parse(cls, data: bytes) -> Consensus:
        """From the bytes that `to_bytes` made."""
        try:
            if not zipfile.is_zipfile(io.BytesIO(data)):  # NumPy would speak of pickles
                raise ValueError("it is damaged, or something else")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = dict(file)
            if arrays["format"] != FORMAT:
                raise ModelError(f"a consensus of the form {str(arrays['format'])!r}", expected=FORMAT)
            projection, languages = _restored("projection", arrays), {}
            for lang in [name.removesuffix(".runs") for name in arrays if name.endswith(".runs")]:
                *rarity, unknown = arrays[f"{lang}.rarity"].astype(np.float32)
                runs = [tuple(word for word in run if word >= 0) for run in arrays[f"{lang}.runs"].tolist()]
                table = _restored(f"{lang}.table", arrays)
                if len(runs) != len(rarity) or table.shape != (projection.shape[1] + 1, len(runs)):
                    raise ValueError(f"the parts for {lang} do not fit together")
                languages[lang] = table, Runs(runs, np.array(rarity, np.float32), float(unknown))
        except _DAMAGED as error:
            raise ModelError(f"not a consensus: {error}", expected="consensus.npz as Cutline wrote it") from None
        return cls(projection, languages)


def fit(seen: Floats, captions: Mapping[str, Sequence[Sequence[Caption]]]) -> Consensus:
    """Learn from training pictures: the encoder's vectors (M,P), and by language each one's captions as tokens.

    Pictures may lack captions in a language. One whose captions have nothing in common often enough is left out.
    """
    middle, width = seen.mean(0, dtype=np.float64), seen.std(0, dtype=np.float64)
    width = np.where(width > 0, width, 1)
    given = ((seen - middle) / width).astype(np.float32)
    maps = {lang: each for lang, groups in captions.items() if (each := _regress(given, groups))}
    if not maps:
        raise DataError(
            f"no word is in the captions of {LEAST} training pictures: there is no consensus to learn",
            fix="search.consensus = 0",
        )
    # The best map of few ranks: keep what of the full one's output varies most, over pictures and all languages. A
    # language counts by its captions a picture: with one of them, most of what varies is who happened to write it.
    root = np.linalg.cholesky(np.mean([each.moments for each in maps.values()], axis=0)).T
    spread = root @ np.concatenate([each.captions * each.full for each in maps.values()], axis=1)
    _, vectors = np.linalg.eigh(spread @ spread.T)
    kept = vectors[:, ::-1][:, :RANKS]
    inward, outward = np.linalg.solve(root, kept), kept.T @ root
    languages = {}
    for lang, each in maps.items():
        table = outward @ each.full
        languages[lang] = _table(table, -(each.centre @ inward @ table)), each.runs
    inward /= width[:, None]
    return Consensus(_table(inward, -(middle @ inward)), languages)


class _Map(NamedTuple):
    """Of one language, from pictures to the guess."""

    runs: Runs
    full: Floats
    """(P,G)"""
    centre: Floats
    """(P,): the mean of the language's pictures, for which nothing is guessed."""
    moments: Floats
    """(P,P): of the pictures, with the ridge."""
    captions: float
    """For each picture."""


def _regress(given: Floats, groups: Sequence[Sequence[Caption]]) -> _Map | None:
    there = [place for place, group in enumerate(groups) if group]
    runs = Runs.of([groups[place] for place in there])
    if not runs.places:
        return None
    size, count = given.shape[1], len(runs.places)
    centre = given[there].mean(0, dtype=np.float64)
    moments, product = RIDGE * np.eye(size), np.zeros((size, count))
    for first in range(0, len(there), BLOCK):
        block = there[first : first + BLOCK]
        wanted = np.zeros((len(block), count), np.float32)
        for row, place in enumerate(block):
            for caption in groups[place]:
                for places, weights in runs.weigh(caption):
                    wanted[row, places] += weights / len(groups[place])
        centred = given[block] - centre
        moments += centred.T @ centred
        product += centred.T @ wanted
    full = np.linalg.solve(moments, product)
    return _Map(runs, full, centre, moments, sum(map(len, groups)) / len(there))


def _table(weights: Floats, constant: Floats) -> Floats:
    """A linear map; what it adds is the last row."""
    return np.concatenate([weights, constant[None]]).astype(np.float32)


def _linear(inputs: Floats, table: Floats) -> Floats:
    outputs: Floats = inputs.astype(np.float32) @ table[:-1] + table[-1]
    return outputs


def _stored(name: str, table: Floats) -> dict[str, Any]:
    """The last row is often far larger than the others, and stays as it is."""
    whole, scale = rounded(table[:-1])
    return {f"{name}.whole": whole, f"{name}.scale": scale, f"{name}.constant": table[-1]}


def _restored(name: str, arrays: Mapping[str, Any]) -> Floats:
    whole, scale, constant = (arrays[f"{name}.{part}"] for part in ("whole", "scale", "constant"))
    if whole.dtype != np.int8 or constant.shape != whole.shape[1:]:
        raise ValueError(f"{name} is damaged")
    return _table(whole * scale, constant)
