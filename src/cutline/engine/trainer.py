"""A run in memory: its task, optimizer and position, what a step is, and how all of it is saved and restored."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch.nn.functional import interpolate

from cutline.config import TrainingConfig
from cutline.engine import snapshot, weights
from cutline.engine.average import Average
from cutline.engine.batches import Batch, Batches
from cutline.engine.checkpoint import Checkpoint, Checkpoints
from cutline.engine.muon import Muon
from cutline.engine.ranks import ALONE, Ranks
from cutline.engine.runtime import Precision, free_memory, out_of_memory, readers, reseed
from cutline.engine.saver import Moment
from cutline.engine.schedule import grown, rate_factor, share
from cutline.engine.task import Task, Validated


@dataclass
class Progress:
    """Where a run stands: with the weights and the optimizer, all that it needs to go on."""

    step: int = 0
    stage: int = 0
    begun: int = 0
    """Step at which the stage began."""
    epoch: int = 0
    """Epochs of the stage learned from to their end."""
    batch: int = 0
    """Batches of the epoch after those that were learned from."""
    validated: int = 0
    """Epochs after which validation was done, or not due."""
    best: float = -math.inf
    best_step: int = -1
    bad: int = 0
    """Validations since the best."""
    drops: int = 0
    """Plateaus met."""
    skipped: int = 0
    """Steps whose loss or gradient was no number."""
    trouble: int = 0
    """Ten for each of those, less one for each good step since."""
    setbacks: int = 0
    """Times that the run went back to an older state, each at half the rate."""
    split: int = 1
    """Parts that a batch is split into, since it did not fit into memory whole."""
    unreadable: int = 0
    """Pictures of this epoch that could not be read."""
    events: int = 0
    """Bytes of the event log that belong to this state."""
    seconds: float = 0.0
    """Spent on learning in this stage, where its minutes are limited."""


@dataclass
class Meter:
    """What the loop's time goes into, for whoever watches it."""

    steps: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.monotonic)
    waiting: float = math.inf
    """Since when pictures are waited for; a slow loader is to be seen before it has answered."""

    def read(self) -> dict[str, float]:
        """Speed, and the share of the time spent waiting for pictures, since this was last asked."""
        now = time.monotonic()
        took = max(now - self.since, 1e-9)
        waited = self.waited + max(0.0, now - max(self.waiting, self.since))
        figures = {"steps_per_second": self.steps / took, "loader_wait_share": min(waited / took, 1.0)}
        self.steps, self.waited, self.since = 0, 0.0, now
        return figures


