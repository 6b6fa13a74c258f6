"""Caption a set of pictures with any captioner, and score what it says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cutline.data.corpus import Sample
from cutline.errors import DataError
from cutline.evaluation.text import Scores, score


class Caption(Protocol):
    """What evaluation needs to know of a caption."""

    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Judged:
    """One language's scores, and the captions behind them."""

    scores: Scores
    captions: Mapping[str, Any]
    """Caption by sample id."""


def judge(
    caption: Callable[[Sequence[Path]], Sequence[Caption]],
    samples: Sequence[Sample],
    lang: str,
    *,
    training: Collection[str] | None = None,
    batch: int = 32,
    advance: Callable[[int], object] = lambda count: None,
) -> Judged:
    """Caption every sample that has references in `lang` by calling `caption` with some pictures at a time.

    A bundle's captioner, another library's model, an endpoint: evaluation never asks which one it holds.
    """
    there = [sample for sample in samples if sample.captions.get(lang)]
    if not there:
        raise DataError(f"none of the {len(samples)} pictures has a caption in '{lang}' to score against")
    captions: dict[str, Any] = {}
    for start in range(0, len(there), batch):
        part = there[start : start + batch]
        made = caption([sample.image for sample in part])
        captions |= {sample.id: each for sample, each in zip(part, made, strict=True)}
        advance(len(part))
    references = {sample.id: sample.captions[lang] for sample in there}
    texts = {id: each.text for id, each in captions.items()}
    return Judged(score(texts, references, training=training), captions)
