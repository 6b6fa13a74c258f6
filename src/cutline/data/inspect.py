"""What a corpus holds: the figures that tell whether it is fit to learn from, and all that is wrong with it."""

from __future__ import annotations

import dataclasses
import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutline import cpus
from cutline.console import progress
from cutline.data.copies import contradictions, copies_among, sizes_of
from cutline.data.corpus import SPLITS, Corpus, Problem, Sample
from cutline.data.draft import NothingUsableError
from cutline.data.files import plain
from cutline.data.images import open_picture
from cutline.data.labels import Balance, balance, count_labels, oddities
from cutline.data.readers import read_corpus
from cutline.errors import DataError

_COMMON = 3


@dataclass(frozen=True)
class Range:
    least: int
    median: float
    most: int


@dataclass(frozen=True)
class Language:
    captions: int
    pictures: int
    per_picture: Range
    """Captions of a picture, where it has any."""
    length: Range
    """Words in a caption."""
    words: int
    """Different words, in lower case."""
    once: int
    """Words seen only once."""
    repeated: int
    """Captions that say word for word what an earlier one says."""
    commonest: tuple[tuple[str, int], ...]
    """The captions repeated most, and how often they occur."""


@dataclass(frozen=True)
class Inspection:
    source: str
    pictures: int
    splits: dict[str, int]
    languages: dict[str, Language]
    labels: dict[str, dict[str, int]]
    """Pictures of each class in each split, the commonest first."""
    balance: Balance | None
    copies: tuple[tuple[Path, ...], ...]
    """Groups of files with the same content."""
    decoded: bool
    """Whether every picture was opened."""
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        problems = [{"file": plain(str(p.file)), "line": p.line, "message": p.message} for p in self.problems]
        copies = [[plain(str(path)) for path in group] for group in self.copies]
        return {**dataclasses.asdict(self), "copies": copies, "problems": problems}


def inspect(
    path: str | Path,
    format: str = "auto",
    *,
    images: str | Path = "",
    languages: Sequence[str] = (),
    check_pictures: bool = False,
    quiet: bool = True,
) -> Inspection:
    """Look at the corpus at `path`; with `check_pictures`, decode every picture of it as well."""
    try:
        corpus = read_corpus(path, format, images=images, languages=languages, skip_bad=True)
    except NothingUsableError as nothing:
        corpus = nothing.corpus
    sizes = sizes_of(corpus.samples)
    copies = copies_among(sizes)
    labels = count_labels(corpus.samples)
    problems = [*corpus.problems, *contradictions(corpus.samples, copies)]
    if not corpus.languages:  # beside captions, labels are a remark that need not make classes
        problems += oddities(corpus.samples)
    if check_pictures:
        problems += _undecodable(corpus.samples, quiet)
    else:
        broken = (image for image, size in sizes.items() if size is None)
        problems += [
            Problem(image, None, "unusable picture: no file, or a link that leads nowhere") for image in broken
        ]
    return Inspection(
        source=corpus.source,
        pictures=len(corpus),
        splits={split: len(corpus.split(split)) for split in SPLITS},
        languages={lang: _language(corpus, lang) for lang in corpus.languages},
        labels=labels,
        balance=balance(labels),
        copies=copies,
        decoded=check_pictures,
        problems=tuple(problems),
    )


def _language(corpus: Corpus, lang: str) -> Language:
    groups = [texts for sample in corpus.samples if (texts := sample.captions.get(lang))]
    captions = [text for texts in groups for text in texts]
    worded = [_words(text) for text in captions]
    vocabulary = Counter(word for words in worded for word in words)
    said = Counter(captions)
    return Language(
        captions=len(captions),
        pictures=len(groups),
        per_picture=_range(len(texts) for texts in groups),
        length=_range(map(len, worded)),
        words=len(vocabulary),
        once=sum(count == 1 for count in vocabulary.values()),
        repeated=len(captions) - len(said),
        commonest=tuple((text, count) for text, count in said.most_common(_COMMON) if count > 1),
    )


def _words(text: str) -> list[str]:
    """Without punctuation; of scripts that write no spaces, at least each Chinese or Japanese sign by itself."""
    parts = unicodedata.normalize("NFC", text.lower()).translate(_LETTERS).split()
    return [word for part in parts if (word := part.strip("'"))]


class _Letters(dict[int, str]):
    """For `str.translate`: what is left of a letter, a mark, or anything else."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        kind = unicodedata.category(letter)
        alone = kind == "Lo" and unicodedata.east_asian_width(letter) == "W" and not "\uac00" <= letter <= "\ud7a3"
        if letter in "'’":
            self[code] = "'"
        elif kind[0] in "LNM":
            self[code] = f" {letter} " if alone else letter
        else:
            self[code] = "" if kind == "Cf" else " "
        return self[code]


_LETTERS = _Letters()


def _range(numbers: Iterable[int]) -> Range:
    ordered = sorted(numbers)
    return Range(ordered[0], statistics.median(ordered), ordered[-1])


def _undecodable(samples: Sequence[Sample], quiet: bool) -> list[Problem]:
    # Threads are enough: decoders let go of the interpreter's lock.
    found = []
    with (
        ThreadPoolExecutor(cpus.count()) as pool,
        progress("opening pictures", len(samples), "pictures", quiet=quiet) as advance,
    ):
        for problem in pool.map(_decode, (sample.image for sample in samples)):
            advance()
            if problem:
                found.append(problem)
    return found


def _decode(image: Path) -> Problem | None:
    try:
        open_picture(image)
    except DataError as error:
        return Problem(image, None, f"unusable picture: {error.what.removeprefix(f'{image}: ')}")
    return None
