"""Scores of captions against references: BLEU, ROUGE-L, CIDEr-D and what stands beside them.

    >>> scores = score({"1.jpg": "a dog runs"}, {"1.jpg": ["a dog is running", "the dog runs"]})
    >>> print(scores.signature)

All scores are on a scale of 0 to 100 (CIDEr-D may pass 100: a perfect match of a rare caption is worth 1000).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cutline import __version__
from cutline.data.content import repeats
from cutline.errors import DataError
from cutline.evaluation import ngrams
from cutline.evaluation.tokens import tokenize


@dataclass(frozen=True)
class Diversity:
    """How varied the captions are, whatever their scores."""

    distinct: float
    """Share of captions that differ from all others (each repeated caption counts once), 0 to 1."""
    novel: float | None
    """Share of captions that are not among the training captions, 0 to 1; None where those are not given."""
    mean_length: float
    """Words in a caption."""
    vocabulary: int
    """Different words used in all captions."""
    repeating: float
    """Share of captions that say a word of content twice, 0 to 1."""


@dataclass(frozen=True)
class Scores:
    """One system's scores on one set of references, 0 to 100."""

    bleu: tuple[float, float, float, float]
    """BLEU-1 to BLEU-4."""
    rouge_l: float
    cider: float
    """CIDEr-D."""
    diversity: Diversity
    count: int
    """Pictures scored."""
    signature: str
    """How these figures came about, to print beside them."""
    ids: tuple[str, ...] = field(repr=False)
    per_picture: Mapping[str, ngrams.Floats] = field(repr=False, compare=False)
    """`bleu` (pictures, 4), `rouge_l` (pictures,) and `cider` (pictures,), in the order of `ids`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without those of each picture."""
        values: dict[str, Any] = {f"bleu_{n}": value for n, value in enumerate(self.bleu, 1)}
        values |= {"rouge_l": self.rouge_l, "cider": self.cider}
        values |= vars(self.diversity)
        return {**values, "count": self.count, "signature": self.signature}

    def rows(self) -> dict[str, str]:
        """The figures by name, as a table shows them to people."""
        varied = self.diversity
        return {
            **{f"BLEU-{n}": f"{value:.1f}" for n, value in enumerate(self.bleu, 1)},
            "ROUGE-L": f"{self.rouge_l:.1f}",
            "CIDEr-D": f"{self.cider:.1f}",
            "Distinct captions": f"{varied.distinct:.0%}",
            "Captions not learned from": "–" if varied.novel is None else f"{varied.novel:.0%}",
            "Words in a caption": f"{varied.mean_length:.1f}",
            "Different words used": f"{varied.vocabulary:,}",
            "Captions that repeat a word": f"{varied.repeating:.1%}",
            "Pictures": f"{self.count:,}",
        }

    def pictures(self) -> dict[str, dict[str, float]]:
        """The scores of each picture by itself (CIDEr-D weighs words as the whole set does)."""
        columns = {f"bleu_{n}": self.per_picture["bleu"][:, n - 1] for n in range(1, ngrams.ORDERS + 1)}
        columns |= {name: self.per_picture[name] for name in ("rouge_l", "cider")}
        rows = zip(*(column.tolist() for column in columns.values()))
        return {id: dict(zip(columns, row)) for id, row in zip(self.ids, rows)}


def score(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    pretokenized: bool = False,
    training: Collection[str] | None = None,
    common: bool = False,
) -> Scores:
    """Score one caption for each picture against that picture's references.

    `pretokenized` takes captions as words between spaces, as they are. `training` are the captions that the system
    learned from, for the share of novel ones. Pictures must be the same on both sides, unless `common` asks for
    those that are.
    """
    ids = _pictures(predictions, references, common)
    words = str.split if pretokenized else tokenize
    candidates = [words(predictions[id]) for id in ids]
    captions = ngrams.Captions.of(candidates, (map(words, references[id]) for id in ids))
    bleu, bleu_each = ngrams.bleu(captions)
    rouge, rouge_each = ngrams.rouge_l(captions)
    cider, cider_each = ngrams.cider(captions)
    known = None if training is None else {" ".join(words(text)) for text in training}
    one, two, three, four = (100 * bleu).tolist()
    return Scores(
        bleu=(one, two, three, four),
        rouge_l=100 * rouge,
        cider=100 * cider,
        diversity=_diversity(candidates, known),
        count=len(ids),
        signature=_signature(ids, predictions, references, pretokenized),
        ids=tuple(ids),
        per_picture={"bleu": 100 * bleu_each, "rouge_l": 100 * rouge_each, "cider": 100 * cider_each},
    )


def _pictures(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], common: bool) -> list[str]:
    """Ids to score, in the references' order, or an error that names what does not fit."""
    uncaptioned = [id for id in references if id not in predictions]
    unknown = [id for id in predictions if id not in references]
    if (uncaptioned or unknown) and not common:
        lines = ["predictions and references are not of the same pictures"]
        if uncaptioned:
            lines.append(f"  no prediction for {some(uncaptioned, 'picture')} of {len(references)} with references")
        if unknown:
            lines.append(f"  no references for {some(unknown, 'picture')} of {len(predictions)} with a prediction")
        raise DataError(
            "\n".join(lines),
            expected="one prediction for each picture with references, and no others",
            fix="name pictures alike, choose one split (--split), or score only the common ones (--common)",
        )
    ids = [id for id in references if id in predictions]
    if not ids:
        raise DataError("there is nothing to score: no picture has both a prediction and references")
    if text := [id for id in ids if isinstance(references[id], str)]:
        raise DataError(f"references are one text, not a list of texts, for {some(text, 'picture')}")
    if bare := [id for id in ids if not references[id]]:
        raise DataError(f"no references in the list of {some(bare, 'picture')}", expected="at least one each")
    return ids


def some(names: Sequence[str], what: str, shown: int = 5) -> str:
    """`7 pictures ('a', 'b', …)`: how many, and the first of them."""
    first = ", ".join(f"'{name}'" for name in names[:shown])
    return f"{len(names)} {what}{'s' * (len(names) != 1)} ({first}{', …' * (len(names) > shown)})"


def _diversity(candidates: Sequence[Sequence[str]], training: Collection[str] | None) -> Diversity:
    texts = [" ".join(words) for words in candidates]
    return Diversity(
        distinct=len(set(texts)) / len(texts),
        novel=None if training is None else sum(text not in training for text in texts) / len(texts),
        mean_length=float(np.mean([len(words) for words in candidates])),
        vocabulary=len({word for words in candidates for word in words}),
        repeating=sum(map(repeats, candidates)) / len(texts),
    )


def _signature(
    ids: Sequence[str],
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    pretokenized: bool,
) -> str:
    numbers = [len(references[id]) for id in ids]
    mean = sum(numbers) / len(numbers)
    parts = [
        f"cutline {__version__}",
        f"tok:{'none' if pretokenized else 'ptb-like'}",
        f"refs:{mean:.3g} ({min(numbers)}-{max(numbers)})",
        f"pictures:{len(ids)}",
        "scale:0-100",
    ]
    if len(ids) < max(len(predictions), len(references)):
        parts.append(f"common:{len(ids)} of {len(predictions)} predicted, {len(references)} referenced")
    return " | ".join(parts)
