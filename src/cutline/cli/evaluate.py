"""`cutline evaluate MODEL`: caption or classify a split with a run's or a bundle's model, and score it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import tyro

from cutline.cli.arguments import parse
from cutline.console import progress, say
from cutline.errors import ConfigError

if TYPE_CHECKING:
    from cutline.classify import Classifier
    from cutline.data.corpus import Corpus, Sample
    from cutline.evaluation.judge import Judged
    from cutline.predict import Captioner

Row = dict[str, Any]
GUESSES = 5
"""Written of each picture."""
LISTED = 10
"""Classes that are named where they are not known."""


class Judgement(Protocol):
    """The scores of captions in a language, or of classes."""

    @property
    def signature(self) -> str: ...

    def rows(self) -> dict[str, str]: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Evaluate:
    """Caption pictures that have references, or classify those that have labels, and score what comes out.

    Needs no torch for a bundle.
    """

    model: tyro.conf.Positional[Path]
    """A run folder (its bundle is used) or a bundle."""
    data: str = ""
    """Pictures in any format that train reads (default: those the run learned from)."""
    data_format: str = "auto"
    """How to read them (cutline data formats lists the ways)."""
    images: str = ""
    """The folder from which a table or JSON file names its pictures (default: the one it lies in)."""
    split: Literal["val", "test", "train"] = "val"
    """Which part; choose settings on val, and look at test once."""
    lang: str = ""
    """Language of captions and references (default: every one that both have)."""
    beam: int | None = None
    """Beams (default: the model's own)."""
    views: Literal[1, 2, 10] = 1
    """Classify each picture as it is, also mirrored, or also moved a little to each corner, and take the mean."""
    limit: int = 0
    """Score only so many pictures, the first ones, or some of all classes (0: all)."""
    skip_bad: bool = False
    """Leave out what cannot be read."""
    out: Path | None = None
    """Also write what was said of each picture here, as JSONL; captions as cutline score reads them."""
    format: Literal["text", "json"] = "text"
    """Table for people, or one JSON object."""
    quiet: bool = False
    """Show no progress."""


def main(arguments: list[str]) -> int:
    given = parse(Evaluate, arguments, verb="evaluate")
    from cutline.bundle import load

    if given.limit < 0:
        raise ConfigError(f"--limit {given.limit}", expected="0 (all of them) or more")
    if given.out and given.out.exists():
        raise ConfigError(f"{given.out} is there already", fix="name another file")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)  # now, and not when all is done
    models = [load(bundle) for bundle in _bundles(given.model)]
    writes = [hasattr(model, "caption") for model in models]
    if not any(writes) and (given.lang or given.beam):
        raise ConfigError(f"{given.model} writes no captions", fix="leave out --lang and --beam")
    if all(writes) and given.views != 1:
        raise ConfigError(f"{given.model} puts nothing into classes", fix="leave out --views")
    corpus = _corpus(given)
    if len(models) > 1:  # of a run that has learned both; the data may be of one
        there = corpus.split(given.split)
        has = {True: any(s.captions for s in there), False: any(s.label is not None for s in there)}
        models = [model for model in models if has[hasattr(model, "caption")]] or models
    results = [_captions(m, corpus, given) if hasattr(m, "caption") else _classes(m, corpus, given) for m in models]
    if given.out:
        rows: dict[str, Row] = {}
        for _, said in results:
            for id, row in said.items():
                rows.setdefault(id, {"path": id}).update(row)
        with given.out.open("x", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
    if given.format == "json":
        print(json.dumps({of: each.to_dict() for scores, _ in results for of, each in scores.items()}, indent=1))
    else:
        for scores, _ in results:
            show(scores)
    return 0


def _bundles(model: Path) -> list[Path]:
    """The bundle that is named, or those of a run: one that has learned captions and classes has two."""
    if not (model / "config.toml").exists():
        return [model]
    return [path for name in ("bundle", "bundle-classes") if (path := model / name).exists()] or [model / "bundle"]


def _captions(captioner: Captioner, corpus: Corpus, given: Evaluate) -> tuple[Mapping[str, Judgement], dict[str, Row]]:
    """Scores by language, and what is said of each picture, in all languages."""
    samples = corpus.split(given.split)[: given.limit or None]
    there = list(dict.fromkeys(lang for sample in samples for lang, texts in sample.captions.items() if texts))
    languages = [given.lang] if given.lang else [lang for lang in captioner.languages if lang in there]
    if not languages:
        raise ConfigError(
            f"the model writes {', '.join(captioner.languages)}, the references are in {', '.join(there) or 'none'}",
            expected="a language that both have",
        )
    results = {lang: _judge(captioner, samples, lang, corpus, given) for lang in languages}
    for id, why in {id: why for judged in results.values() for id, why in judged.unreadable.items()}.items():
        say(f"{id} is in no score: {why}")
    rows: dict[str, Row] = {}
    for lang, judged in results.items():
        for id, caption in judged.captions.items():
            said = rows.setdefault(id, {"captions": []})["captions"]
            score = caption.score if math.isfinite(caption.score) else None  # JSON has no infinity
            said.append({"text": caption.text, "score": score, "lang": lang})
    return {lang: judged.scores for lang, judged in results.items()}, rows


def _classes(classifier: Classifier, corpus: Corpus, given: Evaluate) -> tuple[Mapping[str, Judgement], dict[str, Row]]:
    from cutline.data.labels import evenly
    from cutline.evaluation.judge_classes import judge_classes

    labelled = [sample for sample in corpus.split(given.split) if sample.label is not None]
    samples = evenly(labelled, given.limit) if given.limit else labelled
    if odd := sorted({sample.label for sample in samples if sample.label} - set(classifier.classes)):
        more = ", …" if odd[LISTED:] else ""
        say(f"classes that the model does not know, so always wrong: {', '.join(odd[:LISTED])}{more} ({len(odd)})")
    with progress(f"classifying {given.split}", len(samples), "pictures", quiet=given.quiet) as advance:
        judged = judge_classes(classifier, samples, seen=given.views, advance=advance)
    for id, why in judged.unreadable.items():
        say(f"{id} is in no score: {why}")
    labels = {sample.id: sample.label for sample in samples}
    rows: dict[str, Row] = {}
    for id, chances in judged.probabilities.items():
        best = (-chances).argsort(kind="stable")[:GUESSES].tolist()
        guesses = [{"label": classifier.classes[k], "probability": float(chances[k])} for k in best]
        rows[id] = {"label": labels[id], "guesses": guesses}
    return {"classes": judged.scores}, rows


def show(results: Mapping[str, Judgement]) -> None:
    """A table of scores with a column for each language, or for classes, and the signature that says what they mean."""
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
    """What is asked for, or else what the run learned from; divided as the run has divided, where there is one.

    Divided otherwise, the same pictures would be judged in part by what was learned from them.
    """
    from cutline import config as configuration
    from cutline.config import DataConfig
    from cutline.data.readers import read_corpus
    from cutline.data.sources import read

    file = given.model / "config.toml"
    if not given.data:
        if not file.exists():
            raise ConfigError("a bundle does not say what to score it on", fix="--data PATH")
        return read(configuration.load(file), quiet=given.quiet)
    beside = given.model.resolve().parent / "config.toml"  # of a bundle that is still in its run's folder
    if beside.with_name("run.json").is_file():
        file = beside
    if file.is_file():
        run = configuration.load(file).data
    else:
        run = DataConfig()
        say("where the data gives no splits, what this model has learned from may be among them", quiet=given.quiet)
    return read_corpus(
        given.data, given.data_format, images=given.images, skip_bad=given.skip_bad,
        divide=run.divide, val_share=run.val_share, test_share=run.test_share, seed=run.split_seed,
    )  # fmt: skip


def _judge(captioner: Captioner, samples: Sequence[Sample], lang: str, corpus: Corpus, given: Evaluate) -> Judged:
    from cutline.evaluation.judge import judge

    caption = partial(captioner.caption, lang=lang, beam=given.beam)
    learned = {text for sample in corpus.split("train") for text in sample.captions.get(lang, ())}
    with progress(f"captioning {given.split} ({lang})", len(samples), "pictures", quiet=given.quiet) as advance:
        return judge(caption, samples, lang, training=learned or None, advance=advance)
