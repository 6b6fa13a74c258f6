"""Batch norms at rest: where one keeps its statistics, its arithmetic belongs into the convolution before it.

A norm that learns no more from the pictures it sees is a scale and a shift for each channel. Done by itself it reads
and writes every activation once more, forward and backward, which on two CPU cores was 0.3 of the 1.0 seconds that a
step of MobileNetV2 took (bf16, 32 pictures), and more than half of a forward pass. Done to the convolution's weights it
is next to nothing, with the same result and the same gradients for the parameters of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def fold_resting(model: nn.Module, look: Callable[[], Tensor]) -> None:
    """Let each convolution take over from the norm behind it whenever that rests.

    Names and parameters stay as they are. Which norm is behind which convolution is guessed from the order in which
    they were made, and tried: `look` shows what the model computes, in evaluation mode, and where the guess changes
    that it is taken back.
    """
    pairs = [pair for module in model.modules() for pair in pairwise(module.children()) if _fits(*pair)]
    with torch.no_grad(), _anything_but_plain([norm for _, norm in pairs]):
        before = look()
        for conv, norm in pairs:
            _join(conv, norm)
        if not torch.allclose(look(), before, rtol=1e-2, atol=1e-2 * float(before.abs().max())):
            for conv, norm in pairs:
                _part(conv, norm)


def _fits(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        isinstance(conv, nn.Conv2d)
        and isinstance(norm, _BatchNorm)
        and norm.affine
        and norm.track_running_stats
        and norm.num_features == conv.out_channels
    )


@contextmanager
def _anything_but_plain(norms: Sequence[Any]) -> Iterator[None]:
    """Norms with figures drawn at random: those of a new model change nothing, and would hide that one is misplaced."""
    kept = [[tensor.clone() for tensor in _figures(norm)] for norm in norms]
    generator = torch.Generator().manual_seed(0)
    try:
        for norm in norms:
            for tensor in _figures(norm):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        yield
    finally:
        for norm, tensors in zip(norms, kept, strict=True):
            for tensor, old in zip(_figures(norm), tensors, strict=True):
                tensor.copy_(old)


def _figures(norm: Any) -> tuple[Tensor, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


class _Conv(nn.Module):
    """Mixed into a convolution's own class: the norm behind it is in `_behind`, a list so that it is no submodule."""

    def forward(self: Any, x: Tensor) -> Tensor:
        (norm,) = self._behind
        if not _takes_over(norm):
            plain: Tensor = super().forward(x)
            return plain
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias * scale
        own = {"weight": self.weight * scale.view(-1, 1, 1, 1), "bias": shift}
        kept = {name: self._parameters[name] for name in own}
        try:
            self._parameters.update(own)
            folded: Tensor = super().forward(x)
            return folded
        finally:
            self._parameters.update(kept)


class _Norm(nn.Module):
    """Mixed into a norm's own class: nothing is left to do for it but what stands behind the arithmetic in timm's."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not _takes_over(self):
            plain: Tensor = super().forward(x)
            return plain
        for part in self.children():  # timm's norms hold their dropout and activation
            x = part(x)
        return x


def _takes_over(norm: nn.Module) -> bool:
    """Not in an exported graph: what runs those does the same by itself, once and for all."""
    return not norm.training and not torch.compiler.is_exporting()


def _join(conv: Any, norm: Any) -> None:
    conv._behind = [norm]
    conv.__class__ = type(type(conv).__name__, (_Conv, type(conv)), {})
    norm.__class__ = type(type(norm).__name__, (_Norm, type(norm)), {})


def _part(conv: Any, norm: Any) -> None:
    del conv._behind
    conv.__class__, norm.__class__ = type(conv).__mro__[2], type(norm).__mro__[2]
