"""Predictions and references are read from every form they come in, and what is wrong is said with its place."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cutline.errors import DataError
from cutline.evaluation.files import References, align, read_predictions, read_references, read_training

EXPECTED = {"1.jpg": "a dog", "2.jpg": "two cats"}


def write(folder: Path, content: object, name: str = "file.json") -> str:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(file)


FORMS = {
    "coco results": '[{"image_id": "1.jpg", "caption": "a dog"}, {"image_id": "2.jpg", "caption": "two cats"}]',
    "coco results, spread over lines": '[\n {"image_id": "1.jpg",\n  "caption": "a dog"},\n'
    ' {"image_id": "2.jpg", "caption": "two cats"}\n]',
    "object": '{"1.jpg": "a dog", "2.jpg": "two cats"}',
    "object over lines": '{\n "1.jpg": "a dog",\n "2.jpg": ["two cats"]\n}\n',
    "our jsonl": '{"path": "1.jpg", "captions": [{"text": "a dog", "score": -1, "lang": "en"}, {"text": "b"}]}\n\n'
    '{"path": "2.jpg", "captions": [{"text": "two cats", "score": -1, "lang": "en"}]}\n',
    "other jsonl": '{"image": "1.jpg", "caption": "a dog"}\r\n{"image": "2.jpg", "caption": "two cats"}\r\n',
    "csv": "image,caption\n1.jpg,a dog\n\n2.jpg,two cats\n",
    "csv, other names": '"Caption";"ID"\r\n"a dog";1.jpg\r\n"two cats";2.jpg\r\n',
    "tsv": "path\tscore\ttext\n1.jpg\t1\ta dog\n2.jpg\t2\ttwo cats",
    "with a byte order mark": "\ufeffimage,caption\n1.jpg,a dog\n2.jpg,two cats\n",
    "line ends of old": "image,caption\r1.jpg,a dog\r2.jpg,two cats\r",
    "id only numbers rows": "id,image,caption\n0,1.jpg,a dog\n1,2.jpg,two cats\n",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_predictions_in_every_form(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_predictions(write(tmp_path, text)) == EXPECTED
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert read_predictions("-") == EXPECTED


def test_whole_numbers_are_ids_and_empty_captions_are_captions(tmp_path: Path) -> None:
    rows = [{"image_id": 139, "caption": "a room", "id": 7}, {"image_id": 285, "caption": ""}]
    assert read_predictions(write(tmp_path, rows)) == {"139": "a room", "285": ""}
    assert read_predictions(write(tmp_path, 'image,caption\n1.jpg,"a\ndog"\n2.jpg,\n')) == {
        "1.jpg": "a\ndog",
        "2.jpg": "",
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"path": "1.jpg", "captions": [{"text": "a dog"}]}\n{"path": "2.jpg", "error": "empty file"}\n',
        '[{"path": "1.jpg", "captions": [{"text": "a dog"}]}, {"path": "2.jpg", "error": "empty file"}]',
        "path,caption,score,lang,error\n1.jpg,a dog,-1,en,\n2.jpg,,,,empty file\n",
        '{"path": "1.jpg", "caption": "a dog"}\n{"path": "2.jpg", "label": "dog", "guesses": [{"label": "cat"}]}\n',
    ],
)
def test_a_picture_that_could_not_be_captioned_has_no_prediction(text: str, tmp_path: Path) -> None:
    assert read_predictions(write(tmp_path, text)) == {"1.jpg": "a dog"}


def test_one_row_of_jsonl_is_not_an_object_of_captions(tmp_path: Path) -> None:
    row = {"path": "1.jpg", "captions": [{"text": "a dog"}]}
    assert read_predictions(write(tmp_path, row)) == {"1.jpg": "a dog"}


def test_names_of_a_row_may_be_written_large(tmp_path: Path) -> None:
    row = {"Image": "1.jpg", "Caption": "a dog"}
    assert read_predictions(write(tmp_path, row)) == {"1.jpg": "a dog"}


def test_one_language_of_several(tmp_path: Path) -> None:
    captions = [{"text": "a dog", "lang": "en"}, {"text": "ein Hund", "lang": "de"}, {"text": "Hund", "lang": "de"}]
    both = write(tmp_path, {"path": "1.jpg", "captions": captions})
    assert read_predictions(both, "de") == {"1.jpg": "ein Hund"}
    with pytest.raises(DataError, match="several languages: en, de"):
        read_predictions(both)
    with pytest.raises(DataError, match="no caption in fr: only in en, de"):
        read_predictions(both, "fr")
    rows = ({"path": "2.jpg", "captions": captions[:1]}, {"path": "1.jpg", "captions": captions})
    not_all = write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))  # not every picture in every language
    assert read_predictions(not_all, "de") == {"1.jpg": "ein Hund"}
    table = write(tmp_path, "image,lang,caption\n1.jpg,en,a dog\n1.jpg,de,ein Hund\n")
    assert read_predictions(table, "en") == {"1.jpg": "a dog"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no predictions"),
        ("[]", "no predictions"),
        ("a dog\n", ":1: no column for the picture"),
        ("image,caption\n1.jpg,a dog, running\n", ":2: malformed row: 3 values for 2 columns; text with a comma"),
        ('image,caption\n1.jpg,"a dog\n2.jpg,b\n', ":2: malformed row"),
        ("image,caption\n1.jpg,a\n1.jpg,b\n", ":3: second prediction: '1.jpg' has one already, line 2"),
        ("image,caption\n,a\n", ":2: no picture named"),
        ('image,caption\n1.jpg,"a\nb"\n\n2.jpg\n', ":5: malformed row: 1 values for 2 columns"),
        ('[\n{"image_id": 1, "caption": "a"},\n{"image_id": 2 "caption": "b"}\n]', ":3: not JSON"),
        ('[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]', "'1' has one already, entry 1"),
        ('[{"image_id": 1}]', "no caption: null is not text (entry 1)"),
        ('[{"image_id": true, "caption": "a"}]', "no picture named: true is not an id (entry 1)"),
        ("[3]", "(entry 1)"),
        ('{"path": "1", "captions": []}\n{"path": "2", "captions": [{"text": 3}]}', ":2: no caption: 3"),
        ('{"path": "1", "caption": "a"}\n{"path": \n', ":2: not JSON"),
        ('{"1": "a",\n "1": "b"}', "given twice in one object: '1'"),
        ('{"1": ["a", "b"]}', "several captions: 2 for one picture; are these the references? ('1')"),
        ('{"images": [], "annotations": []}', "holds COCO annotations, which are references"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_predictions(text: str, said: str, tmp_path: Path) -> None:
    file = write(tmp_path, text, "predictions.json")
    with pytest.raises(DataError) as caught:
        read_predictions(file)
    assert said in str(caught.value)
    assert "predictions.json" in str(caught.value)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no"):
        read_predictions(str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="cannot read"):
        read_predictions(str(tmp_path))
    (tmp_path / "latin.csv").write_bytes(b"image,caption\n1.jpg,a caf\xe9\n")
    with pytest.raises(DataError, match=r"latin.csv:2: not UTF-8: byte 0xe9"):
        read_predictions(str(tmp_path / "latin.csv"))


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    rows = [{"image_id": i} for i in range(100)]
    with pytest.raises(DataError) as caught:
        read_predictions(write(tmp_path, rows))
    assert "100 problems" in str(caught.value)
    assert "(entry 20)" in str(caught.value)
    assert "80 more" in str(caught.value)


COCO = {
    "images": [{"id": 139, "file_name": "000139.jpg"}, {"id": 285, "file_name": "000285.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 139, "caption": "a room"},
        {"id": 2, "image_id": 285, "caption": "a bear"},
        {"id": 3, "image_id": 139, "caption": "a table"},
    ],
}


def test_references_need_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, COCO, "captions_val2017.json")
    references = read_references(file)
    assert dict(references.captions) == {"139": ("a room", "a table"), "285": ("a bear",)}
    assert align({"139": "x", "val2017/000285.jpg": "y"}, references) == {"139": "x", "285": "y"}
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(json.dumps(COCO).encode())))
    assert dict(read_references("-").captions) == dict(references.captions)


def test_plain_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"1": ["a dog", "the dog"], "2": "a cat"}
    expected = {"1": ("a dog", "the dog"), "2": ("a cat",)}
    assert read_references(write(tmp_path, content)).captions == expected
    for text in (json.dumps(content), json.dumps(content, indent=1)):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
        assert read_references("-").captions == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.csv", "image,caption\n1.jpg,a dog\n1.jpg,the dog\n2.jpg,a cat\n"),
        (
            "captions.jsonl",
            '{"image": "1.jpg", "captions": ["a dog", "the dog"]}\n{"image": "2.jpg", "caption": "a cat"}\n',
        ),
        ("x.token.txt", "1.jpg#0\ta dog\n1.jpg#1\tthe dog\n2.jpg#0\ta cat\n"),
    ],
)
def test_references_of_the_readers_formats(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {"1.jpg": ("a dog", "the dog"), "2.jpg": ("a cat",)}
    assert read_references(write(tmp_path, text, name)).captions == expected
    if not name.endswith(".txt"):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
        assert read_references("-").captions == expected


def test_references_by_split_and_language(tmp_path: Path) -> None:
    text = "image,caption,lang,split\n1.jpg,a dog,en,train\n1.jpg,ein Hund,de,train\n2.jpg,a cat,en,val\n"
    file = write(tmp_path, text, "captions.csv")
    assert read_references(file, lang="en", split="val").captions == {"2.jpg": ("a cat",)}
    assert read_references(file, lang="de").captions == {"1.jpg": ("ein Hund",)}
    assert read_training(file, "en") == ["a dog"]
    with pytest.raises(DataError, match="captions are in en, de"):
        read_references(file)
    with pytest.raises(DataError, match="no captions in fr"):
        read_references(file, lang="fr")
    with pytest.raises(Exception, match="unknown split"):
        read_references(file, lang="en", split="test")


def test_undivided_training_captions_are_all_taken(tmp_path: Path) -> None:
    text = "image,caption\n" + "".join(f"{i}.jpg,a {i}\n" for i in range(50))
    assert len(read_training(write(tmp_path, text, "captions.csv"))) == 50
    (tmp_path / "two").mkdir()
    write(tmp_path / "two", text, "captions.csv")
    write(tmp_path / "two", "1.jpg#0\tanother one\n", "Flickr8k.token.txt")
    assert read_training(str(tmp_path / "two"), reader="flickr8k") == ["another one"]
    assert read_training(write(tmp_path, {"1": ["a", "b"], "2": ["c"]})) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1], "a list instead of an object"),
        ({}, "has no references"),
        ({"1": []}, "'1' is not given a list of texts"),
        ({"1": ["a", ""]}, "'1' is not given a list of texts"),
        ({"1": {"a": "b"}}, "'1' is not given a list of texts"),
        ({"images": [], "annotations": [{"caption": "a"}]}, "annotations[0]"),
        ('{"1": ["a"],\n"2" ["b"]}', ":2: not JSON"),
    ],
)
def test_bad_references(content: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, content, "references.json")
    with pytest.raises(DataError) as caught:
        read_references(file)
    assert said in str(caught.value)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(Path(file).read_bytes())))
    with pytest.raises(DataError) as caught:
        read_references("-")
    assert said in str(caught.value)
    assert "standard input" in str(caught.value)


def test_what_cannot_be_read_may_be_left_out(tmp_path: Path) -> None:
    file = write(tmp_path, "image,caption\n1.jpg,a dog\n2.jpg\n", "captions.csv")
    with pytest.raises(DataError, match=":3: malformed row"):
        read_references(file)
    references = read_references(file, skip_bad=True)
    assert references.captions == {"1.jpg": ("a dog",)}
    assert [problem.line for problem in references.problems] == [3]


def test_pictures_by_any_of_their_names() -> None:
    references = References({"a/1.jpg": ("x",), "b/1.jpg": ("x",), "b/2.png": ("x",), "1.5": ("x",)}, {})
    predictions = {"/home/me/a/1.jpg": "A1", "b\\1.jpg": "B1", "2": "B2", "1.5": "N"}
    assert align(predictions, references) == {"a/1.jpg": "A1", "b/1.jpg": "B1", "b/2.png": "B2", "1.5": "N"}


def test_names_that_fit_none_or_several_are_left_as_they_are() -> None:
    references = References({"a/1.jpg": ("x",), "b/1.jpg": ("x",), "1.5": ("x",)}, {})
    predictions = {"1.jpg": "?", "1.6": "?", "new.jpg": "?"}
    assert align(predictions, references) == predictions


def test_two_predictions_of_one_picture_are_refused() -> None:
    references = References({"1": ("x",)}, {"1": "pictures/one.jpg"})
    with pytest.raises(DataError, match=r"1 = one\.jpg"):
        align({"1": "a", "one.jpg": "b"}, references)


def test_pictures_of_other_splits_are_not_taken_for_those_of_this_one() -> None:
    files = {f"{split}/{n}.jpg": f"/data/{split}/{n}.jpg" for split in ("train", "val", "test") for n in range(2)}
    references = References({id: ("x",) for id in files if id.startswith("val")}, files)
    of_test = {f"data/test/{n}.jpg": "x" for n in range(2)}
    assert not align(of_test, references).keys() & references.captions.keys()
    assert align({f"resized/{id}": id for id in files}, references) == {id: id for id in files}
    assert align({"1.jpg": "x"}, references) == {"val/1.jpg": "x"}  # nothing else has references


def test_an_id_of_another_split_is_not_the_name_of_a_file() -> None:
    files = {str(number): f"pictures/{number - 1}.jpg" for number in range(1, 11)}
    references = References({"8": ("x",)}, files)
    assert align({"7": "seven", "8": "eight"}, references) == {"7": "seven", "8": "eight"}
    assert align({"/elsewhere/7.jpg": "of id 8"}, references) == {"8": "of id 8"}


def test_another_folder_is_another_picture() -> None:
    references = References({"a/1.jpg": ("x",)}, {})
    assert align({"c/1.jpg": "x"}, references) == {"c/1.jpg": "x"}


def test_names_are_alike_however_their_accents_are_composed() -> None:
    references = References({"caf\u00e9.jpg": ("x",)}, {})
    assert align({"cafe\u0301.jpg": "x"}, references) == {"caf\u00e9.jpg": "x"}


def test_columns_and_languages_of_predictions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two columns are called 'caption'"):
        read_predictions(write(tmp_path, "image,caption,caption\n1.jpg,a,b\n", "twice.csv"))
    file = write(tmp_path, "image,caption,lang\n1.jpg,Ein Hund,DE\n1.jpg,A dog,en\n", "langs.csv")
    assert read_predictions(file, "De") == {"1.jpg": "Ein Hund"}
    with pytest.raises(DataError, match="not JSON that can be read"):
        read_predictions(write(tmp_path, '[{"image_id": ' + "1" * 5000 + ', "caption": "x"}]', "long.json"))
