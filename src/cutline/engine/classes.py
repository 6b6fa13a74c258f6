"""What classes mean to the loop, by themselves or beside captions: a batch's loss, and how often the model is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from cutline.config import Config
from cutline.data.corpus import Sample
from cutline.engine.batches import Batch
from cutline.engine.ranks import ALONE, Ranks
from cutline.engine.sources import Source, load_readable, move
from cutline.engine.task import CaptioningTask, Validation
from cutline.errors import DataError
from cutline.evaluation.classes import UNKNOWN, ClassScores, score_classes, softmax
from cutline.models.both import TwoHeaded
from cutline.models.classifier import Classifier

FIGURES = ("accuracy", "top5", "macro_f1", "ece", "nll", "count")


@dataclass(frozen=True)
class ClassValidation:
    """How the classes of the validation pictures were guessed."""

    scores: ClassScores
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Pictures that could not be read, by id, and why; they are in no score."""

    def metric(self, name: str) -> float:
        return float(getattr(self.scores, name))

    def to_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in self.scores.figures.items()} | {"count": self.scores.count}

    def __str__(self) -> str:
        return f"accuracy {self.scores.accuracy:.1f}, macro F1 {self.scores.macro_f1:.1f}"


def numbered(samples: Sequence[Sample], names: Sequence[str]) -> np.ndarray:
    """The number of each picture's class; UNKNOWN where it has none, or one that is not among `names`."""
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers.get(sample.label or "", UNKNOWN) for sample in samples], np.int64)


def evening(numbers: np.ndarray, classes: int) -> Tensor:
    """What a picture of each class counts for (K,), so that all classes count alike; 1 in the mean of the pictures."""
    counts = np.bincount(numbers[numbers != UNKNOWN], minlength=classes)
    return torch.from_numpy(counts.sum() / np.maximum(counts, 1) / max(np.count_nonzero(counts), 1)).float()


class ClassTask:
    """Holds the model and the meaning of its batches; knows nothing of steps, schedules or files."""

    def __init__(
        self,
        config: Config,
        model: Classifier,
        names: Sequence[str],
        samples: Sequence[Sample],
        source: Source,
        weights: Tensor | None = None,
    ) -> None:
        """`weights` (K,) say what a picture of each class counts for; all the same where there are none."""
        self.config, self.model, self.names, self.weights = config, model, names, weights
        self.samples, self.source = samples, source
        """The validation pictures and where they come from."""

    def loss(self, batch: Batch, share: float, amount: int, sampling: float) -> tuple[Tensor, float]:
        """The part of a step's loss that this batch stands for, and the same times `amount`, in nats.

        The loss is the mean over all pictures of a step, of which this batch is a `share`.
        """
        assert batch.labels is not None
        labels, classes = batch.labels, batch.labels.shape[1]
        if self.weights is not None:  # of two pictures that were mixed, each part counts as its class does
            labels = labels * self.weights.to(labels.device)
        chances = self.model(batch.inputs).float().log_softmax(-1)
        smooth = self.config.training.label_smoothing
        wanted = (1 - smooth) * labels + smooth / classes * labels.sum(1, keepdim=True)
        loss = -(wanted * chances).sum(1).mean() * share
        return loss, float(loss.detach()) * amount

    def validate(
        self,
        batch: int,
        device: torch.device,
        advance: Callable[[int], None],
        stop: Callable[[], bool] = lambda: False,
        ranks: Ranks = ALONE,
        first: int | None = None,
    ) -> ClassValidation | None:
        """Guess the classes of the validation pictures, or of the `first` of them, and score the guesses.

        The ranks share the pictures and all know all guesses in the end. None when any of them was asked to stop.
        """
        labels = numbered(self.samples, self.names)
        there = np.flatnonzero([sample.label is not None for sample in self.samples])[:first]
        mine: list[tuple[np.ndarray, np.ndarray]] = []
        unreadable: dict[str, str] = {}
        for indices, logits in self.guess(there[ranks.rank :: ranks.world], batch, device, unreadable):
            mine.append((indices, logits))
            advance(len(indices))
            if stop():
                break
        told = ranks.gather((mine, unreadable, stop()))
        if any(stopped for _, _, stopped in told):
            return None
        lost = {id: why for _, part, _ in told for id, why in part.items()}
        parts = [part for each, _, _ in told for part in each]
        if not parts:
            raise DataError("none of the validation pictures can be read", expected=next(iter(lost.values()), ""))
        indices, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(indices)  # the pictures' own, whoever guessed them
        scores = score_classes(softmax(logits[order]), labels[indices[order]], self.names)
        return ClassValidation(scores, lost)

    def guess(
        self, indices: np.ndarray, batch: int, device: torch.device, unreadable: dict[str, str]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Logits (n,K) of the pictures at `indices`, a batch at a time; notes those that cannot be read."""
        self.model.eval()
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            inputs, kept, reasons = load_readable(self.source, part, None)
            unreadable.update({self.samples[part[at]].id: why for at, why in reasons.items()})
            if kept:
                with torch.inference_mode():
                    logits = self.model(move(inputs, device))
                yield part[kept], logits.float().cpu().numpy()


# Both at once -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BothValidation:
    captions: Validation
    classes: ClassValidation

    @property
    def unreadable(self) -> Mapping[str, str]:
        return {**self.captions.unreadable, **self.classes.unreadable}

    def metric(self, name: str) -> float:
        return self.classes.metric(name) if name in FIGURES else self.captions.metric(name)

    def to_dict(self) -> dict[str, float]:
        return self.captions.to_dict() | self.classes.to_dict()

    def __str__(self) -> str:
        return f"{self.captions}, {self.classes}"


class BothTask:
    """Captions and classes of the same pictures, which the encoder sees once for the two."""

    def __init__(self, model: TwoHeaded, captions: CaptioningTask, classes: ClassTask) -> None:
        self.config, self.model, self.samples = captions.config, model, captions.samples
        self.captions, self.classes = captions, classes

    def loss(self, batch: Batch, share: float, amount: int, sampling: float) -> tuple[Tensor, float]:
        seen = replace(batch, inputs=tuple(self.model.features(batch.inputs)))
        said, nats_said = self.captions.loss(seen, share, amount, sampling)
        guessed, nats_guessed = self.classes.loss(seen, share, amount, sampling)
        weight = self.config.classes.weight
        return said + weight * guessed, nats_said + weight * nats_guessed

    def validate(
        self,
        batch: int,
        device: torch.device,
        advance: Callable[[int], None],
        stop: Callable[[], bool] = lambda: False,
        ranks: Ranks = ALONE,
        first: int | None = None,
    ) -> BothValidation | None:
        captions = self.captions.validate(batch, device, advance, stop, ranks, first)
        classes = self.classes.validate(batch, device, advance, stop, ranks, first) if captions else None
        return BothValidation(captions, classes) if captions and classes else None
