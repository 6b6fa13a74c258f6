"""The encoders that papers and tutorials name: their grids, their stages, and the numbers that they learned from."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from cutline.config import EncoderConfig, PicturesConfig
from cutline.models.encoders import build_encoder, freeze

NAMED = [
    ("vgg16", 64, (2, 512, 4096)),
    ("resnet50", 64, (2, 2048, 2048)),
    ("inception_v3", 107, (2, 2048, 2048)),
    ("densenet121", 64, (2, 1024, 1024)),
    ("mobilenetv2_100", 64, (2, 1280, 1280)),
]
"""With the side of their pictures here, and the side of the grid, its channels and those of the pooled vector."""


@pytest.mark.parametrize(("name", "size", "gives"), NAMED)
def test_what_it_gives(name: str, size: int, gives: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(name=name, weights="none"), PicturesConfig(size=size)).eval()
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        grid, pooled = encoder(pixels)
    side, channels, wide = gives
    assert encoder.grid_side == side
    assert (grid.shape, pooled.shape) == ((2, side * side, channels), (2, wide))
    data = timm.data.resolve_model_data_config(timm.create_model(name, pretrained=False))
    np.testing.assert_allclose(encoder.transform.mean, data["mean"])
    np.testing.assert_allclose(encoder.transform.std, data["std"])
    stages = encoder.stages()
    assert sum(map(len, stages)) == len(list(encoder.parameters()))
    freeze(encoder, f"stage{len(stages) - 1}")
    assert [any(p.requires_grad for p in stage) for stage in stages] == [False] * (len(stages) - 1) + [True]
