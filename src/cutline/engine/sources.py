"""Where the pictures of a batch come from: files, decoded and changed at random, or features stored earlier."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cutline.config import PicturesConfig
from cutline.data.corpus import Sample
from cutline.data.images import Transform
from cutline.engine.augment import change
from cutline.errors import DataError
from cutline.features import FeatureStore

CACHE_BYTES = 2**31
"""Pictures are kept decoded in memory when all of them together take no more than this."""

Inputs = tuple[Tensor, ...]
"""(pictures uint8 (B,3,H,W),), or the features (grid (B,R,C), pooled (B,P)) that were made of them."""


def move(inputs: Inputs, device: torch.device) -> Inputs:
    return tuple(part.to(device, non_blocking=True) for part in inputs)


class Source(Protocol):
    """Where a batch's pictures come from; `draw` says which random changes to make to each, None for none."""

    @property
    def ready(self) -> bool:
        """Whether loading is a matter of copying, and nobody needs to do it ahead."""

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


class PictureSource:
    """Decodes pictures, or keeps them decoded when they are few and small."""

    def __init__(self, samples: Sequence[Sample], transform: Transform, config: PicturesConfig) -> None:
        self.samples, self.transform, self.config = samples, transform, config
        size = transform.size
        self.cache: np.ndarray | None = None
        if len(samples) * size * size * 3 <= CACHE_BYTES:
            self.cache = _shared(len(samples), size, size, 3)
        self.cached = _shared(len(samples))

    @property
    def ready(self) -> bool:
        return self.cache is not None

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Inputs:
        pictures = torch.from_numpy(self._decoded(indices)).permute(0, 3, 1, 2)
        if draws is not None:
            changed = [change(p, self.config, self.transform.mean, d) for p, d in zip(pictures, draws, strict=True)]
            pictures = torch.stack(changed)
        return (pictures,)

    def _decoded(self, indices: np.ndarray) -> np.ndarray:
        if self.cache is None:
            return np.stack(self._decode(indices))
        places = np.flatnonzero(self.cached[indices] == 0)
        if len(places):
            try:
                self.cache[indices[places]] = self._decode(indices[places])
            except UnreadableError as error:  # its positions are those among the missing
                raise UnreadableError({int(places[at]): why for at, why in error.reasons.items()}) from None
            self.cached[indices[places]] = 1
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


def _shared(*shape: int) -> np.ndarray:
    """Bytes of nought that this process shares with those that it forks: what one of them has decoded, all have."""
    count = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(count, 1)), np.uint8, count).reshape(shape)


class FeatureSource:
    """Reads stored features; they were made once, so there is nothing to change at random."""

    ready = True

    def __init__(self, store: FeatureStore, samples: Sequence[Sample], *, grid: bool = True) -> None:
        """Without `grid`, that one has no regions: it is by far the larger part, and classes do not need it."""
        self.store, self.grid = store, grid
        self.rows = store.rows([sample.id for sample in samples])

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Inputs:
        rows = self.rows[indices]
        grid = self.store.grid[rows] if self.grid else np.zeros((len(rows), 0, self.store.grid.shape[2]), np.float16)
        return torch.from_numpy(grid), torch.from_numpy(self.store.pooled[rows])
