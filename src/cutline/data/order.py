"""Which sample comes when: a pure function of (seed, epoch, position).

Nothing here has a state to save. A run that resumes, has other workers or another number of ranks asks for the same
positions and gets the same samples. Only the raw bits of NumPy's Philox are used for the order itself; NumPy promises
never to change those, while its `permutation` may change with a version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def stream(seed: int, *path: int | str) -> np.random.Generator:
    """A generator of its own for each place in a run, such as `stream(seed, "augment", epoch, sample)`."""
    return np.random.Generator(_bits(seed, *path))


@lru_cache(maxsize=2)  # whoever takes an epoch's batches one by one asks for it each time
def epoch_order(seed: int, epoch: int, count: int) -> Indices:
    """The samples `0 … count - 1` in the order in which this epoch sees them."""
    if count < 0:
        raise ValueError(f"count is {count}")
    keys = _bits(seed, "order", epoch).random_raw(count)
    order = np.argsort(keys, kind="stable").astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


def batch_count(count: int, batch: int) -> int:
    """Batches in an epoch; the last may be smaller."""
    return -(-count // batch)


def batches(
    seed: int, epoch: int, count: int, batch: int, *, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Indices]:
    """This rank's share of each global batch of `batch` samples, from global batch `start` on.

    The ranks' shares of a batch, one after the other, are the batch, so the sequence of batches is the same for every
    `world`. Shares differ by at most one sample; those of a last batch smaller than `world` may be empty.
    """
    if batch < 1 or start < 0 or not 0 <= rank < world:
        raise ValueError(f"batch {batch}, start {start}, rank {rank} of {world}")
    order = epoch_order(seed, epoch, count)
    for index in range(start, batch_count(count, batch)):
        yield np.array_split(order[index * batch : (index + 1) * batch], world)[rank]


def _bits(seed: int, *path: int | str) -> np.random.Philox:
    # JSON keeps (1, 23) and (12, 3), or 1 and "1", apart; the hash spreads them over the whole key.
    name = json.dumps([seed, *path]).encode()
    key = hashlib.blake2b(name, digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(key, "little"))
