"""The report of a run: read back as a browser would, element by element."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cutline.cli.finish import write_page
from cutline.data.corpus import Sample
from cutline.data.images import Transform
from cutline.errors import CutlineError, DataError
from cutline.evaluation.judge import Judged
from cutline.evaluation.text import Scores, score
from cutline.predict import Caption
from cutline.presets import PRESETS
from cutline.report import Example, write_report
from cutline.report.charts import ticks
from cutline.report.pictures import looks

EVIL = "<script>alert('x')</script> & \"quotes\" </style> \udc80"
EMPTY = {"img", "meta", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Every element with its attributes and the text inside it; refuses elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [
            given
            for name, given in self.elements
            if name == tag and all(given.get(key.rstrip("_")) == value for key, value in wanted.items())
        ]

    def said(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]


def scores(**changes: Any) -> Scores:
    captions = {"1": "a dog runs on grass", "2": "two cats sleep on a sofa", "3": "a man"}
    return score(captions, {id: [text, "something else"] for id, text in captions.items()}, **changes)


def caption(text: str, lang: str = "en", *, side: int = 4, attention: bool = True, **more: Any) -> Caption:
    words = tuple(text.split())
    cells = np.full((len(words), side, side), 1 / side**2) if attention else None
    return Caption(text, -1.0, lang, words, cells, **more)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(noise).save(path)
    return path


def write(folder: Path, **given: Any) -> tuple[Page, str]:
    content = {"title": "A run", "facts": {}, "scores": {"en": scores()}, "curves": [], "examples": []} | given
    path = write_report(folder / "report.html", **content)
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def decoded(url: str | None) -> Image.Image:
    kind, data = str(url).split(";base64,")
    assert kind == "data:image/jpeg"
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    image.load()
    return image


EVENTS = [
    *({"kind": "step", "step": n, "time": 1.0, "loss": 4 / n, "rate": 1e-4 * n} for n in range(1, 2001)),
    *(
        {
            "kind": "validation",
            "step": n,
            "en_bleu_4": n / 50,
            "de_bleu_4": n / 60,
            "en_cider": n / 9,
            "de_cider": n / 8,
        }
        for n in (500, 1000, 1500, 2000)
    ),
]


def test_pictures_and_what_each_word_looked_at(tmp_path: Path, picture: Path) -> None:
    written = caption("a dog runs", alternatives=(caption("the dog"),))
    page, _ = write(tmp_path, examples=[Example(picture, written, ("a dog runs", "a hound"), 12.345)])
    images = page.all("img")
    assert [image["alt"] for image in images] == [
        "a dog runs", "where “a” looked", "where “dog” looked", "where “runs” looked"
    ]  # fmt: skip
    for image in images:
        assert decoded(image["src"]).size == (int(image["width"] or 0), int(image["height"] or 0))
    assert decoded(images[0]["src"]).size == (90, 60)
    assert "CIDEr-D 12.3" in page.said("p")
    assert "word for word as a reference" in page.said("span")
    assert page.said("summary") == ["References (2)", "Other captions (1)"]
    assert page.said("li") == ["a dog runs", "a hound", "the dog"]


def test_words_that_are_not_a_references_are_not_called_so(tmp_path: Path, picture: Path) -> None:
    page, _ = write(tmp_path, examples=[Example(picture, caption("a dog"), ("a dog runs",), 1.0)])
    assert not page.all("span", class_="exact")


def test_everything_is_text_and_nothing_is_fetched(tmp_path: Path, picture: Path) -> None:
    evil = caption(EVIL, EVIL, alternatives=(caption(EVIL),))
    page, text = write(
        tmp_path,
        title=EVIL,
        facts={EVIL: EVIL},
        scores={EVIL: scores()},
        curves=[{"kind": "validation", "step": 1, f"{EVIL}_bleu_4": 1.0, f"{EVIL}_cider": 1.0}],
        examples=[Example(picture, evil, (EVIL,), 1.0), Example(picture, caption("x"), (), 1.0)],
        notes=[EVIL, "https://example.com/"],
    )
    shown = EVIL.replace("\udc80", "\\udc80")
    assert not page.all("script")
    assert len(page.all("style")) == 1
    for tag in ("title", "h1", "p", "dt", "dd", "th", "li", "span"):
        assert shown in page.said(tag), tag
    assert page.all("img")[0]["alt"] == shown
    for _, given in page.elements:
        assert not any(name.startswith("on") for name in given)
        for name in ("src", "href", "srcset", "style", "action"):
            assert (given.get(name) or "#").startswith(("#", "data:image/"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert page.all("meta", content="default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_a_decoder_without_attention(tmp_path: Path, picture: Path) -> None:
    page, _ = write(tmp_path, examples=[Example(picture, caption("a dog", attention=False), ("a dog",), 1.0)])
    assert len(page.all("img")) == 1
    assert not page.all("ol")
    assert "attention" not in " ".join(page.said("p"))


def test_a_caption_of_no_words(tmp_path: Path, picture: Path) -> None:
    page, _ = write(tmp_path, examples=[Example(picture, Caption("", -1.0, "en", ()), ("a dog",), float("nan"))])
    assert {"(no words)", "CIDEr-D –"} <= set(page.said("p"))
    assert page.all("img")[0]["alt"] == ""


def test_several_languages(tmp_path: Path, picture: Path) -> None:
    examples = [
        Example(picture, caption(text, lang), (text,), 1.0) for lang, text in (("en", "a dog"), ("de", "ein Hund"))
    ]
    found = {"en": scores(), "de": scores(training=["ein Hund"])}
    page, text = write(tmp_path, scores=found, examples=examples)
    assert page.all("p", class_="caption", lang="de")
    assert page.said("dt") == ["BLEU-4", "CIDEr-D"] * 2
    assert page.said("dd") == [f"{value:.1f}" for one in found.values() for value in (one.bleu[3], one.cider)]
    assert text.count(found["en"].signature) == 2
    rows = dict(re.findall(r'<th scope="row">([^<]*)</th>((?:<td>[^<]*</td>)+)', text))
    assert re.findall("<td>([^<]*)", rows["BLEU-1"]) == [f"{one.bleu[0]:.1f}" for one in found.values()]
    assert re.findall("<td>([^<]*)", rows["Captions not learned from"]) == ["–", "100%"]
    assert [label for label in page.said("span") if label in found] == ["en", "de"] * 2


def test_one_picture_is_one_picture(tmp_path: Path) -> None:
    page, _ = write(tmp_path, scores={"en": score({"1": "a dog"}, {"1": ["a dog"]})})
    assert " 1 picture" in page.said("p")


def test_one_language_is_not_said_at_every_picture(tmp_path: Path, picture: Path) -> None:
    page, _ = write(tmp_path, examples=[Example(picture, caption("a dog"), (), 1.0)] * 3)
    assert page.said("span").count("en") == 1


def test_curves(tmp_path: Path) -> None:
    page, _ = write(tmp_path, curves=EVENTS[::-1])  # in whatever order they come
    assert page.said("b") == ["Training loss", "Validation BLEU-4", "Validation CIDEr-D", "Learning rate"]
    lines = [
        [tuple(map(float, pair.split(","))) for pair in str(line["points"]).split()] for line in page.all("polyline")
    ]
    assert [len(line) for line in lines] == [223, 4, 4, 4, 4, 223]
    for line in lines:
        assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert all(before[1] <= after[1] for before, after in zip(lines[0], lines[0][1:]))  # loss falls: down the page
    assert lines[0][0][1] < lines[0][-1][1]
    assert all(before[1] > after[1] for before, after in zip(lines[5], lines[5][1:]))  # the rate rises
    for (_, english), (_, german) in zip(lines[1], lines[2]):
        assert english < german  # higher on the page
    labels = [drawing["aria-label"] for drawing in page.all("svg")]
    assert labels[1] == "Validation BLEU-4 by step: en 10 at 500, 40 at 2000; de 8.333 at 500, 33.33 at 2000"
    assert {"0", "2,000", "step", "0.1"} <= set(page.said("text"))
    assert all(0 <= x <= 420 and 0 <= y <= 250 for line in lines for x, y in line)


def test_a_loss_below_nought_is_drawn_below_nought(tmp_path: Path) -> None:
    losses = [2.0, 1.0, -0.5, -1.1]  # nats, then what captions of its own were worth
    page, _ = write(tmp_path, curves=[{"kind": "step", "step": n, "loss": loss} for n, loss in enumerate(losses, 1)])
    heights = [float(pair.split(",")[1]) for pair in str(page.all("polyline")[0]["points"]).split()]
    assert heights[1] - heights[0] == pytest.approx((heights[3] - heights[0]) / 3.1, abs=0.1)
    assert {"-2", "-1", "0", "1", "2"} <= set(page.said("text"))
    zero = next(float(str(line["y1"])) for line in page.all("line", class_="axis"))
    assert heights[1] < zero < heights[2] < heights[3] < 250


def test_a_run_that_was_not_yet_validated_or_went_wrong(tmp_path: Path) -> None:
    odd = [
        {"kind": "step", "step": 1, "loss": 2.0},
        {"kind": "step", "step": 2, "loss": float("nan")},
        {"kind": "note"},
    ]
    page, text = write(tmp_path, curves=odd)
    assert page.said("b") == ["Training loss"]
    assert page.all("svg")[0]["aria-label"] == "Training loss by step: 2 at 1"
    assert "nan" not in text[text.index("</style>") :]


@pytest.mark.parametrize("curves", [[], [{"kind": "step", "step": 1}]])
def test_what_there_is_nothing_of_is_left_out(tmp_path: Path, curves: Any) -> None:
    page, _ = write(tmp_path, scores={}, curves=curves)
    assert page.said("h1") == ["A run"]
    assert not page.said("h2")
    assert not page.all("svg")


def test_a_run_in_stages_tells_how_its_last_one_learned(tmp_path: Path, picture: Path) -> None:
    (tmp_path / "events.jsonl").write_text("")
    sample = Sample(picture.name, picture, {"en": ("a dog",)}, None, "val")
    judged = {"en": Judged(score({sample.id: "a dog"}, {sample.id: ["a dog"]}), {sample.id: caption("a dog")}, {})}
    seen = Transform(96, "squash", "bicubic", 1.0, (0.5,) * 3, (0.5,) * 3)
    path = write_page(tmp_path, PRESETS["flickr8k"](), [sample], judged, seen, "val", "")
    told = Page(path.read_text(encoding="utf-8")).said("dd")
    assert "1 epoch, 32 pictures a step, seed 0, the last of 4 stages" in told


def test_links_lead_somewhere(tmp_path: Path, picture: Path) -> None:
    page, _ = write(tmp_path, facts={"a": "b"}, curves=EVENTS, examples=[Example(picture, caption("a"), (), 1.0)])
    links = [str(link["href"]) for link in page.all("a")]
    assert links == [f"#{section['id']}" for section in page.all("section")]
    assert page.said("h2") == ["Scores", "Examples", "Learning", "All scores", "Settings"]


@pytest.mark.parametrize(
    ("high", "expected"),
    [(4.0, [0, 1, 2, 3, 4]), (150, [0, 50, 100, 150]), (1000, [0, 200, 400, 600, 800, 1000]),
     (4e-5, [0, 1e-5, 2e-5, 3e-5, 4e-5]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1])],
)  # fmt: skip
def test_ticks_are_round(high: float, expected: list[float]) -> None:
    assert ticks(high) == pytest.approx(expected)


@pytest.mark.parametrize("high", [0, 1e-9, 0.37, 3.91, 71.2, 99999, 1e7])
def test_ticks_reach_as_far_as_the_line(high: float) -> None:
    found = ticks(high)
    assert found[0] == 0
    assert found[-1] >= high * (1 - 1e-9)
    assert 2 <= len(found) <= 7


def _brightness(look: Image.Image) -> np.ndarray:
    return np.asarray(look.convert("L"), float)


def test_the_picture_is_bright_where_the_word_looked() -> None:
    white = Image.new("RGB", (120, 60), "white")
    cells = np.zeros((2, 4, 4))
    cells[0, 0, 3] = cells[1, 3, 0] = 1
    upper_right, lower_left = map(_brightness, looks(white, cells, None))
    assert upper_right[2, -3] > 250
    assert upper_right[-3, 2] < 90
    assert lower_left[-3, 2] > 250
    assert lower_left[2, -3] < 90


def test_looking_everywhere_alike_leaves_the_picture_as_it_is() -> None:
    grey = Image.new("RGB", (64, 64), (120, 120, 120))
    (look,) = looks(grey, np.full((1, 7, 7), 1 / 49), None)
    assert np.abs(_brightness(look) - 120).max() <= 1


def test_what_a_model_that_crops_did_not_see_is_dark() -> None:
    white = Image.new("RGB", (144, 72), "white")
    (look,) = looks(white, np.full((1, 7, 7), 1 / 49), Transform(fit="crop"))
    bright = _brightness(look)
    assert (bright[:, 36:108] == 255).all()
    assert bright[:, :36].max() < 90
    assert bright[:, 108:].max() < 90


def test_large_pictures_are_made_small(tmp_path: Path) -> None:
    for name, size in (("large.jpg", (2400, 1600)), ("thin.png", (4000, 2))):
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / name)
    written = caption(" ".join(["word"] * 12), side=7)
    many = [Example(tmp_path / "large.jpg", written, ("a",), 1.0)] * 12
    page, text = write(tmp_path, examples=[*many, Example(tmp_path / "thin.png", written, (), 1.0)])
    assert len(text) < 3_000_000
    assert page.all("img")[0]["width"] == "480"
    assert decoded(page.all("img")[-1]["src"]).size == (144, 1)


def test_a_report_takes_the_place_of_an_older_one_whole_or_not_at_all(tmp_path: Path, picture: Path) -> None:
    write(tmp_path, title="old")
    with pytest.raises(DataError, match=r"gone\.png"):
        write(tmp_path, title="new", examples=[Example(tmp_path / "gone.png", caption("a"), (), 1.0)])
    assert "old" in (tmp_path / "report.html").read_text()
    write(tmp_path / "made" / "for it", title="new")
    write(tmp_path, title="new")
    assert "old" not in (tmp_path / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "noise.png", "report.html"]


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(CutlineError, match="cannot write the report"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_torch_is_not_imported() -> None:
    code = "import sys, cutline.report, cutline.evaluation.focus; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
