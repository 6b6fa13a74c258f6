"""Scores of 10,000 captions with five references each, against pycocoevalcap on the same words."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from benchmarks.common import Row, paired
from cutline.evaluation import ngrams

PICTURES, REFERENCES, VOCABULARY = 10_000, 5, 9_000


def captions(seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Made-up captions: words as frequent as a language's (Zipf), and a picture's captions share many of theirs."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, VOCABULARY + 1)
    share /= share.sum()
    common = rng.choice(VOCABULARY, (PICTURES, 20), p=share)
    texts = []
    for subject in common:
        group = []
        for length in np.clip(rng.normal(11, 3.5, REFERENCES + 1), 4, 40).astype(int):
            start = rng.integers(0, 5)
            words = np.resize(subject[start:], length)
            other = rng.random(length) < 0.4
            words[other] = rng.choice(VOCABULARY, other.sum(), p=share)
            group.append(" ".join(f"w{word}" for word in words))
        texts.append(group)
    return [group[0] for group in texts], [group[1:] for group in texts]


def rows() -> Iterator[Row]:
    predictions, references = captions()
    ids = range(PICTURES)
    theirs_in = dict(zip(ids, references)), {id: [text] for id, text in zip(ids, predictions)}

    def ours(measure: Callable[[ngrams.Captions], object]) -> object:
        """From text to scores: splitting and numbering the words is part of the work."""
        return measure(ngrams.Captions.of(map(str.split, predictions), (map(str.split, group) for group in references)))

    def theirs(scorer: Bleu | Cider | Rouge) -> object:
        with contextlib.redirect_stdout(io.StringIO()):
            return scorer.compute_score(*theirs_in)

    for name, measure, scorer, target in (
        ("BLEU-1..4", ngrams.bleu, Bleu(4), 2.0),
        ("ROUGE-L", ngrams.rouge_l, Rouge(), 2.0),
        ("CIDEr-D", ngrams.cider, Cider(), 3.0),
    ):
        mine, other = paired(lambda m=measure: ours(m), lambda s=scorer: theirs(s), rounds=3)
        detail = f"{mine:.2f} s against {other:.2f} s"
        yield Row(
            f"{name} of {PICTURES:,} captions, {REFERENCES} references", "pycocoevalcap", other / mine, target, detail
        )
