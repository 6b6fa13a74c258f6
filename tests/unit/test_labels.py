"""Labelled data: how it is divided, what is odd about it, and the forms that it comes in."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutline.config import from_dict
from cutline.data import sources
from cutline.data.cifar import NAMES
from cutline.data.corpus import Corpus, Sample
from cutline.data.images import open_picture
from cutline.data.inspect import inspect
from cutline.data.labels import Balance, balance, count_labels, evenly, oddities
from cutline.data.readers import detect, read_corpus
from cutline.data.sources import read
from cutline.errors import ConfigError, DataError

_RECORD = 3073


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CUTLINE_CACHE", str(folder))
    return folder


def classes(root: Path, **counts: int) -> Path:
    """A folder for each class, with so many pictures, each of its own content."""
    for label, count in counts.items():
        folder = root / label.replace("__", "/")
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(f"{label} {number}".encode())
    return root


def by_id(corpus: Corpus) -> dict[str, Sample]:
    return {sample.id: sample for sample in corpus.samples}


def by_class(corpus: Corpus) -> dict[str, dict[str, int]]:
    return count_labels(corpus.samples)


# Divided class by class -------------------------------------------------------------------------------------------


def test_each_class_is_divided_by_itself(tmp_path: Path) -> None:
    classes(tmp_path, cat=100, dog=50, cow=10)
    corpus = read_corpus(tmp_path, val_share=0.2, test_share=0.1)
    assert "160 pictures divided by seed 0, each class by itself" in corpus.source
    for label, count in (("cat", 100), ("dog", 50), ("cow", 10)):
        assert by_class(corpus)[label] == {"train": 0.7 * count, "val": 0.2 * count, "test": 0.1 * count}


def test_a_seed_is_a_division(tmp_path: Path) -> None:
    classes(tmp_path, cat=40, dog=40)
    first, again, other = (
        {s.id: s.split for s in read_corpus(tmp_path, val_share=0.2, seed=seed).samples} for seed in (1, 1, 2)
    )
    assert first == again
    assert sum(first[id] != other[id] for id in first) >= 8
    assert Counter(first.values()) == Counter(other.values())


def test_a_new_picture_moves_none_of_another_class_and_hardly_one_of_its_own(tmp_path: Path) -> None:
    classes(tmp_path, cat=40, dog=40)
    before = {s.id: s.split for s in read_corpus(tmp_path, val_share=0.2).samples}
    (tmp_path / "dog" / "new.jpg").write_bytes(b"new")
    after = {s.id: s.split for s in read_corpus(tmp_path, val_share=0.2).samples}
    moved = [id for id, split in before.items() if after[id] != split]
    assert all(id.startswith("dog/") for id in moved)
    assert len(moved) <= 2


def test_small_classes_together_give_the_share(tmp_path: Path) -> None:
    """Of 200 classes of 3 pictures, a tenth of each is 0.3 pictures: of 600 pictures, 60 are held back all the same."""
    classes(tmp_path, **{f"class{number}": 3 for number in range(200)})
    corpus = read_corpus(tmp_path, val_share=0.1, test_share=0)
    held = len(corpus.split("val"))
    assert 45 <= held <= 75
    assert len({s.label for s in corpus.split("train")}) == 200


def test_every_class_keeps_a_picture_to_learn_from(tmp_path: Path) -> None:
    classes(tmp_path, **{f"class{number}": 1 + number % 2 for number in range(60)})
    corpus = read_corpus(tmp_path, val_share=0.4, test_share=0.4)
    assert len({s.label for s in corpus.split("train")}) == 60
    assert corpus.split("val")
    assert corpus.split("test")


def test_a_split_that_is_wanted_gets_a_picture_of_a_class_with_several(tmp_path: Path) -> None:
    classes(tmp_path, one=1, other=1, third=3)
    corpus = read_corpus(tmp_path, val_share=0.01, test_share=0)
    assert [s.label for s in corpus.split("val")] == ["third"]


def test_validation_gets_its_share_of_what_is_for_training(tmp_path: Path) -> None:
    classes(tmp_path, train__cat=50, train__dog=50, test__cat=10, test__dog=10)
    corpus = read_corpus(tmp_path, val_share=0.2)
    assert by_class(corpus)["cat"] == {"train": 40, "val": 10, "test": 10}
    assert "100 training pictures divided" in corpus.source
    assert not read_corpus(tmp_path, val_share=0).split("val")


def test_validation_gets_a_picture_of_however_few_that_are_for_training(tmp_path: Path) -> None:
    classes(tmp_path, train__cow=4, train__hen=4, train__owl=4, test__cow=3, test__hen=3)
    corpus = read_corpus(tmp_path)
    assert [len(corpus.split(name)) for name in ("train", "val", "test")] == [11, 1, 6]


def test_all_is_divided_anew_where_that_is_asked_for(tmp_path: Path) -> None:
    """As with COCO's validation pictures, when those are all there are."""
    classes(tmp_path, val__cat=50, val__dog=50)
    assert not read_corpus(tmp_path).split("train")
    corpus = read_corpus(tmp_path, divide="anew", val_share=0.2, test_share=0)
    assert by_class(corpus)["dog"] == {"train": 40, "val": 10, "test": 0}
    assert "100 pictures divided" in corpus.source
    with pytest.raises(ConfigError, match="divide"):
        read_corpus(tmp_path, divide="new")  # type: ignore[arg-type]


