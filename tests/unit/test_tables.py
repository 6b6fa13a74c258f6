"""CSV and JSONL as people have them, and each way in which a table may be wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.corpora import NAMES, PICTURE, by_id, fill, messages

from cutline.data.files import read_lines
from cutline.data.readers import read_corpus
from cutline.errors import DataError


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
    ]
    # 1.jpg contradicts itself, and the split of 2.jpg is not known; 3.jpg has the id 1.
    assert [(sample.id, sample.image.name) for sample in corpus.samples] == [("1", "3.jpg")]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"t.csv": ["image,caption,caption", "1.jpg,One,Two"], "1.jpg": PICTURE})
    with pytest.raises(DataError, match=r"t\.csv:1: unclear columns: two are called 'caption'") as caught:
        read_corpus(tmp_path)
    assert "caption_1" in caught.value.fix
    (tmp_path / "t.csv").unlink()
    fill(tmp_path, {"t.jsonl": ['{"image": "1.jpg", "caption": "One", "caption": "Two"}']})
    with pytest.raises(DataError, match=r"t\.jsonl:1: given twice in one object: 'caption'"):
        read_corpus(tmp_path)


def test_what_numbers_captions_is_no_language(tmp_path: Path) -> None:
    here = fill(
        tmp_path / "csv", {"t.csv": ["image,caption_id,caption,caption_url", "1.jpg,101,A dog,x"], "1.jpg": PICTURE}
    )
    assert read_corpus(here).samples[0].captions == {"und": ("A dog",)}
    row = {"image": "1.jpg", "caption_no": 7, "caption_de": "Ein Hund", "caption_id": "Seekor anjing"}
    here = fill(tmp_path / "jsonl", {"t.jsonl": [row], "1.jpg": PICTURE})
    assert read_corpus(here).samples[0].captions == {"de": ("Ein Hund",), "id": ("Seekor anjing",)}


def test_what_an_open_quote_swallows_is_read_all_the_same(tmp_path: Path) -> None:
    rows = ["image,caption", '1.jpg,"A dog', "2.jpg,Two", "3.jpg,Three", '4.jpg,"Four"', '5.jpg,"Five', "6.jpg,Six"]
    corpus = read_corpus(fill(tmp_path, {"t.csv": rows, **dict.fromkeys(NAMES, PICTURE)}), skip_bad=True)
    assert [sample.id for sample in corpus.samples] == ["2.jpg", "3.jpg", "4.jpg", "6.jpg"]
    assert [message.split(": ")[:2] for message in messages(corpus)] == [
        ["t.csv:2", "malformed row"],
        ["t.csv:6", "malformed row"],
    ]


def test_an_open_quote_in_the_header_is_no_crash(tmp_path: Path) -> None:
    fill(tmp_path, {"t.csv": ['image,caption,"note', "1.jpg,A dog,x"], "1.jpg": PICTURE})
    with pytest.raises(DataError, match=r"t\.csv:1: no column for the picture"):
        read_corpus(tmp_path)


def test_tables_as_excel_and_notepad_write_them(tmp_path: Path) -> None:
    table = "sep=;\r\nimage;caption\r\n1.jpg;Ein Hund, grün\r\n"
    fill(tmp_path, {"t.csv": b"\xef\xbb\xbf" + table.encode(), "1.jpg": PICTURE})
    assert read_corpus(tmp_path).samples[0].captions == {"und": ("Ein Hund, grün",)}
    fill(tmp_path, {"t.csv": table.replace("sep=;\r\n", "").encode("utf-16")})
    assert read_corpus(tmp_path).samples[0].captions == {"und": ("Ein Hund, grün",)}


def test_a_cell_may_list_captions(tmp_path: Path) -> None:
    rows = ["image,captions", '1.jpg,"[""A dog"", ""It runs""]"', "2.jpg,[a sign]"]
    samples = by_id(read_corpus(fill(tmp_path, {"t.csv": rows, "1.jpg": PICTURE, "2.jpg": PICTURE})))
    assert samples["1.jpg"].captions == {"und": ("A dog", "It runs")}
    assert samples["2.jpg"].captions == {"und": ("[a sign]",)}


def test_an_absolute_path_inside_the_folder_is_the_same_picture(tmp_path: Path) -> None:
    rows = ["image,caption", f"{tmp_path / 'x' / '1.jpg'},One", "x/1.jpg,Two"]
    corpus = read_corpus(fill(tmp_path, {"t.csv": rows, "x/1.jpg": PICTURE}))
    assert [(s.id, s.captions["und"]) for s in corpus.samples] == [("x/1.jpg", ("One", "Two"))]


def test_so_is_one_by_another_name_of_the_folder(tmp_path: Path) -> None:
    there = fill(tmp_path / "there", {"x/1.jpg": PICTURE})
    (there / "t.csv").write_text(f"image,caption\n{there / 'x' / '1.jpg'},One\n")
    (tmp_path / "here").symlink_to(there)
    assert [(s.id, s.captions["und"]) for s in read_corpus(tmp_path / "here").samples] == [("x/1.jpg", ("One",))]


def test_pictures_may_lie_in_another_folder_than_their_table(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", {"1.jpg": PICTURE, "x/2.jpg": PICTURE})
    rows = ["image,caption", "1.jpg,One", "x/2.jpg,Two", f"{photos / '1.jpg'},Also one"]
    tables = fill(tmp_path / "tables", {"t.csv": rows, "1.jpg": PICTURE})
    assert [m.split(": ")[:2] for m in messages(read_corpus(tables, skip_bad=True))] == [
        ["t.csv:3", "no such picture"],
        ["t.csv:4", "outside the folder"],
    ]
    corpus = read_corpus(tables / "t.csv", images=photos)
    assert [(s.id, s.image, s.captions["und"]) for s in corpus.samples] == [
        ("1.jpg", photos / "1.jpg", ("One", "Also one")),
        ("x/2.jpg", photos / "x/2.jpg", ("Two",)),
    ]
    other = [f"../{tables.name}/1.jpg,Outside", f"{tables / '1.jpg'},Outside"]
    fill(tables, {"t.csv": [*rows, *other]})
    found = messages(read_corpus(tables, images=photos, skip_bad=True))
    assert [m.split(": ")[:2] for m in found] == [[f"t.csv:{line}", "outside the folder"] for line in (5, 6)]
    assert "--images" in found[0]


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
    bad = [{"image": "2.jpg", "caption": "x", "split": "\ud800"}, {"image": "\ud800/\ud800.jpg", "caption": "x"}]
    fill(tmp_path, {"t.jsonl": [row, *bad], "1.jpg": PICTURE, "2.jpg": PICTURE})
    corpus = read_corpus(tmp_path, skip_bad=True)
    (sample,) = corpus.samples
    assert (sample.id, sample.label, corpus.languages) == (r"\ud800", r"\ud800", (r"\ud800",))
    assert [problem.message.split(":")[0] for problem in corpus.problems] == ["unknown split", "no such picture"]
    assert "".join(map(str, corpus.problems)).encode()


@pytest.mark.parametrize("data", ["image,caption\n".encode("utf-16") + b"\x00", b""])
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
