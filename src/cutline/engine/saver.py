"""When to save, and saving in the background: the training thread pays for a copy of the tensors and goes on."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutline.config import TrainingConfig
from cutline.console import go_on
from cutline.engine import machine
from cutline.engine.checkpoint import Checkpoint, Checkpoints, troubled
from cutline.engine.journal import Journal
from cutline.engine.snapshot import Snapshot, Tensors
from cutline.errors import CutlineError

RETRY_SECONDS = 20.0
"""After a save that failed, how long to wait before the next try."""
SLOW_SECONDS, SLOW_BYTES = 10.0, 50e6
"""A save that takes longer, and a second more for each so many bytes, is told as slow."""
SPARE_BYTES = 2**26
"""Disk left free for what is not a checkpoint: events, journal, the bundle's first files."""

Warn = Callable[[str, str, str], None]
"""`warn(name, what, fix)`: tell the user that something needs them; with no `what`, that it is over."""


@dataclass(frozen=True)
class Moment:
    """All of a run at one step, but for the tensors."""

    step: int
    best_step: int
    state: Mapping[str, Any]


class Saver:
    """Saves a run's checkpoints one after the other, in a thread of its own."""

    def __init__(self, checkpoints: Checkpoints, config: TrainingConfig, journal: Journal, warn: Warn) -> None:
        self.checkpoints, self.config, self.journal, self.warn = checkpoints, config, journal, warn
        self.newest: Checkpoint | None = None
        self.newest_time = self._tried = time.monotonic()
        self._failed = self._slow = False
        self._step = self._bytes = 0
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None
        self._best = -1
        """The step of the best weights that were on the disk last."""
        self._sound = -1
        """The step of the newest on the disk from before any trouble: what a run goes back to."""
        self._unsaved: tuple[Moment, Mapping[str, Any], Callable[[], None], float] | None = None
        """A save of the best weights that failed: they are in the buffer, and nowhere else."""

    def start_at(self, newest: Checkpoint | None) -> None:
        self.newest, self._step = newest, newest.step if newest else 0
        self._best = newest.state.get("progress", {}).get("best_step", -1) if newest else -1
        sound = newest
        if newest and troubled(newest.state):
            sound = next((saved for saved in self.checkpoints.verified() if not troubled(saved.state)), None)
        self._sound = sound.step if sound else -1

    def due(self, step: int) -> bool:
        """Whether to save at this step. Never while a save is under way: a slow disk must not hold up training."""
        self._tell_if_slow()
        if self._is_writing:
            return False
        since = time.monotonic() - self._tried
        if self._failed:
            return since >= RETRY_SECONDS
        by_steps = bool(self.config.save_steps) and step - self._step >= self.config.save_steps
        return by_steps or bool(self.config.save_minutes and since >= 60 * self.config.save_minutes)

    def save(self, moment: Moment, groups: Mapping[str, Tensors], sync_log: Callable[[], None]) -> None:
        """Take a copy now and write it in the background. `sync_log` makes the event log last up to this step."""
        started = time.perf_counter()
        self.wait()
        self._tried = time.monotonic()
        if self._unsaved and self._unsaved[0].best_step == moment.best_step:
            self._write(*self._unsaved)  # here and now: the copy below goes where those weights are
            if self._unsaved:
                return
        self._step, self._unsaved = moment.step, None
        files: dict[str, bytes | memoryview] = dict(self._snapshot.take(groups))
        files["state.json"] = json.dumps(moment.state).encode()
        self._bytes = sum(memoryview(data).nbytes for data in files.values())
        blocked = time.perf_counter() - started
        self._pending = self._thread.submit(self._write, moment, files, sync_log, blocked)

    def wait(self) -> None:
        """Until nothing is under way. What went wrong has been said; `failure` has it.

        A disk that does not answer is waited for, and is no hang: starting again would lose what is to be saved.
        """
        if self._pending is None:
            return
        while self._is_writing:
            wait([self._pending], timeout=1.0)
            self._tell_if_slow()
            go_on()
        self._tell_if_slow()
        self._pending.result()

    @property
    def _is_writing(self) -> bool:
        """Whether a save is under way."""
        return self._pending is not None and not self._pending.done()

    def _tell_if_slow(self) -> None:
        """When a save takes long, and when it is over."""
        writing = self._is_writing
        took, allowed = time.monotonic() - self._tried, SLOW_SECONDS + self._bytes / SLOW_BYTES
        if writing and took > allowed and not self._slow:
            what = f"step {self._step} is not saved after {allowed:.0f} s: the disk is slow, or does not answer"
            self.warn("slow_disk", what, "look at the disk; at the end of an epoch training waits for it")
            self._slow = True
        elif self._slow and not writing:
            self.warn("slow_disk", "", "")
            self._slow = False

    def must_have(self, step: int) -> Checkpoint:
        """The checkpoint of this step, once it is on disk; an error if it could not be written."""
        self.wait()
        if self.newest is None or self.newest.step != step:
            there = f"the newest checkpoint is {self.newest.path}" if self.newest else "there is no checkpoint yet"
            raise CutlineError(
                f"step {step} could not be saved: {self.failure}; {there}",
                fix="make room or mend the disk, then start the same command again",
            )
        return self.newest

    def close(self) -> None:
        self.wait()
        self._thread.shutdown()

    failure = ""
    """Why the last save failed, in words; empty when it did not."""

    # In the thread

    def _write(self, moment: Moment, files: Mapping[str, Any], sync_log: Callable[[], None], blocked: float) -> None:
        started = time.perf_counter()
        size = sum(memoryview(data).nbytes for data in files.values())
        try:
            needed = self._best_there(moment), self._sound if troubled(moment.state) else -1
            self._make_room(size, *needed)
            sync_log()
            try:
                saved = self.checkpoints.write(moment.step, files)
            except OSError as error:
                if error.errno != errno.ENOSPC or not self.checkpoints.thin(*needed):
                    raise
                saved = self.checkpoints.write(moment.step, files)  # with what that has freed
            config = self.config
            sound = self._sound if troubled(moment.state) else moment.step
            gone = self.checkpoints.retain(saved, config.keep, config.keep_every, self._best_there(moment), sound)
            self._sound = sound
        except OSError as error:
            if moment.step == moment.best_step:
                self._unsaved = moment, files, sync_log, blocked
            self._failed, self.failure = True, _words(error, self.checkpoints.folder)
            self.journal.write("save_failed", step=moment.step, why=self.failure)
            self.warn("save", f"step {moment.step} could not be saved: {self.failure}", _way_out(error))
            return
        self.newest, self.newest_time, self._unsaved = saved, time.monotonic(), None
        self._failed, self.failure = False, ""
        self.warn("save", "", "")
        seconds = round(time.perf_counter() - started, 3)
        self.journal.write(
            "saved", step=moment.step, path=saved.path.name, bytes=size, seconds=seconds,
            blocked=round(blocked, 4), removed=[path.name for path in gone],
        )  # fmt: skip

    def _best_there(self, moment: Moment) -> int:
        """The step of the best weights on the disk, which are not to go before better ones are there."""
        if self.checkpoints.has(moment.best_step):
            self._best = moment.best_step
        return self._best

    def _make_room(self, size: int, best: int, sound: int) -> None:
        """Where the disk is nearly full, remove what is beyond the promise first: newest, best and sound stay."""
        if machine.disk_free(self.checkpoints.folder) < size + SPARE_BYTES:
            gone = self.checkpoints.thin(best, sound)
            if gone:
                self.journal.write("made_room", removed=[path.name for path in gone])
            free = machine.disk_free(self.checkpoints.folder)
            if free < size:
                raise OSError(errno.ENOSPC, f"a checkpoint takes {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")


def _words(error: OSError, folder: Path) -> str:
    told = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the disk is read-only",
        errno.EACCES: "permission denied",
        errno.EPERM: "permission denied",
        errno.EIO: "the disk reports an input/output error",
    }
    number = error.errno or 0
    detail = error.strerror if number == errno.ENOSPC and "MB" in str(error.strerror) else ""
    return f"{told.get(number, error.strerror or str(error))} ({detail or error.filename or folder})"


def _way_out(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on the disk; training goes on and tries again"
    return "mend the disk or its permissions; training goes on and tries again"
