"""A training run's processes, started as forks and killed by SIGKILL; and moments of a run to do that at."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# The first two would be imported late, by each of the forks.
import regex  # noqa: F401
import torch._dynamo  # noqa: F401

from cutline.cli import train, work
from cutline.engine import journal
from cutline.engine.watch import RUN

LOOK = 3e-4
"""Seconds between two looks at what a run is doing."""
PATIENCE = 300.0
"""Seconds without any end or event after which something hangs, on the slowest of machines."""


class Life:
    """A run's processes from one start to their end."""

    def __init__(self, run: Path, file: Path, processes: int) -> None:
        self.run, self.started, self.time = run, time.monotonic(), time.time()
        self.names, self.before = names(run), dict(_told(run))
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        arguments = ["--preset", "scenes", "--config", str(file), "--quiet"]
        self.living = [self._fork(rank, processes, port, arguments) for rank in range(processes)]

    def _fork(self, rank: int, processes: int, port: int, arguments: list[str]) -> int:
        if pid := os.fork():
            return pid
        code = 70
        try:
            os.setsid()
            with self.log.open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "localhost"}
            os.environ[RUN] = str(self.run)
            work.finish = lambda *arguments, **options: SimpleNamespace(judged={})
            code = train.main(arguments)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)

    @property
    def log(self) -> Path:
        return self.run.with_suffix(".log")

    def reap(self) -> list[int]:
        """Exit codes of processes that have ended since this was last asked."""
        codes = []
        for pid in list(self.living):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.living.remove(pid)
                codes.append(os.waitstatus_to_exitcode(status))
        return codes

    def over(self) -> bool:
        """Whether all have ended well; an end that is no kill of ours is a failure of the run."""
        if any(self.reap()):
            raise AssertionError(f"a process ended by itself:\n{self.log.read_text()[-4000:]}")
        return not self.living

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait for something to be so; False when the run ends first."""
        deadline = time.monotonic() + PATIENCE
        while not self.over():
            if reached():
                return True
            if time.monotonic() > deadline:
                raise AssertionError(f"it hangs:\n{self.log.read_text()[-4000:]}")
            time.sleep(LOOK)
        return False

    def kill(self, chance: random.Random) -> float:
        """SIGKILL some or all processes; what outlives that is ended as a supervisor ends it. Returns when it was."""
        chosen = chance.sample(self.living, chance.randint(1, len(self.living)))
        moment = time.monotonic()
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                # Mostly with its readers of pictures; without them, these still hold the lock for a while.
                os.kill(pid, signal.SIGKILL) if chance.random() < 0.1 else os.killpg(pid, signal.SIGKILL)
        for number, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, PATIENCE)):
            for pid in self.living:
                if pid not in chosen:
                    os.killpg(pid, number)
            deadline = time.monotonic() + patience
            while self.living and time.monotonic() < deadline:
                self.reap()
                time.sleep(LOOK)
        assert not self.living, "SIGKILL did not end it"
        return moment

    # What it has done so far

    def told(self, kind: str) -> int:
        """How often its journal has this since the start."""
        return _told(self.run)[kind] - self.before.get(kind, 0)


def _told(run: Path) -> Counter[str]:
    return Counter(entry["kind"] for entry in journal.read(run))


def newest_event(run: Path) -> dict[str, Any]:
    """The last whole line of the log of events; step 0 when there is none."""
    with contextlib.suppress(OSError), (run / "events.jsonl").open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
        lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        if lines and lines[-1].startswith(b"{"):
            return dict(json.loads(lines[-1]))
    return {"kind": "step", "step": 0}


def writing(run: Path) -> str:
    """The temporary folder that a checkpoint is being written to, if one is."""
    return next(filter(half_written, names(run)), "")


def names(run: Path) -> set[str]:
    """What there is among the run's checkpoints."""
    with contextlib.suppress(OSError):
        return set(os.listdir(run / "checkpoints"))  # noqa: PTH208 - some thousand times a second
    return set()


def half_written(name: str) -> bool:
    """Whether this is the name of a checkpoint that is not whole."""
    return name.startswith(".step-") and name.endswith(".tmp") and not name.endswith(".gone.tmp")


# Moments: each waits for its own, and says whether that came before the run ended


@dataclass(frozen=True)
class Usual:
    """How an uninterrupted run goes."""

    seconds: float
    start: float
    """Seconds from the start to where it learns."""
    save: float
    """Seconds that a save takes."""
    step: float
    """Seconds that a step takes, its share of all else included."""
    epoch: int
    """Steps of an epoch."""

    def ends_epoch(self, event: Mapping[str, Any]) -> bool:
        """Whether this is an epoch's last step, after which it is validated."""
        return bool(event["kind"] == "step" and event["step"] and event["step"] % self.epoch == 0)


def any_time(life: Life, usual: Usual, chance: random.Random) -> bool:
    end = life.started + chance.uniform(0, usual.seconds)
    return life.until(lambda: time.monotonic() >= end)


def in_a_save(life: Life, usual: Usual, chance: random.Random) -> bool:
    seen = ""
    for _ in range(chance.randint(1, 4)):
        if not life.until(lambda: writing(life.run) not in ("", seen)):  # noqa: B023 - asked at once
            return False
        seen = writing(life.run)
    time.sleep(chance.choice([0.0, chance.uniform(0, usual.save)]))
    return True


def in_a_validation(life: Life, usual: Usual, chance: random.Random) -> bool:
    def begun() -> bool:
        return bool(life.told("training")) and usual.ends_epoch(newest_event(life.run))

    reached = life.until(begun)
    time.sleep(chance.uniform(0, 0.05))
    return reached


def at_an_epochs_begin(life: Life, usual: Usual, chance: random.Random) -> bool:
    seen = newest_event(life.run)
    reached = life.until(lambda: (last := newest_event(life.run)) != seen and last["kind"] == "validation")
    time.sleep(chance.uniform(0, 0.03))
    return reached


def in_a_resume(life: Life, usual: Usual, chance: random.Random) -> bool:
    """While a checkpoint is being loaded, or somewhere on the way there."""
    end = life.started + chance.uniform(0, usual.start)
    if chance.random() < 0.3:
        return life.until(lambda: time.monotonic() >= end)
    note = life.run / "checkpoints" / "loading.json"
    reached = life.until(lambda: note.exists() or bool(life.told("training")))
    time.sleep(chance.choice([0.0, chance.uniform(0, 0.01)]))
    return reached


def soon_again(life: Life, usual: Usual, chance: random.Random) -> bool:
    """After a step or two: before another checkpoint is there."""
    if not life.until(lambda: bool(life.told("training"))):
        return False
    first, steps = newest_event(life.run)["step"], chance.randint(1, 2)
    return life.until(lambda: newest_event(life.run)["step"] >= first + steps)


MOMENTS = {
    "at any time": (any_time, 4),
    "in a save": (in_a_save, 9),
    "in a validation": (in_a_validation, 2),
    "at an epoch's begin": (at_an_epochs_begin, 2),
    "in a resume": (in_a_resume, 3),
    "soon again": (soon_again, 2),
}
"""Each with its weight."""
