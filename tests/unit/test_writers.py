"""Captions as text, JSON, JSON lines and CSV, read back by the libraries that others would use."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from cutline.classify import Classified, Guess
from cutline.errors import DataError
from cutline.predict import Caption, Captioned
from cutline.writers import WRITERS, bare, captions, classes, reread


def caption(text: str, score: float = -0.5, lang: str = "en", **more) -> Caption:
    return Caption(text, score, lang, tuple(text.split()), **more)


AWKWARD = 'a "dog", with\ttwo; bones\u2028and a line'
RESULTS = [
    Captioned(Path("one.jpg"), caption("a dog", alternatives=(caption("a cat", -1.25),)), None),
    Captioned(Path("two, or more.jpg"), None, DataError("two, or more.jpg: damaged: bad\nheader", fix="again")),
    Captioned(Path("drei.jpg"), caption(AWKWARD, lang="de"), None),
]


def written(format: str, results=RESULTS) -> str:
    return "".join(WRITERS[format](captions(), results))


def test_text_has_a_line_a_caption() -> None:
    assert written("text") == f"one.jpg: a dog\none.jpg: a cat\ndrei.jpg: {AWKWARD}\n"
    assert "".join(bare(captions(), RESULTS[:2])) == "a dog\na cat\n"


def test_json_lines_are_exactly_these() -> None:
    lines = [line for line in written("jsonl").split("\n") if line]
    assert [json.loads(line) for line in lines] == [
        {
            "path": "one.jpg",
            "captions": [
                {"text": "a dog", "score": -0.5, "lang": "en"},
                {"text": "a cat", "score": -1.25, "lang": "en"},
            ],
        },
        {"path": "two, or more.jpg", "error": "damaged: bad\nheader"},
        {"path": "drei.jpg", "captions": [{"text": AWKWARD, "score": -0.5, "lang": "de"}]},
    ]


def test_json_is_the_list_of_them() -> None:
    assert json.loads(written("json")) == [json.loads(line) for line in written("jsonl").split("\n") if line]
    assert json.loads(written("json", [])) == []


def test_csv_survives_commas_quotes_and_line_breaks() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv"), newline="")))
    assert [row["path"] for row in rows] == ["one.jpg", "one.jpg", "two, or more.jpg", "drei.jpg"]
    assert rows[3] == {"path": "drei.jpg", "caption": AWKWARD, "score": "-0.500000", "lang": "de", "error": ""}
    assert rows[2]["error"] == "damaged: bad\nheader"


def test_attention_stands_with_its_word() -> None:
    looks = np.array([[[0.25, 0.75], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]], np.float32)
    (line,) = WRITERS["jsonl"](captions(), [Captioned(Path("a.png"), caption("a dog", attention=looks), None)])
    assert json.loads(line)["captions"][0]["attention"] == [
        {"word": "a", "weights": [[0.25, 0.75], [0.0, 0.0]]},
        {"word": "dog", "weights": [[1.0, 0.0], [0.0, 0.0]]},
    ]


@pytest.mark.parametrize("format", ["json", "jsonl"])
def test_json_is_valid_whatever_the_score_or_the_name(format: str) -> None:
    strange = Path(os.fsdecode(b"caf\xe9.jpg"))
    text = written(format, [Captioned(strange, caption("", -math.inf), None)])
    text.encode("utf-8")
    loaded = json.loads(text)
    row = loaded[0] if format == "json" else loaded
    assert row["path"] == str(strange)
    assert row["captions"] == [{"text": "", "score": None, "lang": "en"}]


@pytest.mark.parametrize("format", sorted(WRITERS))
def test_results_are_written_as_they_come(format: str) -> None:
    passed = 0

    def coming():
        nonlocal passed
        for result in RESULTS:
            passed += 1
            yield result

    pieces = WRITERS[format](captions(), coming())
    seen = ""
    while "a dog" not in seen:
        seen += next(pieces)
    assert passed == 1


GUESSED = [
    Classified(Path("one.jpg"), (Guess("a\ncat", 0.98765432), Guess("dog", 0.0099), Guess("cow", 0.002)), None),
    Classified(Path("two, or more.jpg"), None, DataError("two, or more.jpg: damaged")),
    Classified(Path("drei.jpg"), (Guess("dog", 0.005), Guess("a\ncat", 0.004), Guess("cow", 0.003)), None),
]


def test_classes_in_every_format() -> None:
    form = classes(top=3)
    assert "".join(WRITERS["text"](form, GUESSED)) == "one.jpg: a cat 98.8 %\ndrei.jpg: dog 0.5 %\n"
    assert "".join(bare(form, GUESSED[:1])) == "a cat 98.8 %\n"
    rows = [json.loads(line) for line in WRITERS["jsonl"](form, GUESSED)]
    assert rows[0]["classes"][:2] == [
        {"label": "a\ncat", "probability": 0.987654},
        {"label": "dog", "probability": 0.0099},
    ]
    assert rows[1] == {"path": "two, or more.jpg", "error": "damaged"}
    table = list(csv.DictReader(io.StringIO("".join(WRITERS["csv"](form, GUESSED)), newline="")))
    assert table[0]["label"] == "a\ncat"
    assert (table[2]["label_3"], table[2]["probability_3"], table[2]["error"]) == ("cow", "0.003000", "")
    assert (table[1]["label_2"], table[1]["error"]) == ("", "damaged")


def test_csv_is_read_back_whatever_is_in_a_path() -> None:
    results = [Captioned(Path('a\rb,"c".jpg'), None, DataError("x"))]
    rows = list(csv.reader(io.StringIO(written("csv", results), newline="")))
    assert [row[0] for row in rows] == ["path", 'a\rb,"c".jpg']


# Going on -----------------------------------------------------------------------------------------------------------

PICTURES = [
    Captioned(Path("one.jpg"), caption("a dog", alternatives=(caption("a cat", -1.25),)), None),
    Captioned(Path('two\nlines, and "more".jpg'), caption(AWKWARD, lang="de"), None),
    Captioned(Path("ein ümlaut.jpg"), caption("a cow", alternatives=(caption("a \r", -2.0), caption("b"))), None),
    Captioned(Path("four.jpg"), caption("a bird"), None),
]


def gone_on(format: str, before: str, results: list[Captioned]) -> str:
    begun = reread(captions(), format, before)
    rest = [result for result in results if str(result.path) not in begun.done]
    return begun.text + "".join(WRITERS[format](captions(), rest, begun))


@pytest.mark.parametrize("format", ["csv", "json", "jsonl"])
def test_wherever_it_was_cut_it_goes_on_to_the_same_end(format: str) -> None:
    whole = written(format, PICTURES)
    kept = set()
    for cut in range(len(whole) + 1):
        assert gone_on(format, whole[:cut], PICTURES) == whole, whole[:cut]
        kept.add(len(reread(captions(), format, whole[:cut]).done))
    assert kept == {0, 1, 2, 3}  # the last is always written again


@pytest.mark.parametrize("format", ["csv", "json", "jsonl"])
def test_pictures_with_an_error_are_tried_again(format: str) -> None:
    failed = [PICTURES[0], Captioned(PICTURES[1].path, None, DataError("damaged")), *PICTURES[2:]]
    order = [PICTURES[number] for number in (0, 2, 1, 3)]  # what was mended comes where it went on
    assert gone_on(format, written(format, failed), PICTURES) == written(format, order)
    new = Captioned(Path("five.jpg"), caption("a bee"), None)
    assert gone_on(format, written(format, PICTURES), [new, *PICTURES]) == written(
        format, [*PICTURES[:3], new, PICTURES[3]]
    )


@pytest.mark.parametrize(
    ("format", "there", "says"),
    [
        (
            "csv",
            "path,label,probability,error\na.png,dog,0.5,\n",
            "does not name the columns path, caption, score, lang, error",
        ),
        ("csv", "path,caption,score,lang,error\na.png,dog\nb.png,dog\n", "line 2 has 2 columns, not 5"),
        ("csv", 'path,caption,score,lang,error\na.png,"x"y,1,en,\nb.png,x,1,en,\n', "line 2: "),
        ("jsonl", '{"path": "a.png"}\nsomething\n', "row 2 is none of a picture"),
        ("jsonl", "[1]\n", "row 1 is none of a picture"),
        ("json", '{"path": "a.png"}\n', "line 1 does not begin such a list"),
    ],
)
def test_what_is_nothing_of_the_kind_is_told(format: str, there: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        reread(captions(), format, there)
