"""One HTML file with everything in it: what every kind of report is written as."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cutline import __version__
from cutline.errors import CutlineError
from cutline.report.html import Html, join, tag

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""A page that may fetch nothing, whatever a caption or a file name contains."""


@dataclass(frozen=True)
class Section:
    title: str
    content: Html | None
    """Nothing, and the section is left out."""
    lead: str = ""
    """What to know before looking."""


def write_document(path: Path, title: str, notes: Sequence[str], sections: Sequence[Section]) -> Path:
    """Write the page to `path`, whole or not at all."""
    there = [section for section in sections if section.content]
    body = [
        tag("header", tag("h1", title), *(tag("p", note) for note in notes), _links(s.title for s in there)),
        tag("main", *map(_section, there)),
        tag("footer", f"Written by Cutline {__version__}. This page is complete in itself and fetches nothing."),
    ]
    _write(Path(path), _document(title, body))
    return Path(path)


def facts_list(facts: Mapping[str, str]) -> Html | None:
    """Names and what is said of them."""
    entries = (tag("div", tag("dt", name), tag("dd", str(fact))) for name, fact in facts.items())
    return tag("dl", *entries, class_="facts") if facts else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]], about: int = 1) -> Html:
    """A table whose rows each begin with what they are about, in one cell or more."""
    body = [
        tag("tr", *(tag("th", name, scope="row") for name in row[:about]), *(tag("td", cell) for cell in row[about:]))
        for row in rows
    ]
    heading = tag("tr", *(tag("th", name, scope="col") for name in head))
    return tag("div", tag("table", tag("thead", heading), tag("tbody", *body)), class_="wide")


def _document(title: str, body: Sequence[Html]) -> str:
    style = (files("cutline.report") / "style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def _links(names: Iterable[str]) -> Html:
    return tag("nav", *(tag("a", name, href=f"#{_anchor(name)}") for name in names), aria_label="On this page")


def _section(section: Section) -> Html:
    lead = tag("p", section.lead, class_="lead") if section.lead else join()
    return tag("section", tag("h2", section.title), lead, section.content or "", id=_anchor(section.title))


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _write(path: Path, text: str) -> None:
    """Whole or not at all: whoever opens the page never sees half of it."""
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except OSError as error:
        if partial:
            Path(partial).unlink(missing_ok=True)
        raise CutlineError(f"cannot write the report {path}: {error.strerror}") from None
