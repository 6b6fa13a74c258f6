"""Drawn scenes: the same for the same seed, whole or not there, held back for real, and true to their captions."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cutline.data.scenes import SceneObject, draw, objects_of
from cutline.errors import ConfigError, DataError
from cutline.evaluation.text import score

Row = dict[str, Any]


def rows_of(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "scenes.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("scenes") / "scenes", count=600, size=64)


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[Row]:
    return rows_of(folder)


def test_rows_and_pictures(folder: Path, rows: list[Row]) -> None:
    assert len(rows) == len({row["id"] for row in rows}) == 600
    assert Counter(row["split"] for row in rows) == {"train": 480, "val": 60, "test": 60}
    assert {row["label"] for row in rows} == {"single", "row", "column", "stacked", "side by side"}
    assert sorted(path.name for path in folder.iterdir()) == ["pictures", "scenes.json", "scenes.jsonl"]
    for row in rows:
        assert list(row["captions"]) == ["en", "de", "fr", "es"]
        assert all(len(set(captions)) == 5 for captions in row["captions"].values())
        with Image.open(folder / row["image"]) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))


def test_nothing_held_back_is_seen_in_training(rows: list[Row]) -> None:
    """The plain caption says all there is to say, so it must never be in two splits."""
    said: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for row in rows:
        said[row["split"]] |= set(row["captions"]["en"][:1])
    assert not said["train"] & said["val"]
    assert not said["train"] & said["test"]
    assert not said["val"] & said["test"]


def test_objects_are_where_the_boxes_say(folder: Path, rows: list[Row]) -> None:
    """Inside each box the picture is unlike its ground; outside all of them it is not."""
    objects = objects_of(folder)
    assert list(objects) == [row["id"] for row in rows]
    for row in rows[:150]:
        with Image.open(folder / row["image"]) as picture:
            pixels = np.asarray(picture, np.int16)
        drawn = np.abs(pixels - np.median(pixels, axis=(0, 1))).max(axis=2) > 40
        assert 1 <= len(objects[row["id"]]) <= 4
        for thing in objects[row["id"]]:
            left, top, right, bottom = (round(edge * 64) for edge in thing.box)
            inside = drawn[top:bottom, left:right]
            assert 0.14 <= max(right - left, bottom - top) / 64 <= 0.32
            assert inside.mean() > 0.25
            # The box is tight: the shape touches it on all sides, but for a smooth edge's faintest pixels.
            assert inside[:2].any()
            assert inside[-2:].any()
            assert inside[:, :2].any()
            assert inside[:, -2:].any()
            drawn[top:bottom, left:right] = False  # also shows that no two objects overlap
        assert not drawn.any()


COLOURS = {
    "red": (210, 30, 40), "orange": (250, 140, 20), "yellow": (245, 210, 20), "green": (30, 150, 60),
    "blue": (40, 80, 210), "purple": (140, 50, 170), "brown": (130, 80, 40), "black": (20, 20, 20),
}  # fmt: skip


def test_objects_have_the_colours_that_are_named(folder: Path, rows: list[Row]) -> None:
    names, colours = list(COLOURS), np.array(list(COLOURS.values()))
    objects = objects_of(folder)
    for row in rows[:150]:
        with Image.open(folder / row["image"]) as picture:
            pixels = np.asarray(picture, np.int16)
        for thing in objects[row["id"]]:
            left, top, right, bottom = (round(edge * 64) for edge in thing.box)
            middle = pixels[(top + bottom) // 2, (left + right) // 2]
            assert names[int(np.abs(colours - middle).sum(axis=1).argmin())] == thing.colour


def test_shapes_have_the_outlines_that_are_named(folder: Path) -> None:
    """How wide a shape is, beside its widest, at an eighth, a half and seven eighths of its height."""
    expected = {
        "circle": (0.7, 1.0, 0.7), "square": (0.95, 1.0, 0.95), "triangle": (0.1, 0.5, 0.9),
        "star": (0.15, 0.72, 0.4), "heart": (0.8, 0.8, 0.15), "diamond": (0.25, 1.0, 0.25),
    }  # fmt: skip
    found: dict[str, list[list[float]]] = {shape: [] for shape in expected}
    for id, things in list(objects_of(folder).items())[:300]:
        with Image.open(folder / f"pictures/{id.removeprefix('scene-')}.png") as picture:
            pixels = np.asarray(picture, np.int16)
        drawn = np.abs(pixels - np.median(pixels, axis=(0, 1))).max(axis=2) > 60
        for thing in (thing for thing in things if thing.size == "large"):
            left, top, right, bottom = (round(edge * 64) for edge in thing.box)
            widths = drawn[top:bottom, left:right].sum(axis=1)
            found[thing.shape].append([widths[int(at * (bottom - top))] / widths.max() for at in (1 / 8, 1 / 2, 7 / 8)])
    for shape, measures in found.items():
        assert len(measures) > 20
        np.testing.assert_allclose(np.median(measures, axis=0), expected[shape], atol=0.13, err_msg=shape)


def centre(things: list[SceneObject]) -> tuple[float, float]:
    boxes = np.array([thing.box for thing in things])
    return float(boxes[:, [0, 2]].mean()), float(boxes[:, [1, 3]].mean())


def test_captions_are_true(folder: Path, rows: list[Row]) -> None:
    numbers = {"a": 1, "two": 2, "three": 3, "four": 4}
    objects = objects_of(folder)
    for row in rows:
        count, size, colour, shape, *where = row["captions"]["en"][0].split()
        things = objects[row["id"]]
        named = [t for t in things if (t.size, t.colour, t.shape) == (size, colour, shape.removesuffix("s"))]
        assert len(named) == numbers[count]
        x, y = centre(named)
        others = [thing for thing in things if thing not in named]
        if others:
            other_x, other_y = centre(others)
            assert y < other_y - 0.2 if where[0] == "above" else x < other_x - 0.2
        else:
            place = where[-1]
            assert place == "middle" or {"top": -y, "bottom": y, "left": -x, "right": x}[place] > {
                "top": -0.35, "bottom": 0.65, "left": -0.35, "right": 0.65,
            }[place]  # fmt: skip
            assert place != "middle" or max(abs(x - 0.5), abs(y - 0.5)) < 0.15


def test_small_and_large_cannot_be_mistaken(folder: Path) -> None:
    sides: dict[str, list[float]] = {"small": [], "large": []}
    for things in objects_of(folder).values():
        for left, top, right, bottom in (thing.box for thing in things):
            sides[next(t.size for t in things if t.box == (left, top, right, bottom))].append(
                max(right - left, bottom - top)
            )
    assert min(sides["large"]) > 1.2 * max(sides["small"])


def test_seeing_pays(rows: list[Row]) -> None:
    """What is always there to say scores full marks, and no guess comes near."""
    test = [row for row in rows if row["split"] == "test"]
    references = {row["id"]: row["captions"]["en"] for row in test}
    seen = score({row["id"]: row["captions"]["en"][0] for row in test}, references)
    assert seen.bleu[3] == pytest.approx(100)
    common, _ = Counter(text for row in rows for text in row["captions"]["en"]).most_common(1)[0]
    assert score(dict.fromkeys(references, common), references).bleu[3] < 25
    bags = {id: " ".join(sorted(texts[0].split())) for id, texts in references.items()}
    assert score(bags, references).bleu[3] < 25


def test_a_seed_is_a_corpus(tmp_path: Path, folder: Path, rows: list[Row]) -> None:
    # Another process, since hashing with a seed of its own must not matter.
    code = "import sys; from cutline.data.scenes import draw; draw(sys.argv[1], count=30, size=64)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True)
    again = contents(tmp_path / "again")
    assert rows_of(tmp_path / "again") == rows[:30]  # a smaller corpus is the beginning of a larger one
    assert all(data == (folder / name).read_bytes() for name, data in again.items() if name.endswith(".png"))
    other = draw(tmp_path / "other", count=30, size=64, seed=1)
    assert all(a["captions"] != b["captions"] for a, b in zip(rows, rows_of(other)))


def test_languages_are_chosen_and_do_not_change_the_pictures(tmp_path: Path, rows: list[Row]) -> None:
    spanish = rows_of(draw(tmp_path / "scenes", count=10, size=64, languages=("es", "es")))
    assert [row["captions"] for row in spanish] == [{"es": row["captions"]["es"]} for row in rows[:10]]


def test_what_is_drawn_is_used_again(tmp_path: Path) -> None:
    out = draw(tmp_path / "scenes", count=5, size=32)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    seen: list[int] = []
    assert draw(tmp_path / "scenes", count=5, size=32, progress=seen.append) == out
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    assert not seen


def test_progress(tmp_path: Path) -> None:
    seen: list[int] = []
    (tmp_path / "scenes").mkdir()  # an empty folder is as good as none
    draw(tmp_path / "scenes", count=3, size=32, progress=seen.append)
    assert seen == [1, 2, 3]


def test_other_things_are_never_overwritten(tmp_path: Path) -> None:
    out = draw(tmp_path / "scenes", count=5, size=32)
    before = contents(out)
    with pytest.raises(DataError, match="count 5 there, 6 asked for"):
        draw(out, count=6, size=32)
    with pytest.raises(DataError, match="seed 0 there, 1 asked for"):
        draw(out, count=5, size=32, seed=1)
    assert contents(out) == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"...")
    (tmp_path / "file").write_text("mine")
    for mine in ("photos", "file"):
        with pytest.raises(DataError, match="holds something other than scenes"):
            draw(tmp_path / mine, count=5, size=32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos", "scenes"]
    (out / "scenes.jsonl").unlink()
    with pytest.raises(DataError, match="has lost some of its scenes"):
        draw(out, count=5, size=32)


def test_a_killed_drawing_leaves_nothing_that_is_taken_for_a_corpus(tmp_path: Path) -> None:
    code = "import sys; from cutline.data.scenes import draw; draw(sys.argv[1], count=10**6, size=32)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "scenes")])
    until = time.monotonic() + 20
    while len(list(tmp_path.rglob("*.png"))) < 20 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.rglob("*.png"))) >= 20
    assert not (tmp_path / "scenes").exists()
    assert len(rows_of(draw(tmp_path / "scenes", count=5, size=32))) == 5


def test_two_drawings_at_once_are_one(tmp_path: Path) -> None:
    code = "import sys; from cutline.data.scenes import draw; draw(sys.argv[1], count=60, size=32)"
    command = [sys.executable, "-c", code, str(tmp_path / "scenes")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]
    assert len(objects_of(tmp_path / "scenes")) == 60


def test_an_interrupted_drawing_cleans_up(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "scenes", count=5, size=32, progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "cannot draw 0 scenes"),
        ({"size": 8}, "scenes of 8 pixels"),
        ({"size": 10**6}, "scenes of 1000000 pixels"),
        ({"languages": ()}, "at least one language"),
        ({"languages": ("en", "xx")}, "unknown language 'xx'"),
    ],
)
def test_wrong_settings(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw(tmp_path / "scenes", **wrong)
    assert not list(tmp_path.iterdir())


def test_nowhere_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot draw scenes into"):
        draw(tmp_path / "file" / "scenes", count=5)


def test_objects_of_what_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scenes in"):
        objects_of(tmp_path)
    (tmp_path / "scenes.jsonl").write_text('{"id": "a", "objects": []}\n{"id": 3}\n')
    with pytest.raises(DataError, match=r"scenes\.jsonl:2: not a scene"):
        objects_of(tmp_path)
