"""Things that go wrong in a run that it must survive by itself: bad numbers, lost pictures, no memory, no disk.

Each is a real run in a process of its own, started as torchrun would start it.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from pathlib import Path

import pytest
from tests.crash.conftest import SmallDisk
from tests.crash.starts import SETTINGS, STEPS, Start, differences

from cutline.data.readers import read_corpus

NO_NUMBERS = """
from cutline.engine.task import CaptioningTask

whole, calls = CaptioningTask.loss, iter(range(1, 10**9))

def loss(task, *given):
    value, nats = whole(task, *given)
    return (value * float("nan") if next(calls) in {calls} else value), nats

CaptioningTask.loss = loss
"""
"""The loss of some steps is made no number; what happens then is the real thing."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path) -> Start:
    """A run in which nothing goes wrong."""
    start = Start(tmp_path_factory.mktemp("whole"), SETTINGS, scenes_folder, fault="")
    assert start.end() == 0, start.told
    return start


@pytest.mark.slow
def test_a_step_that_gives_no_number_is_left_out(tmp_path: Path, scenes_folder: Path) -> None:
    start = Start(tmp_path, SETTINGS, scenes_folder, fault=NO_NUMBERS.format(calls="[5]"))
    assert start.end() == 0, start.told
    (skipped,) = start.events("skipped")
    assert skipped["step"] == 5
    assert (skipped["epoch"], skipped["batches"]) == (0, [4, 5])
    (told,) = start.journal("skipped")
    assert told["what"] in start.told
    steps = start.events("step")
    assert len(steps) == STEPS
    assert [step["step"] for step in steps if step["norm"] is None] == [5]
    state = start.checkpoints().latest().state["progress"]
    assert (state["step"], state["skipped"], state["setbacks"]) == (STEPS, 1, 0)


@pytest.mark.slow
def test_when_many_steps_give_no_number_it_goes_back_and_slows_down(
    tmp_path: Path, scenes_folder: Path, whole: Start
) -> None:
    settings = SETTINGS.replace("save_steps = 4", "save_steps = 4\nbad_steps = 1")
    start = Start(tmp_path, settings, scenes_folder, fault=NO_NUMBERS.format(calls="[30, 31]"))
    assert start.end() == 0, start.told
    (back,) = start.events("went_back")
    assert back["from"] == 31
    assert 20 <= back["step"] < 30
    (told,) = start.journal("went_back")
    assert "at half the rate" in told["what"]
    assert told["what"] in start.told
    steps, usual = start.events("step"), {step["step"]: step["rate"] for step in whole.events("step")}
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    for step in steps:
        factor = 0.5 if step["step"] > back["step"] else 1.0
        assert step["rate"] == pytest.approx(factor * usual[step["step"]])
    assert steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.slow
def test_when_nothing_helps_it_ends_with_what_to_do(tmp_path: Path, scenes_folder: Path) -> None:
    settings = SETTINGS.replace("save_steps = 4", "save_steps = 4\nbad_steps = 1")
    start = Start(tmp_path, settings, scenes_folder, fault=NO_NUMBERS.format(calls="range(30, 10**9)"))
    assert start.end() == 2
    assert "was no number" in start.told
    assert "also after going back 3 times" in start.told
    assert "--rate 4e-04" in start.told
    assert "Traceback" not in start.told
    for saved in start.checkpoints().verified():
        assert math.isfinite(saved.state["progress"]["best"])


@pytest.mark.slow
def test_pictures_that_vanish_during_the_run_are_left_out_and_listed(tmp_path: Path, scenes_folder: Path) -> None:
    """Two to learn from and one to validate on, in a run that does not keep decoded pictures in memory."""
    data = shutil.copytree(scenes_folder, tmp_path / "scenes")
    start = Start(tmp_path, SETTINGS, data, fault="from cutline.engine import sources\nsources.CACHE_BYTES = 0\n")
    start.until_step(5)
    corpus = read_corpus(data)
    gone = [*corpus.split("train")[:2], corpus.split("val")[0]]
    for sample in gone:
        sample.image.unlink()
    assert start.end() == 0, start.told
    lost = {id for event in start.events("unreadable") for id in event["pictures"]}
    assert lost == {sample.id for sample in gone}
    assert {entry["picture"] for entry in start.journal("unreadable")} == lost
    assert all(str(sample.image) in start.told for sample in gone)
    assert len(start.events("step")) == STEPS