def test_captions_are_still_divided_one_by_one(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.png", "caption": "a dog", "label": "ab"[n % 2]} for n in range(200)]
    for row in rows:
        (tmp_path / row["image"]).write_bytes(b"x")
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = {s.id: s.split for s in read_corpus(tmp_path).samples}
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows[:150])))
    assert all(before[s.id] == s.split for s in read_corpus(tmp_path).samples)


# What is odd ------------------------------------------------------------------------------------------------------


def test_classes_that_cannot_be_learned_or_judged_are_named(tmp_path: Path) -> None:
    classes(tmp_path, train__cat=3, train__dog=1, train__Cow=2, val__cat=1, val__cow=1, test__ghost=2, test__cat=1)
    corpus = read_corpus(tmp_path)
    assert sorted(problem.message for problem in oddities(corpus.samples)) == [
        "class names that differ in case only: 'Cow' and 'cow'",
        "class never learned: 'cow' has 1 in val and none in train, so no guess at them can be right",
        "class never learned: 'ghost' has 2 in test and none in train, so no guess at them can be right",
        "class with one picture: nothing is left to judge 'dog' by",
    ]
    assert not read_corpus(tmp_path).problems  # none of it stands in the way of training
    found = inspect(tmp_path)
    assert {p.message.partition(":")[0] for p in found.problems} >= {"class never learned", "class with one picture"}


def test_splits_are_splits_whatever_else_is_there(tmp_path: Path) -> None:
    classes(tmp_path, train__cat=3, train__dog=3, val__cat=1, test__dog=1, unlabeled=2)
    corpus = read_corpus(tmp_path)
    assert corpus.labels == ("cat", "dog")
    assert {split: len(corpus.split(split)) for split in ("train", "val", "test")} == {"train": 6, "val": 1, "test": 1}
    assert "2 pictures in unlabeled, which is no split, are left out" in corpus.source


def test_a_folder_too_many_around_the_classes_is_noticed(tmp_path: Path) -> None:
    classes(tmp_path, archive__cat=3, archive__dog=3)
    (odd,) = oddities(read_corpus(tmp_path).samples)
    assert odd.message.startswith("only one class: 'archive'")
    assert not oddities(read_corpus(tmp_path / "archive").samples)


def test_the_same_letters_are_one_class(tmp_path: Path) -> None:
    counts = {"caf\u00e9": 3, "cafe\u0301": 2, "tea": 2}
    classes(tmp_path, **counts)
    assert read_corpus(tmp_path).labels == ("caf\u00e9", "tea")


def test_the_same_picture_in_two_classes_is_named(tmp_path: Path) -> None:
    classes(tmp_path, rose=4, tulip=4)
    (tmp_path / "tulip" / "again.jpg").write_bytes((tmp_path / "rose" / "2.jpg").read_bytes())
    messages = [p.message for p in inspect(tmp_path).problems if "labels" in p.message]
    assert messages == ["same picture with different labels: rose/2.jpg (rose), tulip/again.jpg (tulip)"]


