"""Pictures seen several times: each view is what it says, and the mean over them is what is judged by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cutline.data.corpus import Sample
from cutline.data.views import views
from cutline.errors import ConfigError
from cutline.evaluation.judge_classes import judge_classes


def test_two_views_are_the_picture_and_its_mirror_image() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    one, other = views(pictures, 2)
    assert (one == pictures).all()
    assert all((other[:, :, column] == pictures[:, :, 6 - column]).all() for column in range(7))


def test_ten_views_look_a_little_to_each_corner() -> None:
    rows, columns = np.mgrid[0:32, 0:48]
    picture = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)[None]
    seen = views(picture, 10)
    assert len(seen) == 10
    middles = [tuple(each[0, 16, 24, :2].tolist()) for each in seen[:5]]
    assert middles == [(16, 24), (14, 21), (14, 27), (18, 21), (18, 27)]  # a sixteenth of each side away
    for each, mirrored in zip(seen[:5], seen[5:], strict=True):
        assert (mirrored == each[:, :, ::-1]).all()


def test_other_numbers_of_views_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 views of a picture"):
        views(np.zeros((1, 8, 8, 3), np.uint8), 3)


class Leaning:
    """Says left or right by where the light is, so that a mirror image says the opposite; and up by the top."""

    classes, temperature = ("left", "right", "up"), 2.0

    def pixels(self, path: Path) -> np.ndarray:
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[:4, :2] = int(path.stem)
        return picture

    def logits(self, pictures: np.ndarray) -> np.ndarray:
        light = pictures[..., 0].astype(float)
        return (
            np.stack([light[:, :, :4].sum((1, 2)), light[:, :, 4:].sum((1, 2)), light[:, :4].sum((1, 2)) / 1.5], 1)
            / 800
        )


def test_several_views_are_judged_by_the_mean_of_what_is_said_of_each() -> None:
    samples = [Sample(f"{light}.png", Path(f"{light}.png"), label="left") for light in (100, 200)]
    once = judge_classes(Leaning(), samples)
    assert once.scores.accuracy == 100
    twice = judge_classes(Leaning(), samples, seen=2)
    assert twice.scores.accuracy == 0  # left and right are as likely now, and up is likelier
    for light in (100, 200):
        logits = np.array([light * 8 / 2, light * 8 / 2, light * 8 / 1.5]) / 800
        wanted = np.exp(logits / 2.0) / np.exp(logits / 2.0).sum()
        np.testing.assert_allclose(twice.probabilities[f"{light}.png"], wanted, rtol=1e-9)
