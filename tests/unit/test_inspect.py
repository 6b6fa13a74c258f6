"""The figures of a corpus, checked against small ones that can be counted by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from cutline.data.inspect import Range, inspect
from cutline.data.labels import Balance


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, of which 2 and 3 are the same file in two splits."""
    for number, shade in enumerate((10, 20, 20, 40, 50), 1):
        Image.new("L", (4, 4), shade).save(tmp_path / f"{number}.png")
    rows = [
        {"image": "1.png", "captions": {"en": ["A dog runs.", "A DOG!"], "de": ["Ein Hund"]}, "split": "train"},
        {"image": "2.png", "captions": {"en": ["A dog runs."]}, "split": "train", "label": "dog"},
        {"image": "3.png", "captions": {"en": ["It's a cat, isn't it?"]}, "split": "test", "label": "dog"},
        {"image": "4.png", "captions": {"en": ["One", "Two words", "Now three words"]}, "split": "val", "label": "cat"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_counts(folder: Path) -> None:
    found = inspect(folder)
    assert found.pictures == 4
    assert found.splits == {"train": 2, "val": 1, "test": 1}
    assert found.labels == {"dog": {"train": 1, "val": 0, "test": 1}, "cat": {"train": 0, "val": 1, "test": 0}}
    assert found.balance == Balance(2, 2, "dog", 1, "cat", 2 / 3)
    english = found.languages["en"]
    assert (english.captions, english.pictures) == (7, 4)
    assert english.per_picture == Range(1, 1.5, 3)
    assert english.length == Range(1, 3, 5)
    # a, dog, runs, it's, cat, isn't, it, one, two, words, now, three
    assert (english.words, english.once) == (12, 8)
    assert (english.repeated, english.commonest) == (1, (("A dog runs.", 2),))
    assert found.languages["de"].commonest == ()


def test_copies_are_found_and_those_across_splits_are_problems(folder: Path) -> None:
    found = inspect(folder)
    assert found.copies == ((folder / "2.png", folder / "3.png"),)
    assert [problem.message for problem in found.problems] == [
        "same picture with different splits: 2.png (train), 3.png (test)"
    ]
    rows = (folder / "t.jsonl").read_text().replace('"test"', '"train"')
    (folder / "t.jsonl").write_text(rows)
    assert not inspect(folder).problems
    (folder / "t.jsonl").write_text(rows.replace('"label": "dog"', '"label": "cat"', 1))
    assert [p.message for p in inspect(folder).problems] == [
        "same picture with different labels: 2.png (cat), 3.png (dog)"
    ]
    (folder / "t.jsonl").write_text(rows.replace(', "label": "dog"', "", 1))
    assert not inspect(folder).problems  # one without a label contradicts none


def test_every_picture_is_opened_only_when_asked(folder: Path) -> None:
    whole = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(whole[:-20])
    assert len(inspect(folder).problems) == 1
    found = inspect(folder, check_pictures=True)
    problem = found.problems[-1]
    assert problem.file == folder / "4.png"
    assert problem.message.startswith("unusable picture: damaged: ")


def test_problems_are_shown_even_where_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,caption\n1.jpg,A dog\n")
    found = inspect(tmp_path)
    assert (found.pictures, found.languages) == (0, {})
    assert [(p.line, p.message) for p in found.problems] == [(2, "no such picture: 1.jpg")]


def test_it_is_all_in_the_json(folder: Path) -> None:
    content = json.loads(json.dumps(inspect(folder).to_dict()))
    assert content["languages"]["en"]["length"] == {"least": 1, "median": 3, "most": 5}
    assert content["copies"] == [[str(folder / "2.png"), str(folder / "3.png")]]
    assert content["problems"][0]["line"] is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("एक कुत्ता दौड़ रहा है", 5),
        ("一只狗在草地上跑", 8),
        ("หมาวิ่ง", 1),
        ("Le chien de l'île, l’eau", 5),
        ("'quoted' rock_n_roll", 4),
    ],
)
def test_words_are_counted_in_any_script(text: str, words: int, tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text(text)
    assert inspect(tmp_path).languages["und"].length.most == words


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    for name in ("2.png", "3.png"):
        os.mkfifo(tmp_path / name)  # of no size, and reading it would wait for ever
    (tmp_path / "4.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "5.txt")
    (tmp_path / "6.txt").symlink_to("nowhere.txt")
    for number in range(1, 5):
        (tmp_path / f"{number}.txt").write_text("A dog")
    for number in (5, 6):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
    found = inspect(tmp_path)
    assert found.pictures == 4
    bad = [(p.file.name, p.message.split(":")[0]) for p in found.problems if "unusable" in p.message]
    assert bad == [(f"{n}.txt", "unusable text") for n in (5, 6)] + [
        (f"{n}.png", "unusable picture") for n in (2, 3, 4)
    ]


def test_names_that_are_no_text_can_be_printed(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.txt").write_text("A dog")
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text("A dog")
    found = inspect(tmp_path)
    "".join([found.source, *map(str, found.problems), json.dumps(found.to_dict(), ensure_ascii=False)]).encode()
    assert r"caf\udce9.txt" in str(found.problems[0])
