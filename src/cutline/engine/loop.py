"""The training loop, the same for every task: load, step, save, validate."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import FrameType

import torch

from cutline.config import TrainingConfig
from cutline.console import Advance, progress, say
from cutline.engine import checkpoint, weights
from cutline.engine.average import Average
from cutline.engine.batches import Batch, Batches
from cutline.engine.checkpoint import Checkpoint
from cutline.engine.events import Events, Sink
from cutline.engine.runtime import Precision, reseed
from cutline.engine.schedule import rate_factor
from cutline.engine.task import CaptioningTask, Validation
from cutline.errors import ModelError


@dataclass
class Progress:
    """Where a run stands: with the weights and the optimizer, all that it needs to go on."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Batches of the epoch already learned from."""
    best: float = -math.inf
    best_step: int = -1
    bad: int = 0
    """Validations since the best."""
    drops: int = 0
    """Plateaus met."""
    events: int = 0
    """Bytes of the event log that belong to this state."""


class Trainer:
    """One run: its task, optimizer and position."""

    def __init__(
        self, task: CaptioningTask, batches: Batches, run: Path, config: TrainingConfig, seed: int, device: torch.device
    ) -> None:
        self.task, self.batches, self.run, self.config = task, batches, run, config
        self.seed, self.device = seed, device
        groups = weights.parameter_groups(task.model, task.config)
        self.rates = [float(group["lr"]) for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), foreach=True)
        self.parameters = [p for group in groups for p in group["params"]]
        self.precision = Precision(config.precision, device)
        self.average = Average(weights.learned(task.model), config.ema) if config.ema else None
        self.at = Progress()
        self.steps_per_epoch = -(-len(batches) // config.accumulate)

    # What a step is

    def step(self, batches: list[Batch]) -> dict[str, float]:
        """Learn from some batches as if they were one."""
        self.task.model.train()
        reseed(self.seed, self.at.step)
        factor = rate_factor(self.config, self.at.step, self.steps_per_epoch, self.at.drops)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        tokens = sum(int((batch.tokens[..., 1:] != 0).sum()) for batch in batches)
        pictures = sum(len(batch.tokens) for batch in batches)
        sampling = self.config.scheduled_sampling * self.at.step / max(self.steps_per_epoch * self.config.epochs, 1)
        self.optimizer.zero_grad(set_to_none=True)
        nats = 0.0
        for batch in batches:
            moved = batch.to(self.device)
            with self.precision.autocast():
                loss, part = self.task.loss(moved, len(batch.tokens) / pictures, tokens, sampling)
            self.precision.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            nats += part
        self.precision.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf)
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        self.at.step += 1
        if self.average:
            self.average.update(self.at.step)
        return {"loss": nats / tokens, "norm": float(norm), "rate": self.optimizer.param_groups[0]["lr"]}

    # What it learns from, and how well it does

    def groups(self) -> Iterator[list[Batch]]:
        """What is left of the epoch, in groups of batches that make a step."""
        batches = self.batches.iterate(self.at.epoch, self.at.batch, self.config.workers)
        while group := list(islice(batches, self.config.accumulate)):
            yield group

    def validate(self, advance: Callable[[int], None]) -> Validation:
        with self.average.in_place() if self.average else nullcontext():
            return self.task.validate(self.config.batch, self.device, advance)

    def judge(self, validation: Validation) -> bool:
        """Note the score; True when it is the best so far."""
        value = validation.metric(self.config.metric)
        if value > self.at.best:
            self.at.best, self.at.best_step, self.at.bad = value, self.at.step, 0
            return True
        self.at.bad += 1
        if self.config.schedule == "plateau":
            self.at.drops += 1
        return False

    # What lasts

    def save(self, events: Events) -> Checkpoint:
        tensors, groups = checkpoint.pack_optimizer(self.optimizer)
        self.at.events = events.size
        parts = {"model": weights.learned(self.task.model), "optimizer": tensors}
        if self.average:
            parts["average"] = self.average.mean
        state = {"progress": asdict(self.at), "groups": groups, "scaler": self.precision.scaler.state_dict()}
        folder = self.run / "checkpoints"
        saved = checkpoint.save(folder, self.at.step, parts, state)
        checkpoint.retain(folder, saved, self.config.keep, {self.at.best_step})
        return saved

    def restore(self, saved: Checkpoint) -> None:
        weights.load(self.task.model, saved.tensors("model"))
        state = saved.state
        checkpoint.unpack_optimizer(self.optimizer, saved.tensors("optimizer"), state["groups"])
        self.precision.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load(saved.tensors("average"))
        self.at = Progress(**state["progress"])


def train(trainer: Trainer, *sinks: Sink, quiet: bool = False) -> Progress:
    """Train to the end, or until told to stop; what was learned is saved either way."""
    config, at = trainer.config, trainer.at
    events = Events(trainer.run / "events.jsonl", *sinks, keep_bytes=at.events)
    total = trainer.steps_per_epoch * config.epochs
    bar = progress("training", total, "steps", done=at.step, quiet=quiet)
    with contextlib.closing(events), _stop_requested() as stop, bar as advance:
        while at.epoch < config.epochs and not _finished(trainer):
            for group in trainer.groups():
                started = time.perf_counter()
                figures = trainer.step(group)
                at.batch += len(group)
                events.write("step", at.step, **figures, seconds=round(time.perf_counter() - started, 4))
                _check_finite(figures["loss"], trainer)
                advance(1, note=f"loss {figures['loss']:.3f}")
                if stop():
                    saved = trainer.save(events)
                    say(f"stopped at step {at.step}, saved as {saved.path}; go on with --resume {trainer.run}")
                    raise KeyboardInterrupt
                if config.save_steps and at.step % config.save_steps == 0:
                    trainer.save(events)
            at.epoch, at.batch = at.epoch + 1, 0
            if at.epoch % config.validate_every == 0 or at.epoch == config.epochs:
                _validate(trainer, events, advance, quiet)
            trainer.save(events)
    return at


def _check_finite(loss: float, trainer: Trainer) -> None:
    if not math.isfinite(loss):
        raise ModelError(
            f"the loss became {loss} at step {trainer.at.step}",
            fix=f"a lower rate (--rate {trainer.config.rate / 3:.0e}), or another precision; then start anew",
        )


def _validate(trainer: Trainer, events: Events, advance: Advance, quiet: bool) -> None:
    started, done = time.perf_counter(), 0

    def note(count: int) -> None:
        nonlocal done
        done += count
        advance(0, note=f"validating: {done} captions")

    validation = trainer.validate(note)
    better = trainer.judge(validation)
    advance(0, note=f"best {trainer.config.metric} {trainer.at.best:.1f}")
    at = trainer.at
    events.write("validation", at.step, epoch=at.epoch, best=better, **validation.to_dict())
    shown = ", ".join(
        f"{lang} BLEU-4 {scores.bleu[3]:.1f} CIDEr-D {scores.cider:.1f}" for lang, scores in validation.scores.items()
    )
    mark = "  best so far" if better else ""
    took = time.perf_counter() - started
    say(f"epoch {at.epoch}/{trainer.config.epochs}: {shown}  ({took:.0f} s){mark}", quiet=quiet)


def _finished(trainer: Trainer) -> bool:
    return bool(trainer.config.patience) and trainer.at.bad >= trainer.config.patience


@contextlib.contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question that the loop asks between steps."""
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:  # a second time means now
            raise KeyboardInterrupt
        asked = True

    kept = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
