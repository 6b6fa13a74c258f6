"""A moving average of the weights: steadier than the last step's, and what is scored and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """Follows a model's live tensors with decay `decay`, faster at first so that the random start is forgotten."""

    def __init__(self, live: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.live = {name: value.detach() for name, value in live.items() if value.is_floating_point()}
        self.mean = {name: value.clone() for name, value in self.live.items()}

    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.values()), list(self.live.values()), 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in self.mean.items():
            value.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model hold the average for a while, for scoring."""
        kept = {name: value.clone() for name, value in self.live.items()}
        self._write(self.mean)
        try:
            yield
        finally:
            self._write(kept)

    def _write(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.live.items():
                value.copy_(values[name])
