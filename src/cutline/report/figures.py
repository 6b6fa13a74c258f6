"""Figures of classes as SVG and as pictures: a matrix of mistakes, a map of points, a sheet of small squares."""

from __future__ import annotations

import base64
import io
import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.report.html import Html, join, tag

Floats = NDArray[np.floating]

_LABEL = 7.0
"""Width of a letter in a figure's units, about; of a Chinese or Japanese one, twice as much."""
_LONGEST = 22
"""Letters of a name that there is room for."""
_MAP = (640, 480)
_EDGE = 14
_NUMBERED = 12
"""Classes up to which there is room for numbers in a matrix."""


def matrix(counts: NDArray[np.integer], names: Sequence[str], pictures: NDArray[np.integer]) -> Html:
    """Pictures by class, a row each, and by what they were taken for; a cell is as dark as its share of the class.

    `pictures` has how many a class has, also where not all that they were taken for is among these classes.
    """
    size = len(names)
    cell = 30.0 if size <= _NUMBERED else 15.0
    short = [_short(name) for name in names]
    room = max(map(_width, short)) + 10
    parts = []
    for row, name in enumerate(short):
        middle = room + (row + 0.5) * cell
        parts.append(tag("text", name, x=room - 6, y=middle, dy="0.35em", text_anchor="end"))
        turned = f"rotate(-90 {middle:g} {room - 6:g})"
        parts.append(tag("text", name, x=f"{middle:g}", y=room - 6, dy="0.35em", transform=turned))
    parts.append(tag("rect", x=room, y=room, width=size * cell, height=size * cell, class_="frame"))
    for i, j in zip(*(axis.tolist() for axis in np.nonzero(counts))):
        count, share = int(counts[i, j]), counts[i, j] / pictures[i]
        told = f"{names[i]} taken for {names[j]}" if i != j else f"{names[i]} as such"
        x, y = room + j * cell, room + i * cell
        about = tag("title", f"{told}: {count:,} of {int(pictures[i]):,}")
        kind = "right" if i == j else "wrong"
        shade = f"{0.12 + 0.88 * share:.2f}"
        parts.append(tag("rect", about, x=x, y=y, width=cell, height=cell, class_=f"cell {kind}", fill_opacity=shade))
        if size <= _NUMBERED:
            tone = "number bright" if share > 0.5 else "number"
            at = {"x": x + cell / 2, "y": y + cell / 2, "dy": "0.35em"}
            parts.append(tag("text", f"{count}", text_anchor="middle", class_=tone, **at))
    side = math.ceil(room + size * cell + 2)
    label = f"Confusion of {size} classes: rows are what it is, columns what it was taken for"
    return tag(
        "svg", *parts, viewBox=f"0 0 {side} {side}", width=side, role="img", aria_label=label, class_="matrix"
    )  # fmt: skip


def scatter(title: str, points: Floats, groups: Sequence[str], told: Sequence[str]) -> Html:
    """Points (N,2) in a colour for each group, and what each is when it is pointed at.

    A group's name stands amid its points, unless another's stands there already.
    """
    width, height = _MAP
    low, high = points.min(0), points.max(0)
    spread = (points - low) / np.maximum(high - low, 1e-12)
    at = _EDGE + spread * (np.array([width, height]) - 2 * _EDGE)
    names = sorted(set(groups))
    dots, labels = [], []
    taken: list[tuple[float, float, float]] = []
    for number, name in enumerate(names):
        members = [index for index, group in enumerate(groups) if group == name]
        circles = [
            tag("circle", tag("title", told[index]), cx=f"{at[index, 0]:.1f}", cy=f"{at[index, 1]:.1f}", r=3)
            for index in members
        ]
        dots.append(tag("g", *circles, class_="dots", fill=f"hsl({360 * number // len(names)}, 65%, 50%)"))
        x, y = np.median(at[members], axis=0).tolist()
        half = _width(_short(name)) / 2
        x = min(max(x, half + _EDGE), width - half - _EDGE)  # whole, also where its points are at the edge
        if not any(abs(x - u) < half + w and abs(y - v) < 2 * _LABEL for u, v, w in taken):
            taken.append((x, y, half))
            labels.append(tag("text", _short(name), x=f"{x:.1f}", y=f"{y:.1f}", text_anchor="middle", class_="amid"))
    drawing = tag(
        "svg", *dots, *labels, viewBox=f"0 0 {width} {height}", role="img",
        aria_label=f"{title}: {len(points):,} pictures of {len(names)} classes",
    )  # fmt: skip
    return tag("figure", tag("figcaption", tag("b", title)), drawing, class_="chart")


def sheet(squares: Sequence[Floats], *, scale: int, columns: int) -> Html:
    """Small squares (side, side) or (side, side, 3), each over its own range, side by side as one picture."""
    side = squares[0].shape[0] * scale
    rows = -(-len(squares) // columns)
    page = Image.new("RGB", (columns * (side + 2) - 2, rows * (side + 2) - 2), (127, 127, 127))
    for number, square in enumerate(squares):
        down, across = divmod(number, columns)
        small = Image.fromarray(_bytes(square)).convert("RGB")
        page.paste(small.resize((side, side), Image.Resampling.NEAREST), (across * (side + 2), down * (side + 2)))
    data = io.BytesIO()
    page.save(data, "PNG", optimize=True)
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return tag("img", src=url, alt="", width=page.width, height=page.height, class_="sheet")


def bars(shares: Sequence[tuple[str, float]]) -> Html:
    """Names with the share of each, 0 to 1, as a number and as a bar."""
    rows = [
        tag(
            "li",
            tag("span", name),
            tag("span", f"{100 * share:.1f} %", class_="share"),
            tag("meter", value=f"{share:.4f}", min=0, max=1),
        )
        for name, share in shares
    ]
    return tag("ul", *rows, class_="guesses") if rows else join()


def _bytes(square: Floats) -> NDArray[np.uint8]:
    values = np.nan_to_num(np.asarray(square, np.float32))
    low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)


def _short(name: str) -> str:
    if _width(name) <= _LABEL * _LONGEST:
        return name
    while _width(name) > _LABEL * (_LONGEST - 1):
        name = name[:-1]
    return f"{name}…"


def _width(text: str) -> float:
    return _LABEL * sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)
