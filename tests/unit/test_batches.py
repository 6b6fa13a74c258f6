"""Batches: which captions a picture shows, what is changed at random, and that both depend on seed and place alone."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cutline.config import PicturesConfig, WordsConfig
from cutline.data.corpus import Sample
from cutline.data.images import Transform
from cutline.data.words import Words
from cutline.engine import sources
from cutline.engine.batches import Batch, Batches, Captions, pad
from cutline.engine.sources import PictureSource

COUNT, SIDE = 7, 16
PLAIN = PicturesConfig()


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Pictures that are dark on the left and bright on the right, with five captions that say so."""
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    found = []
    for number in range(COUNT):
        pixels = np.stack([np.tile(ramp, (SIDE, 1))] * 3, -1)
        pixels[..., 2] = number
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        texts = tuple(f"dark left bright right number {number} caption {n}" for n in range(5))
        found.append(Sample(path.name, path, {"en": texts}))
    return found


@pytest.fixture
def words(samples: list[Sample]) -> Words:
    return Words.learn({"en": [text for s in samples for text in s.captions["en"]]}, WordsConfig(min_count=1))


def batches(samples: list[Sample], words: Words, config: PicturesConfig, rows: int = 2, batch: int = 3) -> Batches:
    captions = Captions(samples, words, ["en"], longest=40, mirror_too=config.augment_flip)
    source = PictureSource(samples, Transform(size=SIDE), config)
    names = [sample.id for sample in samples]
    return Batches(source, captions, config, names=names, seed=5, batch=batch, rows=rows)


def texts(words: Words, batch: Batch) -> list[list[str]]:
    return [[words.decode([i for i in row.tolist()[1:] if i > 1]) for row in rows] for rows in batch.tokens]


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.tokens, other.tokens) and all(map(torch.equal, one.inputs, other.inputs))


def test_an_epoch_shows_every_picture_once_with_its_own_captions(samples: list[Sample], words: Words) -> None:
    data = batches(samples, words, PLAIN)
    seen = []
    for batch in data.iterate(epoch=0, start=0, workers=0):
        assert batch.inputs[0].dtype == torch.uint8
        for picture, captions in zip(batch.inputs[0], texts(words, batch), strict=True):
            number = int(picture[2, 0, 0])
            seen.append(number)
            assert all(f"number {number} caption" in caption for caption in captions)
            assert len(set(captions)) == 2
    assert sorted(seen) == list(range(COUNT))
    assert len(data) == 3


