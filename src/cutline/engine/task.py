"""What a task is to the loop; and captioning: how a batch becomes a loss, and how good the captions are by now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cutline.config import Config
from cutline.consensus import Consensus
from cutline.data import mirror
from cutline.data.corpus import Sample
from cutline.data.words import Words
from cutline.engine.batches import Batch, pad
from cutline.engine.ranks import ALONE, Ranks
from cutline.engine.sources import Source, load_readable, move
from cutline.engine.weights import Model
from cutline.errors import DataError
from cutline.evaluation.reward import Reward
from cutline.evaluation.text import Scores, score
from cutline.evaluation.tokens import tokenize
from cutline.models.attention import coverage_penalty
from cutline.models.captioner import Captioner, TorchStep
from cutline.models.encoders import Features
from cutline.models.vocabulary import PAD
from cutline.search import Hypothesis, search


class Validated(Protocol):
    """What a validation found; as text, in a few words."""

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Pictures that could not be read, by id, and why; they are in no score."""

    def metric(self, name: str) -> float:
        """The score of that name, to choose weights by."""

    def to_dict(self) -> dict[str, float]:
        """For the log."""


class Task(Protocol):
    """All that trainer and loop know of what is learned."""

    @property
    def config(self) -> Config: ...

    @property
    def model(self) -> Model: ...

    @property
    def samples(self) -> Sequence[Sample]:
        """The validation pictures."""

    def loss(self, batch: Batch, share: float, amount: int, sampling: float) -> tuple[Tensor, float]:
        """The part of a step's loss that this batch stands for, and what is told of it, which adds up over the step.

        A step may be made of several batches: `share` is this one's part of the step's pictures and `amount` what
        there is to learn in all of them, so that the gradients add up to those of one large batch. What is told is
        divided by the amount in the end.
        """

    def validate(
        self,
        batch: int,
        device: torch.device,
        advance: Callable[[int], None],
        stop: Callable[[], bool] = ...,
        ranks: Ranks = ...,
        first: int | None = None,
    ) -> Validated | None:
        """Score the validation pictures, or the `first` of them; None when any of the ranks was asked to stop."""