def test_where_copies_are_not_looked_for_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classes(tmp_path, rose=4, tulip=4)
    (tmp_path / "tulip" / "again.jpg").write_bytes((tmp_path / "rose" / "2.jpg").read_bytes())
    told = "copies are not looked for among 9 pictures: cutline data inspect does"
    for most in (9, 8):
        monkeypatch.setattr(sources, "COMPARED", most)
        read(from_dict({"task": "classes", "data": {"path": str(tmp_path)}}))
        said = capsys.readouterr().err
        assert ("same picture" in said) == (most == 9)
        assert (told in said) == (most == 8)


def test_training_names_what_is_odd_in_its_own_division(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes(tmp_path, rose=40, tulip=40)
    (tmp_path / "tulip" / "again.jpg").write_bytes((tmp_path / "rose" / "2.jpg").read_bytes())
    twins = [next(tmp_path.glob("rose/5.jpg")), tmp_path / "rose" / "twin.jpg"]
    twins[1].write_bytes(twins[0].read_bytes())
    for seed in range(20):  # until one of the two learns and the other judges
        data = {"path": str(tmp_path), "split_seed": seed, "val_share": 0.5, "test_share": 0.0}
        splits = by_id(read(from_dict({"task": "classes", "data": data})))
        told = capsys.readouterr().err
        assert "different labels: rose/2.jpg (rose), tulip/again.jpg (tulip)" in told
        apart = splits["rose/5.jpg"].split != splits["rose/twin.jpg"].split
        assert ("different splits: rose/5.jpg" in told) == apart
        if apart:
            return
    pytest.fail("no seed has parted them")


def test_odd_classes_are_told_also_where_pictures_have_captions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(
        json.dumps({"image": f"{n}.jpg", "caption": "a flower", "label": "orchid" if n == 3 else "rose"}) + "\n"
        for n in range(20)
    ))  # fmt: skip
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(str(number).encode())
    for task, told in (("both", True), ("classes", True), ("captions", False)):
        read(from_dict({"task": task, "data": {"path": str(tmp_path / "rows.jsonl")}}))
        assert ("'orchid'" in capsys.readouterr().err) == told


def test_fewer_pictures_are_of_all_classes_and_those_left_out_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes(tmp_path, ape=10, bee=10, cat=10, dog=10)
    data = {"path": str(tmp_path), "val_share": 0.2, "test_share": 0.0}
    found = by_class(read(from_dict({"task": "classes", "data": {**data, "limit": 8}})))
    assert {label: each["train"] for label, each in found.items()} == dict.fromkeys(("ape", "bee", "cat", "dog"), 2)
    capsys.readouterr()
    read(from_dict({"task": "classes", "data": {**data, "limit": 2}}))
    assert "2 problems (2 × class never learned)" in capsys.readouterr().err


def test_what_is_passed_over_beside_the_pictures_is_counted(tmp_path: Path) -> None:
    classes(tmp_path, train__cat=3, train__dog=2, val__cat=1, val__dog=1)
    (tmp_path / "stray.jpg").write_bytes(b"stray")
    for name in ("a.jp2", "b.TGA", "scan", "notes.txt", ".hidden"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"other")
    corpus = read_corpus(tmp_path)
    assert "1 pictures beside the splits are left out" in corpus.source
    assert "3 files in train with no picture's ending (.jp2, .tga, no ending) are left out" in corpus.source


def test_a_class_whose_files_are_of_no_known_kind_says_so(tmp_path: Path) -> None:
    classes(tmp_path, cat=3, dog=0)
    (tmp_path / "dog" / "1.jp2").write_bytes(b"other")
    with pytest.raises(DataError, match=r"dog: no pictures: none of its files \(\.jp2\) is one"):
        read_corpus(tmp_path)
    assert ".jp2" not in read_corpus(tmp_path, skip_bad=True).source  # told once


def test_an_empty_class_folder_stops_reading_unless_told_to_go_on(tmp_path: Path) -> None:
    classes(tmp_path, cat=3, dog=0)
    with pytest.raises(DataError, match="dog: no pictures: an empty class folder"):
        read_corpus(tmp_path)
    assert read_corpus(tmp_path, skip_bad=True).labels == ("cat",)


