"""Each format as people have it on disk, and each way in which it may be wrong."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutline.data.corpus import Corpus, Sample
from cutline.data.files import read_lines
from cutline.data.readers import FORMATS, detect, read_corpus
from cutline.errors import ConfigError, DataError

DATA = Path(os.environ.get("CUTLINE_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA} (CUTLINE_DATA names it)")


def fill(root: Path, files: dict[str, Any]) -> Path:
    """Write files: pictures by their names, JSON for `.json`, bytes as they are, lines joined."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif file.suffix == ".json":
            file.write_text(json.dumps(content), encoding="utf-8")
        elif isinstance(content, list):
            file.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in content), encoding="utf-8")
        else:
            Image.new("RGB", (2, 2)).save(file)
    return root


PICTURE = None
NAMES = [f"{number}.jpg" for number in range(1, 7)]


def by_id(corpus: Corpus) -> dict[str, Sample]:
    return {sample.id: sample for sample in corpus.samples}


def messages(corpus: Corpus) -> list[str]:
    """Problems as `file:line: message` with the file's name alone."""
    return [
        f"{p.file.name}:{p.line}: {p.message}" if p.line else f"{p.file.name}: {p.message}" for p in corpus.problems
    ]


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


# Tables -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", ["image,caption", "File Name;Text", "\ufeffimage_path\tdescription", "path,comment", "IMG|Captions"]
)
def test_csv_by_any_customary_header(header: str, tmp_path: Path) -> None:
    mark = next(mark for mark in ",;\t|" if mark in header)
    rows = [f"{name}{mark}A dog" for name in NAMES]
    (tmp_path / "t.csv").write_bytes("\r\n".join([header, *rows, ""]).encode())
    corpus = read_corpus(fill(tmp_path, dict.fromkeys(NAMES, PICTURE)))
    assert [sample.id for sample in corpus.samples] == NAMES
    assert corpus.samples[0].captions == {"und": ("A dog",)}


def test_csv_with_everything(tmp_path: Path) -> None:
    rows = ["id,image,caption,lang,label,split"]
    rows += ["a,x/1.jpg,A dog,en,pets,train", "a,x/1.jpg,Ein Hund,de,pets,training"]
    rows += ['b,x\\2.jpg,"A ""cat"",\non two lines",en,pets,dev', "c,./x/../x/3.jpg,A car,en,,test"]
    corpus = read_corpus(fill(tmp_path, {"t.csv": rows, "x/1.jpg": PICTURE, "x/2.jpg": PICTURE, "x/3.jpg": PICTURE}))
    assert [(s.id, s.label, s.split) for s in corpus.samples] == [
        ("a", "pets", "train"),
        ("b", "pets", "val"),
        ("c", None, "test"),
    ]
    assert corpus.samples[0].captions == {"en": ("A dog",), "de": ("Ein Hund",)}
    assert corpus.samples[1].captions == {"en": ('A "cat", on two lines',)}


def test_csv_with_a_column_for_each_caption(tmp_path: Path) -> None:
    rows = ["image,caption_1,caption_2,caption_de", "1.jpg,A dog,,Ein Hund", "2.jpg,A cat,A kitten,"]
    corpus = read_corpus(fill(tmp_path, {"t.csv": rows, "1.jpg": PICTURE, "2.jpg": PICTURE}))
    assert corpus.samples[0].captions == {"und": ("A dog",), "de": ("Ein Hund",)}
    assert corpus.samples[1].captions == {"und": ("A cat", "A kitten")}


def test_one_language_asked_for_names_the_captions_that_state_none(tmp_path: Path) -> None:
    fill(tmp_path, {"t.csv": ["image,caption", "1.jpg,Ein Hund"], "1.jpg": PICTURE})
    assert read_corpus(tmp_path, languages=["de"]).samples[0].captions == {"de": ("Ein Hund",)}


def test_tables_named_for_their_splits(tmp_path: Path) -> None:
    files: dict[str, Any] = dict.fromkeys(NAMES[:2], PICTURE)
    files |= {"train.csv": ["image,caption", "1.jpg,A dog"], "val.csv": ["image,caption", "2.jpg,A cat"]}
    assert {s.id: s.split for s in read_corpus(fill(tmp_path, files)).samples} == {"1.jpg": "train", "2.jpg": "val"}
    fill(tmp_path, {"more.csv": ["image,caption", "2.jpg,A cat"]})
    with pytest.raises(DataError, match=r"several tables: more\.csv, train\.csv, val\.csv"):
        read_corpus(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image,file_name,caption", "both 'image' and 'file_name' may be the image"),
        ("picture_of_it,caption", "no column for the picture: found 'picture_of_it', 'caption'"),
        ("1.jpg,A dog", "no column for the picture: found '1.jpg', 'A dog'"),
        ("image,remark", "no column for captions: found 'image', 'remark'"),
        ("", "no column for the picture: found none"),
        ("a\rb", "no column for the picture: found 'a\rb'"),
    ],
)
def test_unclear_headers_are_refused_with_what_was_found(header: str, message: str, tmp_path: Path) -> None:
    fill(tmp_path, {"t.csv": [header, "1.jpg,2.jpg,A dog"], "1.jpg": PICTURE})
    with pytest.raises(DataError, match=r"t\.csv:1: ") as raised:
        read_corpus(tmp_path)
    assert message in raised.value.what


