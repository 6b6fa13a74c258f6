"""The search that a trained captioner is shipped with: beams and length penalty as they score best on validation."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutline import durable
from cutline.config import Config, SearchConfig
from cutline.consensus import Consensus
from cutline.console import progress
from cutline.data.corpus import Sample
from cutline.data.words import Words
from cutline.engine import folder
from cutline.engine.checkpoint import Checkpoints
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
TIMED = 8
"""Pictures captioned to see how long the choice would take."""
FILE = "search.json"
BEGUN = "search-begun.json"
"""What has been tried by a choice that is not at its end; an earlier one holds until then."""


@dataclass(frozen=True)
class Tried:
    beam: int
    groups: int
    length_penalty: float
    consensus: float
    scores: dict[str, float]
    """CIDEr-D and BLEU-4 by language."""
    metric: float

    @staticmethod
    def shape_of(settings: SearchConfig) -> tuple[int, int, float]:
        """What needs a search of its own; beside it there is only the weight of the consensus."""
        groups = settings.groups if settings.method == "diverse" else 1
        return settings.beam, groups, settings.length_penalty

    @property
    def shape(self) -> tuple[int, int, float]:
        return self.beam, self.groups, self.length_penalty


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
    can be said without searching again. Who is stopped here goes on with the search that was not yet at its end.
    """
    model.to(choose_device(config.device).torch)
    encoded = Encoded.of(model, samples, config, quiet=quiet)
    beams, penalties = searches(config.search, consensus=bool(consensus))
    of = _identity(run, config.metric, beams, samples)
    told: dict[str, Any] = {"of": of, "by": "bleu4" if config.metric == "bleu4" else "cider"}
    tries = _tried_before(run, of)

    def search(settings: SearchConfig) -> float:
        """The best that it scores with any weight."""
        mine = [tried for tried in tries if tried.shape == Tried.shape_of(settings)]
        if not mine:
            wide = replace(settings, num=settings.beam)
            found = _find(model, words, replace(config, search=wide), encoded, consensus, lambda: advance(0))
            for weight in WEIGHTS if consensus and settings.beam > 1 else (settings.consensus,):
                if settings.method == "diverse" and not weight:
                    continue  # without a consensus the first group's best is taken, and not the best of all
                each = replace(settings, consensus=weight)
                mine.append(_try(words, each, wide, found, encoded.samples, config.metric))
            tries.extend(mine)
            _tell(run / BEGUN, told | {"tried": [asdict(each) for each in tries]})
        return max(tried.metric for tried in mine)

    def best() -> SearchConfig:
        first = max(tries, key=lambda tried: tried.metric)
        shape = next(each for each in beams if Tried.shape_of(each)[:2] == first.shape[:2])
        return replace(shape, length_penalty=first.length_penalty, consensus=first.consensus)

    with progress("choosing the search", len(beams) + len(penalties), "searches", quiet=quiet) as advance:
        for settings in beams:
            found = search(settings)
            groups = f" in {settings.groups} groups" if settings.method == "diverse" else ""
            advance(1, note=f"{settings.beam} beams{groups}: {found:.1f}")
        shape = replace(best(), consensus=beams[0].consensus)
        for penalty in penalties:
            found = search(replace(shape, length_penalty=penalty))
            advance(1, note=f"penalty {penalty:g}: {found:.1f}")
    model.cpu()
    _tell(run / FILE, told | {"chosen": asdict(best()), "tried": [asdict(each) for each in tries]})
    (run / BEGUN).unlink(missing_ok=True)
    return best()


def searches(given: SearchConfig, *, consensus: bool) -> tuple[list[SearchConfig], list[float]]:
    """The beams to try, with the penalty that is set, and the other penalties."""
    given = replace(given, method="beam", consensus=1.0 if consensus else 0.0)
    # As many captions as are asked for must come out of them.
    enough = [beam for beam in ((*BEAMS, *WIDE) if consensus else BEAMS) if beam >= given.num] or [given.num]
    beams = [replace(given, beam=beam) for beam in enough]
    if consensus:
        varied = [n for n in VARIED if n >= given.num]
        beams += [replace(given, method="diverse", beam=n, groups=GROUPS, diversity=DIVERSITY) for n in varied]
    return beams, [penalty for penalty in PENALTIES if penalty != given.length_penalty]


def _identity(run: Path, metric: str, beams: Sequence[SearchConfig], samples: Sequence[Sample]) -> str:
    """A hash of all that the scores of the tries depend on."""
    best = Checkpoints(run, folder.identity(run)).best().path.name
    judged = [(sample.id, sample.captions) for sample in samples]
    told = json.dumps([folder.identity(run), best, metric, [asdict(each) for each in beams], judged], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _tell(file: Path, told: Mapping[str, Any]) -> None:
    durable.put(file, json.dumps(told, indent=1).encode())


def _tried_before(run: Path, of: str) -> list[Tried]:
    """What was tried before somebody was stopped, unless that was for other weights or pictures."""
    try:
        told = json.loads((run / BEGUN).read_bytes())
        return [Tried(**each) for each in told["tried"]] if told["of"] == of else []
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def chosen(run: Path, given: SearchConfig) -> SearchConfig:
    """What was chosen for a run; as given where nothing was, or where a power loss has left half of it."""
    try:
        return replace(given, **json.loads((run / FILE).read_bytes())["chosen"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return given


def seconds(task: CaptioningTask, samples: Sequence[Sample], batch: int, device: torch.device) -> float:
    """What choosing by `samples` would take, from captions of a few pictures by the widest of what is tried."""
    beams, penalties = searches(task.config.search, consensus=bool(task.config.search.consensus))
    widest = max(beams, key=lambda settings: settings.beam)
    config = replace(task.config, search=replace(widest, num=widest.beam))
    trial = CaptioningTask(config, task.model, task.words, task.samples, task.source)
    total = sum(settings.beam for settings in beams) + len(penalties) * widest.beam  # the best may be the widest
    found = 0.0
    for lang in task.words.languages:
        there = [place for place, sample in enumerate(task.samples) if sample.captions.get(lang)]
        few = there[: min(batch, TIMED)]
        started = time.perf_counter()
        captions = sum(len(indices) for indices, _ in trial.decode(few, lang, batch, device))
        judged = sum(bool(sample.captions.get(lang)) for sample in samples)
        found += (time.perf_counter() - started) / max(captions, 1) * judged * total / widest.beam
    return found


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
    return Tried(*Tried.shape_of(settings), settings.consensus, scores, validation.metric(metric))


@dataclass(frozen=True)
class Encoded:
    """Pictures as the encoder sees them, kept in memory: the same for every search."""

    samples: list[Sample]
    grid: torch.Tensor
    pooled: torch.Tensor
    ready: bool = True

    @classmethod
    def of(cls, model: Captioner, samples: Sequence[Sample], config: Config, *, quiet: bool = False) -> Encoded:
        source = PictureSource(samples, model.encoder.transform, config.pictures)
        kept, parts = list[Sample](), list[tuple[torch.Tensor, torch.Tensor]]()
        with progress("seeing the validation pictures", len(samples), "pictures", quiet=quiet) as advance:
            for some, grid, pooled in encode(model, samples, source, config.training.batch):
                kept += some
                parts.append((grid.half().cpu(), pooled.half().cpu()))
                advance(len(some))
        if not kept:
            raise DataError("none of the validation pictures can be read")
        return cls(kept, torch.cat([grid for grid, _ in parts]), torch.cat([pooled for _, pooled in parts]))

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