class Trainer:
    """One run: its task, optimizer and position."""

    def __init__(
        self,
        task: Task,
        batches: Batches,
        checkpoints: Checkpoints,
        config: TrainingConfig,
        seed: int,
        device: torch.device,
        ranks: Ranks = ALONE,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """`facts` say what the run learns from; they go into every checkpoint, for a resume to compare."""
        self.task, self.batches, self.checkpoints, self.config = task, batches, checkpoints, config
        self.run = checkpoints.folder.parent
        self.seed, self.device, self.ranks, self.facts = seed, device, ranks, facts or {}
        groups = weights.parameter_groups(task.model, task.config)
        self.rates = [float(group["lr"]) for group in groups]
        optimizer = Muon if config.optimizer == "muon" else torch.optim.AdamW
        self.optimizer = optimizer(groups, betas=(0.9, 0.98), fused=True)
        self.parameters = [p for group in groups for p in group["params"]]
        self.precision = Precision(config.precision, device)
        self.average = Average(weights.learned(task.model), config.ema) if config.ema else None
        self.statistics = weights.statistics(task.model)
        self.workers = config.workers
        if config.workers < 0:
            self.workers = readers(device, ranks.here) if batches.take_time else 0
        self.at = Progress()
        self.meter = Meter()
        self.unnoted = 0.0
        """Seconds of learning that are not in `at` yet."""
        self.steps_per_epoch = -(-len(batches) // config.accumulate)

    def begin_stage(self, before: Progress) -> None:
        """Go on from where another stage has ended; its weights are there already."""
        kept = {name: getattr(before, name) for name in ("step", "best", "best_step", "skipped", "split", "events")}
        self.at = Progress(stage=before.stage + 1, begun=before.step, **kept)

    def count_anew(self) -> None:
        """As if all epochs had had as many steps as they have since they were changed: schedules count in steps."""
        done = self.at.epoch * self.steps_per_epoch + -(-self.at.batch // self.config.accumulate)
        self.at.begun = self.at.step - done

    @property
    def total_steps(self) -> int:
        """Of this stage."""
        return self.steps_per_epoch * self.config.epochs

    @property
    def share(self) -> float:
        """How much of this stage is done, 0 to 1."""
        return share(self.config, self.at.step - self.at.begun, self.total_steps, self.at.seconds)

    @property
    def out_of_time(self) -> bool:
        return 0 < 60 * self.config.minutes <= self.at.seconds

    # What a step is

    def step(self, batches: list[Batch], *, stop: bool = False) -> dict[str, float]:
        """Learn from some batches as if they were one, and note the time that it took, with that of their loading."""
        started = time.monotonic()
        figures = self._step(batches, stop)
        self.unnoted += time.monotonic() - started
        if self.config.minutes:
            (seconds,) = self.ranks.total(self.unnoted)
            self.at.seconds += seconds / self.ranks.world
        self.unnoted = 0.0
        return figures

    def _step(self, batches: list[Batch], stop: bool) -> dict[str, float]:
        """What is left where the clock is left out.

        `stop` is passed on to all ranks: what comes back says whether any of them was asked to stop, and how many
        pictures could be read and how many could not. A loss or gradient that is no number leaves the weights as they
        are.
        """
        self.task.model.train()
        self._set_rate()
        own = sum(batch.amount for batch in batches), sum(len(batch) for batch in batches)
        lost = sum(len(batch.unreadable) for batch in batches)
        amount, pictures, unreadable, stops = self.ranks.total(*own, lost, stop)
        if not pictures:  # not one of them can be read
            self._note(sound=True)
            return {
                "loss": math.nan, "norm": 0.0, "rate": 0.0, "pictures": 0, "unreadable": unreadable, "stop": stops,
            }  # fmt: skip
        before, split = self._noted(), self.at.split
        amount = max(amount, 1)  # pictures without a caption have no words, but perhaps a class
        told = self._backward(batches, int(amount), int(pictures), before)
        self.ranks.add_gradients(self.parameters)
        told, smaller = self.ranks.total(told, self.at.split != split)
        if smaller:  # as the first notes it for the next start
            self.at.split = max(self.ranks.gather(self.at.split))
        self.precision.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf))
        loss = told / amount
        sound = math.isfinite(norm) and math.isfinite(loss)
        if sound or self.precision.searching:
            self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        if not sound:
            self._forget(before)
        self._note(sound)
        return {
            "loss": loss, "norm": norm, "rate": self.optimizer.param_groups[-1]["lr"],
            "pictures": pictures, "unreadable": unreadable, "stop": stops,
        }  # fmt: skip

    def _note(self, sound: bool) -> None:
        at = self.at
        at.step += 1
        self.meter.steps += 1
        if sound:
            at.trouble = max(0, at.trouble - 1)
        elif not self.precision.searching:
            at.skipped, at.trouble = at.skipped + 1, at.trouble + 10
        if self.average and sound:
            self.average.update(at.step)

    def _set_rate(self) -> None:
        step = self.at.step - self.at.begun
        factor = rate_factor(self.config, step, self.steps_per_epoch, self.at.drops, self.at.seconds)
        factor *= 0.5**self.at.setbacks
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _backward(self, batches: list[Batch], amount: int, pictures: int, before: list[torch.Tensor]) -> float:
        """Gradients of a step, in as many parts as memory asks for; returns what is told of the loss."""
        sampling = self.config.scheduled_sampling * self.share
        while True:
            reseed(self.seed, self.at.step, self.ranks.rank)
            self.optimizer.zero_grad(set_to_none=True)
            told = 0.0
            try:
                for part in (part for batch in batches for part in batch.parts(self.at.split)):
                    told += self._part(part, len(part) / pictures, amount, sampling)
                return told
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.at.split >= max(map(len, batches)):
                    raise
            # Outside of the handler: while the error lives, so do the tensors of the frames it came through.
            self.at.split *= 2
            self._forget(before)
            self.optimizer.zero_grad(set_to_none=True)
            free_memory()

    def _part(self, part: Batch, share: float, amount: int, sampling: float) -> float:
        """In a frame of its own, with which its tensors go: kept alive, they would be in the way of smaller parts."""
        moved = self._sized(part.to(self.device))
        with self.precision.autocast():
            loss, figure = self.task.loss(moved, share, amount, sampling)
        noted = self._noted() if self.config.checkpointing else []
        self.precision.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if noted:  # what is computed again has noted its pictures a second time
            self._forget(noted)
        return figure

    def _sized(self, batch: Batch) -> Batch:
        """The batch with its pictures as large as they are to be by now."""
        pictures = batch.inputs[0]
        side = grown(pictures.shape[-1], self.batches.pictures.grow, self.share)
        if len(batch.inputs) > 1 or side == pictures.shape[-1]:
            return batch
        # In numbers and not in bytes, which no GPU does.
        smaller = interpolate(pictures.float(), (side, side), mode="bilinear", antialias=True)
        return replace(batch, inputs=(smaller,))

    def _noted(self) -> list[torch.Tensor]:
        """The figures of batch norm as they are now."""
        return [value.clone() for value in self.statistics]

    def _forget(self, before: list[torch.Tensor]) -> None:
        """Put the figures of batch norm back to what they were before something that does not count."""
        for live, old in zip(self.statistics, before, strict=True):
            live.copy_(old)

    # What it learns from, and how well it does

    def groups(self) -> Iterator[list[Batch]]:
        """What is left of the epoch, in groups of batches that make a step."""
        batches = self.batches.iterate(self.at.epoch, self.at.batch, self.workers)
        while True:
            started = self.meter.waiting = time.monotonic()
            group = list(islice(batches, self.config.accumulate))
            ended, self.meter.waiting = time.monotonic(), math.inf
            waited = ended - started
            self.meter.waited += ended - max(started, self.meter.since)
            if not group:
                return
            self.unnoted += waited
            yield group

    def validate(self, advance: Callable[[int], None], stop: Callable[[], bool] = lambda: False) -> Validated | None:
        """Score the weights, or their average where there is one; None when any rank was stopped."""
        with self.average.in_place() if self.average else nullcontext():
            self.ranks.share(self.statistics)
            batch = max(1, self.config.batch // self.at.split)  # where memory has run out before
            return self.task.validate(batch, self.device, advance, stop, self.ranks)

    def judge(self, validation: Validated) -> bool:
        """Note the score; True when it is the best so far."""
        value = validation.metric(self.task.config.metric)
        if value > self.at.best:
            self.at.best, self.at.best_step, self.at.bad = value, self.at.step, 0
            return True
        self.at.bad += 1
        if self.config.schedule == "plateau":
            self.at.drops += 1
        return False

    # What lasts

    def moment(self) -> Moment:
        state = {
            "progress": asdict(self.at),
            "groups": self.optimizer.state_dict()["param_groups"],
            "scaler": self.precision.scaler.state_dict(),
            "world": self.ranks.world,
            **self.facts,
        }
        return Moment(self.at.step, self.at.best_step, state)

    def tensors(self) -> dict[str, snapshot.Tensors]:
        groups: dict[str, snapshot.Tensors] = {
            "model": weights.learned(self.task.model),
            "optimizer": snapshot.pack_optimizer(self.optimizer),
        }
        if self.average:
            groups["average"] = self.average.mean
        return groups

    def restore(self, saved: Checkpoint) -> None:
        weights.load(self.task.model, snapshot.tensors(saved, "model"))
        state = saved.state
        asked = [{name: group[name] for name in ("weight_decay", "muon")} for group in self.optimizer.param_groups]
        if [group.get("muon", False) for group in state["groups"]] != [group["muon"] for group in asked]:
            raise ValueError("what one optimizer knows is of no use to another")
        snapshot.unpack_optimizer(self.optimizer, snapshot.tensors(saved, "optimizer"), state["groups"])
        for group, settings in zip(self.optimizer.param_groups, asked, strict=True):
            group |= settings  # as they are asked for now
        if state["scaler"]:  # of another precision there is none: it begins anew
            self.precision.scaler.load_state_dict(state["scaler"])
        if self.average:  # likewise
            kept = snapshot.has(saved, "average")
            self.average.load(snapshot.tensors(saved, "average") if kept else self.average.live)
        self.at = Progress(**state["progress"])