@pytest.mark.slow
def test_readers_of_pictures_that_die_are_replaced(tmp_path: Path, scenes_folder: Path, whole: Start) -> None:
    start = Start(tmp_path, SETTINGS, scenes_folder, "--workers", 2, fault="")
    start.until_step(3)

    def one_has_died_unseen() -> bool:
        for reader in start.workers()[:1]:
            reader.kill()
        time.sleep(0.02)
        return bool(start.journal("loader_died"))

    start.until(one_has_died_unseen)
    assert start.end() == 0, start.told
    assert "a process that reads pictures has died" in start.told
    assert differences(start.run, whole.run) == []


SHORT_OF_MEMORY = """
import resource
import torch
from cutline.engine.task import CaptioningTask

torch.backends.mkldnn.enabled = False  # once it got no memory, oneDNN fails for as long as the process lives

whole, limited = CaptioningTask.loss, []

def loss(task, *given):
    if not limited:  # everything is loaded by now; a whole batch takes more than what is left
        pages = int(open("/proc/self/statm").read().split()[0])
        limited.append(pages * resource.getpagesize() + {spare})
        resource.setrlimit(resource.RLIMIT_AS, (limited[0], limited[0]))
    return whole(task, *given)

CaptioningTask.loss = loss
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_a_batch_that_does_not_fit_into_memory_is_split(tmp_path: Path, scenes_folder: Path) -> None:
    """Real allocations that the system refuses."""
    large = SETTINGS.replace("size = 48", "size = 256").replace("batch = 8", "batch = 96")
    large = large.replace("epochs = 8", "epochs = 3").replace("validate_every", "validate_limit = 2\nvalidate_every")
    start = Start(tmp_path, large, scenes_folder, fault=SHORT_OF_MEMORY.format(spare=400 * 2**20))
    assert start.end() == 0, start.told
    splits = start.journal("split")
    assert splits[0]["step"] == 1
    assert "memory ran out at step 1" in start.told
    assert len(start.events("step")) == 3
    assert start.checkpoints().latest().state["progress"]["split"] == splits[-1]["parts"] >= 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("unshare"), reason="takes a mount of one's own")
def test_while_the_disk_is_full_it_trains_on_and_then_saves_again(
    tmp_path: Path, scenes_folder: Path, whole: Start
) -> None:
    disk = SmallDisk(tmp_path, megabytes=100)
    try:
        _on_a_disk_that_fills(disk, scenes_folder, whole)
    finally:
        disk.close()


def _on_a_disk_that_fills(disk: SmallDisk, data: Path, whole: Start) -> None:
    # A shorter wait for the next try; and steps slow enough for the disk to be full for some, and then not.
    fault = "from cutline.engine import saver\nsaver.RETRY_SECONDS = 1.0\n" + SLOW_STEPS
    start = Start(disk.folder, SETTINGS, data, fault=fault)
    start.until(lambda: list(start.output.glob("*/journal.jsonl")) and start.journal("saved"))
    ballast = disk.fill(4096)
    full = time.monotonic()
    start.until(lambda: "could not be saved: the disk is full" in start.told)
    took = time.monotonic() - full
    print(f"told {took:.1f} s after the disk was full")
    assert took < 10
    step = len(start.events("step"))
    time.sleep(2)
    ballast.unlink()
    begun = len(start.journal("saved"))
    start.until(lambda: len(start.journal("saved")) > begun)
    assert start.journal("saved")[-1]["step"] > step
    assert start.end() == 0, start.told
    assert differences(start.run, whole.run) == []


SLOW_STEPS = """
import time
from cutline.engine.task import CaptioningTask

whole = CaptioningTask.loss

def loss(task, *given):
    time.sleep(0.1)
    return whole(task, *given)

CaptioningTask.loss = loss
"""
