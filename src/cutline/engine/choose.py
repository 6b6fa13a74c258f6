"""The search that a trained captioner is shipped with: beams and length penalty as they score best on validation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cutline import durable
from cutline.config import Config, SearchConfig
from cutline.consensus import Consensus
from cutline.console import progress
from cutline.data.corpus import Sample
from cutline.data.words import Words
from cutline.engine.runtime import choose_device
from cutline.engine.sources import Inputs, PictureSource, Source, load_readable, move
from cutline.engine.task import CaptioningTask, Validation
from cutline.errors import DataError
from cutline.evaluation.text import score
from cutline.models.captioner import Captioner
from cutline.search import Hypothesis

BEAMS = (1, 2, 3, 5)
WIDE = (10, 20)
"""Beams that are tried as well where a consensus chooses among them; without one, so many choose worse than few."""
VARIED, GROUPS, DIVERSITY = (20, 40), 4, 0.3
"""Beams in groups that avoid one another's words a little, likewise."""
PENALTIES = (0.0, 0.4, 0.7, 1.0, 1.3)
WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0, 12.0)
"""Of the consensus."""
FILE = "search.json"


@dataclass(frozen=True)
class Tried:
    beam: int
    groups: int
    length_penalty: float
    consensus: float
    scores: dict[str, float]
    """CIDEr-D and BLEU-4 by language."""
    metric: float


def choose_search(
    run: Path,
    model: Captioner,
    words: Words,
    config: Config,
    samples: Sequence[Sample],
    consensus: Consensus | None = None,
    *,
    quiet: bool = False,
) -> SearchConfig:
    """Beams with the penalty that is set, then penalties with the best of these; RUN/search.json tells of all tries.

    Each search keeps all that its beams have finished: what another weight of the consensus would have chosen of them
    can be said without searching again.
    """
    model.to(choose_device(config.device).torch)
    encoded = Encoded.of(model, samples, config)
    given = replace(config.search, method="beam", consensus=1.0 if consensus else 0.0)
    tries: list[Tried] = []
    best: tuple[float, SearchConfig] = (-np.inf, given)

    def search(settings: SearchConfig) -> float:
        """The best that it scores with any weight."""
        nonlocal best
        before = len(tries)
        wide = replace(settings, num=settings.beam)
        found = _find(model, words, replace(config, search=wide), encoded, consensus, lambda: advance(0))
        for weight in WEIGHTS if consensus and settings.beam > 1 else (settings.consensus,):
            if settings.method == "diverse" and not weight:
                continue  # without a consensus the first group's best is taken, and not the best of all
            each = replace(settings, consensus=weight)
            tries.append(_try(words, each, wide, found, encoded.samples, config.metric))
            best = max(best, (tries[-1].metric, each), key=lambda pair: pair[0])
        return max(tried.metric for tried in tries[before:])

    others = [penalty for penalty in PENALTIES if penalty != given.length_penalty]
    # As many captions as are asked for must come out of them.
    enough = [beam for beam in ((*BEAMS, *WIDE) if consensus else BEAMS) if beam >= given.num] or [given.num]
    beams = [replace(given, beam=beam) for beam in enough]
    if consensus:
        varied = [n for n in VARIED if n >= given.num]
        beams += [replace(given, method="diverse", beam=n, groups=GROUPS, diversity=DIVERSITY) for n in varied]
    with progress("choosing the search", len(beams) + len(others), "searches", quiet=quiet) as advance:
        for settings in beams:
            found = search(settings)
            groups = f" in {settings.groups} groups" if settings.method == "diverse" else ""
            advance(1, note=f"{settings.beam} beams{groups}: {found:.1f}")
        shape = replace(best[1], consensus=given.consensus)
        for penalty in others:
            found = search(replace(shape, length_penalty=penalty))
            advance(1, note=f"penalty {penalty:g}: {found:.1f}")
    model.cpu()
    chosen = best[1]
    told = {
        "chosen": asdict(chosen),
        "by": "bleu4" if config.metric == "bleu4" else "cider",
        "tried": [asdict(each) for each in tries],
    }
    durable.put(run / FILE, json.dumps(told, indent=1).encode())
    return chosen


