"""Networks of our own, for small pictures and learning from scratch: a plain deep network, and a family of CNNs.

Named as timm's models are, with what differs from the defaults: "cnn:width=64,depth=2,residual=false,norm=group",
"dnn:hidden=1024,layers=3,dropout=0.2".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cutline.config import PicturesConfig
from cutline.data.images import Transform
from cutline.errors import ConfigError, nearest
from cutline.models.encoders import Encoder, Features, Normalise


@dataclass(frozen=True)
class ConvShape:
    width: int = 64
    """Channels of the first stage; each further stage has twice those of the one before it."""
    depth: int = 1
    """Blocks of two convolutions in a stage."""
    stages: int = 4
    """Stages; the sides of the grid halve from each to the next."""
    stride: int = 2
    """Of the first convolution: how many pixels a side of the first stage's cells has."""
    residual: bool = True
    """Add what goes into a block to what comes out of it."""
    norm: Literal["batch", "group", "none"] = "batch"
    """What keeps activations in bounds."""


@dataclass(frozen=True)
class DenseShape:
    hidden: int = 1024
    """Width of each layer."""
    layers: int = 3
    """Layers between the pixels and the head."""
    dropout: float = 0.2
    """Share of the values left out at random while learning."""


SIDE = 64
"""Of the pictures that these networks are made for, in pixels."""


class ConvEncoder(Encoder):
    """Stages of two-convolution blocks on grids of half the side each, and their mean at the end."""

    def __init__(self, name: str, shape: ConvShape, pictures: PicturesConfig) -> None:
        super().__init__()
        self.name, self.transform = name, _transform(pictures)
        self.grid_side = -(-self.transform.size // shape.stride)
        for _ in range(shape.stages - 1):
            self.grid_side = -(-self.grid_side // 2)
        self.checkpointing = False
        self.normalise = Normalise(self.transform)
        width = shape.width
        size = max(3, shape.stride + 1 + shape.stride % 2)
        first = nn.Conv2d(3, width, size, shape.stride, size // 2, bias=False)
        parts = [nn.Sequential(first, _norm(width, shape.norm))]
        for stage in range(shape.stages):
            blocks = [_Block(width, width, 1, shape) for _ in range(shape.depth)]
            if stage:
                blocks[0] = _Block(width // 2, width, 2, shape)
            parts.append(nn.Sequential(*blocks))
            width *= 2
        self.parts = nn.Sequential(*parts).to(memory_format=torch.channels_last)
        self.last = nn.ReLU()
        self.channels = self.pooled_channels = width // 2

    def forward(self, pictures: Tensor) -> Features:
        x = self.normalise(pictures)
        for part in self.parts:
            recompute = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(part, x, use_reentrant=False) if recompute else part(x)
        grid = self.last(x).flatten(2).mT
        return Features(grid, grid.mean(1))

    def stages(self) -> list[list[nn.Parameter]]:
        return [list(part.parameters()) for part in self.parts]

    def checkpoint(self, on: bool) -> None:
        self.checkpointing = on


class _Block(nn.Module):
    """Norm, ReLU and convolution, twice; the nonlinearity comes first, so that what is added stays as it is."""

    def __init__(self, before: int, after: int, stride: int, shape: ConvShape) -> None:
        super().__init__()
        self.first = nn.ReLU()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = _norm(after, shape.norm)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = _norm(after, shape.norm)
        self.past: nn.Module | None = None
        if shape.residual:
            self.past = nn.Identity() if before == after else _smaller(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        found: Tensor = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return found if self.past is None else found + self.past(x)


def _smaller(before: int, after: int, stride: int) -> nn.Sequential:
    """What a block passes on beside itself to a grid of other size: means of its cells, no cell left out."""
    return nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(before, after, 1, bias=False))


def _norm(channels: int, kind: str) -> nn.Module:
    if kind == "group":
        groups = next(count for count in range(max(1, channels // 16), 0, -1) if channels % count == 0)
        return nn.GroupNorm(groups, channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


class DenseEncoder(Encoder):
    """All pixels at once through fully connected layers: what can be learned by one that knows nothing of pictures."""

    def __init__(self, name: str, shape: DenseShape, pictures: PicturesConfig) -> None:
        super().__init__()
        self.name, self.transform = name, _transform(pictures)
        self.grid_side, self.channels, self.pooled_channels = 1, shape.hidden, shape.hidden
        self.normalise = Normalise(self.transform)
        sizes = [3 * self.transform.size**2, *[shape.hidden] * shape.layers]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(shape.dropout))
                for before, after in pairwise(sizes)
            )
        )

    def forward(self, pictures: Tensor) -> Features:
        pooled = self.layers(self.normalise(pictures).flatten(1))
        return Features(pooled[:, None], pooled)

    def stages(self) -> list[list[nn.Parameter]]:
        return [list(layer.parameters()) for layer in self.layers]

    def checkpoint(self, on: bool) -> None:
        """Nothing to gain: its activations are small beside its weights."""


OWN: dict[str, tuple[type[Any], type[Any]]] = {"cnn": (ConvEncoder, ConvShape), "dnn": (DenseEncoder, DenseShape)}


def build_own(name: str, kind: str, arguments: dict[str, Any], pictures: PicturesConfig) -> Encoder:
    """The network called `kind`, of the shape that `arguments` say."""
    network, shape = OWN[kind]
    fields = {field.name: field.default for field in dataclasses.fields(shape)}
    hints = get_type_hints(shape)
    for key, value in arguments.items():
        if key not in fields:
            raise ConfigError(
                f"'{key}' in encoder '{name}' is no setting of {kind}{nearest(key, fields)}", expected=", ".join(fields)
            )
        options = get_args(hints[key])
        fits = value in options if options else _fits(value, fields[key])
        if not fits:
            wanted = ", ".join(options) if options else f"something like {fields[key]}"
            raise ConfigError(f"{key}={value} in encoder '{name}'", expected=wanted)
    encoder: Encoder = network(name, shape(**arguments), pictures)
    return encoder


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return isinstance(value, int | float) and 0 <= value < 1


def _transform(pictures: PicturesConfig) -> Transform:
    half = (0.5, 0.5, 0.5)
    return Transform(size=pictures.size or SIDE, fit=pictures.fit, interpolation="bicubic", mean=half, std=half)
