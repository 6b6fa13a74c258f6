"""What a run would take, from a few real steps on the real data, before it begins."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from cutline.config import Config
from cutline.console import duration
from cutline.data.corpus import Sample
from cutline.data.images import readable
from cutline.engine import choose, machine, run, weights
from cutline.engine.classes import BothTask
from cutline.engine.runtime import out_of_memory
from cutline.engine.schedule import doubt
from cutline.engine.sources import Source
from cutline.engine.task import CaptioningTask
from cutline.engine.trainer import Trainer
from cutline.engine.weights import Model
from cutline.errors import CutlineError
from cutline.evaluation import cost
from cutline.features import backends

WARM, TIMED = 1, 3
QUARTERS = (0.125, 0.375, 0.625, 0.875)
"""The middles of four parts of a stage, where its steps do not all take as long."""
TRIED = 32
"""Pictures encoded to see how long storing the features of all would take."""


@dataclass(frozen=True)
class Estimate:
    """What a run would take, in words and as figures."""

    words: str
    parameters: int
    steps: int
    seconds: float

    def __str__(self) -> str:
        return self.words


def dry_run(config: Config, *, quiet: bool = False) -> Estimate:
    """Read everything, take a few steps of each stage, and say what the whole would take; nothing is left behind."""
    try:
        stages = [_Tried.of(config, stage, quiet) for stage in range(len(config.all_stages))]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise CutlineError(
            f"there is not enough memory to try it: {str(error).splitlines()[0]}",
            fix="a smaller model (--hidden, --encoder), smaller pictures, or end what else uses memory",
        ) from None
    first, free = stages[0], machine.disk_free(Path(config.output))
    needs = Needs(*(max(of_stages) for of_stages in zip(*(astuple(each.needs) for each in stages), strict=True)))
    stored = max(each.stored for each in stages)
    features = f"; {stored / 1e9:.2f} GB of features in the cache, where they are not there" if stored else ""
    lines = [f"data       {first.data}", f"model      {first.model}"]
    for number, each in enumerate(stages, 1):
        lines.append(f"steps      {f'stage {number}: ' if len(stages) > 1 else ''}{each.steps}")
    lines += [
        f"memory     {stages[-1].memory}",
        f"disk       {needs.disk / 1e9:.2f} GB at most, {free / 1e9:.1f} GB free{features}",
    ]
    choosing = stages[-1].choosing
    seconds = sum(each.seconds for each in stages) + choosing
    times = [each.time for each in stages] + [f"{duration(choosing)} to choose the search"] * bool(choosing)
    lines.append(f"time       {duration(seconds)}: {'; '.join(times)}")
    try:
        needs.check(Path(config.output))
    except CutlineError as short:
        raise CutlineError("\n".join([*lines, short.what]), fix=short.fix) from None
    return Estimate("\n".join(lines), first.parameters, sum(each.count for each in stages), seconds)


@dataclass(frozen=True)
class _Tried:
    """What a few steps of a stage have shown."""

    data: str
    model: str
    parameters: int
    steps: str
    count: int
    """Of steps."""
    memory: str
    time: str
    seconds: float
    """Of the stage."""
    choosing: float
    """Seconds to choose a search after it, were it the last."""
    needs: Needs
    stored: int
    """Bytes of features."""

    @classmethod
    def of(cls, config: Config, stage: int, quiet: bool) -> _Tried:
        trial = _Trial()
        prepared = run.prepare(config, stage=stage, sources=trial.sources, quiet=quiet or stage > 0)
        with tempfile.TemporaryDirectory() as place:
            trainer = run.trainer(prepared, Path(place))
            grow = prepared.batches.pictures.grow < 1
            paces, amount = _step_seconds(trainer, QUARTERS if grow else (0.0,))
            checked = _validation_seconds(trainer)
            choosing = _choosing_seconds(trainer, prepared.corpus.split("val"))
        what = "words" if prepared.known.words else "pictures"
        training, learn, judge = trainer.config, prepared.batches.count, len(prepared.task.samples)
        steps = trainer.total_steps
        seconds = float(np.mean(paces))
        if 0 < 60 * training.minutes < steps * seconds:
            steps = max(1, round(60 * training.minutes * np.mean(1 / np.array(paces))))
            seconds = 60 * training.minutes / steps
        epochs = -(-steps // trainer.steps_per_epoch)
        validations = -(-epochs // training.validate_every)
        odd = doubt(training, trainer.total_steps)
        return cls(
            data=f"{learn} pictures to learn from, {judge} to validate on",
            model=_shapes(prepared),
            parameters=cost.parameters(prepared.model),
            steps=f"{steps}: {epochs} epochs of {trainer.steps_per_epoch}, {amount} {what} each"
            + (f"; {odd}" if odd else ""),
            count=steps,
            memory=_memory(prepared),
            time=f"{trial}{seconds * 1e3:.0f} ms a step, {checked:.0f} s a validation",
            seconds=trial.seconds + steps * seconds + validations * checked,
            choosing=choosing,
            needs=Needs.of(prepared),
            stored=trial.bytes,
        )


class _Trial:
    """Stands in for stored features: makes those of a few pictures, and knows what all would take."""

    ready = True

    def __init__(self) -> None:
        self.seconds, self.bytes = 0.0, 0

    def __str__(self) -> str:
        return f"{duration(self.seconds)} to store features, " if self.seconds else ""

    def sources(
        self, config: Config, model: Model, learn: list[Sample], judge: list[Sample], quiet: bool
    ) -> tuple[Source, Source]:
        if not run.uses_features(config, model):
            return run.stored_or_pictures(config, model, learn, judge, quiet)
        started = time.perf_counter()
        images = (sample.image for sample in learn)
        tried = list(islice(readable(images) if config.data.skip_bad else images, TRIED)) or [learn[0].image]
        pixels = np.stack([model.encoder.transform.from_file(image) for image in tried])
        reading = time.perf_counter() - started
        reference = backends.eager(model.encoder)(pixels[:8])
        name = "cpu" if config.device == "cpu" else "auto"
        backend, _ = backends.select(model.encoder, pixels[:8], reference, name, "auto", config.threads, quiet=quiet)
        backend.run(pixels)
        started = time.perf_counter()
        self.features = backend.run(pixels)
        count = len(learn) + len(judge)
        self.seconds = max(time.perf_counter() - started, reading) / len(pixels) * count  # the two go on at once
        self.bytes = 2 * sum(part[0].size for part in self.features) * count
        return self, self

    def load(self, indices: np.ndarray, draws: object) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(part[indices % len(part)]) for part in self.features)


@dataclass(frozen=True)
class Needs:
    """What a run cannot do without, in bytes; a step's own memory comes on top."""

    disk: int
    memory: int
    gpu: int = 0
    """Of the memory of the GPU that it learns on."""

    @classmethod
    def of(cls, prepared: run.Prepared) -> Needs:
        training = prepared.config.training
        stages = prepared.config.all_stages
        all_learns = any(stage.encoder.train not in ("auto", "nothing") for stage in stages)  # in a later one perhaps
        values = weights.named(prepared.model) if all_learns else weights.learned(prepared.model)
        learned = sum(v.numel() * v.element_size() for v in values.values())
        frozen = sum(v.numel() * v.element_size() for v in prepared.model.encoder.state_dict().values())
        saved = learned * (4 if training.ema else 3)  # weights, the two moments of Adam, the average
        taught = [stage.training for stage in stages]
        steps = sum(-(-prepared.batches.count // (each.batch * each.accumulate)) * each.epochs for each in taught)
        # Of each so many steps only what is saved is kept: each epoch's end surely, and by the clock nobody knows.
        asked = min(steps // training.keep_every + 1, sum(each.epochs for each in taught)) if training.keep_every else 0
        if any(each.minutes for each in taught):
            asked = 0
        # On disk the newest ones, the best, one to go back to, and the one that is being written; the encoder is in the
        # bundle as well.
        # In memory the state itself, its gradients, and the copy that is saved from; of a GPU all but that copy.
        disk, state = saved * (max(training.keep, 1) + 3 + asked) + 2 * frozen, saved + learned
        if prepared.device.torch.type == "cuda":
            return cls(disk, saved, state)
        return cls(disk, saved + state)

    def check(self, place: Path) -> None:
        """Refuse to begin what could not be brought to its end."""
        free, available = machine.disk_free(place), machine.memory_available()
        if self.disk > free:
            raise CutlineError(
                f"the run needs {_size(self.disk)} of disk in {place}, {_size(free)} are free",
                fix="--output on a larger disk, or training.keep = 1 in the config file",
            )
        if self.memory > available:
            raise CutlineError(
                f"the run needs {_size(self.memory)} of memory for its state alone, {_size(available)} are available",
                fix="a smaller model (--hidden, --encoder), or end what else uses memory",
            )
        # What this process holds of it already, the model for one, is its own to use.
        if self.gpu and self.gpu > (left := torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()):
            raise CutlineError(
                f"the run needs {_size(self.gpu)} of the GPU's memory for its state alone, {_size(left)} are free",
                fix="a smaller model (--hidden, --encoder), --device cuda:N for another GPU, or end what else uses it",
            )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _step_seconds(trainer: Trainer, shares: Sequence[float]) -> tuple[list[float], int]:
    """Seconds of a step, reading included, when so much of the stage is done; and the words or pictures of one."""
    groups = chain.from_iterable(iter(trainer.groups, None))  # the epoch again and again, however short it is
    seconds, group = [], []
    for share in shares:
        trainer.at.step, trainer.at.seconds = int(share * trainer.total_steps), 60 * trainer.config.minutes * share
        for done in range(WARM + TIMED):
            if done == WARM:
                started = time.perf_counter()
            group = next(groups)
            trainer.step(group)
        seconds.append((time.perf_counter() - started) / TIMED)
    return seconds, sum(batch.amount for batch in group)


def _validation_seconds(trainer: Trainer) -> float:
    """Seconds to score all validation pictures, from one batch of them."""
    task = trainer.task
    batch = min(trainer.config.batch, len(task.samples))
    started = time.perf_counter()
    task.validate(batch, trainer.device, lambda count: None, first=batch)
    return (time.perf_counter() - started) / batch * len(task.samples)


def _choosing_seconds(trainer: Trainer, samples: Sequence[Sample]) -> float:
    task = trainer.task.captions if isinstance(trainer.task, BothTask) else trainer.task
    if not (trainer.config.choose_search and isinstance(task, CaptioningTask)):
        return 0.0
    return choose.seconds(task, samples, trainer.config.batch, trainer.device)


def _shapes(prepared: run.Prepared) -> str:
    encoder = prepared.model.encoder
    side = encoder.grid_side
    total = cost.parameters(prepared.model)
    ends = [f"{len(prepared.known.words.pieces)} words"] if prepared.known.words else []
    ends += [f"{len(prepared.known.classes)} classes"] if prepared.known.classes else []
    return (
        f"{encoder.transform.size} x {encoder.transform.size} pixels -> {side} x {side} regions of {encoder.channels}"
        f" -> {' and '.join(ends)}, {total / 1e6:.1f} M parameters"
    )


def _memory(prepared: run.Prepared) -> str:
    device = prepared.device.torch
    if device.type == "cuda":
        peak, whole = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return f"{peak / 1e9:.1f} GB of the GPU's {whole / 1e9:.1f} GB at the peak of a step"
    held = machine.peak_memory()
    so_far = f"{_size(held)} at the peak so far, " if held else ""
    state = f"{_size(Needs.of(prepared).memory)} for the state, "
    return f"{state}{so_far}{_size(machine.memory_available())} available"
