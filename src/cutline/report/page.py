"""The report of a run: one HTML file with everything in it, to open, send or print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from cutline.data.images import Transform
from cutline.evaluation.text import Scores
from cutline.predict import Caption
from cutline.report.charts import curves as draw_curves
from cutline.report.document import Section, facts_list, table, write_document
from cutline.report.html import Html, join, tag
from cutline.report.pictures import data_url, looks, shown

_LOOKED = (
    "Above each word is what the model looked at as it wrote it: the picture stays bright where its attention was and "
    "darkens where it was not, each word by its own brightest place."
)


@dataclass(frozen=True)
class Example:
    """A picture and what was written about it."""

    picture: Path
    caption: Caption
    references: tuple[str, ...]
    score: float
    """The caption's own CIDEr-D."""
    transform: Transform | None = None
    """How the model saw the picture, so that attention lies where it belongs; without it, the whole picture."""


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    scores: Mapping[str, Scores],
    curves: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    notes: Sequence[str] = (),
) -> Path:
    """Write the page to `path`: scores by language, the events of the run as curves, examples, facts and notes."""
    charts = draw_curves(curves)
    looked = any(example.caption.attention is not None for example in examples)
    sections = [
        Section("Scores", _headlines(scores)),
        Section("Examples", _examples(examples), _LOOKED if looked else ""),
        Section("Learning", tag("div", *charts, class_="charts") if charts else None),
        Section("All scores", _table(scores) if scores else None),
        Section("Settings", facts_list(facts)),
    ]
    return write_document(path, title, notes, sections)


def _headlines(scores: Mapping[str, Scores]) -> Html | None:
    cards = [
        tag(
            "article",
            tag("p", tag("span", lang, class_="lang"), f" {_pictures(found.count)}", class_="muted"),
            tag(
                "dl",
                tag("div", tag("dt", "BLEU-4"), tag("dd", _figure(found.bleu[3]))),
                tag("div", tag("dt", "CIDEr-D"), tag("dd", _figure(found.cider))),
            ),
            tag("p", found.signature, class_="signature"),
        )
        for lang, found in scores.items()
    ]
    return tag("div", *cards, class_="headlines") if cards else None


def _table(scores: Mapping[str, Scores]) -> Html:
    columns = [found.rows() for found in scores.values()]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    note = "BLEU, ROUGE-L and CIDEr-D are on a scale of 0 to 100, which CIDEr-D alone may pass."
    return join(table(["Score", *scores], rows), tag("p", note, class_="muted"))


def _examples(examples: Sequence[Example]) -> Html | None:
    labelled = len({example.caption.lang for example in examples}) > 1
    return join(*(_example(example, labelled) for example in examples)) if examples else None


def _example(example: Example, labelled: bool) -> Html:
    """One picture; `labelled` says the language, too."""
    caption, picture = example.caption, shown(example.picture)
    width, height = picture.size
    exact = caption.text in example.references
    says = tag(
        "div",
        tag("p", caption.text or "(no words)", class_="caption", lang=caption.lang, dir="auto"),
        tag(
            "p",
            tag("span", caption.lang, class_="lang") if labelled else "",
            f"CIDEr-D {_figure(example.score)}",
            tag("span", "word for word as a reference", class_="exact") if exact else "",
            class_="muted",
        ),
        _strip(example, picture),
        _folded("References", example.references, caption.lang),
        _folded("Other captions", [other.text for other in caption.alternatives], caption.lang),
    )
    image = tag("img", src=data_url(picture), alt=caption.text, width=width, height=height, class_="picture")
    return tag("article", image, says, class_="example")


def _strip(example: Example, picture: Image) -> Html:
    """What each word looked at, in reading order."""
    caption = example.caption
    if caption.attention is None or not caption.words:
        return join()
    steps = [
        tag(
            "li",
            tag(
                "img",
                src=data_url(look, quality=74),
                alt=f"where “{word}” looked",
                width=look.width,
                height=look.height,
            ),
            tag("span", word),
        )
        for word, look in zip(caption.words, looks(picture, caption.attention, example.transform))
    ]
    return tag("ol", *steps, class_="strip", lang=caption.lang, dir="auto")


def _folded(name: str, texts: Sequence[str], lang: str) -> Html:
    if not texts:
        return join()
    entries = (tag("li", text, lang=lang, dir="auto") for text in texts)
    return tag("details", tag("summary", f"{name} ({len(texts)})"), tag("ul", *entries))


def _pictures(count: int) -> str:
    return f"{count:,} picture{'s' * (count != 1)}"


def _figure(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "–"
