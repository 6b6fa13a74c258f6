"""Caption a set of pictures with any captioner, and score what it says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cutline.data.corpus import Sample
from cutline.errors import DataError
from cutline.evaluation.text import Scores, score


class Caption(Protocol):
    """What evaluation needs to know of a caption."""

    @property
    def text(self) -> str: ...


class Captioner(Protocol):
    """A bundle's captioner, another library's model, an endpoint: evaluation never asks which."""

    def caption(self, images: Any, *, lang: str | None = None, **settings: Any) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Judged:
    """One language's scores, and the captions behind them."""

    scores: Scores
    captions: Mapping[str, Any]
    """Caption by sample id."""


def judge(
    captioner: Captioner,
    samples: Sequence[Sample],
    lang: str,
    *,
    training: Collection[str] | None = None,
    batch: int = 32,
    advance: Callable[[int], object] = lambda count: None,
    **settings: Any,
) -> Judged:
    """Caption every sample that has references in `lang`; `settings` go to the captioner."""
    there = [sample for sample in samples if sample.captions.get(lang)]
    if not there:
        raise DataError(f"none of the {len(samples)} pictures has a caption in '{lang}' to score against")
    captions: dict[str, Any] = {}
    for start in range(0, len(there), batch):
        part = there[start : start + batch]
        made = captioner.caption([sample.image for sample in part], lang=lang, **settings)
        captions |= {sample.id: caption for sample, caption in zip(part, made, strict=True)}
        advance(len(part))
    references = {sample.id: sample.captions[lang] for sample in there}
    texts = {id: caption.text for id, caption in captions.items()}
    return Judged(score(texts, references, training=training), captions)
