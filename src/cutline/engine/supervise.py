"""Keeping a run going: its processes are started, watched, and started again from the last verified state.

torch.distributed.elastic starts them, one or many, and ends all when one ends. When to start again is decided here: at
once if a newer checkpoint was saved since the last time, later and later if not, and no more after a bounded number
of times, or when a mistake in the program has come up twice. Its own restarts know neither checkpoints nor hangs, and
share a port with the processes that died.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cutline import control_groups
from cutline.config import Config
from cutline.console import duration, say
from cutline.engine import folder
from cutline.engine.alerts import DELIVERY_SECONDS, Alerts
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.journal import Journal
from cutline.engine.resume import load_failed, loading
from cutline.engine.watch import ATTEMPT, FOLDER, RUN, SPLIT, Outcome, Watch, stop_signals

PAUSES = (0.0, 2.0, 10.0, 30.0, 60.0)
"""Seconds before starting again, by how often that has brought nothing yet."""
SHUTDOWN_SECONDS = 55
"""How long processes may take to save and end before they are killed: less than whoever gave a minute."""


@dataclass(frozen=True)
class End:
    """How an attempt ended: with an exit code to pass on, or a cause to start again after."""

    code: int | None
    cause: str = ""
    details: str = ""
    rank: int = 0
    starved: bool = False
    """Whether it was for want of memory."""
    bug: bool = False
    """Whether it was a mistake in the program, which comes up again: a run computes the same each time."""


def supervise(run: Path, config: Config, command: Sequence[str]) -> int:
    """Run `command` (a Python module and its arguments) in as many processes as the run has, until it is done."""
    alerts = Alerts(run, config.health, Journal(run))
    with folder.held(run, patience=1), contextlib.closing(alerts):
        try:
            return _keep_going(run, config, command, alerts)
        except SignalException as stopped:  # between two starts
            return 128 + int(stopped.sigval)


def _keep_going(run: Path, config: Config, command: Sequence[str], alerts: Alerts) -> int:
    journal, checkpoints = Journal(run), Checkpoints(run, folder.identity(run))
    fruitless, split, last = 0, 1, ""
    for attempt in itertools.count():
        journal.started(attempt=attempt, processes=config.processes)  # first: the time before it is not the run's
        for name in ("restarting", "gave_up"):
            alerts(name, "", "")
        before = set(checkpoints.candidates())
        end = _attempt(run, config, command, attempt, split)
        if end.code is not None:
            if end.cause:
                journal.write("gave_up", cause=end.cause)
            return end.code
        if end.starved:  # though a checkpoint may have it that they are small already
            split = 2 * max(split, _parts(checkpoints))
        fruitless = fruitless + 1 if before.issuperset(checkpoints.candidates()) else 0
        journal.write("failed", attempt=attempt, rank=end.rank, cause=end.cause, details=end.details)
        again = end.bug and fruitless > 0 and end.cause == last
        if again or fruitless > config.health.restarts:
            break
        last = end.cause
        pause = PAUSES[min(fruitless, len(PAUSES) - 1)]
        when = f"in {pause:.0f} s" if pause else "at once"
        when += f", with each batch in {split} parts or more" if end.starved else ""
        alerts("restarting", f"{run}: {end.cause}", f"nothing for now: it starts again {when}")
        journal.write("restarting", attempt=attempt + 1, wait=pause)
        time.sleep(pause)
    journal.write("gave_up", cause=end.cause)
    often = "in the same way twice" if again else f"{fruitless} times without a newer checkpoint"
    alerts("gave_up", f"{run} has failed {often}: {end.cause}", "mend what is named, then start the same command again")
    alerts.close(DELIVERY_SECONDS)  # nobody else will say it
    if end.details:
        say(end.details.rstrip())
    return 1


def _parts(checkpoints: Checkpoints) -> int:
    """In how many the run takes each batch by itself."""
    newest = next(checkpoints.verified(), None)
    return int(newest.state["progress"].get("split", 1)) if newest else 1


def _attempt(run: Path, config: Config, command: Sequence[str], attempt: int, split: int) -> End:
    """Start all processes, which take each batch in `split` parts at least, and see how they end."""
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # how it ended is said below, in fewer words
    # Restarted ranks would dial the port of the old ones' store and wait there for ever.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    killed_before = control_groups.oom_kills()
    with tempfile.TemporaryDirectory(prefix="cutline-") as place, _environment(run, place, attempt, split):
        watch = Watch(Path(place), config.processes)
        launch = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=config.processes, run_id=f"{run.name}-{os.getpid()}-{attempt}",
            rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=0,
            monitor_interval=0.1, shutdown_timeout=SHUTDOWN_SECONDS,
            logs_specs=DefaultLogsSpecs(log_dir=f"{place}/logs"),
        )  # fmt: skip
        # Otherwise it takes SIGHUP from whoever has ignored it, as nohup does. No argument: older ones have no such.
        launch.signals_to_handle = ",".join(number.name for number in stop_signals())
        with _watchdog(watch, 60 * config.health.hang_minutes) as hang:
            try:
                elastic_launch(launch, sys.executable)("-m", *command)
                return End(0)
            except SignalException as stopped:
                return End(128 + stopped.sigval)
            except ChildFailedError as failed:
                codes = {rank: each.exitcode for rank, each in failed.failures.items()}
                return _judge(run, config, watch, codes, hang, control_groups.oom_kills() > killed_before)


_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}
_LOST = "lost touch with the others"
_NO_MEMORY, _NO_GPU_MEMORY = "ran out of memory", "ran out of GPU memory"
_KNOWN = {
    "CUDA out of memory": _NO_GPU_MEMORY,
    "CUDA error: out of memory": _NO_GPU_MEMORY,
    "ALLOC_FAILED": _NO_GPU_MEMORY,
    "CUBLAS_STATUS_NOT_INITIALIZED": _NO_GPU_MEMORY,  # which it takes to begin with
    "device-side assert": "asked the GPU for what it does not do",
    "MemoryError": _NO_MEMORY,
    "can't allocate memory": _NO_MEMORY,
    # oneDNN's words for it. It fails from then on, so that smaller parts are only a help to another process.
    "could not create a primitive": _NO_MEMORY,
    "No space left": "found the disk full",
    "Read-only file system": "found the disk read-only",
    "CUDA error": "lost its GPU",
    "NCCL": _LOST,
    "Connection closed": _LOST,
    "Connection reset": _LOST,
    "Broken pipe": _LOST,
    "LoadError": "could not load a checkpoint",
}
"""Marks in the words of errors, and what they mean."""
_BUGS = {
    "AssertionError", "AttributeError", "ImportError", "IndexError", "KeyError", "ModuleNotFoundError", "NameError",
    "NotImplementedError", "TypeError", "UnboundLocalError", "ZeroDivisionError",
}  # fmt: skip
"""Errors that no machine, disk or network brings about."""


def _judge(run: Path, config: Config, watch: Watch, codes: dict[int, int], hang: list[str], out_of_memory: bool) -> End:
    """What the failure of some processes comes from, and whether starting again could help."""
    told = {rank: watch.outcome(rank) for rank in codes}
    rank = min(codes, key=lambda rank: (_weight(told[rank], codes[rank]), rank))
    code, outcome = codes[rank], told[rank]
    if outcome and outcome.kind == "mistake":
        if rank:  # the first would have said it
            say(f"rank {rank}: {outcome.what.partition(': ')[2]}")
        return End(2, outcome.what)
    if outcome and outcome.kind == "stopped":
        return End(code if code > 0 else 128 - code)
    if hang:
        return End(None, f"nothing went on for {duration(60 * config.health.hang_minutes)}: it hangs", hang[0], rank)
    if -code in _CRASHES and loading(run):
        load_failed(run, f"the process died of {signal.Signals(-code).name}")
    who = f"rank {rank}" if config.processes > 1 else "the process"
    cause, starved = _cause(code, outcome, out_of_memory)
    bug = outcome is not None and outcome.what.partition(":")[0] in _BUGS
    return End(None, f"{who} {cause}", outcome.details if outcome else "", rank, starved, bug)


def _weight(outcome: Outcome | None, code: int) -> int:
    """Which of several failures to believe: what ended one process makes the others lose touch.

    Whoever waits for it in a library, and says nothing, is told to stop by the launcher.
    """
    if outcome is None:
        return 4 if code == -signal.SIGTERM else 1
    if outcome.kind != "error":
        return 0
    return 3 if any(mark in outcome.what for mark, words in _KNOWN.items() if words == _LOST) else 2


def _cause(exitcode: int, told: Outcome | None, out_of_memory: bool) -> tuple[str, bool]:
    """Why a process ended, in words, and whether it was for want of memory."""
    if exitcode == -signal.SIGKILL:
        if out_of_memory:
            return "was killed by the OOM killer: memory ran out (a smaller --batch, fewer --workers)", True
        return "was killed (SIGKILL): by hand, or by the OOM killer of the machine; dmesg may know", False
    if exitcode < 0:
        meaning = {
            signal.SIGSEGV: "a fault in compiled code",
            signal.SIGBUS: "a file that it read was cut short, or a disk or memory error",
            signal.SIGABRT: "compiled code gave up",
            signal.SIGTERM: "it was told to stop",
        }.get(signal.Signals(-exitcode), "")
        return f"died of {signal.Signals(-exitcode).name}" + (f": {meaning}" if meaning else ""), False
    if told is None or not told.what:
        return f"ended with code {exitcode} and without a word", False
    for mark, words in _KNOWN.items():
        if mark in told.what:
            return f"{words}: {told.what}", words in (_NO_MEMORY, _NO_GPU_MEMORY)
    return f"failed: {told.what}", False


@contextlib.contextmanager
def _environment(run: Path, place: str, attempt: int, split: int) -> Iterator[None]:
    added = {RUN: str(run), FOLDER: place, ATTEMPT: str(attempt), SPLIT: str(split)}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _watchdog(watch: Watch, limit: float) -> Iterator[list[str]]:
    """End the processes when nothing has gone on for `limit` seconds; the list then holds where they were."""
    found: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(min(1.0, limit / 10)):
            if watch.still_for() > limit:
                found.append(watch.stacks())
                watch.kill()
                return

    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    if limit:
        thread.start()
    try:
        yield found
    finally:
        over.set()
        if limit:
            thread.join()
