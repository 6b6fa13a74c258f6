"""What a run knows before it begins: the words that it can write, and the classes that it can tell apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutline import durable
from cutline.config import Config
from cutline.data.corpus import Sample
from cutline.data.words import Words
from cutline.engine import folder
from cutline.errors import DataError, ModelError

WORDS, CLASSES = "words.json", "classes.json"


@dataclass(frozen=True)
class Known:
    words: Words | None = None
    classes: tuple[str, ...] = ()

    @classmethod
    def learn(cls, config: Config, texts: Mapping[str, Sequence[str]], samples: Sequence[Sample]) -> Known:
        """From the captions, by language, and the labels of what is learned from."""
        words = Words.learn(texts, config.words) if config.task != "classes" else None
        if config.task == "captions":
            return cls(words)
        classes = tuple(sorted({sample.label for sample in samples if sample.label is not None}))
        if len(classes) < 2:
            there = f"only one class to learn, '{classes[0]}'" if classes else "no labels to learn from"
            raise DataError(
                f"the training pictures have {there}",
                expected="at least two classes",
                fix="cutline data inspect shows what is there, cutline data formats how labels are given",
            )
        return cls(words, classes)

    @classmethod
    def load(cls, run: Path, task: str) -> Known:
        words = Words.load(folder.file_of(run, WORDS)) if task != "classes" else None
        return cls(words, _classes(folder.file_of(run, CLASSES)) if task != "captions" else ())

    def save(self, run: Path) -> None:
        if self.words:
            durable.write(run / WORDS, self.words.to_bytes())
        if self.classes:
            durable.write(run / CLASSES, _bytes(self.classes))

    @property
    def facts(self) -> dict[str, Any]:
        """For a resume to compare."""
        facts = {}
        if self.words:
            facts["words"] = {"hash": _hash(self.words.to_bytes()), "count": len(self.words.pieces)}
        if self.classes:
            facts["classes"] = {"hash": _hash(_bytes(self.classes)), "count": len(self.classes)}
        return facts


def _bytes(classes: Sequence[str]) -> bytes:
    return json.dumps(list(classes), ensure_ascii=False, indent=0).encode()


def _classes(file: Path) -> tuple[str, ...]:
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None
    if not (isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)):
        raise ModelError(f"{file} is no list of the names of classes")
    return tuple(names)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
