"""Random changes of pictures: what they change, what they leave, and that the same draws make the same picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cutline.config import PicturesConfig
from cutline.engine import augment
from cutline.engine.augment import augments, change, mix

SIDE = 32
GREY = (0.5, 0.5, 0.5)


def draw(*path: int) -> np.random.Generator:
    return np.random.default_rng(path)


def picture(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "config",
    [
        PicturesConfig(augment_crop=0.5),
        PicturesConfig(augment_colour=0.4),
        PicturesConfig(augment_rand=15),
        PicturesConfig(augment_erase=1.0),
    ],
)
def test_the_same_draws_make_the_same_picture_and_others_another(config: PicturesConfig) -> None:
    given = picture()
    kept = given.clone()
    made = [change(given, config, GREY, draw(seed)) for seed in (1, 1, *range(2, 8))]
    assert torch.equal(made[0], made[1])
    assert len({each.numpy().tobytes() for each in made}) > 4
    assert all(each.shape == given.shape and each.dtype == torch.uint8 for each in made)
    assert torch.equal(given, kept)  # it may be the one that is kept decoded
    assert augments(config)


@pytest.mark.parametrize("share", [0.95, 0.8, 0.5])
def test_a_crop_keeps_the_share_that_is_promised(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[float] = []

    def crop(
        name: str, given: Tensor, top: int, left: int, height: int, width: int, *rest: object, **more: object
    ) -> Tensor:
        kept.append(height * width / 1000**2)
        return given

    monkeypatch.setattr(augment, "_vision", crop)
    large = torch.zeros(3, 1000, 1000, dtype=torch.uint8)
    for seed in range(200):
        change(large, PicturesConfig(augment_crop=share), GREY, draw(seed))
    assert share - 0.002 < min(kept) < share + 0.02  # sides are whole pixels
    assert max(kept) > 0.98


def test_without_settings_nothing_changes() -> None:
    assert not augments(PicturesConfig())
    assert torch.equal(change(picture(), PicturesConfig(), GREY, draw(0)), picture())


@pytest.mark.parametrize("name", range(len(augment._CHANGES)))
def test_each_of_the_fourteen_changes_grows_with_its_strength(name: int) -> None:
    made = augment._CHANGES[name]
    ramp = torch.linspace(0, 200, SIDE)
    given = (torch.stack([ramp.expand(SIDE, SIDE), ramp.expand(SIDE, SIDE).T, ramp.expand(SIDE, SIDE) / 2])).byte()
    given += picture() // 8

    def off(by: float) -> float:
        return float((made(given, by, [127.0] * 3).float() - given.float()).abs().mean())

    weak, strong = off(0.1), off(1.0)
    if name in (0, 1, 2):  # nothing at all; and those that know no strength
        assert weak == strong
    else:
        assert 0 <= weak < strong
    assert len(augment._CHANGES) == 14


def test_erasing_leaves_a_rectangle_of_the_mean() -> None:
    given = picture()
    for seed in range(20):
        made = change(given, PicturesConfig(augment_erase=1.0), (0.2, 0.4, 0.6), draw(seed))
        gone = (made != given).any(0)
        rows, columns = gone.any(1).nonzero()[:, 0], gone.any(0).nonzero()[:, 0]
        box = made[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == torch.tensor([51, 102, 153], dtype=torch.uint8)[:, None, None]).all()
        assert 0.01 < box[0].numel() / SIDE**2 < 0.37


def test_a_share_of_the_pictures_is_erased() -> None:
    config, given = PicturesConfig(augment_erase=0.25), picture()
    changed = sum(not torch.equal(change(given, config, GREY, draw(seed)), given) for seed in range(400))
    assert 70 < changed < 130


# Two pictures in one ------------------------------------------------------------------------------------------------


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Black, grey and white pictures, each a class of its own."""
    levels = torch.tensor([0, 100, 200], dtype=torch.uint8)
    return levels[:, None, None, None].expand(3, 3, SIDE, SIDE).clone(), torch.eye(3)


@pytest.mark.parametrize("config", [PicturesConfig(augment_mixup=0.8), PicturesConfig(augment_cutmix=1.0)])
def test_labels_are_mixed_as_the_pictures_are(batch: tuple[Tensor, Tensor], config: PicturesConfig) -> None:
    pictures, labels = batch
    shares = set()
    for seed in range(10):
        mixed, parts = mix(pictures, labels, config, [draw(seed, at) for at in range(3)])
        torch.testing.assert_close(parts.sum(1), torch.ones(3))
        for at in range(3):
            own, other = pictures[at, 0, 0, 0].item(), pictures[at - 1, 0, 0, 0].item()
            share = float(parts[at, at])
            assert float(parts[at, at - 1]) == pytest.approx(1 - share, abs=1e-6)
            assert float(mixed[at].float().mean()) == pytest.approx(share * own + (1 - share) * other, abs=0.51)
            shares.add(round(share, 3))
    assert len(shares) > 10
    assert torch.equal(pictures, batch[0])


def test_cutmix_keeps_pixels_whole_and_mixup_does_not(batch: tuple[Tensor, Tensor]) -> None:
    pictures, labels = batch
    draws = [draw(3, at) for at in range(3)]
    cut, _ = mix(pictures, labels, PicturesConfig(augment_cutmix=1.0), draws)
    assert set(cut.unique().tolist()) <= {0, 100, 200}
    blended, _ = mix(pictures, labels, PicturesConfig(augment_mixup=1.0), draws)
    assert not set(blended.unique().tolist()) <= {0, 100, 200}


def test_of_mixup_and_cutmix_each_is_drawn_half_of_the_time(batch: tuple[Tensor, Tensor]) -> None:
    both = PicturesConfig(augment_mixup=1.0, augment_cutmix=1.0)
    blends = 0
    for seed in range(100):
        mixed, _ = mix(*batch, both, [draw(seed, at) for at in range(3)])
        blends += int(not set(mixed[1].unique().tolist()) <= {0, 100})
    assert 30 < blends < 70
