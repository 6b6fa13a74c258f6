"""The report of a classifier, and what is seen inside of one."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cutline.config import EncoderConfig, PicturesConfig
from cutline.evaluation.classes import UNKNOWN
from cutline.models.encoders import Features, build_encoder
from cutline.report import Classified, write_class_report
from cutline.report.embedding import pca, tsne
from cutline.report.figures import matrix, scatter, sheet
from cutline.report.inside import Inside

EVIL = "<script>alert('x')</script> & \"quotes\" \udc80"
NAMES = ("cat", "dog", EVIL)


class Small(nn.Module):
    """What `Inside` knows of a classifier: an encoder, and logits from pictures."""

    def __init__(self, classes: int, encoder: str = "small") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = build_encoder(EncoderConfig(name=encoder), PicturesConfig(size=48))
        self.head = nn.Linear(self.encoder.pooled_channels, classes)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = self.head(self.encoder(inputs[0]).pooled)
        return logits


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8)).save(path)
    return paths


def found(pictures: Sequence[Path], **changes: Any) -> Classified:
    """Twelve pictures of three classes; 1 and 2 are mistaken, 2 the more surely, and 3 is of a class not known."""
    labels = np.arange(12) % 3
    logits = np.eye(3)[labels] * 2.0
    logits[1], logits[2] = (1.5, 0, 0), (4.0, 0, 0)
    labels[3] = UNKNOWN
    return Classified(**{"pictures": pictures, "labels": labels, "logits": logits, "names": NAMES} | changes)


EVENTS = [
    {"kind": "step", "step": 1, "loss": 2.0, "rate": 1e-3},
    {"kind": "validation", "step": 1, "accuracy": 50.0, "top5": 90.0, "macro_f1": 40.0, "nll": 1.5},
    {"kind": "validation", "step": 2, "accuracy": 60.0, "top5": 95.0, "macro_f1": 50.0, "nll": 1.2},
]


def write(folder: Path, classified: Classified, **given: Any) -> str:
    path = write_class_report(
        folder / "report.html", title="A run", facts={"encoder": EVIL}, found=classified, events=EVENTS, **given
    )
    return path.read_text(encoding="utf-8")


def section(page: str, name: str) -> str:
    """What is below a heading, up to the next."""
    return page.partition(f"<h2>{name}</h2>")[2].partition("<h2>")[0]


def texts(part: str, tag: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(rf"<{tag}\b[^>]*>([^<]*)</{tag}>", part)]


def test_the_page_without_the_model(tmp_path: Path, pictures: list[Path]) -> None:
    page = write(tmp_path, found(pictures, temperature=1.5))
    assert texts(page, "h2") == [
        "Scores", "Surest mistakes", "Found rightly", "What is taken for what", "Classes", "Calibration",
        "Curves of classes", "Learning", "Settings",
    ]  # fmt: skip
    assert texts(section(page, "Scores"), "dd")[0] == "75.0"
    assert texts(section(page, "Learning"), "b") == [
        "Training loss", "Validation accuracy", "Validation nats", "Learning rate"
    ]  # fmt: skip
    assert "before the temperature of 1.50 it was" in section(page, "Calibration")
    assert "Grad-CAM" not in page


def test_mistakes_come_by_how_sure_they_were(tmp_path: Path, pictures: list[Path]) -> None:
    part = section(write(tmp_path, found(pictures)), "Surest mistakes")
    files = [text for text in texts(part, "p") if text.endswith(".png")]
    assert files == ["2.png", "3.png", "1.png"]
    shown = [text for text in texts(part, "p") if not text.endswith(".png")]
    assert shown[-3:] == [EVIL.replace("\udc80", "\\udc80"), "a class it does not know", "dog"]
    guesses = texts(part, "span")
    assert guesses[:2] == ["cat", "96.5 %"]
    assert len(re.findall("<meter", part)) == 9


def test_everything_is_text_and_nothing_is_fetched(tmp_path: Path, pictures: list[Path]) -> None:
    page = write(tmp_path, found(pictures), inside=Inside(Small(3), _transform()), notes=[EVIL])
    assert "<script" not in page
    assert EVIL.replace("\udc80", "\\udc80") in html.unescape(page)
    for value in re.findall(r'(?:src|href|style|action)="([^"]*)"', page):
        assert value.startswith(("#", "data:image/"))


def test_a_picture_that_is_gone_is_in_the_scores_and_not_on_the_page(tmp_path: Path, pictures: list[Path]) -> None:
    pictures[2].unlink()
    page = write(tmp_path, found(pictures), inside=Inside(Small(3), _transform()))
    assert texts(section(page, "Scores"), "dd")[0] == "75.0"
    assert "2.png" not in texts(section(page, "Surest mistakes"), "p")


def test_all_right_or_all_of_one_class(tmp_path: Path, pictures: list[Path]) -> None:
    right = found(pictures, labels=np.arange(12) % 3, logits=np.eye(3)[np.arange(12) % 3] * 9.0)
    assert "Surest mistakes" not in texts(write(tmp_path, right), "h2")
    one = found(pictures, labels=np.zeros(12, int), logits=np.tile([0.0, 1.0, 2.0], (12, 1)))
    headings = texts(write(tmp_path, one), "h2")
    assert "Curves of classes" not in headings
    assert "Found rightly" not in headings


def test_a_thousand_classes_make_a_page_that_can_be_opened(tmp_path: Path, pictures: list[Path]) -> None:
    names = [f"class {number}" for number in range(1000)]
    logits = np.random.default_rng(0).normal(size=(12, 1000))
    page = write(tmp_path, found(pictures, names=names, logits=logits))
    assert len(page) < 2_000_000
    assert "Of 1,000 classes, the 40 that are mistaken most." in page
    assert "All 1,000 classes" in page


# Figures ----------------------------------------------------------------------------------------------------------


def test_the_matrix_tells_each_cell() -> None:
    drawn = matrix(np.array([[3, 1], [0, 2]]), ["cat", "dog"], np.array([4, 2]))
    assert texts(drawn, "title") == ["cat as such: 3 of 4", "cat taken for dog: 1 of 4", "dog as such: 2 of 2"]
    shades = [float(shade) for shade in re.findall(r'fill-opacity="([^"]*)"', drawn)]
    assert shades == [0.78, 0.34, 1.0]


def test_cells_of_some_classes_are_shares_of_all_their_pictures(tmp_path: Path) -> None:
    """Each of 41 classes is found once and taken for the next once; 40 are shown, the last one's mistake is not."""
    labels = np.repeat(np.arange(41), 2)
    taken = (labels + np.arange(82) % 2) % 41
    several = Classified([tmp_path / "gone.png"] * 82, labels, np.eye(41)[taken], [f"class {k}" for k in range(41)])
    told = texts(section(write(tmp_path, several), "What is taken for what"), "title")
    assert "class 39 as such: 1 of 2" in told
    assert len(told) == 40 + 39


