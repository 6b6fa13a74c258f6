"""What a classifier looks at: where the reasons for a class lie, its first filters, what its layers make of things."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cutline.data.images import Transform

if TYPE_CHECKING:
    from cutline.models.classifier import Classifier

_BATCH = 32
_STAGES = 4
_FINE = 4
"""Regions on a side below which a map says no more than where the middle is."""


class Inside:
    """A classifier that can be asked about itself. It is put into evaluation mode; its weights do not change."""

    def __init__(self, classifier: Classifier, transform: Transform) -> None:
        self.classifier, self.transform = classifier.eval(), transform
        self.device = next(classifier.parameters()).device
        self._last = self._last_grid()

    @property
    def looks(self) -> bool:
        """Whether it has a place for what it sees: a plain network of layers has none, nor has a vision transformer."""
        return self._last is not None

    def heats(self, pictures: Sequence[Path], classes: Sequence[int]) -> list[NDArray[np.float32] | None]:
        """Grad-CAM: for each picture (side, side), how much each region speaks for a class.

        The last grid's channels, each weighed by how much the class's score rises with it. The gradient goes back to
        that grid and no further, so that nothing before it need be kept.
        """
        if self._last is None:
            return [None] * len(pictures)
        heats: list[NDArray[np.float32] | None] = []
        for first in range(0, len(pictures), _BATCH):
            held: list[Tensor] = []

            def hold(module: nn.Module, given: Any, grid: Tensor, held: list[Tensor] = held) -> Tensor:
                held.append(grid.detach().requires_grad_())
                return held[0].clone()  # what follows may change it in place

            part = self._pixels(pictures[first : first + _BATCH])
            with torch.enable_grad(), _hooked([self._last], hold):
                logits = self.classifier((part,))
                wanted = torch.tensor(classes[first : first + _BATCH], device=self.device)
                logits.gather(1, wanted[:, None]).sum().backward()
            (grid,) = held
            assert grid.grad is not None
            weight = grid.grad.mean((2, 3), keepdim=True)
            heat = (weight * grid.detach()).sum(1).relu()
            heats += list(_array(heat))
            self.classifier.zero_grad(set_to_none=True)
        return heats

    @torch.no_grad()
    def features(self, pictures: Sequence[Path]) -> NDArray[np.float32]:
        """The encoder's pooled features (N,P)."""
        parts = (self._pixels(pictures[first : first + _BATCH]) for first in range(0, len(pictures), _BATCH))
        rows = [_array(self.classifier.encoder(part).pooled) for part in parts]
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)

    def filters(self) -> NDArray[np.float32] | None:
        """The first layer's weights as small pictures (N, side, side, 3), where it looks at pixels."""
        for module in self.classifier.encoder.modules():
            if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.kernel_size[0] > 1:
                return _array(module.weight.permute(0, 2, 3, 1))
            if isinstance(module, nn.Linear) and module.in_features == 3 * self.transform.size**2:
                side = self.transform.size
                return _array(module.weight.reshape(-1, 3, side, side).permute(0, 2, 3, 1))
        return None

    @torch.no_grad()
    def maps(self, picture: Path) -> dict[str, NDArray[np.float32]]:
        """What the layers make of a picture: the last grid (channels, side, side) of each size, the largest first."""
        by_size: dict[int, NDArray[np.float32]] = {}

        def keep(module: nn.Module, given: Any, output: Any) -> None:
            if self._is_grid(output):
                by_size[output.shape[-1]] = _array(output[0])

        with _hooked(list(self.classifier.encoder.modules())[1:], keep):
            self.classifier.encoder(self._pixels([picture]))
        sizes = sorted(by_size, reverse=True)[-_STAGES:]
        return {f"{side} x {side}": by_size[side] for side in sizes}

    @torch.no_grad()
    def _last_grid(self) -> nn.Module | None:
        """The last module of the encoder whose grid is fine enough to point at something, or else the last of all.

        None where most of the network comes after any grid: a vision transformer makes a list of its patches at once,
        and what they are then says nothing of what it makes of them.
        """
        last: dict[bool, nn.Module] = {}
        modules = until = 0

        def note(module: nn.Module, given: Any, output: Any) -> None:
            nonlocal modules, until
            modules += 1
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] == output.shape[-2]:
                until = modules  # of one region too: that is the end of a network of small pictures
            if self._is_grid(output):
                last[output.shape[-1] >= _FINE] = module

        size = self.transform.size
        with _hooked(list(self.classifier.encoder.modules())[1:], note):
            self.classifier.encoder(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=self.device))
        return last.get(True) or last.get(False) if until > modules / 2 else None

    def _is_grid(self, output: Any) -> bool:
        """Channels over several regions, and not the picture itself in other numbers."""
        if not (isinstance(output, Tensor) and output.ndim == 4):
            return False
        return 1 < output.shape[-1] == output.shape[-2] < self.transform.size

    def _pixels(self, pictures: Sequence[Path]) -> Tensor:
        pixels = np.stack([self.transform.from_file(path) for path in pictures])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)


def _array(values: Tensor) -> NDArray[np.float32]:
    return np.asarray(values.detach().float().cpu().numpy())


@contextmanager
def _hooked(modules: Sequence[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
