"""How much attention looks at the thing being named, in drawn scenes, where it is known what stands where."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cutline.data.grammar import COLOUR_NAMES, SHAPE_NAMES, Composition, Form, Group, say
from cutline.data.scenes import SceneObject


class Attentive(Protocol):
    """What is needed of a caption: its words, and what each looked at, (words, side, side), shares of 1."""

    @property
    def words(self) -> tuple[str, ...]: ...
    @property
    def attention(self) -> NDArray[Any] | None: ...


@dataclass(frozen=True)
class Focus:
    """Means over the words that name a shape; not a number where there are none."""

    mass: float
    """Share of a word's attention that lies on the boxes of the objects that it names."""
    area: float
    """Share of the picture that those boxes cover: what `mass` would be if attention looked everywhere alike."""
    words: int

    @property
    def ratio(self) -> float:
        """How many times more attention the named objects get than their area alone would bring them."""
        return self.mass / self.area if self.area > 0 else math.nan

    def __str__(self) -> str:
        if not self.words:
            return "no word with attention names just one kind of object, so its focus cannot be told"
        whose = "the one word that names" if self.words == 1 else f"the {self.words} words that name"
        return (
            f"{self.mass:.1%} of the attention of {whose} a shape lies on that shape, "
            f"which takes up {self.area:.1%} of the picture: {self.ratio:.1f} times its share"
        )


def focus(captions: Iterable[tuple[Attentive, Sequence[SceneObject]]], lang: str) -> Focus:
    """Measure captions in `lang`, each with the objects of its scene.

    A word counts where it names a shape, has a colour beside it, and the two fit objects of one kind only: a wrong
    caption names nothing that attention could look at, and of two kinds no one knows which is meant.
    """
    side = _colour_side(lang)
    found = [
        _share(looked, boxes)
        for caption, objects in captions
        if caption.attention is not None
        for place, boxes in _named(caption.words, objects, side)
        if (looked := caption.attention[place]).sum() > 0
    ]
    if not found:
        return Focus(math.nan, math.nan, 0)
    mass, area = np.mean(found, axis=0).tolist()
    return Focus(mass, area, len(found))


def _colour_side(lang: str) -> int:
    """Where the colour stands: 1 after the shape, -1 before it."""
    phrase = say(lang, Composition(Group(1, "small", "red", "circle"), "middle"), Form("short")).lower().split()
    shape = next(place for place, word in enumerate(phrase) if word in SHAPE_NAMES)
    return 1 if phrase[shape + 1] in COLOUR_NAMES else -1


def _named(
    words: Sequence[str], objects: Sequence[SceneObject], side: int
) -> Iterable[tuple[int, list[tuple[float, float, float, float]]]]:
    """The place of each word that names one kind of object in the scene, and where those objects are."""
    # "l'étoile," -> "étoile": elided articles and punctuation may be part of a word.
    bare = [re.findall(r"\w+", word.lower())[-1:] for word in words]
    for place, shape in enumerate(bare):
        beside = bare[place + side] if 0 <= place + side < len(bare) else []
        name = [SHAPE_NAMES.get(part) for part in shape] + [COLOUR_NAMES.get(part) for part in beside]
        meant = [thing for thing in objects if [thing.shape, thing.colour] == name]
        if len({thing.size for thing in meant}) == 1:
            yield place, [thing.box for thing in meant]


def _share(attention: NDArray[Any], boxes: Sequence[tuple[float, float, float, float]]) -> tuple[float, float]:
    """The share of `attention` (side, side) on the boxes, spread evenly over each cell, and the share of the area."""
    height, width = attention.shape
    # Cut at every edge of a cell or a box: each piece then lies in one cell, and in a box or outside it altogether.
    lefts, tops, rights, bottoms = np.clip(np.array(boxes, float).T, 0, 1)
    xs = np.unique(np.concatenate([np.linspace(0, 1, width + 1), lefts, rights]))
    ys = np.unique(np.concatenate([np.linspace(0, 1, height + 1), tops, bottoms]))
    x, y = (xs[1:] + xs[:-1]) / 2, (ys[1:] + ys[:-1]) / 2
    across = (lefts[:, None] < x) & (x < rights[:, None])
    down = (tops[:, None] < y) & (y < bottoms[:, None])
    covered = (down[:, :, None] & across[:, None, :]).any(axis=0)
    area = np.outer(np.diff(ys), np.diff(xs)) * covered
    density = (attention / attention.sum() * attention.size)[(y * height).astype(int)][:, (x * width).astype(int)]
    return float((density * area).sum()), float(area.sum())
