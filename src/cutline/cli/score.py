"""`cutline score`: any system's captions against references."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cutline.cli.arguments import parse
from cutline.console import say
from cutline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cutline.evaluation.text import Scores


@dataclass(frozen=True)
class Score:
    """Score any system's captions against references: BLEU, ROUGE-L and CIDEr-D, 0 to 100."""

    predictions: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PREDICTIONS")]
    """COCO results JSON, JSONL as `cutline caption` writes it, CSV, or {"id": "caption"}; - is standard input."""
    references: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REFERENCES")]
    """COCO annotations, any corpus that `cutline data inspect` reads, or {"id": ["reference", …]}; or -."""
    format: Literal["text", "json"] = "text"
    """A table for people, or one JSON object for machines."""
    pretokenized: bool = False
    """Take captions as words between spaces, just as they are."""
    lang: str = ""
    """Which language's captions to compare, where there are several."""
    split: str = ""
    """Only this split of the references (train, val, test)."""
    reader: str = "auto"
    """How to read the references, where looking at them does not tell (flickr8k, coco, csv, …)."""
    training: str = ""
    """The captions that the system learned from (a corpus's train split), for the share of novel ones."""
    common: bool = False
    """Score only pictures that are on both sides; the signature then says how many those are."""
    skip_bad: bool = False
    """Leave out references that cannot be read, and say how many."""


def main(arguments: list[str]) -> int:
    given = parse(Score, arguments, verb="score")
    scores = evaluate(given)
    if given.format == "json":
        print(json.dumps(scores.to_dict(), indent=1))
    else:
        show(scores)
    return 0


def evaluate(given: Score) -> Scores:
    from cutline.evaluation.files import STANDARD_INPUT, align, read_predictions, read_references, read_training
    from cutline.evaluation.text import score

    if given.predictions == given.references == STANDARD_INPUT:
        raise ConfigError("standard input is given twice", fix="only one of the two may be -")
    predictions = read_predictions(given.predictions, given.lang)
    try:
        references = read_references(
            given.references, reader=given.reader, lang=given.lang, split=given.split, skip_bad=given.skip_bad
        )
        # Read and divided as the references are, where both are of one corpus.
        same = _same(given.training, given.references)
        reader, divide = (given.reader, bool(given.split)) if same else ("auto", False)
        training = read_training(given.training, given.lang, reader, divide=divide) if given.training else None
    except DataError as error:
        # Readers speak of their own flag; here `--format` is the format of what is printed.
        raise DataError(error.what, expected=error.expected, fix=error.fix.replace("--format", "--reader")) from None
    if references.problems:
        say(f"left out: {len(references.problems)} × references that could not be read")
    return score(
        align(predictions, references),
        references.captions,
        pretokenized=given.pretokenized,
        training=training,
        common=given.common,
    )


def _same(one: str, other: str) -> bool:
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def show(scores: Scores) -> None:
    """Two small tables, and the signature in one line whatever the width."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    main_scores = {f"BLEU-{n}": value for n, value in enumerate(scores.bleu, 1)}
    main_scores |= {"ROUGE-L": scores.rouge_l, "CIDEr-D": scores.cider}
    varied = scores.diversity
    beside = {
        "distinct": f"{varied.distinct:.1%}",
        "novel": "not asked" if varied.novel is None else f"{varied.novel:.1%}",
        "mean length": f"{varied.mean_length:.1f} words",
        "vocabulary": f"{varied.vocabulary:,} words",
    }
    for cells in ({name: f"{value:.2f}" for name, value in main_scores.items()}, beside):
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        for name in cells:
            table.add_column(name, justify="right")
        table.add_row(*cells.values())
        console.print(table)
        console.print()
    console.print(scores.signature, soft_wrap=True)
