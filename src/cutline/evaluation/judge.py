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
    unreadable: Mapping[str, str]
    """Pictures that are in no score, and why, by sample id."""


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
    unreadable: dict[str, str] = {}

    def answer(part: Sequence[Sample]) -> None:
        try:
            made = caption([sample.image for sample in part])
        except DataError as error:  # of one of them
            if len(part) == 1:
                unreadable[part[0].id] = error.what
            else:
                for sample in part:
                    answer([sample])
        else:
            captions.update({sample.id: each for sample, each in zip(part, made, strict=True)})

    for start in range(0, len(there), batch):
        answer(there[start : start + batch])
        advance(len(there[start : start + batch]))
    if not captions:
        raise DataError(f"none of the {len(there)} pictures can be read: {next(iter(unreadable.values()))}")
    references = {sample.id: sample.captions[lang] for sample in there if sample.id in captions}
    texts = {id: each.text for id, each in captions.items()}
    return Judged(score(texts, references, training=training), captions, unreadable)