def test_names_stay_within_their_figures() -> None:
    wide = "绿色的东西和其他很多很多东西的名字非常长"
    names = [f"Donaudampfschifffahrtsgesellschaft {n}" for n in range(4)] + [wide]
    drawn = scatter("A map", np.array([[0.0, 0], [1, 0], [0, 1], [1, 1], [1, 0.5]]), names, list("12345"))
    for at, name in re.findall(r'<text x="([^"]*)"[^>]*>([^<]*)<', drawn):
        half = 6 * sum(1 + (letter in wide) for letter in name) / 2
        assert half <= float(at) <= 640 - half
    drawn = matrix(np.eye(2, dtype=int), [wide, "b"], np.ones(2, int))
    name, room = texts(drawn, "text")[0], float(re.findall(r'<text x="([^"]*)"', drawn)[0])
    assert name.endswith("…")
    assert room >= 12 * (len(name) - 1)


def test_very_long_names_leave_room_for_the_rest(tmp_path: Path, pictures: list[Path]) -> None:
    """Both names of a mistake begin a row, and wrap where the page is narrow; so do those of a chart's lines."""
    page = write(tmp_path, found(pictures))
    mistakes = section(page, "What is taken for what").rpartition("<tbody>")[2]
    assert texts(mistakes, "th")[:2] == ["dog", "cat"]
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert all(re.search(rf"{what} {{[^}}]*overflow-wrap: anywhere", style) for what in (r"tbody th", r"\.key"))


