"""`cutline evaluate MODEL`: caption a split with a run's or a bundle's captioner, and score it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from cutline.cli.arguments import parse
from cutline.console import progress
from cutline.errors import ConfigError

if TYPE_CHECKING:
    from cutline.data.corpus import Corpus, Sample
    from cutline.evaluation.judge import Judged
    from cutline.evaluation.text import Scores
    from cutline.predict import Captioner


@dataclass(frozen=True)
class Evaluate:
    """Caption pictures that have references, and score the captions. Needs no torch for a bundle."""

    model: tyro.conf.Positional[Path]
    """A run folder (its bundle is used) or a bundle."""
    data: str = ""
    """Captioned pictures in any format that train reads (default: those the run learned from)."""
    data_format: str = "auto"
    """How to read them (cutline data formats lists the ways)."""
    split: Literal["val", "test", "train"] = "val"
    """Which part; choose settings on val, and look at test once."""
    lang: str = ""
    """Language of captions and references (default: every one that both have)."""
    beam: int | None = None
    """Beams (default: the model's own)."""
    limit: int = 0
    """Score only the first so many pictures (0: all)."""
    skip_bad: bool = False
    """Leave out what cannot be read."""
    out: Path | None = None
    """Also write the captions here, as JSONL that cutline score reads."""
    format: Literal["text", "json"] = "text"
    """Table for people, or one JSON object."""
    quiet: bool = False
    """Show no progress."""


def main(arguments: list[str]) -> int:
    given = parse(Evaluate, arguments, verb="evaluate")
    from cutline.predict import load

    if given.out and given.out.exists():
        raise ConfigError(f"{given.out} is there already", fix="name another file")
    bundle = given.model / "bundle" if (given.model / "config.toml").exists() else given.model
    captioner = load(bundle)
    corpus = _corpus(given)
    samples = corpus.split(given.split)[: given.limit or None]
    languages = [given.lang] if given.lang else [lang for lang in captioner.languages if lang in corpus.languages]
    if not languages:
        raise ConfigError(
            f"the model writes {', '.join(captioner.languages)}, the references are in {', '.join(corpus.languages)}",
            expected="a language that both have",
        )
    results = {lang: _judge(captioner, samples, lang, corpus, given) for lang in languages}
    if given.out:
        _write(given.out, results)
    if given.format == "json":
        print(json.dumps({lang: judged.scores.to_dict() for lang, judged in results.items()}, indent=1))
    else:
        show({lang: judged.scores for lang, judged in results.items()})
    return 0


def show(results: dict[str, Scores]) -> None:
    """A table of scores with a column for each language, and the signature that says what they mean."""
    from rich.console import Console
    from rich.table import Table

    columns = {lang: scores.rows() for lang, scores in results.items()}
    table = Table("score", *columns, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in next(iter(columns.values())):
        table.add_row(name, *(cells[name] for cells in columns.values()))
    console = Console()
    console.print(table)
    for lang, scores in results.items():
        console.print(f"[dim]{lang}: {scores.signature}[/dim]", soft_wrap=True, highlight=False)


def _corpus(given: Evaluate) -> Corpus:
    from cutline.data.readers import read_corpus

    if given.data:
        return read_corpus(given.data, given.data_format, skip_bad=given.skip_bad)
    file = given.model / "config.toml"
    if not file.exists():
        raise ConfigError("a bundle does not say what to score it on", fix="--data PATH")
    from cutline import config as configuration
    from cutline.data.sources import read

    return read(configuration.load(file), quiet=given.quiet)


def _judge(captioner: Captioner, samples: Sequence[Sample], lang: str, corpus: Corpus, given: Evaluate) -> Judged:
    from cutline.evaluation.judge import judge

    caption = partial(captioner.caption, lang=lang, beam=given.beam)
    learned = {text for sample in corpus.split("train") for text in sample.captions.get(lang, ())}
    with progress(f"captioning {given.split} ({lang})", len(samples), "pictures", quiet=given.quiet) as advance:
        return judge(caption, samples, lang, training=learned, advance=advance)


def _write(out: Path, results: dict[str, Judged]) -> None:
    with out.open("x", encoding="utf-8") as file:
        for lang, judged in results.items():
            for id, caption in judged.captions.items():
                row = {"path": id, "captions": [{"text": caption.text, "score": caption.score, "lang": lang}]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
