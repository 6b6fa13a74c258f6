"""`cutline train` started as a real process, watched from outside, and what is left of its run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from tests.crash.lives import newest_event

from cutline.engine import events, folder, journal
from cutline.engine.checkpoint import Checkpoints

SETTINGS = """
name = "small"
threads = 1
[words]
min_count = 1
[pictures]
size = 48
[decoder]
hidden = 64
[training]
epochs = 8
batch = 8
captions = 1
rate = 4e-3
warmup = 5
ema = 0.9
save_steps = 4
validate_every = 1
[search]
beam = 2
max_length = 12
"""
STEPS = 96
"""96 pictures to learn from, in batches of 8, eight times."""
PATIENCE = 180.0
"""Seconds without what is waited for, after which it will not come, on the slowest of machines."""

_ALONE = """
import sys
from types import SimpleNamespace
from cutline.cli import main, work
work.finish = lambda *arguments, **options: SimpleNamespace(judged={})
work.show = lambda judged: None
"""
_AND_GO = "\nsys.exit(main(sys.argv[1:]))"


class Start:
    """A start of `cutline train`, under its supervisor or, as torchrun would have it, without one."""

    def __init__(self, place: Path, settings: str, data: Path, *flags: object, fault: str | None = None) -> None:
        """`fault` is Python that runs first, in one process without a supervisor that leaves out the export."""
        self.output, self.started = place / "runs", time.monotonic()
        file = place / "settings.toml"
        file.write_text(settings)
        given = ["train", "--preset", "scenes", "--config", file, "--data", data, "--output", self.output, *flags]
        environment = os.environ | {"CUTLINE_CACHE": str(place / "cache"), "COLUMNS": "200", "NO_COLOR": "1"}
        program = ["-m", "cutline"]
        if fault is not None:
            program = ["-c", _ALONE + fault + _AND_GO]
            environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        self._told = place / f"stderr-{time.monotonic_ns()}"
        with self._told.open("w") as told:
            self.process = subprocess.Popen(
                [sys.executable, *program, *map(str, given)], env=environment, stdout=subprocess.DEVNULL, stderr=told
            )

    @property
    def told(self) -> str:
        """What it has said on standard error."""
        return self._told.read_text()

    @property
    def run(self) -> Path:
        """Its run folder, which is the only one in its place."""
        (found,) = [path.parent for path in self.output.glob(f"*/{folder.ABOUT}") if not path.parent.is_symlink()]
        return found

    def until(self, reached: Callable[[], object], *, alive: bool = True) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert not alive or self.process.poll() is None, f"it ended before that:\n{self.told}"
            assert time.monotonic() < deadline, f"it did not come to that:\n{self.told}"
            time.sleep(0.001)

    def until_step(self, step: int) -> None:
        self.until(lambda: list(self.output.glob("*/events.jsonl")) and newest_event(self.run)["step"] >= step)

    def end(self, patience: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(patience)

    def workers(self) -> list[psutil.Process]:
        """The processes that it supervises, or those that read pictures for it, the oldest first."""
        children = psutil.Process(self.process.pid).children()
        return sorted(children, key=lambda child: (child.create_time(), child.pid))

    def journal(self, *kinds: str) -> list[dict[str, Any]]:
        return [entry for entry in journal.read(self.run) if entry["kind"] in kinds]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in events.read(self.run / "events.jsonl") if event["kind"] == kind]

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.run, folder.identity(self.run))


def learned(run: Path) -> dict[str, object]:
    """All that a run has learned: the newest checkpoint's tensors, where it stands, and its log."""
    newest = Checkpoints(run, folder.identity(run)).latest()
    state = newest.state
    tensors = {name: newest.read(name) for name in newest.files if name.endswith(".safetensors")}
    told = {name: state[name] for name in ("progress", "groups", "scaler")}
    return {**tensors, **told, "step": newest.step, "events.jsonl": (run / "events.jsonl").read_bytes()}


def differences(run: Path, other: Path) -> list[str]:
    """What two runs have learned differently."""
    mine, its = learned(run), learned(other)
    return [name for name in sorted({*mine, *its}) if mine.get(name) != its.get(name)]
