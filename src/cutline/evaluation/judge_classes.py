"""Judging a classifier by labelled pictures: a bundle, or any other that gives logits; it never asks which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cutline.data.corpus import Sample
from cutline.data.views import views
from cutline.errors import DataError
from cutline.evaluation.classes import UNKNOWN, ClassScores, score_classes, softmax

Array = NDArray[Any]


class Guesses(Protocol):
    """What is asked of a classifier."""

    classes: tuple[str, ...]
    temperature: float

    def pixels(self, picture: Any) -> Array: ...

    def logits(self, pixels: Array) -> Array: ...


@dataclass(frozen=True)
class JudgedClasses:
    scores: ClassScores
    probabilities: Mapping[str, NDArray[np.float64]]
    """(K,) of each picture, by id."""
    unreadable: Mapping[str, str]
    """Pictures that could not be read, by id, and why; they are in no score."""


def judge_classes(
    model: Guesses,
    samples: Sequence[Sample],
    *,
    seen: int = 1,
    batch: int = 32,
    advance: Callable[[int], None] = lambda count: None,
) -> JudgedClasses:
    """Classify labelled pictures, each `seen` so many times in other ways, and score what comes out."""
    numbers = {name: number for number, name in enumerate(model.classes)}
    probabilities: dict[str, NDArray[np.float64]] = {}
    unreadable: dict[str, str] = {}
    labels: list[int] = []
    with ThreadPoolExecutor() as threads:  # Pillow lets other threads run while it decodes
        for first in range(0, len(samples), batch):
            part = samples[first : first + batch]
            pixels: list[Array] = []
            for sample, found in zip(part, threads.map(lambda sample: _pixels(model, sample), part), strict=True):
                if isinstance(found, str):
                    unreadable[sample.id] = found
                else:
                    pixels.append(found)
                    labels.append(numbers.get(sample.label or "", UNKNOWN))
            if pixels:
                logits = np.mean([model.logits(view) for view in views(np.stack(pixels), seen)], axis=0)
                ids = [sample.id for sample in part if sample.id not in unreadable]
                probabilities |= dict(zip(ids, softmax(logits, model.temperature), strict=True))
            advance(len(part))
    if not labels:
        why = next(iter(unreadable.values()), "at least one picture with a label")
        raise DataError("there is no picture to judge by", expected=why)
    scores = score_classes(np.stack(list(probabilities.values())), labels, model.classes)
    return JudgedClasses(scores, probabilities, unreadable)


def _pixels(model: Guesses, sample: Sample) -> Array | str:
    try:
        return model.pixels(sample.image)
    except (DataError, OSError) as error:
        return str(error).splitlines()[0]
