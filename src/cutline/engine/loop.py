"""The training loop, the same for every task: load, step, save, validate."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import NoReturn

from cutline.console import Advance, progress, say
from cutline.engine.batches import Batch
from cutline.engine.checkpoint import Checkpoint, troubled
from cutline.engine.events import Events, Sink
from cutline.engine.journal import Journal
from cutline.engine.resume import adapt
from cutline.engine.saver import Saver, Warn
from cutline.engine.schedule import doubt
from cutline.engine.trainer import Progress, Trainer
from cutline.engine.watch import when_stopped
from cutline.errors import DataError, ModelError

SETBACKS = 3
"""Times that a run goes back to an older state before it gives up."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Training was asked to stop, and all is saved."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped at step {step} by {signal.Signals(number).name}")
        self.step, self.number = step, number


class Loop:
    """Training as it goes on: the trainer, and all that it reports to."""

    def __init__(self, trainer: Trainer, warn: Warn, *sinks: Sink, quiet: bool = False) -> None:
        self.trainer, self.checkpoints = trainer, trainer.checkpoints
        self.first = trainer.ranks.first
        self.quiet = quiet or not self.first
        self.journal = Journal(trainer.run)
        self.events = Events(trainer.run / "events.jsonl", *sinks, keep_bytes=trainer.at.events) if self.first else None
        self.saver = Saver(self.checkpoints, trainer.config, self.journal, warn)
        self.loss = math.nan
        self._left_out: set[str] = set()
        """Pictures of this epoch that could not be read; one of a rare class may be asked for again and again."""

    def train(self) -> Progress:
        """Train to the end, or until told to stop; what was learned is saved either way."""
        trainer, at = self.trainer, self.trainer.at
        trainer.batches.on_death = lambda why: self._met("loader_died", f"{why}; others go on", step=at.step)
        stages = len(trainer.facts["config"]["stages"]) if trainer.facts else 0
        what = f"stage {at.stage + 1} of {stages}" if stages else "training"
        bar = progress(what, *self._planned(), done=self._done(), quiet=self.quiet)
        if odd := doubt(trainer.config, trainer.total_steps):
            say(f"note: {odd}", quiet=self.quiet)
        with contextlib.closing(self), _stop_requested() as stop, bar as advance:
            self.saver.start_at(next(self.checkpoints.verified(), None))
            self._journal(
                "training", step=at.step, stage=at.stage + 1, epoch=at.epoch, device=str(trainer.device),
                world=trainer.ranks.world, **self._ends(), **_parameters(trainer),
            )  # fmt: skip
            while not self._over():
                if trainer.at.validated < trainer.at.epoch:
                    self._validate(advance, stop)
                    self._save()
                else:
                    self._epoch(advance, stop)
            if self.first:
                self.saver.must_have(trainer.at.step)
            if trainer.config.minutes:
                at = trainer.at  # another one than in the beginning, where the run has gone back meanwhile
                self._journal("learned", step=at.step, stage=at.stage + 1, seconds=round(at.seconds, 1))
        return trainer.at

    def _over(self) -> bool:
        at, config = self.trainer.at, self.trainer.config
        patience_lost = bool(config.patience) and at.bad >= config.patience
        ended = at.epoch >= config.epochs or patience_lost or self.trainer.out_of_time
        return at.validated == at.epoch and not at.batch and ended

    def _planned(self) -> tuple[int, str]:
        """How much there is to do in this stage, and of what: of seconds, where it is they that are limited."""
        trainer, minutes = self.trainer, self.trainer.config.minutes
        return (max(1, int(60 * minutes)), "s") if minutes else (trainer.total_steps, "steps")

    def _done(self) -> int:
        trainer, at = self.trainer, self.trainer.at
        return min(int(at.seconds), self._planned()[0]) if trainer.config.minutes else at.step - at.begun

    def _ends(self) -> dict[str, float]:
        """What is known of the end: of a run by the clock nobody knows its last step."""
        trainer, config = self.trainer, self.trainer.config
        if config.minutes:
            return {"minutes": config.minutes}
        return {"begun": trainer.at.begun, "total": trainer.at.begun + trainer.total_steps, "epochs": config.epochs}

    def _epoch(self, advance: Advance, stop: Callable[[], int]) -> None:
        trainer = self.trainer
        for group in trainer.groups():
            if trainer.out_of_time:
                break
            split, done = trainer.at.split, self._done()
            figures = trainer.step(group, stop=bool(stop()))
            at = trainer.at
            at.batch += len(group)
            self._write_step(group, figures, split)
            advance(self._done() - done, note=f"loss {figures['loss']:.3f}")
            if at.trouble > 10 * trainer.config.bad_steps:
                done = self._done()
                self._go_back()
                advance(self._done() - done)
                return
            if figures["stop"]:
                self._stop(stop() or signal.SIGTERM)
            if self.first and self.saver.due(at.step):
                self._save()
        at = trainer.at
        at.epoch, at.batch, at.unreadable = at.epoch + 1, 0, 0
        self._left_out.clear()
        if at.epoch % trainer.config.validate_every and at.epoch < trainer.config.epochs and not trainer.out_of_time:
            at.validated = at.epoch
            self._save()

    def _write_step(self, group: list[Batch], figures: dict[str, float], split: int) -> None:
        """Note what a step was like, and all that was odd about it."""
        trainer, at = self.trainer, self.trainer.at
        self.loss = figures["loss"]
        self._event("step", **{key: figures[key] for key in ("loss", "norm", "rate")})
        sound = math.isfinite(figures["loss"]) and math.isfinite(figures["norm"])
        if figures["pictures"] and not sound:
            where = {"epoch": at.epoch, "batches": [at.batch - len(group), at.batch]}
            self._event("skipped", why="the loss or its gradient is no number", **where)
            if not trainer.precision.searching:
                self._met("skipped", f"step {at.step}: the loss or its gradient is no number; skipped", step=at.step)
        if at.split != split:
            self._met("split", f"memory ran out at step {at.step}: batches are now learned from in {at.split} parts",
                      step=at.step, parts=at.split)  # fmt: skip
        if figures["unreadable"]:
            lost = [each for batch in group for each in batch.unreadable.items()]
            self._miss({id: why for part in trainer.ranks.gather(lost) for id, why in part})

    def _miss(self, lost: dict[str, str]) -> None:
        """Go on without some pictures; but not without most of them."""
        at, config = self.trainer.at, self.trainer.config
        self._event("unreadable", pictures=sorted(lost))
        new = {id: why for id, why in lost.items() if id not in self._left_out}
        self._left_out |= new.keys()
        at.unreadable += len(new)
        for id, why in new.items():
            self._met("unreadable", f"picture left out: {why}", step=at.step, picture=id)
        if at.unreadable > max(3, config.unreadable * self.trainer.batches.count):
            raise DataError(
                f"{at.unreadable} pictures of this epoch cannot be read; the last: {list(lost.values())[-1]}",
                expected=f"no more than {config.unreadable:.0%} of {self.trainer.batches.count}",
                fix="see that the pictures are where they were, then start the same command again",
            )

    def _validate(self, advance: Advance, stop: Callable[[], int]) -> None:
        trainer, at = self.trainer, self.trainer.at
        started, done = time.perf_counter(), 0

        def note(count: int) -> None:
            nonlocal done
            done += count
            advance(0, note=f"validating: {done}")

        validation = trainer.validate(note, lambda: bool(stop()))
        if validation is None:
            self._stop(stop() or signal.SIGTERM)
        better = trainer.judge(validation)
        at.validated = at.epoch
        advance(0, note=f"best {trainer.task.config.metric} {at.best:.1f}")
        self._event("validation", epoch=at.epoch, best=better, **validation.to_dict())
        if validation.unreadable:
            self._miss(dict(validation.unreadable))
        mark = "  best so far" if better else ""
        took = time.perf_counter() - started
        epochs = "" if trainer.config.minutes else f"/{trainer.config.epochs}"
        say(f"epoch {at.epoch}{epochs}: {validation}  ({took:.0f} s){mark}", quiet=self.quiet)

    # What lasts

    def _save(self) -> None:
        if self.events:
            trainer = self.trainer
            trainer.at.events = self.events.size
            self.saver.save(trainer.moment(), trainer.tensors(), partial(self.events.sync, trainer.at.events))

    def _stop(self, number: int) -> NoReturn:
        step = self.trainer.at.step
        if self.first:
            self._save()
            saved = self.saver.must_have(step)
            self._journal("stopped", step=step, why=signal.Signals(number).name)
            say(f"stopped at step {step}, saved as {saved.path}", quiet=self.quiet)
        raise Stopped(step, number)

    def _go_back(self) -> None:
        """Restore the last state before the trouble began, and go on from there at half the rate."""
        trainer, at = self.trainer, self.trainer.at
        sound = self._sound() if self.first else None
        place = trainer.ranks.told(str(sound.path) if sound else "")
        if not place or at.setbacks >= SETBACKS:
            raise ModelError(
                f"the loss or its gradient was no number in {at.skipped} steps up to step {at.step}"
                + (f", also after going back {at.setbacks} times" if at.setbacks else f", from {self._beginning()} on"),
                fix=f"a lower rate (--rate {trainer.config.rate / 10:.0e}), another precision, or look at the data; "
                "then start anew",
            )
        found = sound or next(each for each in self.checkpoints.verified() if str(each.path) == place)
        left, setbacks = at.step, at.setbacks + 1
        trainer.restore(found)
        adapt(trainer, found)
        if not trainer.ranks.told(self.checkpoints.has(trainer.at.best_step)):
            # Better ones had come, for which it went, and they are forgotten now.
            trainer.at.best, trainer.at.best_step = -math.inf, -1
        trainer.ranks.gather(None)  # or the first may save anew, and remove this one while others read it
        trainer.at.setbacks = setbacks
        if self.events:
            self.checkpoints.forget_after(found)
            self.events.cut(trainer.at.events)
        words = f"too many steps up to {left} gave no number: back to step {found.step}, at half the rate"
        self._event("went_back", **{"from": left, "setbacks": setbacks})
        self._met("went_back", words, step=found.step)
        self._save()

    def _sound(self) -> Checkpoint | None:
        """The last one of this stage before the trouble began: another stage's is of other settings, and ends there."""
        self.saver.wait()
        own = (saved for saved in self.checkpoints.verified() if saved.stage == self.trainer.at.stage)
        return next((saved for saved in own if not troubled(saved.state)), None)

    def _beginning(self) -> str:
        stage = self.trainer.at.stage
        return f"the beginning of stage {stage + 1}" if stage else "the first checkpoint"

    def figures(self) -> dict[str, float]:
        """How it goes, for whoever watches; what is not known yet is not among it."""
        at, newest = self.trainer.at, self.saver.newest
        figures = self.trainer.meter.read() | {
            "step": at.step, "epoch": at.epoch, "loss": self.loss,
            "best_score": at.best, "skipped_steps": at.skipped,
            "checkpoint_step": newest.step if newest else math.nan,
            "checkpoint_age_seconds": time.monotonic() - self.saver.newest_time,
            "total_steps": math.nan if self.trainer.config.minutes else at.begun + self.trainer.total_steps,
        }  # fmt: skip
        return {name: value for name, value in figures.items() if math.isfinite(value)}

    def close(self) -> None:
        self.saver.close()
        if self.events:
            self.events.close()

    # What is told

    def _event(self, kind: str, **values: object) -> None:
        if self.events:
            self.events.write(kind, self.trainer.at.step, **values)

    def _journal(self, kind: str, **values: object) -> None:
        if self.first:
            self.journal.write(kind, **values)

    def _met(self, kind: str, words: str, **values: object) -> None:
        """Something odd that the run goes on after."""
        self._journal(kind, what=words, **values)
        say(words, quiet=self.quiet)


def train(trainer: Trainer, *sinks: Sink, quiet: bool = False) -> Progress:
    """Train to the end, or until told to stop; what was learned is saved either way."""

    def warn(name: str, what: str, fix: str) -> None:
        if what:
            say(f"{what}; {fix}")

    return Loop(trainer, warn, *sinks, quiet=quiet).train()


def _parameters(trainer: Trainer) -> dict[str, int]:
    """How many there are, and how many of them this stage teaches."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in trainer.task.model.parameters()]
    return {"parameters": sum(size for size, _ in sizes), "learning": sum(size for size, learns in sizes if learns)}


@contextlib.contextmanager
def _stop_requested() -> Iterator[Callable[[], int]]:
    """Turn signals to stop into a question that the loop asks between steps; its answer is the signal's number."""
    asked = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked == number == signal.SIGINT:  # a second time means now
            raise KeyboardInterrupt
        asked = number

    with when_stopped(note):
        yield lambda: asked
