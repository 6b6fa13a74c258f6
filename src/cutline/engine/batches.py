"""From samples to batches: which pictures and captions a step learns from, as a function of seed and step alone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cutline.config import PicturesConfig
from cutline.data import mirror, order
from cutline.data.corpus import Sample
from cutline.data.images import Transform
from cutline.data.words import Words
from cutline.errors import DataError
from cutline.features import FeatureStore

CACHE_BYTES = 2**31
"""Pictures are kept decoded in memory when all of them together take no more than this."""
DEATHS = 5
"""Deaths of reading processes in an epoch before the training process reads for itself."""


@dataclass(frozen=True)
class Batch:
    """B pictures, as pixels or as stored features, each with N captions.

    `tokens` (B, N, T+1) begin with a language's begin token; a shorter caption ends in padding, and a picture with
    fewer than N captions has rows of nothing but padding.
    """

    inputs: Inputs
    tokens: Tensor
    pictures: Tensor
    """(B,) their numbers among all pictures."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Pictures that were to be in it but cannot be read, and why."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def words(self) -> int:
        """Words to learn, end tokens included."""
        return int((self.tokens[..., 1:] != 0).sum())

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in up to `count` pieces, none of them empty."""
        size = max(1, -(-len(self) // count))
        for start in range(0, len(self), size):
            chosen = slice(start, start + size)
            yield Batch(tuple(part[chosen] for part in self.inputs), self.tokens[chosen], self.pictures[chosen])

    def to(self, device: torch.device) -> Batch:
        return Batch(move(self.inputs, device), self.tokens.to(device, non_blocking=True), self.pictures)


Inputs = tuple[Tensor, ...]
"""(pictures uint8 (B,3,H,W),), or the features (grid (B,R,C), pooled (B,P)) that were made of them."""


def move(inputs: Inputs, device: torch.device) -> Inputs:
    return tuple(part.to(device, non_blocking=True) for part in inputs)


class Source(Protocol):
    """Where a batch's pictures come from; `draw` says which random changes to make to each, None for none."""

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Inputs: ...


