"""Saving while training: how long the training thread waits for it, and what is left of its speed."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from benchmarks import bench_training
from benchmarks.common import Row
from cutline.config import TrainingConfig
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.journal import Journal
from cutline.engine.saver import Moment, Saver

PARAMETERS, TENSORS = 20_000_000, 60
ROUNDS = 7
SAVE_SECONDS = 10.0
PAIRS = 8

Groups = dict[str, dict[str, Tensor]]
Save = Callable[[int], float]
"""Saves the state of a step; the seconds for which that blocked."""


def rows() -> Iterator[Row]:
    # In this folder rather than in /tmp, which may be memory.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as temporary:
        folder, groups = Path(temporary), state()
        saver = saver_in(folder / "cutline")
        before = resident()
        save(saver, 0, groups)
        saver.wait()
        memory = resident() - before
        kept = DefaultStager(StagingOptions(False, False, False, False))
        ours, plain, default, keeping = in_turns(
            lambda step: save(saver, step, groups),
            lambda step: torch_save(folder / "torch.pt", groups),
            lambda step: async_save(folder / f"default{step}", groups, None),
            lambda step: async_save(folder / f"kept{step}", groups, kept),
        )
        size = sum(value.nbytes for group in groups.values() for value in group.values())
        held = f"{memory / 1e6:.0f} MB of memory for a state of {size / 1e6:.0f} MB"
        times = f"{ours * 1e3:.1f} ms against {plain * 1e3:.0f} ms; {held}"
        yield Row("blocked by a save", "torch.save and fsync", plain / ours, 5.0, times)
        times = f"{ours * 1e3:.1f} ms against {default * 1e3:.0f} ms; {keeping * 1e3:.0f} ms with a copy that is kept"
        yield Row("blocked by a save", "torch.distributed.checkpoint.async_save", default / ours, 2.5, times)
        yield throughput(saver, groups)
        saver.close()


def state() -> Groups:
    """Weights and both moments of an optimizer."""
    torch.manual_seed(0)
    numbers = PARAMETERS // TENSORS
    moments = [f"{index}.{name}" for index in range(TENSORS) for name in ("exp_avg", "exp_avg_sq")]
    return {
        "model": {f"layer{index}": torch.randn(numbers) for index in range(TENSORS)},
        "optimizer": {name: torch.randn(numbers) for name in moments},
    }


def in_turns(*saves: Save) -> list[float]:
    """Median seconds of each; the first time of each does not count, for that is when memory is set aside."""
    seconds = [[save(step) for save in saves] for step in range(1, ROUNDS + 2)][1:]
    return [statistics.median(times) for times in zip(*seconds)]


def saver_in(run: Path) -> Saver:
    run.mkdir()

    def warn(name: str, what: str, fix: str) -> None:
        assert not what, f"the benchmark could not save: {what}"

    return Saver(Checkpoints(run, "benchmark"), TrainingConfig(keep=1), Journal(run), warn)


def save(saver: Saver, step: int, groups: Groups, finish: bool = True) -> float:
    start = time.perf_counter()
    saver.save(Moment(step, 0, {"step": step}), groups, lambda: None)
    blocked = time.perf_counter() - start
    if finish:
        saver.must_have(step)
    return blocked


def torch_save(file: Path, groups: Groups) -> float:
    start = time.perf_counter()
    with file.open("wb") as handle:
        torch.save(groups, handle)
        handle.flush()
        os.fsync(handle.fileno())
    return time.perf_counter() - start


def async_save(folder: Path, groups: Groups, stager: DefaultStager | None) -> float:
    """As it comes, or with a stager whose copy is used again, as ours is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        written = dcp.async_save(groups, checkpoint_id=folder, async_stager=stager, no_dist=True)
        blocked = time.perf_counter() - start
        written.result()
    shutil.rmtree(folder)
    return blocked


def throughput(saver: Saver, groups: Groups) -> Row:
    """Training steps in stretches of 10 seconds, with a save in each second one."""
    step = bench_training.step(bench_training.decoder_of("lstm"), bench_training.features_and_captions(), "fp32")
    step()
    speeds: dict[bool, list[float]] = {True: [], False: []}
    blocked = []
    for stretch in range(2 * PAIRS):
        saving = stretch % 2 == 0
        steps, start = 0, time.perf_counter()
        if saving:
            blocked.append(save(saver, 1000 + stretch, groups, finish=False))
        while time.perf_counter() - start < SAVE_SECONDS:
            step()
            steps += 1
        speeds[saving].append(steps / (time.perf_counter() - start))
        saver.wait()
    with_saves, without = (statistics.median(speeds[saving]) for saving in (True, False))
    share = statistics.median(blocked) / SAVE_SECONDS
    detail = f"blocked for {share:.2%} of the time; {with_saves:.2f} steps/s with saves, {without:.2f} without"
    return Row(f"a save every {SAVE_SECONDS:.0f} s", "1 % of the time blocked", 0.01 / share, 1, detail)


def resident() -> int:
    """Bytes of memory that the process holds now."""
    return int(psutil.Process().memory_info().rss)
