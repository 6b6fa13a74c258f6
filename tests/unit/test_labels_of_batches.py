"""What batches say of classes: labels, how often small classes are shown, and who is mixed with whom."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutline.config import PicturesConfig
from cutline.data.corpus import Sample
from cutline.data.images import Transform
from cutline.engine.batches import Batch, Batches, Labels
from cutline.engine.classes import evening, numbered
from cutline.engine.sources import PictureSource
from cutline.evaluation.classes import UNKNOWN

SIDE = 16
SIZES = {"ant": 12, "bee": 3, "cat": 1}
NAMES = tuple(SIZES)
PLAIN = PicturesConfig()


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Pictures of three classes, twelve, three and one; the colour of each tells its number."""
    found = []
    for label, count in SIZES.items():
        for _ in range(count):
            path = tmp_path / f"{len(found)}.png"
            pixels = np.full((SIDE, SIDE, 3), len(found), np.uint8)
            pixels[:, SIDE // 2 :, 0] = 255  # the right half, so that it shows when a picture is mirrored
            Image.fromarray(pixels).save(path)
            found.append(Sample(path.name, path, label=label))
    return found


def batches(samples: list[Sample], config: PicturesConfig = PLAIN, **options: object) -> Batches:
    evenly = bool(options.pop("evenly", False))
    labels = Labels(numbered(samples, NAMES), len(NAMES), evenly=evenly)
    source = PictureSource(samples, Transform(size=SIDE), config)
    names = [sample.id for sample in samples]
    return Batches(source, None, config, names=names, seed=5, batch=4, labels=labels, **options)  # type: ignore[arg-type]


def shown(data: Batches, epoch: int) -> list[int]:
    return [int(number) for batch in data.iterate(epoch, 0, 0) for number in batch.pictures]


def equal(one: Batch, other: Batch) -> bool:
    assert one.labels is not None
    assert other.labels is not None
    return torch.equal(one.labels, other.labels) and all(map(torch.equal, one.inputs, other.inputs))


def test_every_picture_comes_with_its_class(samples: list[Sample]) -> None:
    data = batches(samples)
    seen = []
    for batch in data.iterate(0, 0, 0):
        assert batch.labels is not None
        assert batch.amount == len(batch) == len(batch.labels)
        for picture, label in zip(batch.inputs[0], batch.labels, strict=True):
            number = int(picture[2, 0, 0])
            seen.append(number)
            assert NAMES[int(label.argmax())] == samples[number].label
            assert float(label.sum()) == 1
    assert sorted(seen) == list(range(len(samples)))


def test_a_picture_of_no_known_class_has_an_empty_label(samples: list[Sample]) -> None:
    numbers = numbered([*samples[:1], Sample("x", samples[0].image), Sample("y", samples[0].image, label="dog")], NAMES)
    assert numbers.tolist() == [0, UNKNOWN, UNKNOWN]
    assert Labels(numbers, 3).targets(np.arange(3)).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_parts_of_a_batch_have_their_labels(samples: list[Sample]) -> None:
    batch = batches(samples)[0]
    parts = list(batch.parts(2))
    assert [len(part) for part in parts] == [2, 2]
    assert batch.labels is not None
    assert torch.equal(torch.cat([part.labels for part in parts if part.labels is not None]), batch.labels)


def test_small_classes_come_as_often_as_large_ones(samples: list[Sample]) -> None:
    data = batches(samples, evenly=True)
    counts: Counter[int] = Counter()
    for epoch in range(12):
        numbers = shown(data, epoch)
        assert len(numbers) == len(samples)
        classes = Counter(samples[number].label for number in numbers)
        assert max(classes.values()) - min(classes.values()) <= 1
        counts.update(numbers)
    ants = [counts[number] for number in range(SIZES["ant"])]
    assert min(ants) > 0
    assert max(ants) - min(ants) <= 1  # all of a class before any comes again
    assert shown(data, 3) == shown(batches(samples, evenly=True), 3) != shown(data, 4)


def test_a_picture_shown_again_in_an_epoch_is_changed_otherwise(samples: list[Sample]) -> None:
    data = batches(samples, PicturesConfig(augment_colour=0.8), evenly=True)
    cats = {
        picture.numpy().tobytes()
        for batch in data.iterate(0, 0, 0)
        for picture, number in zip(batch.inputs[0], batch.pictures, strict=True)
        if int(number) == len(samples) - 1
    }
    assert len(cats) == 5  # the only one of its class, shown five times


def test_pictures_with_classes_are_mirrored(samples: list[Sample]) -> None:
    data = batches(samples, PicturesConfig(augment_flip=True))
    turned = sum(int(p[0, 0, 0] == 255) for epoch in range(4) for b in data.iterate(epoch, 0, 0) for p in b.inputs[0])
    assert 16 < turned < 48


@pytest.mark.parametrize("evenly", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_begin_anywhere(samples: list[Sample], workers: int, evenly: bool) -> None:
    config = PicturesConfig(
        augment_crop=0.6, augment_flip=True, augment_rand=9, augment_erase=0.5, augment_mixup=0.4, augment_cutmix=1.0
    )
    whole = list(batches(samples, config, evenly=evenly).iterate(3, 0, 0))
    part = list(batches(samples, config, evenly=evenly).iterate(3, 1, workers))
    assert len(part) == 3
    assert all(map(equal, whole[1:], part))
    assert any(float(label.max()) < 1 for batch in whole if batch.labels is not None for label in batch.labels)


def test_ranks_share_an_epoch_of_even_classes(samples: list[Sample]) -> None:
    alone = shown(batches(samples, evenly=True), 2)
    shares = [batches(samples, evenly=True, rank=rank, world=2) for rank in range(2)]
    together = [int(n) for position in range(4) for each in shares for n in _at(each, 2, position).pictures]
    assert together == alone


def _at(data: Batches, epoch: int, position: int) -> Batch:
    return next(iter(data.iterate(epoch, position, 0)))


def test_what_a_picture_counts_for_evens_the_classes_out() -> None:
    numbers = np.array([0] * 12 + [1] * 3 + [2] + [UNKNOWN] * 5)
    weights = evening(numbers, 4)  # of the fourth class there is no picture
    counts = torch.tensor([12, 3, 1])
    torch.testing.assert_close(weights[:3] * counts, torch.full((3,), 16 / 3))
    assert float((weights[:3] * counts).sum() / 16) == pytest.approx(1)
    assert torch.isfinite(weights).all()


def test_an_unreadable_picture_is_left_out_with_its_label(samples: list[Sample]) -> None:
    samples[2].image.write_bytes(b"no picture")
    for config in (PicturesConfig(), PicturesConfig(augment_mixup=1.0)):
        found = list(batches(samples, config).iterate(0, 0, 0))
        assert {id for batch in found for id in batch.unreadable} == {"2.png"}
        assert sum(len(batch) for batch in found) == len(samples) - 1
        assert all(batch.labels is not None and len(batch.labels) == len(batch) for batch in found)