def test_the_map_has_every_picture_in_its_classs_colour() -> None:
    points = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    drawn = scatter("A map", points, ["b", "a", "a", "b"], ["1", "2", "3", "4"])
    assert texts(drawn, "title") == ["2", "3", "1", "4"]
    assert len(set(re.findall(r'fill="(hsl[^"]*)"', drawn))) == 2
    places = re.findall(r'cx="([^"]*)" cy="([^"]*)"', drawn)
    assert len(set(places)) == 4
    assert texts(drawn, "text") == ["a"]  # the other name would lie over it
    apart = scatter("A map", np.array([[0.0, 0], [1, 1]]), ["a", "b"], ["1", "2"])
    assert texts(apart, "text") == ["a", "b"]


def test_a_sheet_is_each_square_over_its_own_range() -> None:
    drawn = sheet([np.array([[0.0, 1], [2, 3]]), np.array([[0.0, 10], [20, 30]])], scale=2, columns=2)
    data = re.search(r"base64,([^\"]*)", drawn)
    assert data
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("L"))
    assert pixels.shape == (4, 10)
    assert (pixels[:, :4] == pixels[:, 6:]).all()
    assert pixels[0, 0] == 0
    assert pixels[-1, -1] == 255


def test_components_and_neighbours() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(3, 10) * 20, 10, axis=0) + rng.normal(size=(30, 10))
    two = pca(groups, 2)
    assert two.shape == (30, 2)
    np.testing.assert_allclose(two.mean(0), 0, atol=1e-9)
    assert two[:, 0].var() >= two[:, 1].var()
    near = tsne(groups)
    apart = np.linalg.norm(near[:, None] - near[None], axis=-1)
    same = np.repeat(np.arange(3), 10)
    neighbours = (apart + 1e9 * np.eye(30)).argmin(1)
    assert (same[neighbours] == same).all()
    assert (tsne(groups) == near).all()  # the same each time
    assert not tsne(np.full((41, 10), 0.1, np.float32)).any()  # of an encoder that sees the same in every picture


# Inside -----------------------------------------------------------------------------------------------------------


def _transform() -> Any:
    return build_encoder(EncoderConfig(), PicturesConfig(size=48)).transform