class UnreadableError(DataError):
    """Some pictures of a batch cannot be read; the others can."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__("\n".join(reasons.values()))
        self.reasons = reasons
        """By position in the batch."""


def load_readable(
    source: Source, indices: np.ndarray, draws: Sequence[np.random.Generator] | None
) -> tuple[Inputs, list[int], Mapping[int, str]]:
    """What can be loaded of these pictures, the positions of those, and of the others why not."""
    try:
        return source.load(indices, draws), list(range(len(indices))), {}
    except UnreadableError as error:
        kept = [position for position in range(len(indices)) if position not in error.reasons]
        chosen = [draws[position] for position in kept] if draws else None
        return (source.load(indices[kept], chosen) if kept else ()), kept, error.reasons


def augments(config: PicturesConfig) -> bool:
    """Whether pictures are changed at random."""
    return config.augment_flip or config.augment_crop < 1 or config.augment_colour > 0


class PictureSource:
    """Decodes pictures, or keeps them decoded when they are few and small."""

    def __init__(self, samples: Sequence[Sample], transform: Transform, config: PicturesConfig) -> None:
        self.samples, self.transform, self.config = samples, transform, config
        size = transform.size
        self.cache: np.ndarray | None = None
        if len(samples) * size * size * 3 <= CACHE_BYTES:
            self.cache = np.zeros((len(samples), size, size, 3), np.uint8)
        self.cached = np.zeros(len(samples), bool)

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Inputs:
        pictures = torch.from_numpy(self._decoded(indices)).permute(0, 3, 1, 2)
        if draws is not None:
            pictures = torch.stack([self._augment(p, draw) for p, draw in zip(pictures, draws, strict=True)])
        return (pictures,)

    def _decoded(self, indices: np.ndarray) -> np.ndarray:
        if self.cache is None:
            return np.stack(self._decode(indices))
        places = np.flatnonzero(~self.cached[indices])
        if len(places):
            try:
                self.cache[indices[places]] = self._decode(indices[places])
            except UnreadableError as error:  # its positions are those among the missing
                raise UnreadableError({int(places[at]): why for at, why in error.reasons.items()}) from None
            self.cached[indices[places]] = True
        chosen: np.ndarray = self.cache[indices]
        return chosen

    def _decode(self, indices: np.ndarray) -> list[np.ndarray]:
        # Pillow lets other threads run while it decodes and resizes.
        with ThreadPoolExecutor() as threads:
            found = list(threads.map(self._try, indices))
        if reasons := {at: each for at, each in enumerate(found) if isinstance(each, str)}:
            raise UnreadableError(reasons)
        return [each for each in found if not isinstance(each, str)]

    def _try(self, index: int) -> np.ndarray | str:
        try:
            return self.transform.from_file(self.samples[index].image)
        except (DataError, OSError) as error:
            return str(error).splitlines()[0]

    def _augment(self, picture: Tensor, draw: np.random.Generator) -> Tensor:
        """One picture's random changes; `draw` has already said whether to mirror it."""
        from torchvision.transforms.v2 import functional as change

        side, config = self.transform.size, self.config
        if config.augment_crop < 1:
            share = draw.uniform(config.augment_crop, 1)
            stretch = np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)))
            height, width = (min(side, round(side * np.sqrt(share * f))) for f in (1 / stretch, stretch))
            top, left = draw.integers(side - height + 1), draw.integers(side - width + 1)
            picture = change.resized_crop(picture, int(top), int(left), height, width, [side, side], antialias=True)
        if config.augment_colour:
            low, high = 1 - config.augment_colour, 1 + config.augment_colour
            picture = change.adjust_brightness(picture, draw.uniform(low, high))
            picture = change.adjust_contrast(picture, draw.uniform(low, high))
            picture = change.adjust_saturation(picture, draw.uniform(low, high))
        return picture


class FeatureSource:
    """Reads stored features; they were made once, so there is nothing to change at random."""

    def __init__(self, store: FeatureStore, samples: Sequence[Sample]) -> None:
        self.store = store
        self.rows = store.rows([sample.id for sample in samples])

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Inputs:
        grid, pooled = self.store[self.rows[indices]]
        return torch.from_numpy(grid), torch.from_numpy(pooled)


