"""A classifier from a bundle: like the captioner, with NumPy, Pillow and ONNX Runtime, and without torch.

>>> classifier = load("bundle")
>>> classifier.classify("photo.jpg")[0][0].label
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cutline import bundle
from cutline.bundle import Array, Backend, Bundle, Picture, Precision, answer_all, open_bundle, positive
from cutline.data.images import Transform
from cutline.errors import CutlineError, ModelError
from cutline.evaluation.classes import softmax


@dataclass(frozen=True)
class Guess:
    label: str
    probability: float
    """Calibrated, 0 to 1: of guesses with 0.8, about four in five were right on the validation pictures."""


class Classified(NamedTuple):
    """A picture of many: its likeliest classes, or why there are none."""

    path: Path
    """`-` for a picture given as bytes."""
    guesses: tuple[Guess, ...] | None
    error: CutlineError | None


def load(path: str | Path, *, backend: Backend = "auto", precision: Precision = "fp32", threads: int = 0) -> Classifier:
    """The classifier in a bundle (a folder or one file), or in a run's."""
    return Classifier(open_bundle(path, backend, precision, threads, kind="classes"))


class Classifier:
    """Puts pictures into classes. Made by `load`."""

    def __init__(self, opened: Bundle) -> None:
        self.path, self.facts = opened.path, opened.facts
        if opened.kind != "classes":
            raise ModelError(
                f"{self.path} writes captions, and knows no classes", fix=f"cutline caption --model {self.path}"
            )
        try:
            self.transform = Transform.from_dict(self.facts["transform"])
            self.classes: tuple[str, ...] = tuple(json.loads(opened.files["classes.json"]))
            self.temperature = float(self.facts["temperature"])
            self._graph = opened.open_graph(opened.files["classifier.onnx"])
        except CutlineError as error:
            what = f"{self.path}: {error.what}"
            raise ModelError(what, expected=error.expected, fix="export the run again") from None

    def classify(
        self, images: Picture | Sequence[Picture], *, top: int = 5, batch: int = 32
    ) -> list[tuple[Guess, ...]]:
        """The likeliest classes of each picture, best first: a path, bytes, a PIL picture, an array, or a list."""
        pictures = images if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
        found: list[tuple[Guess, ...]] = []
        for first in range(0, len(pictures), positive(batch)):
            pixels = np.stack([self.pixels(picture) for picture in pictures[first : first + batch]])
            found += self._guess(pixels, top)
        return found

    def classify_all(
        self, files: Iterable[str | Path | bytes], *, top: int = 5, batch: int = 32
    ) -> Iterator[Classified]:
        """Any number of files, in order, in bounded memory; one that cannot be read gives its error."""
        answers = answer_all(files, positive(batch), self.transform, lambda pictures: self._guess(pictures, top))
        return (Classified(*answer) for answer in answers)

    def logits(self, pixels: Array) -> Array:
        """Pictures uint8 (B,size,size,3) to scores of the classes (B,K), before any calibration."""
        (found,) = self._graph([pixels])
        return found

    def pixels(self, picture: Picture) -> Array:
        """What the model sees of a picture: uint8 (size, size, 3)."""
        return bundle.pixels(self.transform, picture)

    def _guess(self, pixels: Array, top: int) -> list[tuple[Guess, ...]]:
        chances = softmax(self.logits(pixels), self.temperature)
        best = np.argsort(-chances, axis=1, kind="stable")[:, : positive(top, "classes of a picture")]
        return [
            tuple(Guess(self.classes[place], float(row[place])) for place in places)
            for row, places in zip(chances, best, strict=True)
        ]
