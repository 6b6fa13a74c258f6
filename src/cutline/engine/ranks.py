"""Several processes that learn as one: who they are, and the little that they say to each other.

Each has its share of every batch and its own copy of the model. Gradients are added up once a step, after all of the
step's backward passes, rather than by DistributedDataParallel during them: a process may then split its share when
memory runs out, or have no picture at all in a last small batch, and the others need not know. What the ranks add to a
step is a sum of a few numbers and a sum of the gradients.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from cutline.config import Config
from cutline.engine.pulse import beating
from cutline.engine.watch import FOLDER, RUN
from cutline.errors import ConfigError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long ranks wait for the first while it reads, builds or scores; the supervisor or the pulse notices a hang."""


@dataclass(frozen=True)
class Ranks:
    """This process among all; alone unless told otherwise."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Its number on this machine, and so its GPU."""
    here: int = 1
    """How many there are on this machine."""
    patient: Any = None
    """The process group for words, where the one for gradients is in a hurry."""

    @property
    def first(self) -> bool:
        """Whether it is this one that writes and speaks for all."""
        return self.rank == 0

    def total(self, *numbers: float) -> list[float]:
        """Each number added up over all ranks."""
        if self.world == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums, group=self.patient)
        return sums.tolist()

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Make every rank's gradients the sum of all ranks'."""
        if self.world == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # no pictures in this rank's share
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the first one's values."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def told(self, value: T) -> T:
        """The first rank's value, whatever the others hold."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, group=self.patient)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in their order."""
        if self.world == 1:
            return [value]
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, value, group=self.patient)
        return boxes


ALONE = Ranks()


def under_launcher() -> bool:
    """Whether something has started this process as one of a group: our own supervisor, or torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextlib.contextmanager
def joined(config: Config) -> Iterator[Ranks]:
    """Join the group that the launcher has set up, if it is one of more than this process."""
    if not under_launcher():
        yield ALONE
        return
    world, limit = int(os.environ["WORLD_SIZE"]), timedelta(minutes=config.health.hang_minutes)
    ranks = _meet(config, world, limit or PATIENCE) if world > 1 else ALONE
    supervised = FOLDER in os.environ
    with beating(limit.total_seconds(), world) if limit and not supervised else nullcontext():
        yield ranks
    if world > 1:  # not after a failure: NCCL would wait for all the others, who may never come
        dist.destroy_process_group()


def _meet(config: Config, world: int, patience: timedelta) -> Ranks:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() and config.device != "cpu" else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpus:
        # A launcher may show each process one GPU of its own; ours shows all of them to each.
        if ":" in config.device or (RUN in os.environ and here > gpus):
            raise ConfigError(
                f"{here} processes on {gpus} GPUs, with the device '{config.device}'",
                expected='a GPU for each of them, and the device "auto" or "cuda"',
            )
        torch.cuda.set_device(local % gpus)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=patience)
    return Ranks(dist.get_rank(), world, local, here, dist.new_group(backend="gloo", timeout=PATIENCE))
