"""Lines as SVG: learning curves over the steps of a run, and whatever else is a few lines over a scale with a 0."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cutline.report.html import Html, join, tag

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 10, 42
"""Room for the axes; their text is of 13 units, so that it can still be read on a phone."""
_MOST = 240
"""Points in a line; of more, neighbours are averaged."""
COLOURS = 6
"""As many as the style sheet has."""
_CLASSES = {"accuracy": "accuracy", "top5": "among the best five", "macro_f1": "macro F1"}


def curves(events: Iterable[Mapping[str, Any]]) -> list[Html]:
    """A chart for each figure that the events of a run (`events.jsonl`) have: none, when it has none."""
    events = [event for event in events if "step" in event]
    steps = [event for event in events if event.get("kind") == "step"]
    checks = [event for event in events if event.get("kind") == "validation"]
    languages = {key.removesuffix("_bleu_4"): None for event in checks for key in event if key.endswith("_bleu_4")}
    charts = {
        "Training loss": {"": _points(steps, "loss")},
        "Validation BLEU-4": {lang: _points(checks, f"{lang}_bleu_4") for lang in languages},
        "Validation CIDEr-D": {lang: _points(checks, f"{lang}_cider") for lang in languages},
        "Validation accuracy": {name: _points(checks, key) for key, name in _CLASSES.items()},
        "Validation nats": {"": _points(checks, "nll")},
        "Learning rate": {"": _points(steps, "rate")},
    }
    drawn = {title: {name: points for name, points in lines.items() if points} for title, lines in charts.items()}
    return [plot(title, lines) for title, lines in drawn.items() if lines]


def _points(events: Sequence[Mapping[str, Any]], key: str) -> Points:
    """The finite values of a figure by step."""
    pairs = [(event["step"], event.get(key)) for event in events]
    points = sorted((float(step), float(y)) for step, y in pairs if isinstance(y, int | float) and math.isfinite(y))
    size = math.ceil(len(points) / _MOST)
    parts = [points[start : start + size] for start in range(0, len(points), size)] if size else []
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def plot(title: str, lines: Mapping[str, Points], across: str = "step") -> Html:
    """Lines by name over a common scale, which `across` names."""
    every = [point for points in lines.values() for point in points]
    rightward = ticks(max(x for x, _ in every))
    upward = scale([y for _, y in every])
    ends = "; ".join(_ends(name, points) for name, points in lines.items())
    drawing = tag(
        "svg",
        _axes(rightward, upward, across),
        *(_line(points, number, rightward[-1], upward) for number, points in enumerate(lines.values())),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=f"{title} by {across}: {ends}",
    )  # fmt: skip
    names = [tag("span", name, class_=f"key line-{number % COLOURS}") for number, name in enumerate(lines) if name]
    return tag("figure", tag("figcaption", tag("b", title), *names), drawing, class_="chart")


def _ends(name: str, points: Points) -> str:
    (first, start), (last, end) = points[0], points[-1]
    if len(points) == 1:
        return f"{name} {start:.4g} at {first:g}".strip()
    return f"{name} {start:.4g} at {first:g}, {end:.4g} at {last:g}".strip()


def ticks(high: float) -> list[float]:
    """Round numbers from 0 up to the first that is not below `high`: four to six of them."""
    high = max(high, 1e-12)
    rough = high / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [step * number for number in range(math.ceil(high / step - 1e-9) + 1)]


def scale(values: Sequence[float]) -> list[float]:
    """Round numbers around all values and 0: what is learned from rewards has a loss below it."""
    low, high = min(0.0, *values), max(0.0, *values)
    if low == 0:
        return ticks(high)
    step = ticks(high - low)[1]
    down, up = (math.ceil(end / step - 1e-9) for end in (-low, high))
    return [step * number for number in range(-down, up + 1)]


def _axes(rightward: Sequence[float], upward: Sequence[float], across: str) -> Html:
    parts = []
    for value in upward:
        y = f"{_y(value, upward):.1f}"
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid" if value else "axis"))
        parts.append(tag("text", _number(value), x=_LEFT - 7, y=y, dy="0.35em", text_anchor="end"))
    foot = _HEIGHT - _BOTTOM
    for value in rightward:
        x = f"{_x(value, rightward[-1]):.1f}"
        parts.append(tag("line", x1=x, x2=x, y1=foot, y2=foot + 4, class_="axis"))
        anchor = "end" if value == rightward[-1] and len(_number(value)) > 4 else "middle"
        parts.append(tag("text", _number(value), x=x, y=foot + 18, text_anchor=anchor))
    parts.append(tag("text", across, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 5, text_anchor="middle"))
    return join(*parts)


def _line(points: Points, number: int, right: float, upward: Sequence[float]) -> Html:
    at = [(f"{_x(x, right):.1f}", f"{_y(y, upward):.1f}") for x, y in points]
    dots = at if len(at) <= 30 else []
    return tag(
        "g",
        tag("polyline", points=" ".join(",".join(pair) for pair in at)),
        *(tag("circle", cx=x, cy=y, r=3) for x, y in dots),
        class_=f"line-{number % COLOURS}",
    )


def _x(value: float, right: float) -> float:
    return _LEFT + value / right * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, upward: Sequence[float]) -> float:
    share = (value - upward[0]) / (upward[-1] - upward[0])
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _number(value: float) -> str:
    """`1,500`, `0.25`, `4e-5`."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.6g}"
    return text.replace("e-0", "e-")
