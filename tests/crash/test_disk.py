"""A disk that is full, read-only, forbidden, broken or slow: training goes on, what is saved stays, users are told."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tests.crash.conftest import SmallDisk

from cutline.config import TrainingConfig
from cutline.engine import checkpoint, journal
from cutline.engine.checkpoint import Checkpoint, Checkpoints
from cutline.engine.saver import Moment, Saver
from cutline.engine.snapshot import tensors

CALLS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")
OVER = ("save", "", "")
TOLD_SECONDS = 10
"""How soon the user must know of trouble."""


class Training:
    """What stands between a run and its disk: a saver, its weights, and what the user was told."""

    def __init__(self, run: Path, floats: int = 20_000, **settings: Any) -> None:
        self.run, self.weights, self.told = run, {"w": torch.zeros(floats)}, list[tuple[str, str, str]]()
        config = TrainingConfig(**{"keep": 1, **settings})
        self.saver = Saver(
            Checkpoints(run, "a-run"), config, journal.Journal(run), lambda *words: self.told.append(words)
        )

    def save(self, step: int, best: int = 0) -> None:
        self.weights["w"].fill_(step)
        self.saver.save(Moment(step, best, {"step": step}), {"model": self.weights}, lambda: None)

    def saved(self, step: int, best: int = 0) -> bool:
        """Save, and whether that went well; where it did not, the user knows by now."""
        already, started = len(self.told), time.monotonic()
        self.save(step, best)
        self.saver.wait()
        assert time.monotonic() - started < TOLD_SECONDS
        if self.saver.failure:
            name, what, fix = self.told[-1]
            assert len(self.told) == already + 1
            assert name == "save"
            assert self.saver.failure in what
            assert fix
        return not self.saver.failure

    def latest(self) -> int:
        found = self.saver.checkpoints.latest()
        self.assert_whole(found)
        return found.step

    def assert_whole(self, found: Checkpoint) -> None:
        assert found.state == {"step": found.step}
        assert torch.equal(tensors(found, "model")["w"], torch.full_like(self.weights["w"], found.step))

    def assert_mended(self, step: int) -> None:
        """The trouble is over: the next save succeeds and the warning goes."""
        assert self.saved(step)
        assert self.latest() == step
        assert self.told[-1] == OVER


# Real file systems


def test_a_disk_full_at_any_place_of_a_save(small_disk: SmallDisk) -> None:
    checkpoints = Checkpoints(small_disk.folder, "a-run")
    files = {"model.safetensors": os.urandom(40_000), "optimizer.safetensors": os.urandom(30_000), "state.json": b"{}"}
    older = checkpoints.write(1, files)
    written = []
    for free in range(0, 120_000, 4096):
        ballast = small_disk.fill(free)
        try:
            newer = checkpoints.write(2, files)
        except OSError as error:
            why = error.errno
        else:
            why = 0
            written.append(free)
            assert checkpoints.latest() == newer
            shutil.rmtree(newer.path)
        assert why in (0, errno.ENOSPC)
        assert checkpoints.leftovers() == []
        assert checkpoints.latest() == older
        ballast.unlink()
    assert 70_000 < written[0] < 110_000
    assert written == list(range(written[0], 120_000, 4096)), "too little room for it, and then enough"


def test_a_full_disk(small_disk: SmallDisk) -> None:
    training = Training(small_disk.folder)
    assert training.saved(1)
    for free in (0, 4096, 40_000, 80_000):
        ballast = small_disk.fill(free)
        assert not training.saved(2)
        assert "the disk is full" in training.saver.failure
        assert "make room" in training.told[-1][2]
        assert training.latest() == 1
        ballast.unlink()
        training.assert_mended(3)
        shutil.rmtree(training.saver.checkpoints.latest().path)
        assert training.saved(1)


def test_a_small_disk_holds_the_newest_and_the_best_for_ever(small_disk: SmallDisk) -> None:
    training = Training(small_disk.folder, floats=250_000, keep=10)
    for step in range(1, 12):
        assert training.saved(step, best=1)
        assert training.latest() == step
        best = training.saver.checkpoints.folder / "step-00000001"
        assert training.saver.checkpoints.problem(best) == ""
    assert set(training.told) == {OVER}
    assert any(entry["kind"] == "made_room" for entry in journal.read(small_disk.folder))


def test_a_disk_that_becomes_read_only(small_disk: SmallDisk) -> None:
    training = Training(small_disk.folder)
    assert training.saved(1)
    small_disk.remount("ro")
    assert not training.saved(2)
    assert "read-only" in training.saver.failure
    assert training.latest() == 1
    small_disk.remount("rw")
    training.assert_mended(3)


@pytest.mark.parametrize("mode", [0o555, 0o444, 0o000])
def test_a_folder_that_may_no_longer_be_written(as_nobody: Path, mode: int) -> None:
    training = Training(as_nobody)
    assert training.saved(1)
    training.saver.checkpoints.folder.chmod(mode)
    assert not training.saved(2)
    assert "permission denied" in training.saver.failure
    training.saver.checkpoints.folder.chmod(0o755)
    assert training.latest() == 1
    training.assert_mended(3)


# Errors that no test can make a real disk give, raised where the system would


class Broken:
    """Lets the calls that the saver's thread makes through, but for some."""

    def __init__(self, number: int, fails: Callable[[int], bool]) -> None:
        self.number, self.fails, self.count = number, fails, 0

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not threading.current_thread().name.startswith("saver"):
                return real(*arguments, **options)
            self.count += 1
            if not self.fails(self.count):
                return real(*arguments, **options)
            raise OSError(self.number, os.strerror(self.number))

        return call


