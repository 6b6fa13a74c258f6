"""Encoders: pictures to a grid of regions and one pooled vector. Normalising happens inside, so pictures are uint8."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cutline.config import EncoderConfig, PicturesConfig
from cutline.data.images import Transform


class Features(NamedTuple):
    grid: Tensor
    """(B,R,C), rows of the picture from the top, each from the left."""
    pooled: Tensor
    """(B,P)."""


class Encoder(Protocol):
    """What the rest knows of an encoder. Every one is also an `nn.Module`."""

    transform: Transform
    channels: int
    pooled_channels: int
    grid_side: int

    def __call__(self, pictures: Tensor) -> Features:
        """Pictures uint8 (B,3,H,W)."""


class SmallEncoder(nn.Module):
    """Our own, for drawn scenes and small data: learns from scratch in minutes on a CPU."""

    def __init__(self, size: int = 96, widths: tuple[int, ...] = (32, 64, 128, 192)) -> None:
        super().__init__()
        self.transform = Transform(
            size=size, fit="squash", interpolation="bicubic", crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
        self.channels = self.pooled_channels = widths[-1]
        self.grid_side = size // 12
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 3, stride=3, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            if after != widths[-1]:
                layers.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Features:
        x = pictures.float().contiguous(memory_format=torch.channels_last) / 127.5 - 1
        grid = self.stages(x).flatten(2).mT
        return Features(grid, grid.mean(1))


def build_encoder(config: EncoderConfig, pictures: PicturesConfig) -> Encoder:
    return SmallEncoder(pictures.size or 96)
