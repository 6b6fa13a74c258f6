"""What a supervised process tells its supervisor: that it goes on, and how it ended.

The two share a folder outside of the run's, so that a full disk does not silence them. `pulse-0` is touched by rank 0
whenever work has gone on; `outcome-0.json` is its last word; `stacks-0` is where it was when it was asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import psutil

from cutline import console

FOLDER = "CUTLINE_WATCH"
"""The variable of the environment that names the shared folder."""
RUN = "CUTLINE_RUN"
"""The one that tells the processes their run folder."""
ATTEMPT = "CUTLINE_ATTEMPT"
"""The one that counts the times they were started."""
SPLIT = "CUTLINE_SPLIT"
"""The one that says in how many parts, at least, a batch is to be learned from: memory ran out before."""


@dataclass(frozen=True)
class Outcome:
    """How a process ended, by its own account."""

    kind: str
    """finished, stopped, mistake (the user's to mend), or error."""
    what: str = ""
    details: str = ""


def stop_signals() -> list[signal.Signals]:
    """Those after which a run saves and stops: Ctrl-C, SIGTERM, the end of its terminal unless nohup is for that."""
    hangs_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *[signal.SIGHUP] * hangs_up]


@contextlib.contextmanager
def when_stopped(act: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let those signals do this, for a while."""
    kept = {number: signal.signal(number, act) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class Watched:
    """The process's side. Without a supervisor it does nothing."""

    def __init__(self, rank: int) -> None:
        folder = os.environ.get(FOLDER)
        self.folder = Path(folder) if folder else None
        self.rank = rank
        if self.folder:
            self._pulse = self.folder / f"pulse-{rank}"
            self._pulse.write_text(str(os.getpid()))
            console.gone_on.append(self.beat)
            self._stacks = (self.folder / f"stacks-{rank}").open("w")
            faulthandler.register(signal.SIGUSR1, self._stacks)
            _end_with_parent()

    def beat(self) -> None:
        with contextlib.suppress(OSError):  # a supervisor that was told twice to end is gone, and its folder with it
            os.utime(self._pulse)

    def report(self, kind: str, error: BaseException | None = None) -> None:
        if self.folder:
            what = (f"{type(error).__name__}: {error}" if error else "").split("\n")[0]
            details = "".join(traceback.format_exception(error)) if error else ""
            text = json.dumps(asdict(Outcome(kind, what, details)))
            with contextlib.suppress(OSError):
                (self.folder / f"outcome-{self.rank}.json").write_text(text, encoding="utf-8")


class Watch:
    """The supervisor's side."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder, self.processes = folder, processes
        self._seen: dict[int, tuple[int, float]] = {}
        self._begun = time.monotonic()

    def still_for(self) -> float:
        """Seconds since any of the processes has gone on."""
        last = self._begun
        for rank in range(self.processes):
            try:
                touched = (self.folder / f"pulse-{rank}").stat().st_mtime_ns
            except FileNotFoundError:  # still importing
                continue
            if self._seen.get(rank, (0, 0.0))[0] != touched:  # our own clock: theirs may be set
                self._seen[rank] = touched, time.monotonic()
            last = max(last, self._seen[rank][1])
        return time.monotonic() - last

    def pids(self) -> dict[int, int]:
        found = {}
        for rank in range(self.processes):
            text = _text(self.folder / f"pulse-{rank}")
            if text.isdecimal():
                found[rank] = int(text)
        return found

    def outcome(self, rank: int) -> Outcome | None:
        text = _text(self.folder / f"outcome-{rank}.json")
        try:
            return Outcome(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def stacks(self) -> str:
        """Where each process is just now, as far as they still answer."""
        for pid in self.pids().values():
            _send(pid, signal.SIGUSR1)
        time.sleep(1.0)
        told = [(rank, _text(self.folder / f"stacks-{rank}")) for rank in range(self.processes)]
        return "\n".join(f"rank {rank}:\n{text or '  it does not answer'}" for rank, text in told)

    def kill(self) -> None:
        """End all processes and what they have started, at once."""
        starting = () if self.pids() else psutil.Process().children()  # and not come as far as to tell theirs
        pids = [*self.pids().values(), *(child.pid for child in starting)]
        for pid in pids:
            _send(-pid, signal.SIGKILL)  # each leads a group of its own


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(-pid, number) if pid < 0 else os.kill(pid, number)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _end_with_parent() -> None:
    """Be told to stop when the supervisor dies, so that nothing works on that nobody watches (Linux only)."""
    if sys.platform == "linux":
        parent, set_death_signal = os.getppid(), 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os.kill(os.getpid(), signal.SIGTERM)
