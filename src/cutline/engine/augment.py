"""What is changed at random about pictures while learning: each change a function of the draws that it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutline.config import PicturesConfig

Draw = np.random.Generator
STRONGEST = 30
"""Of the strengths of RandAugment."""
RAND_CHANGES = 2
ERASED, ERASED_STRETCH = (0.02, 0.33), 3.0
"""Share of a picture that is erased, and how much longer than wide the rectangle may be, or the reverse."""


def augments(config: PicturesConfig) -> bool:
    """Whether pictures are changed at random."""
    drawn = (config.augment_rand, config.augment_erase, config.augment_mixup, config.augment_cutmix)
    return config.augment_flip or config.augment_crop < 1 or config.augment_colour > 0 or any(drawn)


def change(picture: Tensor, config: PicturesConfig, mean: Sequence[float], draw: Draw) -> Tensor:
    """One picture (3,H,W) after its own changes; mirroring and mixing are the batch's business.

    What a change leaves empty is filled with `mean`, 0 to 1 in each colour, which is nothing to an encoder.
    """
    fill = [255.0 * value for value in mean]
    if config.augment_crop < 1:
        picture = _crop(picture, config.augment_crop, draw)
    if config.augment_colour:
        picture = _recolour(picture, config.augment_colour, draw)
    if config.augment_rand:
        picture = rand_augment(picture, config.augment_rand / STRONGEST, fill, draw)
    if config.augment_erase and draw.random() < config.augment_erase:
        picture = _erase(picture, fill, draw)
    return picture


def _crop(picture: Tensor, least: float, draw: Draw) -> Tensor:
    side = picture.shape[-1]
    share = draw.uniform(least, 1)
    widest = np.log(min(4 / 3, 1 / share))  # wider, it would not fit and keep less
    stretch = np.exp(draw.uniform(-widest, widest))
    height, width = (min(side, round(side * np.sqrt(share * f))) for f in (1 / stretch, stretch))
    top, left = draw.integers(side - height + 1), draw.integers(side - width + 1)
    return _vision("resized_crop", picture, int(top), int(left), height, width, [side, side], antialias=True)


def _recolour(picture: Tensor, strength: float, draw: Draw) -> Tensor:
    for name in ("adjust_brightness", "adjust_contrast", "adjust_saturation"):
        picture = _vision(name, picture, draw.uniform(1 - strength, 1 + strength))
    return picture


def _erase(picture: Tensor, fill: Sequence[float], draw: Draw) -> Tensor:
    share = draw.uniform(*ERASED)
    stretch = np.exp(draw.uniform(-np.log(ERASED_STRETCH), np.log(ERASED_STRETCH)))
    top, left, height, width = _rectangle(picture, share, stretch, draw)
    picture = picture.clone()
    colour = torch.tensor(fill).round().to(picture.dtype)
    picture[:, top : top + height, left : left + width] = colour[:, None, None]
    return picture


def _vision(name: str, picture: Tensor, *arguments: Any, **named: Any) -> Tensor:
    from torchvision.transforms.v2 import functional as vision  # takes seconds, and many runs need none of it

    changed: Tensor = getattr(vision, name)(picture, *arguments, **named)
    return changed


def _rectangle(picture: Tensor, share: float, stretch: float, draw: Draw) -> tuple[int, int, int, int]:
    """Top, left, height and width of one that lies in the picture whole and has about that share of it."""
    rows, columns = picture.shape[-2:]
    height = min(rows, round(rows * np.sqrt(share / stretch)))
    width = min(columns, round(columns * np.sqrt(share * stretch)))
    return int(draw.integers(rows - height + 1)), int(draw.integers(columns - width + 1)), height, width


# RandAugment (Cubuk et al. 2019): two changes out of fourteen, all of one strength, and nothing else to choose -----


def rand_augment(picture: Tensor, strength: float, fill: Sequence[float], draw: Draw) -> Tensor:
    """Two changes of a `strength` from 0 to 1."""
    for choice in draw.integers(len(_CHANGES), size=RAND_CHANGES):
        signed = strength if draw.random() < 0.5 else -strength
        picture = _CHANGES[choice](picture, signed, list(fill))
    return picture


def _moved(picture: Tensor, fill: list[float], **how: float | list[float]) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode

    still = {"angle": 0.0, "translate": [0.0, 0.0], "scale": 1.0, "shear": [0.0, 0.0]}
    return _vision("affine", picture, **still | how, interpolation=InterpolationMode.BILINEAR, fill=fill)


_CHANGES: tuple[Callable[[Tensor, float, list[float]], Tensor], ...] = (
    lambda picture, by, fill: picture,
    lambda picture, by, fill: _vision("autocontrast", picture),
    lambda picture, by, fill: _vision("equalize", picture),
    lambda picture, by, fill: _vision("adjust_brightness", picture, 1 + 0.9 * by),
    lambda picture, by, fill: _vision("adjust_contrast", picture, 1 + 0.9 * by),
    lambda picture, by, fill: _vision("adjust_saturation", picture, 1 + 0.9 * by),
    lambda picture, by, fill: _vision("adjust_sharpness", picture, 1 + 0.9 * by),
    lambda picture, by, fill: _vision("posterize", picture, 8 - round(4 * abs(by))),
    lambda picture, by, fill: _vision("solarize", picture, 255 * (1 - abs(by))),
    lambda picture, by, fill: _moved(picture, fill, angle=30 * by),
    lambda picture, by, fill: _moved(picture, fill, shear=[17 * by, 0.0]),
    lambda picture, by, fill: _moved(picture, fill, shear=[0.0, 17 * by]),
    lambda picture, by, fill: _moved(picture, fill, translate=[0.45 * by * picture.shape[-1], 0.0]),
    lambda picture, by, fill: _moved(picture, fill, translate=[0.0, 0.45 * by * picture.shape[-2]]),
)


# Pictures made of two ------------------------------------------------------------------------------------------------


def mix(pictures: Tensor, labels: Tensor, config: PicturesConfig, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """Pictures (B,3,H,W) and labels (B,K), each mixed with those of the picture before it in the batch.

    Batches are drawn anew in each epoch, so that one is as good as any other.
    """
    others, mixed = pictures.roll(1, 0), pictures.clone()
    kept = torch.ones(len(pictures), 1)
    for at, draw in enumerate(draws):
        cut = config.augment_cutmix > 0 and (config.augment_mixup == 0 or draw.random() < 0.5)
        alpha = config.augment_cutmix if cut else config.augment_mixup
        share = draw.beta(alpha, alpha)
        if cut:
            top, left, height, width = _rectangle(pictures[at], 1 - share, 1.0, draw)
            place = (at, slice(None), slice(top, top + height), slice(left, left + width))
            mixed[place] = others[place]
            kept[at] = 1 - height * width / pictures[at, 0].numel()
        else:
            kept[at] = share
            mixed[at] = torch.lerp(others[at].float(), pictures[at].float(), share).round().to(pictures.dtype)
    return mixed, torch.lerp(labels.roll(1, 0), labels, kept)
