"""Each format as people have it on disk, and each way in which it may be wrong."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.corpora import NAMES, PICTURE, by_id, fill, messages

from cutline.data.readers import FORMATS, detect, read_corpus
from cutline.errors import ConfigError, DataError

# Flickr8k -----------------------------------------------------------------------------------------------------------


def flickr(root: Path, **changes: Any) -> Path:
    files: dict[str, Any] = {f"Images/{name}": PICTURE for name in NAMES}
    files["Flickr8k.token.txt"] = [f"{name}#{i}\tA dog {i} ." for name in NAMES for i in range(2)]
    files["Flickr8k.de.token.txt"] = [f"{name}#0\tEin Hund für {name}" for name in NAMES[:5]]
    files["Flickr_8k.trainImages.txt"] = NAMES[:3]
    files["Flickr_8k.devImages.txt"] = NAMES[3:5]
    files["Flickr_8k.testImages.txt"] = NAMES[5:]
    return fill(root, files | {name.replace("__", "."): content for name, content in changes.items()})


def test_flickr8k_in_its_official_form(tmp_path: Path) -> None:
    corpus = read_corpus(flickr(tmp_path))
    assert [(s.id, s.split) for s in corpus.samples] == [*zip(NAMES, ["train"] * 3 + ["val"] * 2 + ["test"])]
    assert corpus.samples[0].captions == {"en": ("A dog 0 .", "A dog 1 ."), "de": ("Ein Hund für 1.jpg",)}
    assert corpus.samples[0].image == tmp_path / "Images" / "1.jpg"
    assert corpus.languages == ("en", "de")
    assert "flickr8k" in corpus.source


@pytest.mark.parametrize("folder", ["Flicker8k_Dataset", "Images", "."])
def test_flickr8k_finds_its_pictures(folder: str, tmp_path: Path) -> None:
    files: dict[str, Any] = {f"{folder}/{name}": PICTURE for name in NAMES}
    files["Flickr8k.token.txt"] = [f"{name}#0\tA dog ." for name in NAMES]
    assert len(read_corpus(fill(tmp_path, files))) == 6


def test_flickr8k_with_its_texts_in_a_folder(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"Flicker8k_Dataset/{name}": PICTURE for name in NAMES}
    files["Flickr8k_text/Flickr8k.token.txt"] = [f"{name}#0\tA dog ." for name in NAMES]
    files["Flickr8k_text/Flickr8k.lemma.token.txt"] = [f"{name}#0\tdog ." for name in NAMES]
    files["Flickr8k_text/Flickr_8k.testImages.txt"] = NAMES[:2]
    corpus = read_corpus(fill(tmp_path, files))
    assert Counter(sample.split for sample in corpus.samples) == {"test": 2}
    assert corpus.samples[0].captions == {"en": ("A dog .",)}
    assert "4 pictures that no split file names left out" in corpus.source


def test_flickr8k_with_split_files_in_lower_case(tmp_path: Path) -> None:
    flickr(tmp_path)
    for file in tmp_path.glob("Flickr_8k.*Images.txt"):
        file.rename(file.with_name(file.name.lower()))
    assert Counter(s.split for s in read_corpus(tmp_path).samples) == {"train": 3, "val": 2, "test": 1}


def test_flickr8k_takes_only_the_languages_asked_for(tmp_path: Path) -> None:
    corpus = read_corpus(flickr(tmp_path), languages=["DE"])
    assert corpus.languages == ("de",)
    assert len(corpus) == 5  # one picture has no German caption, which is nothing wrong
    with pytest.raises(DataError, match=r"no captions in es\b[\s\S]*en, de"):
        read_corpus(tmp_path, languages=["es"])


def test_flickr8k_as_captions_txt(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"Images/{name}": PICTURE for name in NAMES}
    rows = [f'{name},"A dog , it runs ."' if name == "1.jpg" else f"{name},A dog ." for name in NAMES]
    corpus = read_corpus(fill(tmp_path, files | {"captions.txt": ["image,caption", *rows]}))
    assert corpus.samples[0].captions == {"en": ("A dog , it runs .",)}
    fill(tmp_path, {"Flickr_8k.trainImages.txt": NAMES[1:3], "Flickr_8k.devImages.txt": NAMES[3:4]})
    corpus = read_corpus(tmp_path)
    assert [(s.id, s.split) for s in corpus.samples] == [("2.jpg", "train"), ("3.jpg", "train"), ("4.jpg", "val")]
    assert "3 pictures that no split file names left out" in corpus.source


def test_flickr8k_problems_come_all_at_once_with_their_places(tmp_path: Path) -> None:
    token = (
        b"1.jpg#0\tA dog\n1.jpg#0\tA dog\nno tab\n2.jpg#0\t  \n3.jpg#0\tcaf\xe9 au lait\n9.jpg#0\tgone\n9.jpg#1\tgone\n"
    )
    flickr(tmp_path, Flickr8k__token__txt=token, Flickr8k__de__token__txt=[])
    splits = {"Flickr_8k.trainImages.txt": [*NAMES[:3], "9.jpg"], "Flickr_8k.devImages.txt": ["1.jpg", "4.jpg"]}
    fill(tmp_path, {**splits, "Flickr_8k.testImages.txt": []})
    corpus = read_corpus(tmp_path, skip_bad=True)
    dev = tmp_path / "Flickr_8k.devImages.txt"
    assert sorted(messages(corpus)) == [
        "Flickr8k.token.txt:2: row given twice: 1.jpg#0 is in line 1 already",
        "Flickr8k.token.txt:3: malformed line: not 'picture.jpg#number', a tab, and a caption",
        "Flickr8k.token.txt:4: empty caption: 2.jpg",
        "Flickr8k.token.txt:5: not UTF-8: byte 0xe9 at column 12",
        "Flickr8k.token.txt:6: no such picture: 9.jpg",
        "Flickr_8k.devImages.txt:2: picture without a caption: 4.jpg",
        f"Flickr_8k.trainImages.txt:1: in two splits: 1.jpg is in val by {dev}:1, here in train",
        "Flickr_8k.trainImages.txt:3: picture without a caption: 3.jpg",
    ]
    assert [(s.id, s.split) for s in corpus.samples] == [("1.jpg", "val")]
    with pytest.raises(DataError) as raised:
        read_corpus(tmp_path)
    assert "8 problems (2 × picture without a caption, 1 × " in raised.value.what
    assert "--skip-bad" in raised.value.fix
    assert all(str(problem) in raised.value.what for problem in corpus.problems)


# COCO and Karpathy --------------------------------------------------------------------------------------------------


def coco(numbers: list[int]) -> dict[str, Any]:
    images = [{"id": number, "file_name": f"{number:012}.jpg"} for number in numbers]
    notes = [{"id": 10 * n + i, "image_id": n, "caption": f"Caption {i} of {n}.\n"} for n in numbers for i in (1, 2)]
    return {"info": {}, "images": images, "annotations": notes}


def test_coco(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"val2017/{number:012}.jpg": PICTURE for number in (1, 2)}
    files |= {f"train2017/{number:012}.jpg": PICTURE for number in (3, 4)}
    files["annotations/captions_val2017.json"] = coco([1, 2])
    files["annotations/captions_train2017.json"] = coco([3, 4])
    files["annotations/instances_val2017.json"] = {"images": [], "annotations": [{"bbox": [1]}]}
    samples = by_id(read_corpus(fill(tmp_path, files)))
    assert {id: sample.split for id, sample in samples.items()} == {"1": "val", "2": "val", "3": "train", "4": "train"}
    assert samples["1"].captions == {"en": ("Caption 1 of 1.", "Caption 2 of 1.")}
    assert samples["3"].image == tmp_path / "train2017" / "000000000003.jpg"
    one = read_corpus(tmp_path / "annotations" / "captions_val2017.json")
    assert [sample.id for sample in one.samples] == ["1", "2"]


def test_coco_with_pictures_absent_and_annotations_astray(tmp_path: Path) -> None:
    content = coco([1, 2, 3])
    content["images"] += [{"id": 1, "file_name": "again.jpg"}, {"id": 8}]
    content["annotations"] += [{"image_id": [7], "caption": "x"}, {"image_id": "1", "caption": None}]
    fill(tmp_path, {"my_captions.json": content, "pictures/000000000001.jpg": PICTURE})
    with pytest.raises(DataError, match=r"6 problems \(2 × no such picture"):
        read_corpus(tmp_path)
    corpus = read_corpus(tmp_path, skip_bad=True)
    assert [sample.id for sample in corpus.samples] == ["1"]
    assert len(corpus.problems) == 6
    assert len(read_corpus(tmp_path, skip_bad=True, pictures=False)) == 3


def test_coco_is_not_divided_by_the_name_of_its_own_folder(tmp_path: Path) -> None:
    names = {f"{number:012}.jpg": PICTURE for number in range(1, 9)}
    fill(tmp_path / "my-test", {"captions.json": coco(list(range(1, 9))), **names})
    assert {s.split for s in read_corpus(tmp_path / "my-test").samples} != {"test"}


def test_coco_is_divided_alike_whether_or_not_pictures_are_wanted(tmp_path: Path) -> None:
    names = {f"{'train' if number < 5 else 'val'}2014/{number:012}.jpg": PICTURE for number in range(1, 9)}
    fill(tmp_path, {"captions.json": coco(list(range(1, 10))), **names})
    splits = [
        {s.id: s.split for s in read_corpus(tmp_path, skip_bad=True, pictures=pictures).samples}
        for pictures in (True, False)
    ]
    assert splits[0] == {str(number): "train" if number < 5 else "val" for number in range(1, 9)}
    assert splits[1].pop("9")  # its picture is absent, and captions alone are wanted
    assert splits[1] == splits[0]


def test_karpathy(tmp_path: Path) -> None:
    def image(name: str, split: str, **more: Any) -> dict[str, Any]:
        return {
            "filename": name,
            "split": split,
            "sentences": [{"raw": f"About {name}"}, {"tokens": ["a", "b"]}],
            **more,
        }

    images = [image("1.jpg", "restval", filepath="val2014", cocoid=5), image("2.jpg", "val"), image("3.jpg", "test")]
    pictures = {"val2014/1.jpg": PICTURE, "2.jpg": PICTURE, "3.jpg": PICTURE}
    fill(tmp_path, {"dataset_coco.json": {"images": images, "dataset": "coco"}, **pictures})
    samples = by_id(read_corpus(tmp_path))
    assert {id: sample.split for id, sample in samples.items()} == {"5": "train", "2.jpg": "val", "3.jpg": "test"}
    assert samples["5"].captions == {"en": ("About 1.jpg", "a b")}
    (tmp_path / "val2014" / "1.jpg").rename(tmp_path / "1.jpg")  # all in one folder, as many keep them
    assert by_id(read_corpus(tmp_path))["5"].image == tmp_path / "1.jpg"


# Pictures in another place ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "files"),
    [
        ("flickr8k", {"Flickr8k.token.txt": ["1.jpg#0\tA dog ."], "Flickr_8k.trainImages.txt": ["1.jpg"]}),
        ("coco", {"annotations/captions_val2017.json": coco([1])}),
        ("karpathy", {"dataset_x.json": {"images": [{"filename": "1.jpg", "sentences": [{"raw": "A dog"}]}]}}),
        ("csv", {"t.csv": ["image,caption", "1.jpg,A dog"]}),
        ("jsonl", {"t.jsonl": [{"image": "1.jpg", "caption": "A dog"}]}),
    ],
)  # fmt: skip
def test_pictures_may_lie_elsewhere(format: str, files: dict[str, Any], tmp_path: Path) -> None:
    tables = fill(tmp_path / "tables", files)
    photos = fill(tmp_path / "photos", {"1.jpg": PICTURE, "val2017/000000000001.jpg": PICTURE})
    with pytest.raises(DataError, match="no such picture"):
        read_corpus(tables)
    (sample,) = read_corpus(tables, images=photos).samples
    assert sample.image.parent in (photos, photos / "val2017")


def test_where_captions_lie_beside_their_pictures_there_is_no_other_place(tmp_path: Path) -> None:
    here = fill(tmp_path / "here", {"1.jpg": PICTURE, "1.txt": ["A dog"]})
    with pytest.raises(ConfigError, match="no other folder of pictures for the format 'folder'"):
        read_corpus(here, images=tmp_path)


def test_the_other_place_has_to_be_there(tmp_path: Path) -> None:
    here = fill(tmp_path / "here", {"t.csv": ["image,caption", "1.jpg,A dog"], "1.jpg": PICTURE})
    for wrong in ("absent", "here/1.jpg"):
        with pytest.raises(DataError, match=f"no folder .*{wrong}"):
            read_corpus(here, images=tmp_path / wrong)


# Folders ------------------------------------------------------------------------------------------------------------


def test_folder_of_pictures_with_texts(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "a/1.jpg": PICTURE,
        "a/1.txt": b"\xef\xbb\xbfA dog\r\nA pup\r\n",
        "a/1.de.txt": ["Ein Hund"],
    }
    files |= {
        "2.jpg": PICTURE,
        "2.jpg.txt": ["A cat"],
        "my.de.png": PICTURE,
        "my.de.txt": ["Mine"],
        "README.txt": ["x"],
    }
    samples = by_id(read_corpus(fill(tmp_path, files)))
    assert samples["a/1.jpg"].captions == {"und": ("A dog", "A pup"), "de": ("Ein Hund",)}
    assert samples["2.jpg"].captions == {"und": ("A cat",)}
    assert samples["my.de.png"].captions == {"und": ("Mine",)}


def test_folder_with_splits_and_problems(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "train/1.jpg": PICTURE,
        "train/1.txt": ["A dog"],
        "test/2.jpg": PICTURE,
        "test/2.txt": [""],
    }
    files |= {"test/3.jpg": PICTURE, "train/4.txt": ["lost"], "train/5.jpg": PICTURE, "train/5.png": PICTURE}
    corpus = read_corpus(fill(tmp_path, files | {"train/5.txt": ["whose?"]}), skip_bad=True)
    assert [(s.id, s.split) for s in corpus.samples] == [("train/1.jpg", "train")]
    assert sorted(problem.message for problem in corpus.problems) == [
        "ambiguous picture: train/5.jpg and train/5.png",
        "empty caption: test/2.jpg",
        "no such picture: a text without one",
        "picture without a caption: test/3.jpg",
        "picture without a caption: train/5.jpg",
        "picture without a caption: train/5.png",
    ]


def test_classes(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "cat/1.jpg": PICTURE,
        "cat/deep/2.png": PICTURE,
        "dog/1.jpg": PICTURE,
        "test/3.jpg": PICTURE,
    }
    corpus = read_corpus(fill(tmp_path, files))
    assert corpus.labels == ("cat", "dog", "test")  # "test" is no split beside classes
    assert by_id(corpus)["cat/deep/2.png"].label == "cat"


def test_classes_below_splits(tmp_path: Path) -> None:
    files: dict[str, Any] = {"train/cat/1.jpg": PICTURE, "train/dog/1.jpg": PICTURE, "valid/cat/1.jpg": PICTURE}
    fill(tmp_path, files | {"test/dog/1.jpg": PICTURE, "test/stray.jpg": PICTURE})
    (tmp_path / "test" / "cow").mkdir()
    corpus = read_corpus(tmp_path, skip_bad=True)
    assert {s.id: (s.label, s.split) for s in corpus.samples} == {
        "train/cat/1.jpg": ("cat", "train"),
        "train/dog/1.jpg": ("dog", "train"),
        "valid/cat/1.jpg": ("cat", "val"),
        "test/dog/1.jpg": ("dog", "test"),
    }
    assert messages(corpus) == [
        "stray.jpg: picture outside a class folder: it has no label",
        "cow: no pictures: an empty class folder",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_file_names_that_are_no_text(tmp_path: Path) -> None:
    fill(tmp_path, {"cat/1.jpg": PICTURE})
    (tmp_path / "cat" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    corpus = read_corpus(tmp_path, skip_bad=True)
    assert [problem.message for problem in corpus.problems] == [r"file name not in UTF-8: cat/caf\udce9.jpg"]


# Which format, and splits -------------------------------------------------------------------------------------------


def test_detection_names_what_it_saw(tmp_path: Path) -> None:
    flickr(tmp_path)
    assert detect(tmp_path) == "flickr8k"
    fill(tmp_path, {"more.csv": ["image,caption"]})
    with pytest.raises(DataError, match=r"several formats: flickr8k by Flickr8k\.token\.txt.*; csv by more\.csv"):
        read_corpus(tmp_path)
    assert len(read_corpus(tmp_path, "flickr8k")) == 6
    (tmp_path / "empty").mkdir()
    for name in ("empty", "Images/1.jpg"):
        with pytest.raises(DataError) as raised:
            read_corpus(tmp_path / name)
        assert all(format in raised.value.expected for format in FORMATS)
    with pytest.raises(DataError, match="there is no"):
        read_corpus(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"unknown format 'cocoa' \(did you mean 'coco'"):
        read_corpus(tmp_path, "cocoa")


def many(root: Path, count: int) -> Path:
    rows = [f"{number}.jpg,A dog" for number in range(count)]
    return fill(root, {"t.csv": ["image,caption", *rows]})


def test_seeded_splits_are_by_picture_and_stay(tmp_path: Path) -> None:
    def splits(count: int, seed: int = 0) -> dict[str, str]:
        corpus = read_corpus(many(tmp_path, count), seed=seed, pictures=False, val_share=0.2)
        return {sample.id: sample.split for sample in corpus.samples}

    few, lots = splits(500), splits(1000)
    assert all(lots[id] == split for id, split in few.items())
    shares = Counter(lots.values())
    assert 160 < shares["val"] < 240
    assert 70 < shares["test"] < 130
    assert splits(1000, seed=1) != lots


@pytest.mark.parametrize("count", [3, 4, 9])
def test_a_few_pictures_still_give_every_split(count: int, tmp_path: Path) -> None:
    many(tmp_path, count)
    for seed in range(20):
        corpus = read_corpus(tmp_path, seed=seed, pictures=False)
        assert {sample.split for sample in corpus.samples} == {"train", "val", "test"}


def test_shares_of_nothing_and_too_much(tmp_path: Path) -> None:
    many(tmp_path, 50)
    corpus = read_corpus(tmp_path, pictures=False, val_share=0, test_share=0)
    assert {sample.split for sample in corpus.samples} == {"train"}
    for shares in ((0.5, 0.5), (-0.1, 0.1)):
        with pytest.raises(ConfigError, match="leave nothing to learn"):
            read_corpus(tmp_path, val_share=shares[0], test_share=shares[1])


def test_nothing_usable_is_an_error_even_when_told_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 × no such picture"):
        read_corpus(many(tmp_path, 3), skip_bad=True)


def test_only_the_first_problems_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_corpus(many(tmp_path, 1234))
    assert raised.value.what.count("no such picture: ") == 20
    assert "1,234 problems (1,234 × no such picture)" in raised.value.what
    assert "… and 1,214 more" in raised.value.what


# Real data ----------------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_flickr8k(real_data: Path) -> None:
    best = 10.0
    for _ in range(3):
        start = time.process_time()
        corpus = read_corpus(real_data / "flickr8k")
        best = min(best, time.process_time() - start)
    assert Counter(sample.split for sample in corpus.samples) == {"train": 6000, "val": 1000}
    assert sum(len(sample.captions["en"]) for sample in corpus.samples) == 35_000
    assert sum(len(sample.captions.get("de", ())) for sample in corpus.samples) == 32_310
    assert set(corpus.languages) == {"en", "de", "fr", "cs"}
    assert not corpus.problems
    assert best < 1.0  # 0.4 s of one core


@pytest.mark.data
def test_real_coco_and_classes(real_data: Path) -> None:
    corpus = read_corpus(real_data / "coco", skip_bad=True)
    assert (len(corpus), len(corpus.problems)) == (159, 4841)
    assert len(read_corpus(real_data / "coco", pictures=False)) == 5000
    assert len(read_corpus(real_data / "flowers").labels) == 5
    assert len(read_corpus(real_data / "tinyimagenet30")) == 13_500