@dataclass(frozen=True)
class Validation:
    """Freely decoded captions and what they score, by language."""

    scores: Mapping[str, Scores]
    captions: Mapping[str, Mapping[str, str]]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Pictures that could not be read, by id, and why; they are in no score."""

    def metric(self, name: str) -> float:
        """The score that picks the best weights: the mean over the languages."""
        values = [s.bleu[3] if name == "bleu4" else s.cider for s in self.scores.values()]
        return float(np.mean(values))

    def to_dict(self) -> dict[str, float]:
        flat = {}
        for lang, scores in self.scores.items():
            for key, value in scores.to_dict().items():
                if isinstance(value, int | float):
                    flat[f"{lang}_{key}"] = round(value, 4)
        return flat

    def __str__(self) -> str:
        return ", ".join(f"{lang} BLEU-4 {s.bleu[3]:.1f} CIDEr-D {s.cider:.1f}" for lang, s in self.scores.items())


class Critic:
    """Judges captions drawn of training pictures: each by how much better it is than the others of its picture."""

    def __init__(self, samples: Sequence[Sample], languages: Sequence[str], words: Words, bleu: float) -> None:
        self.samples, self.words = samples, words
        self.languages = {words.begin(lang): lang for lang in languages}
        self.references = {
            lang: [[tokenize(text) for text in sample.captions.get(lang, ())] for sample in samples]
            for lang in languages
        }
        self.rewards = {lang: Reward(each, bleu=bleu) for lang, each in self.references.items()}
        self.mean = 0.0
        """Of the rewards that were given last."""

    def __call__(self, batch: Batch, tokens: Tensor) -> Tensor:
        """Captions (B,N,T+1) of a batch's pictures, from the begin token on, to what each is better by (B,N).

        A picture of which nothing is said has rows of padding, and there is nothing to reward.
        """
        pictures, mirrored, groups = batch.pictures.tolist(), batch.mirrored.tolist(), tokens.tolist()
        rewards = np.zeros(tokens.shape[:2])
        said = [row for row, group in enumerate(groups) if group[0][0] != PAD]
        for row in said:
            lang = self.languages[groups[row][0][0]]
            references = self._turned(pictures[row], lang) if mirrored[row] else self.references[lang][pictures[row]]
            rewards[row] = self.rewards[lang]([references], [[self._said(caption) for caption in groups[row]]])[0]
        self.mean = float(rewards[said].mean()) if said else 0.0
        # Against the mean of the *others*, so that no caption is measured by itself.
        others = max(rewards.shape[1] - 1, 1)
        better = (rewards - rewards.mean(1, keepdims=True)) * rewards.shape[1] / others
        return torch.from_numpy(better.astype(np.float32))

    def _turned(self, picture: int, lang: str) -> list[list[str]]:
        """What was said of a picture, as it is said of its mirror image."""
        return [tokenize(mirror.mirrored(text, lang)) for text in self.samples[picture].captions.get(lang, ())]

    def _said(self, caption: list[int]) -> list[str]:
        ids = caption[1:]
        whole = ids[: ids.index(self.words.end)] if self.words.end in ids else [id for id in ids if id != PAD]
        return tokenize(self.words.decode(whole))


class CaptioningTask:
    """Holds the model and the meaning of its batches; knows nothing of steps, schedules or files."""

    def __init__(
        self,
        config: Config,
        model: Captioner,
        words: Words,
        samples: Sequence[Sample],
        source: Source,
        critic: Critic | None = None,
        consensus: Consensus | None = None,
    ) -> None:
        self.config, self.model, self.words, self.critic = config, model, words, critic
        self.opinions = consensus.opinions() if consensus else {}
        self.samples, self.source = samples, source
        """The validation pictures and where they come from."""

    def loss(self, batch: Batch, share: float, amount: int, sampling: float) -> tuple[Tensor, float]:
        """Of the step's `amount` of words; told is the summed cross-entropy in nats."""
        training = self.config.training
        if self.critic:
            return self._reinforce(self.critic, batch, amount)
        nats, attention = self.model.cross_entropy(
            batch.inputs, batch.tokens, smoothing=training.label_smoothing, sampling=sampling
        )
        loss = nats / amount
        if training.attention_weight and attention.shape[-1]:
            penalty = coverage_penalty(attention, batch.tokens[..., 1:] != PAD)
            loss = loss + training.attention_weight * share * penalty
        return loss, float(nats.detach())

    def _reinforce(self, critic: Critic, batch: Batch, amount: int) -> tuple[Tensor, float]:
        """The loss whose gradient makes better captions likelier; what is told of it is the reward, below nought."""
        training = self.config.training
        features = self.model.features(batch.inputs)
        begins = batch.tokens[:, 0, 0].cpu()
        loss = self.model.reinforce(features, partial(self._candidates, begins), partial(critic, batch))
        if training.ground:
            nats, _ = self.model.cross_entropy(features, batch.tokens, smoothing=training.label_smoothing)
            loss = loss + training.ground * nats
        return loss / amount, -critic.mean * batch.amount

    def _candidates(self, begins: Tensor, features: Features) -> Tensor:
        """Captions (B,N,T+1) of pictures, each in the language of its begin token; padding where it has none."""
        training, rows = self.config.training, self.config.training.captions
        settings = replace(
            self.config.search, method=training.candidates, num=rows, beam=rows, groups=1,
            seed=int(torch.randint(2**31, ())),
        )  # fmt: skip
        step = TorchStep(self.model, precision="bf16" if training.precision == "bf16" else "fp32")
        found: list[list[list[int]]] = [[] for _ in begins]
        for begin in torch.unique(begins[begins != PAD]).tolist():
            chosen = (begins == begin).nonzero()[:, 0]
            inputs = tuple(part[chosen] for part in features)
            once = self.words.content(self.words.language(begin))
            hypotheses = search(step, inputs, begin, self.words.end, self.words.forbidden, settings, once)
            for picture, group in zip(chosen.tolist(), hypotheses, strict=True):
                # One that has come to its greatest length has not come to its end.
                ends = [[self.words.end] if len(each.tokens) < settings.max_length else [] for each in group]
                found[picture] = [[begin, *each.tokens, *end] for each, end in zip(group, ends, strict=True)]
                found[picture] += found[picture][-1:] * (rows - len(group))
        return pad(found)

    def validate(
        self,
        batch: int,
        device: torch.device,
        advance: Callable[[int], None],
        stop: Callable[[], bool] = lambda: False,
        ranks: Ranks = ALONE,
        first: int | None = None,
    ) -> Validation | None:
        """Caption the validation pictures freely, once in each language, and score what comes out.

        The ranks share the pictures and all know all captions in the end. None when any of them was asked to stop.
        """
        mine: dict[str, dict[str, str]] = {}
        unreadable: dict[str, str] = {}
        for lang in self.words.languages:
            there = [index for index, sample in enumerate(self.samples) if sample.captions.get(lang)][:first]
            for indices, hypotheses in self.decode(there[ranks.rank :: ranks.world], lang, batch, device, unreadable):
                for index, best in zip(indices, hypotheses, strict=True):
                    mine.setdefault(lang, {})[self.samples[index].id] = self.words.decode(best[0].tokens)
                advance(len(indices))
                if stop():
                    break
        told = ranks.gather((mine, unreadable, stop()))
        if any(stopped for _, _, stopped in told):
            return None
        scores, captions = {}, {}
        for lang in self.words.languages:
            found = {id: text for part, _, _ in told for id, text in part.get(lang, {}).items()}
            references = {s.id: s.captions[lang] for s in self.samples if s.id in found}
            if found:
                captions[lang] = {id: found[id] for id in references}  # in the pictures' order, whoever captioned them
                scores[lang] = score(captions[lang], references)
        lost = {id: why for _, part, _ in told for id, why in part.items()}
        if not scores:
            raise DataError("none of the validation pictures can be read", expected=next(iter(lost.values()), ""))
        return Validation(scores, captions, lost)

    def decode(
        self,
        indices: Sequence[int],
        lang: str,
        batch: int,
        device: torch.device,
        unreadable: dict[str, str] | None = None,
    ) -> Iterator[tuple[Sequence[int], list[list[Hypothesis]]]]:
        """Captions of the pictures at `indices`, a batch at a time; notes in `unreadable` those that cannot be read."""
        self.model.eval()
        step = TorchStep(self.model)
        opinion = self.opinions.get(lang)
        for start in range(0, len(indices), batch):
            part = np.asarray(indices[start : start + batch])
            inputs, kept, reasons = load_readable(self.source, part, None)
            if unreadable is not None:
                unreadable.update({self.samples[part[at]].id: why for at, why in reasons.items()})
            if kept:
                words = self.words
                begin, end = words.begin(lang), words.end
                pictures = move(inputs, device)
                once = words.content(lang)
                found = search(step, pictures, begin, end, words.forbidden, self.config.search, once, opinion)
                yield part[kept].tolist(), found