@contextmanager
def broken(number: int, fails: Callable[[int], bool]) -> Iterator[Broken]:
    disk = Broken(number, fails)
    with mock.patch.multiple(os, **{name: disk.wrap(getattr(os, name)) for name in CALLS}):
        yield disk


def calls_of_a_save(run: Path) -> int:
    run.mkdir()
    training = Training(run, floats=100)
    training.saved(1)
    with broken(0, lambda _: False) as disk:
        training.saved(2)
    return disk.count


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_an_error_at_any_call_of_a_save(tmp_path: Path, number: int, lasting: bool) -> None:
    count, failed = calls_of_a_save(tmp_path / "whole"), 0
    assert count > 20
    for nth in range(1, count + 1):
        (tmp_path / str(nth)).mkdir()
        training = Training(tmp_path / str(nth), floats=100)
        assert training.saved(1)
        with broken(number, lambda call, nth=nth: call >= nth if lasting else call == nth):
            good = training.saved(2)
            failed += not good
        assert training.latest() in ((2,) if good else (1, 2)), f"call {nth}"
        assert [each.step for each in training.saver.checkpoints.verified()][-1] <= training.latest()
        assert training.saved(3), f"after call {nth}"
        assert training.latest() == 3
        assert good or training.told[-1] == OVER
        training.saver.close()
        training.saver.checkpoints.sweep()
        assert [path.name for path in training.saver.checkpoints.folder.iterdir()] == ["step-00000003"]
    assert failed > count // 3


def test_writes_that_do_not_take_everything(tmp_path: Path) -> None:
    real = os.write
    training = Training(tmp_path, floats=1000)
    with mock.patch.object(os, "write", lambda handle, data: real(handle, memoryview(data)[:999])):
        assert training.saved(1)
    assert training.latest() == 1


def test_a_quota_that_is_met_while_writing_is_answered_by_removing(tmp_path: Path) -> None:
    """Where the disk says it has room and then has not, what is beyond the promise goes, and the save is made."""
    training = Training(tmp_path, keep=9)
    for step in (1, 2, 3):
        assert training.saved(step, best=1)
    real, refused = os.write, [1]

    def write(handle: int, data: Any) -> int:
        if refused and len(data) > 10_000:
            refused.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data)

    with mock.patch.object(os, "write", write):
        assert training.saved(4, best=1)
    assert not refused
    assert [found.step for found in training.saver.checkpoints.verified()] == [4, 3, 1]


def test_a_slow_disk_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CHUNK", 4000)
    training, real = Training(tmp_path, save_steps=1), os.write

    def write(handle: int, data: Any) -> int:
        time.sleep(0.1)
        return real(handle, data)

    monkeypatch.setattr(os, "write", write)
    started = time.monotonic()
    training.save(1)
    blocked = time.monotonic() - started
    steps = 0
    while not training.saver.due(2 + steps):
        training.weights["w"].add_(1)
        steps += 1
        time.sleep(0.001)
    written = time.monotonic() - started
    assert written > 2, "this disk is slow"
    assert blocked < written / 2
    assert steps > 20
    training.saver.wait()
    training.assert_whole(training.saver.must_have(1))
    assert set(training.told) == {OVER}