class Captions:
    """Every caption as token ids, and which of them a picture shows in an epoch."""

    def __init__(
        self, samples: Sequence[Sample], words: Words, languages: Sequence[str], *, longest: int, mirror_too: bool
    ) -> None:
        self.rows: list[list[list[int]]] = []
        self.mirrored: list[list[list[int]]] = []
        for sample in samples:
            texts = [(lang, text) for lang in languages for text in sample.captions.get(lang, ())]
            self.rows.append([_tokens(words, lang, text, longest) for lang, text in texts])
            turn = mirror_too and all(mirror.can_mirror(lang) for lang, _ in texts)
            turned = [_tokens(words, lang, mirror.mirrored(text, lang), longest) for lang, text in texts if turn]
            self.mirrored.append(turned)

    def choose(self, seed: int, epoch: int, index: int, count: int) -> list[int]:
        """`count` of the picture's captions, all of them in turn before any comes again."""
        there = len(self.rows[index])
        if there <= count:
            return list(range(there))
        positions = range(epoch * count, (epoch + 1) * count)
        laps = {p // there: order.stream(seed, 1, index, p // there).permutation(there) for p in positions}
        return [int(laps[p // there][p % there]) for p in positions]


class Batches(Dataset[Batch]):
    """The batches of one epoch, each a function of its position, so that training can begin at any of them."""

    def __init__(
        self,
        source: Source,
        captions: Captions,
        pictures: PicturesConfig,
        *,
        names: Sequence[str],
        seed: int,
        batch: int,
        rows: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`batch` pictures in all, of which this rank of `world` has its share; `names` are the pictures'."""
        self.source, self.captions, self.pictures, self.names = source, captions, pictures, names
        self.seed, self.rows, self.epoch = seed, rows, 0
        self.rank, self.world = rank, world
        self.augment = augments(pictures)
        self.batch, self.count = batch, len(captions.rows)
        self.on_death: Callable[[str], None] = lambda why: None
        """Told when a process that reads pictures has died."""

    def __len__(self) -> int:
        return order.batch_count(self.count, self.batch)

    def indices(self, epoch: int, position: int) -> np.ndarray:
        """Which pictures this rank learns from in a batch."""
        rank, world = self.rank, self.world
        return next(order.batches(self.seed, epoch, self.count, self.batch, start=position, rank=rank, world=world))

    def __getitem__(self, position: int) -> Batch:
        indices = self.indices(self.epoch, position)
        draws = [order.stream(self.seed, 2, self.epoch, int(i)) for i in indices] if self.augment else None
        flips = np.zeros(len(indices), bool)
        if draws is not None and self.pictures.augment_flip:
            flips = np.array([draw.random() < 0.5 for draw in draws])
        inputs, kept, reasons = load_readable(self.source, indices, draws) if len(indices) else ((), [], {})
        unreadable = {self.names[indices[at]]: why for at, why in reasons.items()}
        rows = []
        for at, index in zip(kept, indices[kept], strict=True):
            turned = self.captions.mirrored[index]
            flips[at] &= bool(turned)
            texts = turned if flips[at] else self.captions.rows[index]
            rows.append([texts[k] for k in self.captions.choose(self.seed, self.epoch, int(index), self.rows)])
        if not rows:
            nothing = torch.zeros(0, 1, 2, dtype=torch.int64)
            return Batch((), nothing, nothing[:, 0, 0], unreadable)
        if flips[kept].any():
            (pictures,), chosen = inputs, torch.from_numpy(flips[kept])
            pictures[chosen] = pictures[chosen].flip(-1)
        return Batch(inputs, pad(rows), torch.from_numpy(indices[kept]), unreadable)

    def iterate(self, epoch: int, start: int, workers: int) -> Iterator[Batch]:
        """The epoch's batches from position `start` on, read ahead by `workers` processes.

        When such a process dies, others take its place; when they die again and again, this process reads for itself.
        """
        self.epoch = epoch
        position, deaths = start, 0
        while workers and deaths < DEATHS and position < len(self):
            positions = range(position, len(self))
            loader = DataLoader(
                self, batch_size=None, sampler=positions, num_workers=workers, prefetch_factor=4,
                worker_init_fn=_leave_signals_to_the_loop,
            )  # fmt: skip
            try:
                ahead = iter(loader)
                _say_nothing_of_children()
                for batch in ahead:
                    position += 1
                    yield batch
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                deaths += 1
                self.on_death(f"a process that reads pictures has died ({str(error).splitlines()[0]})")
        yield from (self[each] for each in range(position, len(self)))


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole group of processes; it is the loop that saves, and then ends its readers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _say_nothing_of_children() -> None:
    """Undo what a DataLoader does on its first use: raise in the main thread, wherever that is, when a reader dies.

    It would tear a step in two. The death shows as well where a batch is asked for, and there it can be helped.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def pad(rows: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Ragged captions of pictures as one (B, N, T) tensor; padding is 0."""
    count = max(1, max(len(captions) for captions in rows))
    longest = max(2, max((len(tokens) for captions in rows for tokens in captions), default=0))
    padded = np.zeros((len(rows), count, longest), np.int64)
    for b, captions in enumerate(rows):
        for n, tokens in enumerate(captions):
            padded[b, n, : len(tokens)] = tokens
    return torch.from_numpy(padded)


def _tokens(words: Words, lang: str, text: str, longest: int) -> list[int]:
    return [words.begin(lang), *words.encode(text, lang)[:longest], words.end]
