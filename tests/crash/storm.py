"""Training under a storm of SIGKILLs, and whether it ends as if nothing had happened.

    python -m tests.crash.storm --kills 200 --seed 0

The processes are those of `cutline train`, in their own groups, and the kills are real; only their start is made cheap:
torch is imported once, by a parent that computes nothing with it, and each start is a fork of that. Each start runs the
verb `train` as its supervisor, or torchrun, would have it run. Left out are the supervisor, which has tests of its own,
and the export of a finished run, which takes longer than all of its training here.

At the end of each run, the newest checkpoint and the log of events must be, byte for byte, those of a run that nothing
has interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads do not outlive a fork

from tests.crash.lives import MOMENTS, Life, Usual, half_written, names, newest_event
from tests.crash.starts import differences

from cutline import config as configuration
from cutline.data.scenes import draw
from cutline.engine import folder, journal
from cutline.engine.checkpoint import Checkpoint, Checkpoints
from cutline.presets import PRESETS

PICTURES = 120
SETTINGS = """
name = "storm"
threads = 1
[words]
min_count = 1
[pictures]
size = 48
[decoder]
hidden = 256
[training]
epochs = 5
batch = 8
captions = 2
rate = 4e-3
warmup = 5
save_steps = 4
validate_every = 1
validate_limit = 6
[search]
beam = 2
max_length = 8
"""
KINDS: dict[str, dict[str, Any]] = {
    "plain, one kept": {"training": {"keep": 1}},
    "2 loader workers": {"training": {"workers": 2}},
    "accumulated, averaged": {"training": {"accumulate": 2, "ema": 0.9, "keep": 1, "save_steps": 2}},
    "bf16, averaged": {"training": {"precision": "bf16", "ema": 0.99}},
    "fp16, plateaus": {"training": {"precision": "fp16", "schedule": "plateau"}},
    "2 processes": {"processes": 2},
    "2 processes, 2 workers each": {"processes": 2, "training": {"workers": 2, "accumulate": 2, "ema": 0.9, "keep": 1}},
    "mirrored, every step saved": {"pictures": {"augment_flip": True}, "training": {"workers": 2, "save_steps": 1}},
}
"""Kinds of runs, by what is special about each."""


# What a kill leaves


@dataclass(frozen=True)
class Kill:
    moment: str
    found: str
    """Where it was hit, by what it has left."""
    lost: int
    """Steps that must be done again."""
    unfinished: int
    """Those of them that were taken while a save that did not end was being written."""
    start: float
    """Seconds from the start before it to where it learned; 0 when it did not come so far."""


def autopsy(life: Life, moment: str, before: Checkpoint | None, usual: Usual) -> Kill:
    """What a kill has hit, and what is left to go on from; `before` was there when the life began."""
    checkpoints = Checkpoints(life.run, folder.identity(life.run))
    last, newest = newest_event(life.run), next(checkpoints.verified(), None)
    told = journal.read(life.run)
    if life.told("resumed"):
        step = [entry["step"] for entry in told if entry["kind"] == "resumed"][-1]
        assert before, "it has resumed from nothing"
        assert step == before.step, f"it has resumed at step {step}, not {before.step}"
    gone = before and (newest is None or newest.step < before.step)
    assert not gone, f"{before} was there, now no newer one than {newest} verifies"
    new = names(life.run) - life.names
    half = next(filter(half_written, new), "")
    saved = {entry["path"] for entry in told if entry["kind"] == "saved"}
    if half:
        found = "a checkpoint half written"
    elif any(name.endswith(".gone.tmp") for name in new):
        found = "an older one half removed"
    elif newest and newest.path.name in new - saved:
        found = "a new one not yet checked"
    elif not life.told("training"):
        found = "a start"
    else:
        found = "a validation" if usual.ends_epoch(last) else "steps"
    begun = [entry["time"] for entry in told if entry["kind"] == "training"][-1] if life.told("training") else life.time
    lost = max(0, last["step"] - (newest.step if newest else 0))
    unfinished = last["step"] - int(half.split("-")[1].split(".")[0]) if half else 0
    return Kill(moment, found, lost, max(0, unfinished), begun - life.time)


# A run under the storm


class Run:
    """A kind of run, with one that nothing has interrupted."""

    def __init__(self, kind: str, place: Path, pictures: Path) -> None:
        base = {"output": str(place / "runs"), "data": {"path": str(pictures)}}
        (place / "base.toml").write_text(SETTINGS, encoding="utf-8")
        config = configuration.load(place / "base.toml", PRESETS["scenes"]())
        self.kind, self.file = kind, place / "run.toml"
        self.config = configuration.from_dict(KINDS[kind], configuration.from_dict(base, config))
        self.file.write_text(configuration.to_toml(self.config), encoding="utf-8")
        life = self._start(folder.make(self.config))
        life.until(lambda: False)
        whole = time.monotonic() - life.started
        entries, steps = journal.read(life.run), newest_event(life.run)["step"]
        begun = next(entry["time"] for entry in entries if entry["kind"] == "training") - life.time
        save = statistics.median(entry["seconds"] for entry in entries if entry["kind"] == "saved")
        self.reference = life.run
        self.usual = Usual(whole, begun, save, (whole - begun) / steps, steps // self.config.training.epochs)

    def _start(self, run: Path) -> Life:
        return Life(run, self.file, self.config.processes)

    def storm(self, most: int, chance: random.Random) -> Iterator[Kill]:
        """Kill a new run again and again, but no more than `most` times; compare what comes out in the end."""
        run = folder.make(self.config)
        checkpoints = Checkpoints(run, folder.identity(run))
        for _ in range(most):
            before = next(checkpoints.verified(), None)
            life = self._start(run)
            (moment,) = chance.choices(list(MOMENTS), [weight for _, weight in MOMENTS.values()])
            if not MOMENTS[moment][0](life, self.usual, chance):
                break
            life.kill(chance)
            yield self._bounded(autopsy(life, moment, before, self.usual), run)
        else:
            self._start(run).until(lambda: False)
        self.compare(run)
        shutil.rmtree(run)

    def _bounded(self, kill: Kill, run: Path) -> Kill:
        """An interval may be lost, what went on while a slow save put off the next, and what goes on during a save."""
        slowest = max((entry["seconds"] for entry in journal.read(run) if entry["kind"] == "saved"), default=0.0)
        while_saving = math.ceil(2 * max(slowest, self.usual.save) / self.usual.step)  # its pace is not always the same
        allowed = 2 * self.config.training.save_steps + while_saving + kill.unfinished
        assert kill.lost <= allowed, f"{self.kind}: {kill} has lost more than {allowed} steps"
        return kill

    def compare(self, run: Path) -> None:
        differing = differences(run, self.reference)
        assert not differing, f"{self.kind}: {run} ends with another {', '.join(differing)} than {self.reference}"
        checkpoints = Checkpoints(run, folder.identity(run))
        assert not checkpoints.leftovers(), f"left behind: {checkpoints.leftovers()}"
        assert not checkpoints.set_aside(), f"set aside: {checkpoints.set_aside()}"


# All of it


@dataclass
class Figures:
    """What came out for one kind of run."""

    run: Run
    seconds: float
    runs: int = 0
    kills: list[Kill] = field(default_factory=list)


def weather(kinds: Sequence[str], kills: int, seed: int, place: Path) -> Iterator[Figures]:
    """The storm over each kind of run in turn, with its share of the kills."""
    pictures = draw(place / "scenes", count=PICTURES, languages=("en",), size=48, seed=1)
    for index, kind in enumerate(kinds):
        chance = random.Random(f"{seed} {kind}")
        began, share = time.monotonic(), kills * (index + 1) // len(kinds) - kills * index // len(kinds)
        where = place / f"kind-{index}"
        where.mkdir()
        figures = Figures(Run(kind, where, pictures), 0.0)
        while len(figures.kills) < share:
            figures.runs += 1
            for kill in figures.run.storm(share - len(figures.kills), chance):
                figures.kills.append(kill)
        figures.seconds = time.monotonic() - began
        shutil.rmtree(where)
        yield figures


def table(all_figures: Sequence[Figures]) -> str:
    """The figures, for a person."""
    row = "{:<28} {:>5} {:>9} {:>9} {:>10} {:>7} {:>6}"
    lines = [row.format("run", "kills", "identical", "interval", "most lost", "a save", "time")]
    for each in all_figures:
        lost, usual, kind = max((kill.lost for kill in each.kills), default=0), each.run.usual, each.run.kind
        interval = each.run.config.training.save_steps
        lines.append(row.format(
            kind, len(each.kills), f"{each.runs} of {each.runs}", f"{interval} steps",
            f"{lost} steps", f"{1000 * usual.save:.0f} ms", f"{each.seconds:.0f} s",
        ))  # fmt: skip
    kills = [kill for each in all_figures for kill in each.kills]
    runs, took = sum(each.runs for each in all_figures), sum(each.seconds for each in all_figures)
    lines.append(row.format("all", len(kills), f"{runs} of {runs}", "", "", "", f"{took:.0f} s"))
    for what, each_one in (("aimed", [kill.moment for kill in kills]), ("hit", [kill.found for kill in kills])):
        lines.append(f"{what}: " + ", ".join(f"{count} {where}" for where, count in Counter(each_one).most_common()))
    finished = [kill.lost - kill.unfinished for kill in kills]
    lines.append(
        f"most lost, but for steps taken while a save that did not end was written: {max(finished, default=0)}"
    )
    first = statistics.median(each.run.usual.start for each in all_figures)
    again = statistics.median([kill.start for kill in kills if kill.start] or [0])
    lines.append(f"from a start to where it learns: {first:.2f} s the first time, {again:.2f} s after a kill (medians)")
    return "\n".join(lines)


def main() -> int:
    form = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    form.add_argument("--kills", type=int, default=200)
    form.add_argument("--seed", type=int, default=0)
    form.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    given = form.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="storm-") as place:
        for figures in weather(given.kinds, given.kills, given.seed, Path(place)):
            print(f"{figures.run.kind}: {len(figures.kills)} kills, {figures.runs} runs, all the same", flush=True)
            found.append(figures)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