def test_a_corrupt_picture_is_named(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(classes(tmp_path, cat=0, dog=1) / "cat" / "grey.png")
    messages = {p.file.name: p.message for p in inspect(tmp_path, check_pictures=True).problems}
    assert messages["0.jpg"].startswith("unusable picture: not a picture but text")
    assert not messages.get("grey.png", "").startswith("unusable")


def test_imbalance() -> None:
    counts = {"a": {"train": 90, "val": 6, "test": 4}, "b": {"train": 20, "val": 5, "test": 0}}
    even = balance(counts)
    assert even == Balance(2, 100, "a", 25, "b", 0.8)
    assert even.ratio == 4
    assert balance({}) is None


def test_a_few_of_many_are_of_all_classes(tmp_path: Path) -> None:
    config = from_dict({"data": {"path": str(classes(tmp_path, cat=30, dog=30, cow=30)), "limit": 6}})
    corpus = read(config, quiet=True)
    assert Counter(s.label for s in corpus.split("train")) == {"cat": 2, "dog": 2, "cow": 2}
    assert len(corpus.split("val")) == 9
    samples = corpus.samples
    assert evenly(samples, 1000) is samples
    assert len({s.id for s in evenly(samples, 7)}) == 7


def test_odd_classes_are_told_to_whoever_trains(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read(from_dict({"data": {"path": str(classes(tmp_path, cat=5, dog=1))}}))
    assert "class with one picture: nothing is left to judge 'dog' by" in capfd.readouterr().err


def test_a_row_without_a_label_is_called_that(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    (tmp_path / "t.csv").write_text("image,label\n0.jpg,cat\n1.jpg,\n")
    with pytest.raises(DataError, match=r"t\.csv:3: picture without a label: 1\.jpg"):
        read_corpus(tmp_path)


def test_a_thousand_classes(tmp_path: Path) -> None:
    rows = [
        f"{label}/{n}.jpg,class {label},{split}" for label in range(1000) for n, split in enumerate(("train", "val"))
    ]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["image,label,split", *rows]))
    corpus = read_corpus(table, pictures=False)
    assert len(corpus.labels) == 1000
    assert len(corpus.split("val")) == 1000
    assert not oddities(corpus.samples)


# Trees like ImageNet's --------------------------------------------------------------------------------------------


def test_validation_pictures_whose_classes_are_listed(tmp_path: Path) -> None:
    classes(tmp_path, train__n01__images=2, train__n02__images=2, val__images=3, test__images=2)
    (tmp_path / "train" / "n01" / "n01_boxes.txt").write_text("0.JPEG\t0\t0\t63\t63\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("0.jpg\tn02\t0\t32\t44\t62\n1.jpg\tn01\n")
    corpus = read_corpus(tmp_path, skip_bad=True)
    assert by_class(corpus) == {
        "n01": {"train": 2, "val": 1, "test": 0},
        "n02": {"train": 2, "val": 1, "test": 0},
    }
    assert {s.label for s in corpus.split("val") if s.image.name == "0.jpg"} == {"n02"}
    assert "2 pictures in test have no label and are left out" in corpus.source
    assert [p.message for p in corpus.problems] == ["picture without a label: val_annotations.txt does not name it"]


def test_a_picture_of_several_lists_is_named_by_any_of_them(tmp_path: Path) -> None:
    classes(tmp_path, train__n01=2, val__images=3)
    (tmp_path / "val" / "val_annotations.txt").write_text("0.jpg\tn01\n")
    (tmp_path / "val" / "more_annotations.txt").write_text("1.jpg\tn01\n")
    corpus = read_corpus(tmp_path, skip_bad=True)
    assert by_class(corpus) == {"n01": {"train": 2, "val": 2, "test": 0}}
    assert [(p.file.name, p.message) for p in corpus.problems] == [
        ("2.jpg", "picture without a label: more_annotations.txt or val_annotations.txt does not name it")
    ]


def test_a_list_of_classes_with_mistakes(tmp_path: Path) -> None:
    classes(tmp_path, train__n01=1, val__images=1)
    (tmp_path / "val" / "val_annotations.txt").write_text("0.jpg\tn01\n9.jpg\tn01\n0.jpg n01\n0.jpg\tn02\n")
    with pytest.raises(DataError) as error:
        read_corpus(tmp_path)
    for words in (":2: no such picture: images/9.jpg", ":3: malformed line", ":4: two labels"):
        assert words.replace("images/", "") in str(error.value).replace("images/", ""), words


# CIFAR-10 ---------------------------------------------------------------------------------------------------------


def cifar(folder: Path, **files: list[int]) -> np.ndarray:
    """Files of pictures with the given classes; returns the pixels (pictures, height, width, 3) of the last file."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    pixels = np.zeros(0)
    for name, labels in files.items():
        pixels = rng.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
        planes = pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        rows = np.concatenate([np.array(labels, np.uint8)[:, None], planes], 1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return pixels


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, inner: str) -> None:
    pixels = cifar(tmp_path / inner, data_batch_1=[3] * 20, data_batch_2=[9] * 20, test_batch=[0, 3, 9])
    assert detect(tmp_path) == "cifar10"
    corpus = read_corpus(tmp_path)
    assert by_class(corpus)["cat"] == {"train": 18, "val": 2, "test": 1}
    assert corpus.labels == ("airplane", "cat", "truck")
    samples = {sample.id: sample for sample in corpus.samples}
    last = samples["test_batch/00002"]
    assert (last.label, last.split) == ("truck", "test")
    assert (np.asarray(open_picture(last.image)) == pixels[2]).all()
    assert cache in last.image.parents
    monkeypatch.delattr(Image.Image, "save")  # nothing is written twice
    assert [s.id for s in read_corpus(tmp_path).samples] == [s.id for s in corpus.samples]
    assert [path.name for path in cache.iterdir()] == [last.image.parent.parent.name]


def test_cifar_is_found_where_the_cache_is_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUTLINE_CACHE", "cache")
    cifar(tmp_path / "data", data_batch_1=[1, 0, 1, 0])
    assert all(sample.image.is_file() for sample in read_corpus(tmp_path / "data").samples)


def test_cifar_names_its_classes(tmp_path: Path) -> None:
    cifar(tmp_path, data_batch_1=[1, 0, 1, 0])
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"thing {n}" for n in range(10)) + "\n\n")
    assert read_corpus(tmp_path).labels == ("thing 0", "thing 1")
    (tmp_path / "batches.meta.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"names 2 classes"):
        read_corpus(tmp_path)


def test_cifar_that_is_damaged(tmp_path: Path) -> None:
    cifar(tmp_path, data_batch_1=[1, 2, 77, 3])
    file = tmp_path / "data_batch_1.bin"
    file.write_bytes(file.read_bytes()[:-100])
    (tmp_path / "data_batch_2.bin").write_bytes(b"")
    with pytest.raises(DataError) as error:
        read_corpus(tmp_path)
    for words in (
        f"cut short: 3 pictures of {_RECORD} bytes, and {_RECORD - 100} bytes more",
        "unknown class: picture 2 is of class 77, of 10",
        "data_batch_2.bin: cut short: 0 pictures",
    ):
        assert words in str(error.value)
    corpus = read_corpus(tmp_path, skip_bad=True)
    assert sorted(s.label or "" for s in corpus.samples) == [NAMES[1], NAMES[2]]


def test_cifar_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(tmp_path / "data", data_batch_1=[1, 2])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUTLINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot write CIFAR-10's pictures"):
        read_corpus(tmp_path / "data")


# The real ones ----------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_classes(real_data: Path) -> None:
    corpus = read_corpus(real_data / "tinyimagenet30", val_share=0.2, test_share=0)
    assert len(corpus.labels) == 30
    assert all(each == {"train": 360, "val": 90, "test": 0} for each in by_class(corpus).values())
    flowers = inspect(real_data / "flowers")
    assert flowers.balance
    assert flowers.balance.classes == 5
    twice = [p.message for p in flowers.problems if "different labels" in p.message]
    assert len(twice) == 2
    assert "rose/15922772266_1167a06620.jpg (rose), tulip/15922772266_1167a06620.jpg (tulip)" in twice[0]