def test_all_captions_come_before_any_comes_again(samples: list[Sample], words: Words) -> None:
    captions = Captions(samples, words, ["en"], longest=40, mirror_too=False)
    for index in range(COUNT):
        shown = [k for epoch in range(5) for k in captions.choose(5, epoch, index, 2)]
        assert Counter(shown[:5]) == Counter(shown[5:]) == Counter(range(5))
    assert sorted(captions.choose(5, 0, 0, 9)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("there", [1, 2, 5])
def test_each_language_comes_first_as_often_as_the_other(there: int) -> None:
    """However many captions a picture has: the first one's language is the one that captions are drawn in."""
    texts = {"en": ("a red dog",) * there, "de": ("ein roter Hund",) * there}
    words = Words.learn({lang: list(each) for lang, each in texts.items()}, WordsConfig(min_count=1))
    samples = [Sample(str(number), Path("none"), texts) for number in range(50)]
    captions = Captions(samples, words, ["en", "de"], longest=40, mirror_too=False)
    places = [captions.choose(5, epoch, index, 5) for epoch in range(10) for index in range(50)]
    first = Counter(captions.rows[0][chosen[0]][0] for chosen in places)
    assert first.total() == 500
    assert all(abs(first[words.begin(lang)] - 250) < 50 for lang in texts)  # more than four standard deviations
    assert places == [captions.choose(5, epoch, index, 5) for epoch in range(10) for index in range(50)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_begin_anywhere(samples: list[Sample], words: Words, workers: int) -> None:
    changing = PicturesConfig(augment_crop=0.5, augment_flip=True, augment_colour=0.3)
    data = batches(samples, words, changing)
    whole = list(data.iterate(epoch=3, start=0, workers=0))
    part = list(batches(samples, words, changing).iterate(epoch=3, start=1, workers=workers))
    assert len(part) == 2
    assert all(map(equal, whole[1:], part))
    other = list(data.iterate(epoch=4, start=0, workers=0))
    assert not equal(whole[0], other[0])


def test_what_one_process_has_decoded_all_have(samples: list[Sample], words: Words) -> None:
    data = batches(samples, words, PicturesConfig(augment_colour=0.3))
    before = list(data.iterate(epoch=0, start=0, workers=1))
    for sample in samples:
        sample.image.unlink()
    again = list(data.iterate(epoch=0, start=0, workers=0))
    assert all(map(equal, before, again))
    assert not any(batch.unreadable for batch in again)


def test_readers_that_are_not_forked_make_the_same(samples: list[Sample], words: Words) -> None:
    data = batches(samples, words, PicturesConfig(augment_crop=0.5))
    data.on_death = lambda why: None  # as the loop sets one, and nothing that can be sent to another process
    sent = pickle.loads(pickle.dumps(data))
    assert all(equal(sent[position], data[position]) for position in range(len(data)))


def test_a_mistake_in_a_reader_is_told_as_what_it_is(
    samples: list[Sample], words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch names its process as well, which is not what has died."""
    data, died = batches(samples, words, PLAIN), list[str]()
    data.on_death = died.append
    monkeypatch.setattr(Batches, "__getitem__", lambda self, position: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="The size of tensor a"):
        list(data.iterate(0, 0, 1))
    assert died == []


def test_batches_are_made_ahead_where_they_take_time(
    samples: list[Sample], words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not batches(samples, words, PLAIN).take_time  # decoded once, and then in memory
    assert batches(samples, words, PicturesConfig(augment_flip=True)).take_time
    monkeypatch.setattr(sources, "CACHE_BYTES", 0)
    assert batches(samples, words, PLAIN).take_time


def test_a_mirrored_picture_says_the_other_side(samples: list[Sample], words: Words) -> None:
    flips = 0
    for epoch in range(4):
        for batch in batches(samples, words, PicturesConfig(augment_flip=True)).iterate(epoch, 0, 0):
            for picture, captions in zip(batch.inputs[0], texts(words, batch), strict=True):
                turned = int(picture[0, 0, 0]) > int(picture[0, 0, -1])  # bright on the left
                flips += turned
                said = "dark right bright left" if turned else "dark left bright right"
                assert all(caption.startswith(said) for caption in captions)
    assert 0 < flips < 4 * COUNT


def test_a_picture_with_captions_of_unknown_sides_is_not_mirrored(samples: list[Sample]) -> None:
    foreign = [replace(sample, captions={"ja": ("左に犬",)}) for sample in samples]
    words = Words.learn({"ja": ["左に犬"]}, WordsConfig(min_count=1))
    config = PicturesConfig(augment_flip=True)
    captions = Captions(foreign, words, ["ja"], longest=40, mirror_too=True)
    source, names = PictureSource(foreign, Transform(size=SIDE), config), [sample.id for sample in foreign]
    data = Batches(source, captions, config, names=names, seed=5, batch=7, rows=1)
    for epoch in range(4):
        for batch in data.iterate(epoch, 0, 0):
            assert (batch.inputs[0][:, 0, 0, 0] < batch.inputs[0][:, 0, 0, -1]).all()


def test_a_language_of_unknown_sides_leaves_the_others_their_mirror(samples: list[Sample]) -> None:
    """A picture is mirrored whenever none of the captions that it shows is in that language."""
    both = [replace(sample, captions={**sample.captions, "ja": ("左に犬",)}) for sample in samples]
    words = Words.learn({lang: both[0].captions[lang] for lang in ("en", "ja")}, WordsConfig(min_count=1))
    config = PicturesConfig(augment_flip=True)
    captions = Captions(both, words, ["en", "ja"], longest=40, mirror_too=True)
    source, names = PictureSource(both, Transform(size=SIDE), config), [sample.id for sample in both]
    data = Batches(source, captions, config, names=names, seed=5, batch=7, rows=1)
    seen = set()
    for epoch in range(12):
        for batch in data.iterate(epoch, 0, 0):
            turned = batch.inputs[0][:, 0, 0, 0] > batch.inputs[0][:, 0, 0, -1]
            assert (turned == batch.mirrored).all()
            for flip, begin in zip(turned.tolist(), batch.tokens[:, 0, 0].tolist(), strict=True):
                seen.add((flip, words.language(begin)))
    assert seen == {(True, "en"), (False, "en"), (False, "ja")}


def test_crops_and_colours_change_pictures_but_not_what_is_kept(samples: list[Sample], words: Words) -> None:
    data = batches(samples, words, PicturesConfig(augment_crop=0.4, augment_colour=0.5), batch=COUNT)
    (first,) = data.iterate(0, 0, 0)
    (second,) = data.iterate(1, 0, 0)
    (again,) = data.iterate(0, 0, 0)
    assert equal(first, again)
    assert not torch.equal(
        first.inputs[0].float().mean((1, 2, 3)).sort()[0], second.inputs[0].float().mean((1, 2, 3)).sort()[0]
    )


def test_padding_is_nothing_but_padding() -> None:
    padded = pad([[[3, 7, 8, 1], [3, 1]], [[3, 9, 1]]])
    assert padded.tolist() == [[[3, 7, 8, 1], [3, 1, 0, 0]], [[3, 9, 1, 0], [0, 0, 0, 0]]]
