"""Dropout as fast on a CPU as what it is between, and what else is to know of who drops out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")
DRAWN = 2**16
"""Values that a number's 16 bits can have: `p` is rounded to a share of them."""


class Dropout(nn.Dropout):
    """`nn.Dropout`, but several times as fast on a CPU.

    PyTorch draws for each number by itself, on one thread, which was a tenth of a decoder's step. Here one draw of 64
    bits decides for four of them.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        dropped = round(self.p * DRAWN)
        if not self.training or inputs.device.type != "cpu" or dropped in (0, DRAWN):
            dropped_or_not: Tensor = super().forward(inputs)
            return dropped_or_not
        draws = torch.empty(-(-inputs.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = draws.view(torch.int16)[: inputs.numel()].view(inputs.shape)
        kept = (bits >= dropped - DRAWN // 2).to(inputs.dtype)
        return inputs * kept.mul_(DRAWN / (DRAWN - dropped))


@contextmanager
def dropping(module: nn.Module, rates: Iterable[float]) -> Iterator[None]:
    """Let the parts of a module that drop out do so at these `rates` meanwhile.

    At 0, that is how a module learns without dropout. Evaluation mode would do, but in it a GPU's recurrent networks
    have no gradients.
    """
    parts, kept = _parts(module), _rates(module)
    for (part, name), rate in zip(parts, rates):
        setattr(part, name, rate)
    try:
        yield
    finally:
        for (part, name), rate in zip(parts, kept, strict=True):
            setattr(part, name, rate)


def computed_again(module: nn.Module, function: Callable[..., Result], *given: Any) -> Result:
    """What a `function` of a module gives, computed again in the backward pass in place of being stored for it.

    It drops out then as it does now, though by then its module may do so at other rates.
    """
    rates = _rates(module)
    result: Result = checkpoint(
        function, *given, use_reentrant=False, context_fn=lambda: (nullcontext(), dropping(module, rates))
    )
    return result


def _parts(module: nn.Module) -> list[tuple[Any, str]]:
    """Whatever drops out in a module, and what its rate is called."""
    parts: list[tuple[Any, str]] = [(part, "p") for part in module.modules() if isinstance(part, nn.Dropout)]
    return parts + [(part, "dropout") for part in module.modules() if isinstance(part, nn.RNNBase)]


def _rates(module: nn.Module) -> list[float]:
    return [getattr(part, name) for part, name in _parts(module)]
