"""Scenes: the corpus that Cutline draws itself. No download, any size, always the same for the same seed.

A picture shows one to four coloured shapes; five captions in each language say how many, how large, of what colour and
where. Picture `i` depends on the seed and on `i` alone, so a larger corpus begins with the smaller one. What is held
back for validation and testing is really unseen: a composition (all that a caption could say of it) belongs to one
split only, decided by its hash.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageDraw

from cutline.data.grammar import COLOURS, LANGUAGES, PLACES, SHAPES, SIZES, Composition, Form, Group, say
from cutline.errors import ConfigError, DataError, choose

T = TypeVar("T")
Box = tuple[float, float, float, float]

SETTINGS = "scenes.json"
ROWS = "scenes.jsonl"
VERSION = 1
SIZE = 96
"""Side of a picture, in pixels, unless told otherwise."""
_SMOOTH = 4
"""Shapes are drawn this much larger and then reduced, which makes their edges smooth."""
_SIDES = {"small": (0.16, 0.19), "large": (0.26, 0.29)}
"""Shortest and longest side of a shape, as a share of the picture's."""
_RGB = {
    "red": (214, 32, 40), "orange": (247, 134, 20), "yellow": (245, 208, 20), "green": (34, 153, 60),
    "blue": (36, 84, 214), "purple": (140, 50, 170), "brown": (125, 76, 36), "black": (22, 22, 26),
}  # fmt: skip
_GROUNDS = ((240, 240, 238), (225, 233, 242), (243, 234, 222), (228, 240, 228), (238, 228, 240))


@dataclass(frozen=True)
class SceneObject:
    shape: str
    colour: str
    size: str
    box: Box
    """Left, top, right, bottom, as shares of the picture."""


