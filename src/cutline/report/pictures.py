"""Pictures inside a page: made small, with or without what a word looked at, and written into the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.data.images import Transform, open_picture

_SIDE, SMALL_SIDE = 480, 144
"""Longest side of a picture, and of one that stands above a word."""
_VEIL = (18, 21, 30)
_DENSITY = 0.8
"""How much of the veil's colour there is where a word did not look at all."""


def shown(path: Path, side: int = _SIDE) -> Image.Image:
    """The picture, reduced to what a page needs."""
    picture = open_picture(path, at_least=side)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def looks(picture: Image.Image, attention: NDArray[Any], transform: Transform | None) -> list[Image.Image]:
    """For each word's attention (words, side, side): the picture, darkened where the word did not look.

    Dark rather than coloured, since a colour on top would hide those that the caption speaks of.
    """
    small = _fit(picture.size, SMALL_SIDE)
    pixels = np.asarray(picture.resize(small, Image.Resampling.LANCZOS), np.float32)
    return [_darken(pixels, _spread(cells, small, transform)) for cells in attention]


def data_url(picture: Image.Image, quality: int = 82) -> str:
    """The picture as a JPEG that is its own address."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _fit(size: Sequence[int], side: int) -> tuple[int, int]:
    width, height = size
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _spread(cells: NDArray[Any], size: tuple[int, int], transform: Transform | None) -> NDArray[np.float32]:
    """Attention on every pixel (height, width), 1 where it is highest; 0 on what the model did not see."""
    cells = np.nan_to_num(np.asarray(cells, np.float32))
    width, height = size
    left = top = 0
    seen = size
    if transform is not None and transform.fit == "crop":
        side = max(1, round(min(size) * transform.crop_pct))
        left, top, seen = (width - side) // 2, (height - side) // 2, (side, side)
    smooth = np.asarray(Image.fromarray(cells).resize(seen, Image.Resampling.BILINEAR))
    heat = np.zeros((height, width), np.float32)
    heat[top : top + seen[1], left : left + seen[0]] = smooth / max(float(smooth.max()), 1e-12)
    return heat.clip(0, 1)


def _darken(pixels: NDArray[np.float32], heat: NDArray[np.float32]) -> Image.Image:
    veil = (_DENSITY * (1 - heat))[:, :, None]
    mixed = pixels * (1 - veil) + np.array(_VEIL, np.float32) * veil
    return Image.fromarray(mixed.round().astype(np.uint8))
