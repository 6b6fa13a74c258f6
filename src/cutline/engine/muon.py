"""Muon (Jordan et al. 2024) for convolutions and AdamW for all else, as one optimizer.

A layer's gradients lie in a few directions mostly, and AdamW learns those. Muon moves the layer as far in every
direction that its momentum has. `torch.optim.Muon` does so for matrices alone, multiplies them in bf16, which many CPUs
do more slowly than fp32, and goes through the long side of a kernel twice a round rather than twice in all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
LIKE_ADAMW = 0.2
"""Root mean square of a step of AdamW, about, so that one rate is right for both (Liu et al. 2025)."""
FACTORS, ROUNDS = (3.4445, -4.7750, 2.0315), 3
"""Of the Newton-Schulz iteration: those of X, X X'X and X X'X X'X that soon bring any singular value near to one, and
how often: five rounds are usual, and three do for convolutions (Jordan's own networks for CIFAR-10 take as many)."""
COLOURS = 3


def suits(parameter: Tensor) -> bool:
    """Whether it is a kernel that mixes channels: not the first one, which sees colours, nor one of a channel each."""
    return parameter.ndim == 4 and parameter.shape[1] > COLOURS


class Muon(torch.optim.AdamW):
    """Groups marked "muon" hold kernels that suit it; the others are learned by AdamW."""

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._step_supports_amp_scaling = False  # the scaler leaves out what is not finite by itself

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        every = self.param_groups
        self.param_groups = [group for group in every if not group["muon"]]
        try:
            told = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            for parameter in group["params"] if group["muon"] else ():
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["weight_decay"])
        return told

    def _move(self, parameter: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
        state["step"] += 1  # which AdamW looks for in every state that it loads
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        matrix = gradient.lerp(momentum, MOMENTUM).flatten(1)
        moved = even(matrix).view(parameter.shape)
        parameter.mul_(1 - rate * decay).add_(moved, alpha=-rate * LIKE_ADAMW * max(matrix.shape) ** 0.5)


def even(matrix: Tensor) -> Tensor:
    """The matrix with singular values of about one.

    Each round multiplies from the left by a polynomial of X X', which is small where X is long: so X itself is used
    only to begin and to end with.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return even(matrix.mT).mT
    matrix = matrix / matrix.norm().clamp_min(1e-7)
    square = matrix @ matrix.mT
    factor = product = _polynomial(square)
    for _ in range(ROUNDS - 1):
        square = factor @ square @ factor
        factor = _polynomial(square)
        product = factor @ product
    return product @ matrix


def _polynomial(square: Tensor) -> Tensor:
    one, cubed, fifth = FACTORS
    factor = torch.addmm(square, square, square, beta=cubed, alpha=fifth)
    factor.diagonal().add_(one)
    return factor
