"""From samples to batches: what a step learns from, as a function of seed and step alone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, Dataset

from cutline.config import PicturesConfig
from cutline.data import mirror, order
from cutline.data.corpus import Sample
from cutline.data.words import Words
from cutline.engine.augment import augments, mix
from cutline.engine.runtime import FORKS
from cutline.engine.sources import Inputs, Source, load_readable, move
from cutline.evaluation.classes import UNKNOWN

DEATHS = 5
"""Deaths of reading processes in an epoch before the training process reads for itself."""


@dataclass(frozen=True)
class Batch:
    """B pictures, as pixels or as stored features, each with N captions, a class, or both.

    `tokens` (B, N, T+1) begin with a language's begin token; a shorter caption ends in padding, and a picture with
    fewer than N captions has rows of nothing but padding. Where there are only classes to learn, N is 0.
    """

    inputs: Inputs
    tokens: Tensor
    pictures: Tensor
    """(B,) their numbers among all pictures."""
    mirrored: Tensor
    """(B,) whether each is shown mirrored: what is said of it then has left and right exchanged."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Pictures that were to be in it but cannot be read, and why."""
    labels: Tensor | None = None
    """(B, K) how much of each class a picture is: one of one, parts of two that were mixed, nothing if not known."""

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def amount(self) -> int:
        """What there is to learn, as a loss counts it: words, end tokens included; or pictures."""
        return int((self.tokens[..., 1:] != 0).sum()) if self.tokens.shape[1] else len(self)

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in up to `count` pieces, none of them empty."""
        size = max(1, -(-len(self) // count))
        for start in range(0, len(self), size):
            chosen = slice(start, start + size)
            inputs = tuple(part[chosen] for part in self.inputs)
            labels = None if self.labels is None else self.labels[chosen]
            yield Batch(inputs, self.tokens[chosen], self.pictures[chosen], self.mirrored[chosen], labels=labels)

    def to(self, device: torch.device) -> Batch:
        tokens = self.tokens.to(device, non_blocking=True)
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return replace(self, inputs=move(self.inputs, device), tokens=tokens, labels=labels)


class Captions:
    """Every caption as token ids, and which of them a picture shows in an epoch."""

    def __init__(
        self, samples: Sequence[Sample], words: Words, languages: Sequence[str], *, longest: int, mirror_too: bool
    ) -> None:
        self.rows: list[list[list[int]]] = []
        self.mirrored: list[list[list[int]]] = []
        """What they say of the mirrored picture; nothing where that is not known."""
        for sample in samples:
            texts = [(lang, text) for lang in languages for text in sample.captions.get(lang, ())]
            self.rows.append([_tokens(words, lang, text, longest) for lang, text in texts])
            turn = {lang for lang in languages if mirror_too and mirror.can_mirror(lang)}
            self.mirrored.append(
                [
                    _tokens(words, lang, mirror.mirrored(text, lang), longest) if lang in turn else []
                    for lang, text in texts
                ]
            )

    def choose(self, seed: int, epoch: int, index: int, count: int) -> list[int]:
        """`count` of the picture's captions or all there are, each in turn before any comes again, and in no order.

        The first one says in which language captions are drawn, where they are: each language has its share of that.
        """
        there = len(self.rows[index])
        count = min(count, there)
        positions = range(epoch * count, (epoch + 1) * count)
        laps = {p // there: order.stream(seed, 1, index, p // there).permutation(there) for p in positions}
        return [int(laps[p // there][p % there]) for p in positions]


class Labels:
    """Which class each picture is of; and which pictures an epoch shows, where small classes come more often."""

    def __init__(self, numbers: np.ndarray, classes: int, *, evenly: bool = False) -> None:
        """`numbers` of the pictures' classes, UNKNOWN where a picture has none."""
        self.numbers, self.classes = numbers, classes
        self.groups = [np.flatnonzero(numbers == each) for each in np.unique(numbers)] if evenly else []

    def targets(self, indices: np.ndarray) -> Tensor:
        """(B, K)."""
        numbers = torch.from_numpy(self.numbers[indices])
        return one_hot(numbers.clamp(min=0), self.classes) * (numbers != UNKNOWN).float()[:, None]

    def shown(self, seed: int, epoch: int) -> np.ndarray | None:
        """As many pictures as there are, every class as often as any other, and each of a class before one again.

        None where each picture is shown once. What no class is known of counts as one more.
        """
        if not self.groups:
            return None
        places = np.empty(len(self.numbers), np.int64)
        for number, members in enumerate(self.groups):
            turns = np.arange(number, len(places), len(self.groups))
            positions = epoch * len(turns) + np.arange(len(turns))
            for lap in np.unique(positions // len(members)):
                chosen = positions // len(members) == lap
                shuffled = order.stream(seed, 3, number, int(lap)).permutation(members)
                places[turns[chosen]] = shuffled[positions[chosen] % len(members)]
        return places


class Batches(Dataset[Batch]):
    """The batches of one epoch, each a function of its position, so that training can begin at any of them."""

    def __init__(
        self,
        source: Source,
        captions: Captions | None,
        pictures: PicturesConfig,
        *,
        names: Sequence[str],
        seed: int,
        batch: int,
        rows: int = 1,
        labels: Labels | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`batch` pictures in all, of which this rank of `world` has its share; `names` are the pictures'."""
        self.source, self.captions, self.labels, self.pictures = source, captions, labels, pictures
        self.names, self.seed, self.rows = names, seed, rows
        self.rank, self.world = rank, world
        self.augment = augments(pictures)
        self.mixes = labels is not None and (pictures.augment_mixup > 0 or pictures.augment_cutmix > 0)
        self.batch, self.count = batch, len(names)
        self.on_death: Callable[[str], None] = _say_nothing
        """Told when a process that reads pictures has died."""
        self._begin(0)

    def __getstate__(self) -> dict[str, Any]:
        """For readers that are not forked: what is to be told is told by the process that learns."""
        return {**self.__dict__, "on_death": _say_nothing}

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self.shown = self.labels.shown(self.seed, epoch) if self.labels else None

    @property
    def take_time(self) -> bool:
        """Whether it pays to have batches made ahead, by other processes."""
        return self.augment or not self.source.ready

    def __len__(self) -> int:
        return order.batch_count(self.count, self.batch)

    def __getitem__(self, position: int) -> Batch:
        indices, draws = self._chosen(position)
        flips = np.zeros(len(indices), bool)
        if draws is not None and self.pictures.augment_flip:
            flips = np.array([draw.random() < 0.5 for draw in draws], bool)
        inputs, kept, reasons = load_readable(self.source, indices, draws) if len(indices) else ((), [], {})
        unreadable = {self.names[indices[at]]: why for at, why in reasons.items()}
        indices, flips = indices[kept], flips[kept]
        tokens = self._tokens(indices, flips)
        labels = self.labels.targets(indices) if self.labels else None
        if flips.any():
            (pictures,), chosen = inputs, torch.from_numpy(flips)
            pictures[chosen] = pictures[chosen].flip(-1)
        if self.mixes and draws is not None and labels is not None and kept:
            pictures, labels = mix(inputs[0], labels, self.pictures, [draws[at] for at in kept])
            inputs = (pictures,)
        return Batch(inputs, tokens, torch.from_numpy(indices), torch.from_numpy(flips), unreadable, labels)

    def _chosen(self, position: int) -> tuple[np.ndarray, list[np.random.Generator] | None]:
        """Which pictures this rank learns from in a batch, and for each what to draw its random changes from."""
        seed, epoch, rank, world = self.seed, self.epoch, self.rank, self.world
        places = next(order.batches(seed, epoch, self.count, self.batch, start=position, rank=rank, world=world))
        indices = places if self.shown is None else self.shown[places]
        if not self.augment:
            return indices, None
        if self.shown is None:
            return indices, [order.stream(seed, 2, epoch, int(index)) for index in indices]
        # A picture that is shown several times in an epoch is another one each time.
        return indices, [order.stream(seed, 2, epoch, int(i), int(at)) for i, at in zip(indices, places, strict=True)]

    def _tokens(self, indices: np.ndarray, flips: np.ndarray) -> Tensor:
        """(B, N, T+1) of these pictures' captions; unmarks in `flips` those that cannot be mirrored in words."""
        if self.captions is None:
            return torch.zeros(len(indices), 0, 2, dtype=torch.int64)
        rows = []
        for at, index in enumerate(indices.tolist()):
            texts, turned = self.captions.rows[index], self.captions.mirrored[index]
            shown = self.captions.choose(self.seed, self.epoch, index, self.rows)
            flips[at] &= all(turned[k] for k in shown)
            rows.append([(turned if flips[at] else texts)[k] for k in shown])
        return pad(rows)

    def iterate(self, epoch: int, start: int, workers: int) -> Iterator[Batch]:
        """The epoch's batches from position `start` on, read ahead by `workers` processes.

        When such a process dies, others take its place; when they die again and again, this process reads for itself.
        """
        self._begin(epoch)
        position, deaths = start, 0
        while workers and deaths < DEATHS and position < len(self):
            positions = range(position, len(self))
            loader = DataLoader(
                self, batch_size=None, sampler=positions, num_workers=workers, prefetch_factor=4,
                worker_init_fn=_leave_signals_to_the_loop,
                multiprocessing_context="fork" if FORKS else None,
            )  # fmt: skip
            try:
                ahead = iter(loader)
                _say_nothing_of_children()
                for batch in ahead:
                    position += 1
                    yield batch
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):  # else an error inside of it, told as its own
                    raise
                deaths += 1
                self.on_death(f"a process that reads pictures has died ({str(error).splitlines()[0]})")
        yield from (self[each] for each in range(position, len(self)))


def _say_nothing(why: str) -> None:
    pass


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ctrl-C, SIGTERM and SIGHUP reach the whole group of processes; the loop saves, and then ends its readers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _say_nothing_of_children() -> None:
    """Undo what a DataLoader does on its first use: raise in the main thread, wherever that is, when a reader dies.

    It would tear a step in two. The death shows as well where a batch is asked for, and there it can be helped.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def pad(rows: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Ragged captions of pictures as one (B, N, T) tensor; padding is 0."""
    count = max((len(captions) for captions in rows), default=1) or 1
    longest = max(2, max((len(tokens) for captions in rows for tokens in captions), default=0))
    padded = np.zeros((len(rows), count, longest), np.int64)
    for b, captions in enumerate(rows):
        for n, tokens in enumerate(captions):
            padded[b, n, : len(tokens)] = tokens
    return torch.from_numpy(padded)


def _tokens(words: Words, lang: str, text: str, longest: int) -> list[int]:
    return [words.begin(lang), *words.encode(text, lang)[:longest], words.end]