def test_csv_problems(tmp_path: Path) -> None:
    rows = ["image,caption,split,label,id", "1.jpg,A dog, it runs,train,a,x", "1.jpg,A dog,train,pet,1"]
    rows += [
        "1.jpg,A dog,val,cat,2",
        "2.jpg,A cat,sometimes,,",
        "../1.jpg,A dog,,,",
        "/etc/1.jpg,A,,,",
        "C:\\1.jpg,A,,,",
    ]
    rows += [",A dog,,,", "\udc80.jpg,x,,,".encode("utf-8", "surrogateescape").decode("latin-1"), '3.jpg,"A "dog",,,']
    rows += ["3.jpg,A dog,,,1", "", ",,,,", '4.jpg,"never closed,,,']
    fill(tmp_path / "inner", {"t.csv": rows, **dict.fromkeys(NAMES, PICTURE)})
    fill(tmp_path, {"1.jpg": PICTURE})
    corpus = read_corpus(tmp_path / "inner", skip_bad=True)
    kinds = [message.split(": ")[:2] for message in messages(corpus)]
    assert kinds == [
        ["t.csv:2", "malformed row"],
        ["t.csv:4", "two ids"],
        ["t.csv:4", "two labels"],
        ["t.csv:4", "in two splits"],
        ["t.csv:5", "unknown split"],
        ["t.csv:6", "outside the folder"],
        ["t.csv:7", "outside the folder"],
        ["t.csv:8", "outside the folder"],
        ["t.csv:9", "no picture named"],
        ["t.csv:10", "no such picture"],
        ["t.csv:11", "malformed row"],
        ["t.csv:15", "malformed row"],
        ["t.csv:12", "id used twice"],
    ]
    assert [sample.id for sample in corpus.samples] == ["1", "2.jpg"]


def test_an_absolute_path_inside_the_folder_is_the_same_picture(tmp_path: Path) -> None:
    rows = ["image,caption", f"{tmp_path / 'x' / '1.jpg'},One", "x/1.jpg,Two"]
    corpus = read_corpus(fill(tmp_path, {"t.csv": rows, "x/1.jpg": PICTURE}))
    assert [(s.id, s.captions["und"]) for s in corpus.samples] == [("x/1.jpg", ("One", "Two"))]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_brings_pictures_from_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path / "far", {"1.jpg": PICTURE})
    fill(tmp_path / "here", {"t.csv": ["image,caption", "far/1.jpg,A dog"]})
    (tmp_path / "here" / "far").symlink_to(tmp_path / "far")
    assert read_corpus(tmp_path / "here").samples[0].id == "far/1.jpg"


def test_names_are_found_despite_case_and_composed_accents(tmp_path: Path) -> None:
    fill(tmp_path, {"t.csv": ["image,caption", "cafe\u0301.JPG,Coffee", "1.JPG,A dog"]})
    fill(tmp_path, {"caf\u00e9.jpg": PICTURE, "1.jpg": PICTURE})
    assert {s.image.name for s in read_corpus(tmp_path).samples} == {"caf\u00e9.jpg", "1.jpg"}


def test_a_name_in_two_folders_is_ambiguous(tmp_path: Path) -> None:
    fill(tmp_path, {"t.csv": ["image,caption", "1.jpg,A dog"], "a/1.jpg": PICTURE, "b/1.jpg": PICTURE})
    with pytest.raises(DataError, match=r"t\.csv:2: ambiguous picture: a/1\.jpg and b/1\.jpg: 1\.jpg"):
        read_corpus(tmp_path)


def test_jsonl(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "image": "1.jpg", "captions": {"en": ["A dog", "A pup"], "de": "Ein Hund"}, "split": "test"},
        {"file_name": "2.jpg", "text": "A cat", "lang": "en", "label": "pets", "objects": [1], "split": None},
        {"path": "3.jpg", "captions": [{"text": "A car", "lang": "en", "score": -1.5}, "Auto"], "lang": "de"},
        {"image": "4.jpg", "label": 7, "id": 12},
    ]
    corpus = read_corpus(fill(tmp_path, {"t.jsonl": [*rows, ""], **dict.fromkeys(NAMES, PICTURE)}))
    samples = by_id(corpus)
    assert samples["a"].captions == {"en": ("A dog", "A pup"), "de": ("Ein Hund",)}
    assert samples["a"].split == "test"
    assert (samples["2.jpg"].captions, samples["2.jpg"].label) == ({"en": ("A cat",)}, "pets")
    assert samples["3.jpg"].captions == {"en": ("A car",), "de": ("Auto",)}
    assert (samples["12"].captions, samples["12"].label) == ({}, "7")