def chosen(run: Path, given: SearchConfig) -> SearchConfig:
    """What was chosen for a run; as given where nothing was, or where a power loss has left half of it."""
    try:
        return replace(given, **json.loads((run / FILE).read_bytes())["chosen"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return given


Found = Mapping[str, Mapping[int, list[Hypothesis]]]
"""By language and picture, all captions that the beams have finished."""


def _find(
    model: Captioner,
    words: Words,
    config: Config,
    encoded: Encoded,
    consensus: Consensus | None,
    going_on: Callable[[], None],
) -> Found:
    task = CaptioningTask(config, model, words, encoded.samples, encoded, consensus=consensus)
    device = next(model.decoder.parameters()).device
    found: dict[str, dict[int, list[Hypothesis]]] = {}
    for lang in words.languages:
        there = [place for place, sample in enumerate(encoded.samples) if sample.captions.get(lang)]
        for indices, hypotheses in task.decode(there, lang, config.training.batch, device):
            found.setdefault(lang, {}).update(zip(indices, hypotheses, strict=True))
            going_on()
    return found


def _try(
    words: Words, settings: SearchConfig, used: SearchConfig, found: Found, samples: Sequence[Sample], metric: str
) -> Tried:
    """What `settings` score, with the captions that were found when others were `used`."""

    def value(caption: Hypothesis) -> float:
        return caption.score + (settings.consensus - used.consensus) * caption.opinion

    captions = {
        lang: {samples[place].id: words.decode(max(group, key=value).tokens) for place, group in groups.items()}
        for lang, groups in found.items()
    }
    references = {lang: {samples[place].id: samples[place].captions[lang] for place in found[lang]} for lang in found}
    validation = Validation({lang: score(captions[lang], references[lang]) for lang in found}, captions)
    scores = {
        f"{lang}_{name}": round(value, 2)
        for lang, each in validation.scores.items()
        for name, value in (("cider", each.cider), ("bleu_4", each.bleu[3]))
    }
    groups = settings.groups if settings.method == "diverse" else 1
    return Tried(settings.beam, groups, settings.length_penalty, settings.consensus, scores, validation.metric(metric))


@dataclass(frozen=True)
class Encoded:
    """Pictures as the encoder sees them, kept in memory: the same for every search."""

    samples: list[Sample]
    grid: torch.Tensor
    pooled: torch.Tensor
    ready: bool = True

    @classmethod
    def of(cls, model: Captioner, samples: Sequence[Sample], config: Config) -> Encoded:
        source = PictureSource(samples, model.encoder.transform, config.pictures)
        seen = encode(model, samples, source, config.training.batch)
        parts = [(some, grid.half().cpu(), pooled.half().cpu()) for some, grid, pooled in seen]
        kept = [sample for some, *_ in parts for sample in some]
        if not kept:
            raise DataError("none of the validation pictures can be read")
        return cls(kept, torch.cat([grid for _, grid, _ in parts]), torch.cat([pooled for *_, pooled in parts]))

    def load(self, indices: np.ndarray, draws: Sequence[np.random.Generator] | None) -> Inputs:
        return self.grid[indices], self.pooled[indices]


@torch.inference_mode()
def encode(
    model: Captioner, samples: Sequence[Sample], source: Source, batch: int
) -> Iterator[tuple[list[Sample], torch.Tensor, torch.Tensor]]:
    """A batch at a time, the pictures that can be read, their regions, and their one vector each."""
    device = next(model.decoder.parameters()).device
    model.eval()
    for start in range(0, len(samples), batch):
        indices = np.arange(start, min(start + batch, len(samples)))
        inputs, readable, _ = load_readable(source, indices, None)
        if readable:
            grid, pooled = model.features(move(inputs, device))
            yield [samples[indices[at]] for at in readable], grid, pooled