def draw(
    out: Path,
    *,
    count: int = 3000,
    languages: Sequence[str] = LANGUAGES,
    size: int = SIZE,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> Path:
    """Draw `count` pictures and write their captions to `out/scenes.jsonl`, unless just that is there already.

    The folder appears whole or not at all. `progress` is told how many pictures are drawn.
    """
    if count < 1:
        raise ConfigError(f"cannot draw {count} scenes", expected="at least 1")
    if not 32 <= size <= 2048:
        raise ConfigError(f"cannot draw scenes of {size} pixels a side", expected="32 to 2048")
    if not languages:
        raise ConfigError("scenes need at least one language", expected=", ".join(LANGUAGES))
    languages = [choose(language, LANGUAGES, "language") for language in dict.fromkeys(languages)]
    settings = {
        "format": "cutline scenes", "version": VERSION, "count": count, "languages": languages, "size": size,
        "seed": seed,
    }  # fmt: skip
    out = Path(out)
    try:
        if not _is_drawn(out, settings):
            _draw_aside(out, settings, progress)
    except OSError as error:
        raise DataError(f"cannot draw scenes into {out}: {error.strerror or error}") from None
    return out


def objects_of(folder: Path) -> dict[str, list[SceneObject]]:
    """What each picture shows, by the id of the picture."""
    path = Path(folder) / ROWS
    found: dict[str, list[SceneObject]] = {}
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                row = json.loads(line)
                found[row["id"]] = [
                    SceneObject(o["shape"], o["colour"], o["size"], tuple(o["box"])) for o in row["objects"]
                ]
    except FileNotFoundError:
        raise DataError(f"no scenes in {folder}: there is no {ROWS}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}:{number}: not a scene ({error!r})", fix="draw the scenes again") from None
    return found


def _is_drawn(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` holds just these scenes; an error when it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    fix = "name another folder, or delete this one"
    try:
        there = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{out} is there already, and holds something other than scenes", fix=fix) from None
    if not isinstance(there, dict):
        there = {}
    differing = [f"{key} {there.get(key)} there, {value} asked for" for key, value in settings.items()
                 if there.get(key) != value]  # fmt: skip
    if differing:
        raise DataError(f"{out} holds other scenes: {'; '.join(differing)}", fix=fix)
    if not (out / ROWS).is_file() or not (out / "pictures").is_dir():
        raise DataError(f"{out} has lost some of its scenes", fix="delete it, to have them drawn again")
    return True


def _draw_aside(out: Path, settings: dict[str, Any], progress: Callable[[int], object]) -> None:
    """Draw into a hidden folder beside `out` and rename it at the end: whoever sees `out` sees all of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        partial.chmod(0o755)
        _draw_all(partial, settings, progress)
        try:
            partial.rename(out)
        except OSError:
            # Someone else may have drawn into it meanwhile; then it has to be the same.
            if not _is_drawn(out, settings):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _draw_all(folder: Path, settings: dict[str, Any], progress: Callable[[int], object]) -> None:
    (folder / "pictures").mkdir()
    with (folder / ROWS).open("w", encoding="utf-8") as rows:
        for index in range(settings["count"]):
            rng = random.Random(f"cutline scenes {VERSION}/{settings['seed']}/{index}")
            # Every tenth picture is for validation and the one after it for testing.
            split = {8: "val", 9: "test"}.get(index % 10, "train")
            scene = _compose(rng)
            while _split_of(scene) != split:
                scene = _compose(rng)
            forms = _forms(rng, scene)
            picture, objects = _paint(rng, scene, settings["size"])
            image = f"pictures/{index:06}.png"
            picture.save(folder / image, compress_level=3)
            row = {
                "id": f"scene-{index:06}",
                "image": image,
                "captions": {lang: [say(lang, scene, form) for form in forms] for lang in settings["languages"]},
                "label": _label(scene),
                "split": split,
                "objects": [asdict(thing) for thing in objects],
            }
            rows.write(json.dumps(row, ensure_ascii=False) + "\n")
            progress(index + 1)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


# What to draw. Only `random()` is used of Python's generator: of its methods, it alone is promised never to change.


def _pick(rng: random.Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def _between(rng: random.Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _compose(rng: random.Random) -> Composition:
    if rng.random() < 0.4:
        count = 1 + int(rng.random() * 4)
        return Composition(_group(rng, count), _pick(rng, PLACES))
    one, other = _pick(rng, ((1, 1), (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2)))
    first, second = _group(rng, one), _group(rng, other)
    while (second.shape, second.colour) == (first.shape, first.colour):
        second = _group(rng, other)
    return Composition(first, _pick(rng, ("above", "left of")), second)


def _group(rng: random.Random, count: int) -> Group:
    size = "small" if count == 4 else _pick(rng, SIZES)  # four large ones do not fit in a row
    return Group(count, size, _pick(rng, COLOURS), _pick(rng, SHAPES))


def _split_of(scene: Composition) -> str:
    digest = hashlib.blake2b(repr(scene).encode(), digest_size=8).digest()
    return {8: "val", 9: "test"}.get(int.from_bytes(digest, "little") % 10, "train")


def _forms(rng: random.Random, scene: Composition) -> list[Form]:
    """Five ways to say it. The plain ones are always among them; the others vary."""
    if scene.second is None:
        others = [Form("there"), Form("front"), Form("short"), Form("definite"), Form("picture")]
        others.pop(int(rng.random() * len(others)))
        return [Form("plain"), *others]
    others = [Form(name, turned=rng.random() < 0.5) for name in ("there", "front", "short", "definite")]
    others.pop(int(rng.random() * len(others)))
    return [Form("plain"), Form("plain", turned=True), *others]


def _label(scene: Composition) -> str:
    """How the shapes are arranged: one of five classes that a picture is never in doubt about."""
    if scene.second is not None:
        return "stacked" if scene.where == "above" else "side by side"
    if scene.first.count == 1:
        return "single"
    return "column" if scene.where in ("left", "right") else "row"


# Drawing it.


def _paint(rng: random.Random, scene: Composition, size: int) -> tuple[Image.Image, list[SceneObject]]:
    picture = _ground(rng, size)
    objects = []
    for group, x, y, side in _places(rng, scene):
        box = _stamp(picture, rng, group, (x * size, y * size), side * size)
        left, top, right, bottom = (round(edge / size, 4) for edge in box)
        objects.append(SceneObject(group.shape, group.colour, group.size, (left, top, right, bottom)))
    return picture, objects


def _ground(rng: random.Random, size: int) -> Image.Image:
    """A pale ground with soft clouds, so that no model can learn single pixel values by heart."""
    tone = _pick(rng, _GROUNDS)
    darker = tuple(channel - 14 for channel in tone)
    noise = bytes(int(rng.random() * 256) for _ in range(16))
    clouds = Image.frombytes("L", (4, 4), noise).resize((size, size), Image.Resampling.BICUBIC)
    ground = Image.new("RGB", (size, size), tone)
    ground.paste(darker, (0, 0), clouds)
    return ground


def _places(rng: random.Random, scene: Composition) -> list[tuple[Group, float, float, float]]:
    """Each shape's group, centre and side, as shares of the picture."""
    if scene.second is None:
        rows = [(scene.first, {"top": 0.2, "left": 0.2, "bottom": 0.8, "right": 0.8}.get(scene.where, 0.5))]
        upright = scene.where in ("left", "right")
    else:
        rows = [(scene.first, 0.27), (scene.second, 0.73)]
        upright = scene.where == "left of"
    placed = []
    for group, across in rows:
        side = _between(rng, *_SIDES[group.size])
        across += _between(rng, -0.04, 0.04)
        room = 0.96 - group.count * side
        gap = min(_between(rng, 0.04, 0.1), room / max(group.count - 1, 1))
        length = group.count * side + (group.count - 1) * gap
        slack = min((0.96 - length) / 2, 0.12 if scene.where != "middle" else 0.05)
        start = 0.5 - length / 2 + _between(rng, -slack, slack)
        for index in range(group.count):
            along = start + side / 2 + index * (side + gap)
            x, y = (across, along) if upright else (along, across)
            placed.append((group, x, y, side))
    return placed


def _stamp(
    picture: Image.Image, rng: random.Random, group: Group, centre: tuple[float, float], side: float
) -> tuple[int, int, int, int]:
    """Draw one shape and return its exact box in pixels."""
    points = _outline(group.shape, _between(rng, -8, 8))
    pixels = round(side)
    scale = pixels * _SMOOTH
    mask = Image.new("L", (scale, scale))
    ImageDraw.Draw(mask).polygon([(x * scale, y * scale) for x, y in points], fill=255)
    mask = mask.reduce(_SMOOTH)
    left, top = round(centre[0] - pixels / 2), round(centre[1] - pixels / 2)
    shift = int(_between(rng, -10, 11))
    red, green, blue = (min(255, max(0, channel + shift)) for channel in _RGB[group.colour])
    picture.paste((red, green, blue), (left, top), mask)
    x0, y0, x1, y1 = mask.getbbox() or (0, 0, pixels, pixels)
    return left + x0, top + y0, left + x1, top + y1


def _outline(shape: str, degrees: float) -> list[tuple[float, float]]:
    """The corners of a shape turned by `degrees`, fitted into the unit square and centred in it."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = [(x * cosine - y * sine, x * sine + y * cosine) for x, y in _CORNERS[shape]]
    xs, ys = [x for x, _ in turned], [y for _, y in turned]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    side = max(width, height)
    return [((x - min(xs) - width / 2) / side + 0.5, (y - min(ys) - height / 2) / side + 0.5) for x, y in turned]


def _ring(count: int, *radii: float) -> list[tuple[float, float]]:
    """Points around a centre, the first at the top, at the radii in turn."""
    return [
        (radii[i % len(radii)] * math.sin(2 * math.pi * i / count),
         -radii[i % len(radii)] * math.cos(2 * math.pi * i / count))
        for i in range(count)
    ]  # fmt: skip


def _heart(count: int) -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / count for i in range(count)]
    return [
        (16 * math.sin(a) ** 3, -13 * math.cos(a) + 5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a))
        for a in angles
    ]


_CORNERS = {
    "circle": _ring(48, 1.0),
    "square": [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
    "triangle": [(0.0, -1.0), (1.0, 0.75), (-1.0, 0.75)],
    "star": _ring(10, 1.0, 0.42),
    "heart": _heart(48),
    "diamond": [(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)],
}
