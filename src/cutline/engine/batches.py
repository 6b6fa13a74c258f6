"""From samples to batches: which pictures and captions a step learns from, as a function of seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from cutline.features import FeatureStore

CACHE_BYTES = 2**31
"""Pictures are kept decoded in memory when all of them together take no more than this."""


@dataclass(frozen=True)
class Batch:
    """B pictures, as pixels or as stored features, each with N captions.

    `tokens` (B, N, T+1) begin with a language's begin token; a shorter caption ends in padding, and a picture with
    fewer than N captions has rows of nothing but padding.
    """

    inputs: Inputs
    tokens: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(move(self.inputs, device), self.tokens.to(device, non_blocking=True))


Inputs = tuple[Tensor, ...]
"""(pictures uint8 (B,3,H,W),), or the features (grid (B,R,C), pooled (B,P)) that were made of them."""


def move(inputs: Inputs, device: torch.device) -> Inputs:
    return tuple(part.to(device, non_blocking=True) for part in inputs)


class Source(Protocol):
    """Where a batch's pictures come from; `draw` says which random changes to make to each, None for none."""

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Inputs: ...


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
        missing = indices[~self.cached[indices]]
        if len(missing):
            self.cache[missing] = self._decode(missing)
            self.cached[missing] = True
        chosen: np.ndarray = self.cache[indices]
        return chosen

    def _decode(self, indices: np.ndarray) -> list[np.ndarray]:
        # Pillow lets other threads run while it decodes and resizes.
        with ThreadPoolExecutor() as threads:
            return list(threads.map(lambda index: self.transform.from_file(self.samples[index].image), indices))

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
        self, source: Source, captions: Captions, pictures: PicturesConfig, *, seed: int, batch: int, rows: int
    ) -> None:
        self.source, self.captions, self.pictures = source, captions, pictures
        self.seed, self.rows, self.epoch = seed, rows, 0
        self.augment = augments(pictures)
        self.batch, self.count = batch, len(captions.rows)

    def __len__(self) -> int:
        return -(-self.count // self.batch)

    def __getitem__(self, position: int) -> Batch:
        indices = next(order.batches(self.seed, self.epoch, self.count, self.batch, start=position))
        draws = [order.stream(self.seed, 2, self.epoch, int(i)) for i in indices] if self.augment else None
        flips = np.zeros(len(indices), bool)
        if draws is not None and self.pictures.augment_flip:
            flips = np.array([draw.random() < 0.5 for draw in draws])
        rows = []
        for at, index in enumerate(indices):
            turned = self.captions.mirrored[index]
            flips[at] &= bool(turned)
            texts = turned if flips[at] else self.captions.rows[index]
            rows.append([texts[k] for k in self.captions.choose(self.seed, self.epoch, int(index), self.rows)])
        inputs = self.source.load(indices, draws)
        if flips.any():
            (pictures,), chosen = inputs, torch.from_numpy(flips)
            pictures[chosen] = pictures[chosen].flip(-1)
        return Batch(inputs, pad(rows))

    def iterate(self, epoch: int, start: int, workers: int) -> Iterator[Batch]:
        """The epoch's batches from position `start` on, read ahead by `workers` processes."""
        self.epoch = epoch
        if not workers:
            yield from (self[position] for position in range(start, len(self)))
            return
        positions = range(start, len(self))
        yield from DataLoader(self, batch_size=None, sampler=positions, num_workers=workers, prefetch_factor=4)


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
