"""The search that a trained captioner is shipped with: beams and length penalty as they score best on validation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cutline import durable
from cutline.config import Config, SearchConfig
from cutline.console import progress
from cutline.data.corpus import Sample
from cutline.data.words import Words
from cutline.engine.sources import Inputs, PictureSource, load_readable
from cutline.engine.task import CaptioningTask
from cutline.models.captioner import Captioner

BEAMS = (1, 2, 3, 5)
PENALTIES = (0.0, 0.4, 0.7, 1.0, 1.3)
FILE = "search.json"


@dataclass(frozen=True)
class Tried:
    beam: int
    length_penalty: float
    scores: dict[str, float]
    """CIDEr-D and BLEU-4 by language."""
    metric: float


def choose_search(
    run: Path, model: Captioner, words: Words, config: Config, samples: Sequence[Sample], *, quiet: bool = False
) -> SearchConfig:
    """Try beams with the penalty that is set, then penalties with the best of them; RUN/search.json tells of all."""
    encoded = Encoded.of(model, samples, config)
    tries: list[Tried] = []
    count = len(BEAMS) + len(PENALTIES)
    with progress("choosing the search", count, "settings", quiet=quiet) as advance:

        def best_of(settings: Iterator[SearchConfig]) -> SearchConfig:
            found = []
            for each in settings:
                tried = _try(model, words, replace(config, search=each), encoded)
                tries.append(tried)
                found.append((tried.metric, each))
                advance(1, note=f"beam {each.beam}, penalty {each.length_penalty:g}: {tried.metric:.1f}")
            return max(found, key=lambda pair: pair[0])[1]

        given = replace(config.search, method="beam", num=1)
        wide = best_of(replace(given, beam=beam) for beam in BEAMS)
        chosen = best_of(replace(wide, length_penalty=penalty) for penalty in PENALTIES)
    told = {"chosen": asdict(chosen), "by": config.metric, "tried": [asdict(each) for each in tries]}
    durable.write(run / FILE, json.dumps(told, indent=1).encode())
    return chosen


def chosen(run: Path, given: SearchConfig) -> SearchConfig:
    """What was chosen for a run; as given where nothing was."""
    try:
        found = json.loads((run / FILE).read_bytes())["chosen"]
    except FileNotFoundError:
        return given
    return replace(given, **found)


def _try(model: Captioner, words: Words, config: Config, encoded: Encoded) -> Tried:
    task = CaptioningTask(config, model, words, encoded.samples, encoded)
    validation = task.validate(config.training.batch, torch.device("cpu"), lambda count: None)
    assert validation is not None
    scores = {
        f"{lang}_{name}": round(value, 2)
        for lang, each in validation.scores.items()
        for name, value in (("cider", each.cider), ("bleu_4", each.bleu[3]))
    }
    search = config.search
    return Tried(search.beam, search.length_penalty, scores, validation.metric(config.metric))


@dataclass(frozen=True)
class Encoded:
    """Pictures as the encoder sees them, kept in memory: the same for every search."""

    samples: list[Sample]
    grid: torch.Tensor
    pooled: torch.Tensor
    ready: bool = True

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Captioner, samples: Sequence[Sample], config: Config) -> Encoded:
        source = PictureSource(samples, model.encoder.transform, config.pictures)
        kept, parts = [], []
        for start in range(0, len(samples), config.training.batch):
            indices = np.arange(start, min(start + config.training.batch, len(samples)))
            inputs, readable, _ = load_readable(source, indices, None)
            if readable:
                parts.append(model.eval().features(inputs))
                kept += [samples[indices[at]] for at in readable]
        grid, pooled = (torch.cat(part).half() for part in zip(*parts, strict=True))
        return cls(kept, grid, pooled)

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Inputs:
        return self.grid[indices], self.pooled[indices]