def test_jsonl_problems(tmp_path: Path) -> None:
    lines = [
        "{'image': 1}",
        "[1]",
        '{"image": 5, "caption": "x"}',
        '{"caption": "x"}',
        '{"image": "1.jpg", "caption": 5}',
    ]
    lines += ['{"image": "2.jpg", "captions": []}', '{"image": "3.jpg", "caption": "half \\ud800"}', "[" * 100_000]
    lines += ['{"image": "4.jpg", "caption": "A dog"}', '{"image": "5.jpg", "caption": "x", "label": ["y"]}']
    fill(tmp_path, {"t.jsonl": lines, **dict.fromkeys(NAMES, PICTURE)})
    corpus = read_corpus(tmp_path, skip_bad=True)
    kinds = [message.split(": ")[:2] for message in messages(corpus)]
    assert kinds == [
        ["t.jsonl:1", "malformed row"],
        ["t.jsonl:2", "malformed row"],
        ["t.jsonl:3", "malformed row"],
        ["t.jsonl:4", "no column for the picture"],
        ["t.jsonl:5", "malformed row"],
        ["t.jsonl:6", "empty caption"],
        ["t.jsonl:7", "broken characters in a caption"],
        ["t.jsonl:8", "malformed row"],
        ["t.jsonl:10", "malformed row"],
    ]
    assert [sample.id for sample in corpus.samples] == ["4.jpg"]


def test_half_characters_anywhere_can_still_be_printed(tmp_path: Path) -> None:
    row = {"image": "1.jpg", "caption": "A dog", "id": "\ud800", "label": "\ud800", "lang": "\ud800"}
    bad = [{**row, "split": "\ud800"}, {"image": "\ud800/\ud800.jpg", "caption": "x"}]
    fill(tmp_path, {"t.jsonl": [row, *bad], "1.jpg": PICTURE})
    corpus = read_corpus(tmp_path, skip_bad=True)
    sample = corpus.samples[0]
    assert (sample.id, sample.label, corpus.languages) == (r"\ud800", r"\ud800", (r"\ud800",))
    assert [problem.message.split(":")[0] for problem in corpus.problems] == ["unknown split", "no such picture"]
    assert "".join(map(str, corpus.problems)).encode()


@pytest.mark.parametrize("data", ["Grün,x".encode("utf-16"), b""])
def test_files_that_cannot_be_read_at_all(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=r"t\.csv"):
        read_corpus(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"images": 5, "annotations": [{"caption": 1}]}', '"images" "caption"'])
def test_json_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "captions_x.json").write_text(content)
    with pytest.raises(DataError, match=r"captions_x\.json"):
        read_corpus(tmp_path, "coco")


def test_lines_end_only_where_lines_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\u2028still two\x85\nthree".encode())
    assert read_lines(tmp_path / "a.txt", pytest.fail) == ["one", "two\u2028still two\x85", "three"]
    (tmp_path / "a.txt").write_bytes(b"one\rtwo")
    assert read_lines(tmp_path / "a.txt", pytest.fail) == ["one", "two"]


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


@needs_data
@pytest.mark.data
def test_real_flickr8k() -> None:
    best = 10.0
    for _ in range(3):
        start = time.process_time()
        corpus = read_corpus(DATA / "flickr8k")
        best = min(best, time.process_time() - start)
    assert Counter(sample.split for sample in corpus.samples) == {"train": 6000, "val": 1000}
    assert sum(len(sample.captions["en"]) for sample in corpus.samples) == 35_000
    assert sum(len(sample.captions.get("de", ())) for sample in corpus.samples) == 32_310
    assert set(corpus.languages) == {"en", "de", "fr", "cs"}
    assert not corpus.problems
    assert best < 1.0  # 0.4 s of one core


@needs_data
@pytest.mark.data
def test_real_coco_and_classes() -> None:
    corpus = read_corpus(DATA / "coco", skip_bad=True)
    assert (len(corpus), len(corpus.problems)) == (159, 4841)
    assert len(read_corpus(DATA / "coco", pictures=False)) == 5000
    assert len(read_corpus(DATA / "flowers").labels) == 5
    assert len(read_corpus(DATA / "tinyimagenet30")) == 13_500
