"""How much attention looks at the thing being named, checked by hand-made attention."""

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cutline.cli.finish import _looks
from cutline.data.grammar import LANGUAGES, Composition, Form, Group, say
from cutline.data.readers import read_corpus
from cutline.data.scenes import SceneObject
from cutline.errors import ConfigError
from cutline.evaluation.focus import focus

RED = SceneObject("circle", "red", "small", (0.0, 0.0, 0.5, 0.25))
BLUE = SceneObject("star", "blue", "large", (0.5, 0.5, 1.0, 1.0))


@dataclass
class Caption:
    words: tuple[str, ...]
    attention: Any


def looking(text: str, cells: Any) -> Caption:
    """A caption whose every word looks at the same cells."""
    words = tuple(text.split())
    cells = np.asarray(cells, float)
    return Caption(words, np.stack([cells / cells.sum()] * len(words)))


def on(*rows_and_columns: tuple[int, int], side: int = 4) -> np.ndarray:
    cells = np.zeros((side, side))
    for row, column in rows_and_columns:
        cells[row, column] = 1
    return cells


def test_all_on_the_object() -> None:
    found = focus([(looking("a small red circle above a blue thing", on((0, 0), (0, 1))), [RED, BLUE])], "en")
    assert found.mass == pytest.approx(1)
    assert found.area == pytest.approx(0.125)
    assert found.ratio == pytest.approx(8)
    assert found.words == 1
    assert str(found) == (
        "100.0% of the attention of the one word that names a shape lies on that shape, "
        "which takes up 12.5% of the picture: 8.0 times its share"
    )


def test_only_the_word_that_names_the_shape_counts() -> None:
    caption = looking("a red circle", on((3, 3)))
    caption.attention[2] = on((0, 0))
    assert focus([(caption, [RED])], "en").mass == pytest.approx(1)


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.37, 0.9), (0.0, 0.0, 1.0, 1.0), (0.31, 0.3, 0.33, 0.31)])
def test_looking_everywhere_alike_gives_the_area(box: Any) -> None:
    found = focus([(looking("the red circle", np.ones((7, 7))), [SceneObject("circle", "red", "small", box)])], "en")
    assert found.mass == pytest.approx(found.area) == pytest.approx((box[2] - box[0]) * (box[3] - box[1]))
    assert found.ratio == pytest.approx(1)


def test_looking_at_the_other_object() -> None:
    assert focus([(looking("a red circle", on((3, 3), (2, 2))), [RED, BLUE])], "en").mass == pytest.approx(0)


def test_a_cell_that_a_box_covers_in_part_counts_in_part() -> None:
    box = SceneObject("circle", "red", "small", (0.0, 0.0, 0.125, 0.125))  # a quarter of the first of 4 x 4 cells
    assert focus([(looking("red circle", on((0, 0))), [box])], "en").mass == pytest.approx(0.25)


def test_rows_go_down_and_columns_to_the_right() -> None:
    upper_right = SceneObject("circle", "red", "small", (0.7, 0.0, 1.0, 0.25))  # cut more often across than down
    assert focus([(looking("red circle", on((0, 3))), [upper_right])], "en").mass == pytest.approx(1)
    assert focus([(looking("red circle", on((3, 0))), [upper_right])], "en").mass == pytest.approx(0)


def test_a_group_is_all_its_objects_and_overlap_counts_once() -> None:
    one = SceneObject("circle", "red", "small", (0.0, 0.0, 0.5, 0.5))
    other = SceneObject("circle", "red", "small", (0.25, 0.0, 0.75, 0.5))
    found = focus([(looking("two red circles", on((0, 0), (1, 2), (3, 3))), [one, other, BLUE])], "en")
    assert found.area == pytest.approx(0.375)
    assert found.mass == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("a red circle", [RED, SceneObject("circle", "red", "large", (0.5, 0.5, 0.9, 0.9))]),  # which of the two?
        ("a green circle", [RED, BLUE]),  # not there
        ("a red star", [RED, BLUE]),
        ("a circle", [RED, BLUE]),  # no colour beside it
        ("circle red", [RED]),  # not beside it as English has it
        ("red and circle", [RED]),
        ("red", [RED]),
        ("a red circle", []),
        ("", [RED]),
    ],
)
def test_what_names_nothing_or_too_much_is_passed_over(text: str, objects: list[SceneObject]) -> None:
    good = looking("the blue star", on((3, 3)))
    bad = looking(text, on((0, 0))) if text else Caption((), np.zeros((0, 4, 4)))
    found = focus([(bad, objects), (good, [BLUE])], "en")
    assert (found.words, found.mass) == (1, pytest.approx(1))


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_form_of_every_language_is_understood(lang: str, count: int) -> None:
    for shape, other in (("star", "circle"), ("heart", "diamond"), ("triangle", "square")):
        for colour, another in (("red", "purple"), ("orange", "brown"), ("black", "blue")):
            one, two = Group(count, "small", colour, shape), Group(1, "large", another, other)
            objects = [SceneObject(g.shape, g.colour, g.size, (0, 0, 0.5, 0.5)) for g in (one, two)]
            for form in (Form("plain"), Form("there", turned=True), Form("front"), Form("definite")):
                text = say(lang, Composition(one, "left of", two), form)
                assert focus([(looking(text, on((0, 0))), objects)], lang).words == 2, text


def test_articles_and_punctuation_that_stick_to_a_word() -> None:
    star = SceneObject("star", "yellow", "small", (0, 0, 1, 1))
    assert focus([(looking("L'étoile jaune, au centre", on((0, 0))), [star])], "fr").words == 1
    assert focus([(looking("« une étoile jaune »", on((0, 0))), [star])], "fr").words == 1


def test_nothing_to_measure_is_said() -> None:
    found = focus([(Caption(("red", "circle"), None), [RED])], "en")
    assert found.words == 0
    assert math.isnan(found.mass)
    assert math.isnan(found.ratio)
    assert "cannot be told" in str(found)


def test_the_mean_is_over_words() -> None:
    pairs = [(looking("a red circle", on((0, 0))), [RED]), (looking("a blue star", on((0, 0))), [BLUE])]
    found = focus(pairs, "en")
    assert (found.words, found.mass, found.area) == (2, pytest.approx(0.5), pytest.approx((0.125 + 0.25) / 2))


def test_a_language_that_scenes_do_not_have() -> None:
    with pytest.raises(ConfigError, match="unknown language 'it'"):
        focus([], "it")


def test_a_table_of_the_users_that_names_pictures_of_scenes_has_no_figure(scenes_folder: Path) -> None:
    """Neither under its own names for them, nor in a language that scenes are not described in."""
    first = read_corpus(scenes_folder).samples[0]
    caption = looking("a red circle", on((0, 0)))
    for lang, id, told in (
        ("en", first.id, True),
        ("en", f"pictures/{first.image.name}", False),
        ("cs", first.id, False),
    ):
        judged = SimpleNamespace(captions={id: caption})
        assert bool(_looks([first], {lang: judged})) == told