@pytest.mark.parametrize("encoder", ["small", "cnn:width=8,stages=3"])
def test_heat_lies_where_the_reason_is(encoder: str, tmp_path: Path) -> None:
    """A head that adds up one channel: the heat must lie where that channel is high."""
    picture = np.full((48, 48, 3), 128, np.uint8)
    picture[:, 24:] = np.random.default_rng(0).integers(0, 256, (48, 24, 3))
    Image.fromarray(picture).save(tmp_path / "half.png")
    model = Small(2, encoder).eval()
    grid = model.encoder(torch.from_numpy(picture).permute(2, 0, 1)[None]).grid[0].detach()
    side = model.encoder.grid_side
    left, right = grid.unflatten(0, (side, side)).chunk(2, 1)
    strongest = int((right.mean((0, 1)) - left.mean((0, 1))).argmax())
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[1, strongest] = 1
        model.head.weight[0, strongest] = -1
    inside = Inside(model, model.encoder.transform)
    (heat,) = inside.heats([tmp_path / "half.png"], [1])
    assert heat is not None
    np.testing.assert_allclose(
        heat / heat.max(), (g := grid[:, strongest].reshape(side, side).numpy()) / g.max(), atol=1e-5
    )
    assert heat[:, side // 2 :].sum() > heat[:, : side // 2].sum()
    (against,) = inside.heats([tmp_path / "half.png"], [0])
    assert against is not None
    assert not against.any()  # nothing speaks for the other class
    assert all(parameter.grad is None for parameter in model.parameters())


def test_heat_is_of_a_grid_fine_enough_to_point(pictures: list[Path]) -> None:
    model = Small(3)
    model.encoder = build_encoder(EncoderConfig(), PicturesConfig(size=24))
    assert model.encoder.grid_side == 2
    (heat,) = Inside(model, model.encoder.transform).heats(pictures[:1], [0])
    assert heat is not None
    assert heat.shape == (4, 4)


def test_a_frozen_encoder_can_be_asked_as_well(pictures: list[Path]) -> None:
    model = Small(3)
    model.requires_grad_(False)
    heats = Inside(model, model.encoder.transform).heats(pictures, [0] * len(pictures))
    assert len(heats) == 12
    assert any(heat is not None and heat.any() for heat in heats)


def test_filters_maps_and_features(pictures: list[Path]) -> None:
    inside = Inside(Small(3), _transform())
    filters = inside.filters()
    assert filters is not None
    assert filters.shape == (32, 5, 5, 3)
    assert list(inside.maps(pictures[0])) == ["16 x 16", "8 x 8", "4 x 4"]
    assert inside.features(pictures).shape == (12, 192)
    assert inside.features([]).shape == (0, 0)


@pytest.mark.parametrize(
    ("name", "looks"),
    [("vit_tiny_patch16_224", False), ("resnet10t", True), pytest.param("vgg11", True, marks=pytest.mark.slow)],
)
def test_patches_that_become_a_list_are_no_grid(name: str, looks: bool, pictures: list[Path]) -> None:
    """The last grid of a vision transformer is of its patches as they come in, before it has thought of them at all."""
    model = Small(3)
    model.encoder = build_encoder(EncoderConfig(name=name, weights="none"), PicturesConfig(size=48))
    model.head = nn.Linear(model.encoder.pooled_channels, 3)
    inside = Inside(model, model.encoder.transform)
    assert inside.looks == looks
    (heat,) = inside.heats(pictures[:1], [0])
    assert (heat is not None) == looks


class Plain(nn.Module):
    """A network of layers without a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 48 * 48, 16)
        self.pooled_channels = 16

    def forward(self, pictures: Tensor) -> Features:
        pooled = self.first(pictures.float().flatten(1))
        return Features(pooled[:, None], pooled)


def test_a_network_without_a_grid(tmp_path: Path, pictures: list[Path]) -> None:
    model = Small(3)
    model.encoder, model.head = Plain(), nn.Linear(16, 3)  # type: ignore[assignment]
    inside = Inside(model, _transform())
    assert not inside.looks
    assert inside.heats(pictures[:2], [0, 1]) == [None, None]
    assert inside.maps(pictures[0]) == {}
    filters = inside.filters()
    assert filters is not None
    assert filters.shape == (16, 48, 48, 3)
    page = write(tmp_path, found(pictures), inside=inside)
    assert "Grad-CAM" not in page


def test_the_page_with_the_model(tmp_path: Path, pictures: list[Path]) -> None:
    model = Small(3)
    page = write(
        tmp_path, found(pictures), inside=Inside(model, model.encoder.transform), transform=model.encoder.transform
    )
    assert "Map of the pictures" in texts(page, "h2")
    assert "where it looked" in section(page, "Surest mistakes")
    assert "The first layer's filters (32 of 32)" in texts(section(page, "Inside"), "b")
    assert page == write(
        tmp_path, found(pictures), inside=Inside(model, model.encoder.transform), transform=model.encoder.transform
    )
