"""The corpus: what every reader returns, and all that the rest of Cutline knows of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cutline.data.files import plain

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture and what is known about it.

    `captions` maps a language code ("en", "de", "und" when unknown) to that language's captions.
    """

    id: str
    """Unique in the corpus, and the same wherever the folder is moved to."""
    image: Path
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: str | None = None
    split: str = "train"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the input, at a place that a person can go to."""

    file: Path
    line: int | None
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line is not None else str(self.file)
        return plain(f"{place}: {self.message}")


@dataclass(frozen=True)
class Corpus:
    """Samples from one source, in a fixed order, each in exactly one split."""

    samples: tuple[Sample, ...]
    source: str
    """Where it came from, in words: a path and a format."""
    problems: tuple[Problem, ...] = ()
    """What was wrong and left out, when the reader was told to go on."""

    def split(self, name: str) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.split == name)

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages with at least one caption, in order of first appearance."""
        return tuple(dict.fromkeys(lang for s in self.samples for lang, texts in s.captions.items() if texts))

    @property
    def labels(self) -> tuple[str, ...]:
        """Class labels, sorted."""
        return tuple(sorted({s.label for s in self.samples if s.label is not None}))

    def __len__(self) -> int:
        return len(self.samples)
