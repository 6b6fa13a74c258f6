"""Saving happens when it is due, in the background, and its failures reach the user and end by themselves."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cutline import console
from cutline.config import TrainingConfig
from cutline.engine import journal
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.saver import Moment, Saver
from cutline.engine.snapshot import tensors
from cutline.errors import CutlineError

Build = Callable[..., Saver]


class Warnings(list[tuple[str, str, str]]):
    def __call__(self, name: str, what: str, fix: str) -> None:
        self.append((name, what, fix))


@pytest.fixture
def warnings() -> Warnings:
    return Warnings()


@pytest.fixture
def build(tmp_path: Path, warnings: Warnings) -> Iterator[Build]:
    """Savers of one run, one after the other; by default they save neither by steps nor by time."""
    built: list[Saver] = []

    def make(**settings: Any) -> Saver:
        config = TrainingConfig(**{"save_minutes": 0.0, "save_steps": 0, **settings})
        built.append(Saver(Checkpoints(tmp_path, "a-run"), config, journal.Journal(tmp_path), warnings))
        return built[-1]

    yield make
    for each in built:
        each.close()


def save(to: Saver, step: int, best: int = 0) -> None:
    to.save(Moment(step, best, {"step": step}), {"model": {"w": torch.full((50,), float(step))}}, lambda: None)


def of_kind(run: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in journal.read(run) if entry["kind"] == kind]


def fails(number: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that makes nothing last until the event is set."""
    goes_on, real = threading.Event(), os.fsync

    def fsync(handle: int) -> None:
        goes_on.wait()
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    yield goes_on
    goes_on.set()


def test_what_is_saved_is_the_moment_of_saving(build: Build, slow_disk: threading.Event) -> None:
    saver, weights = build(), {"w": torch.ones(1000)}
    saver.save(Moment(3, 0, {"step": 3}), {"model": weights}, lambda: None)
    for _ in range(100):  # training goes on while the disk stands still: nothing here waits for it
        weights["w"].add_(1)
        assert not saver.due(4)
    assert saver.newest is None
    slow_disk.set()
    saved = saver.must_have(3)
    assert saved.state == {"step": 3}
    assert torch.equal(tensors(saved, "model")["w"], torch.ones(1000))


def test_never_two_saves_at_once(build: Build, slow_disk: threading.Event) -> None:
    saver = build(save_steps=1)
    save(saver, 1)
    assert not saver.due(2)
    threading.Timer(0.1, slow_disk.set).start()
    save(saver, 2)  # asked for all the same: it waits, and the copy of the first is not written over
    assert slow_disk.is_set()
    saver.wait()
    assert [tensors(each, "model")["w"][0] for each in saver.checkpoints.verified()] == [2, 1]


def test_due_by_steps(build: Build) -> None:
    saver = build(save_steps=10)
    assert next(step for step in range(1, 25) if saver.due(step)) == 10
    save(saver, 12)
    saver.wait()
    assert next(step for step in range(13, 40) if saver.due(step)) == 22
    again = build(save_steps=10)
    again.start_at(saver.newest)
    assert next(step for step in range(13, 40) if again.due(step)) == 22, "counted from the checkpoint it resumes from"


def test_due_by_time(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, never = build(save_minutes=10.0), build()
    assert not saver.due(1)
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 601)
    assert saver.due(1)
    assert not never.due(10**6)
    save(saver, 1)
    saver.wait()
    assert not saver.due(10**6)
    monkeypatch.setattr(time, "monotonic", lambda: real() + 1202)
    assert saver.due(1)


def test_each_save_is_retained_and_written_down(build: Build, tmp_path: Path) -> None:
    saver = build(keep=2)
    for step in (1, 2, 3, 4):
        save(saver, step, best=1)
    saver.wait()
    assert [path.name for path in saver.checkpoints.candidates()] == ["step-00000004", "step-00000003", "step-00000001"]
    entries = of_kind(tmp_path, "saved")
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert entries[-1]["removed"] == ["step-00000002"]
    assert entries[-1]["path"] == "step-00000004"
    assert entries[-1]["bytes"] == saver.must_have(4).bytes


def test_the_event_log_lasts_before_the_checkpoint_does(build: Build) -> None:
    saver = build()
    there: list[list[Path]] = []
    saver.save(Moment(1, 0, {}), {"model": {}}, lambda: there.append(saver.checkpoints.candidates()))
    saver.wait()
    assert there == [[]]
    saver.save(Moment(2, 0, {}), {"model": {}}, fails(errno.EIO))
    saver.wait()
    assert saver.checkpoints.latest().step == 1, "no checkpoint whose events may be lost"


def test_a_failed_save_is_tried_again_until_it_succeeds(
    build: Build, tmp_path: Path, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = build(save_steps=1000)
    save(saver, 1)
    saver.wait()
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fails(errno.EIO))
        for step in (2, 3):
            save(saver, step)
            saver.wait()
            assert not saver.due(10**6), "not at once: the disk is given time"
    assert "input/output error" in saver.failure
    assert [entry["step"] for entry in of_kind(tmp_path, "save_failed")] == [2, 3]
    name, what, fix = warnings[-1]
    assert name == "save"
    assert "step 3 could not be saved: the disk reports an input/output error" in what
    assert "goes on" in fix
    with pytest.raises(
        CutlineError, match=r"step 3 could not be saved.*input/output.*newest checkpoint is .*step-00000001"
    ):
        saver.must_have(3)
    monkeypatch.setattr("cutline.engine.saver.RETRY_SECONDS", 0.0)
    assert saver.due(4), "due again before the next thousand steps"
    save(saver, 4)
    assert saver.must_have(4) == saver.checkpoints.latest()
    assert saver.failure == ""
    assert warnings[-1] == ("save", "", "")
    assert not saver.due(5)


def test_every_save_ends_the_trouble_that_an_earlier_process_may_have_told_of(build: Build, warnings: Warnings) -> None:
    saver = build()
    for step in (1, 2):
        save(saver, step)
    saver.wait()
    assert warnings == [("save", "", "")] * 2


@pytest.mark.parametrize(
    ("number", "words", "way_out"),
    [
        (errno.ENOSPC, "the disk is full", "make room"),
        (errno.EDQUOT, "quota", "make room"),
        (errno.EROFS, "read-only", "mend the disk"),
        (errno.EACCES, "permission denied", "permissions"),
        (errno.ESTALE, os.strerror(errno.ESTALE), "mend the disk"),
    ],
)
def test_the_reason_is_said_in_words(
    build: Build, warnings: Warnings, monkeypatch: pytest.MonkeyPatch, number: int, words: str, way_out: str
) -> None:
    saver = build()
    monkeypatch.setattr(os, "mkdir", fails(number))
    save(saver, 1)
    saver.wait()
    assert words in warnings[0][1]
    assert str(saver.checkpoints.folder) in warnings[0][1]
    assert way_out in warnings[0][2]


def test_a_disk_that_changes_what_it_was_given_costs_no_older_checkpoint(
    build: Build, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = build(keep=1)
    save(saver, 1)
    saver.wait()
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        file = source / "model.safetensors"
        if file.exists() and "gone" not in str(target):
            whole = bytearray(file.read_bytes())
            whole[-1] ^= 1
            file.write_bytes(whole)
        real(source, target)

    with monkeypatch.context() as lying:
        lying.setattr(os, "rename", rename)
        save(saver, 2)
        saver.wait()
    assert "already damaged" in warnings[-1][1]
    assert saver.checkpoints.latest().step == 1
    assert saver.newest is not None
    assert saver.newest.step == 1


def test_before_the_first_checkpoint_there_is_none(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = build()
    monkeypatch.setattr(os, "mkdir", fails(errno.EACCES))
    save(saver, 1)
    with pytest.raises(CutlineError, match="there is no checkpoint yet"):
        saver.must_have(1)


def saved_steps(saver: Saver) -> list[int]:
    return [each.step for each in saver.checkpoints.verified()]


def test_the_best_that_is_there_stays_until_a_better_one_is(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the better one, which could not be written, is the first to be once the disk is mended."""
    saver = build(keep=1)
    for step in (1, 2):
        save(saver, step, best=1)
        saver.wait()
    assert saved_steps(saver) == [2, 1]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", fails(errno.ENOSPC))
        save(saver, 3, best=3)
        saver.wait()
        assert 1 in saved_steps(saver)
        save(saver, 4, best=3)  # and once more in vain
        with pytest.raises(CutlineError, match="step 4 could not be saved"):
            saver.must_have(4)
    assert 1 in saved_steps(saver)
    save(saver, 5, best=3)
    saver.must_have(5)
    assert saved_steps(saver) == [5, 3]
    assert [float(tensors(each, "model")["w"][0]) for each in saver.checkpoints.verified()] == [5, 3]


def test_a_run_that_goes_on_knows_its_best(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build(keep=1)
    for step in (1, 2):
        before.save(Moment(step, 1, {"progress": {"best_step": 1}}), {"model": {"w": torch.ones(5)}}, lambda: None)
        before.wait()
    again = build(keep=1)
    again.start_at(again.checkpoints.latest())
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", fails(errno.ENOSPC))
        save(again, 3, best=3)
        again.wait()
    assert saved_steps(again) == [2, 1]
    save(again, 4, best=4)  # better still: nobody needs the other any more
    again.must_have(4)
    assert saved_steps(again) == [4]


def test_what_a_run_may_go_back_to_outlives_the_trouble(build: Build) -> None:
    """Also with one kept: those that were saved after steps that were no numbers are none to go back to."""
    saver = build(keep=1)

    def with_trouble(trouble: int, step: int) -> None:
        state = {"progress": {"trouble": trouble, "best_step": -1}}
        saver.save(Moment(step, -1, state), {"model": {"w": torch.ones(5)}}, lambda: None)
        saver.must_have(step)

    for step, trouble in ((1, 0), (2, 0), (3, 30), (4, 50)):
        with_trouble(trouble, step)
    assert saved_steps(saver) == [4, 2]
    saver = build(keep=1)  # of another process
    saver.start_at(saver.checkpoints.latest())
    with_trouble(20, 5)
    assert saved_steps(saver) == [5, 2]
    with_trouble(0, 6)
    assert saved_steps(saver) == [6]


def test_on_a_nearly_full_disk_it_goes_for_a_new_one(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is as good to go back to; or nothing could be saved any more."""
    saver, room = build(keep=1), [3]

    def free(folder: Path) -> int:
        return 10**9 * (room[0] - len(saver.checkpoints.candidates()))

    monkeypatch.setattr("cutline.engine.machine.disk_free", free)
    for step, best, trouble in ((1, 1, 0), (2, 1, 0), (3, 1, 30), (4, 1, 0)):
        state = {"progress": {"trouble": trouble, "best_step": best}}
        saver.save(Moment(step, best, state), {"model": {"w": torch.ones(5)}}, lambda: None)
        saver.must_have(step)
    assert saved_steps(saver) == [4, 1]


def test_a_disk_that_does_not_answer_is_told_and_waited_for(
    build: Build, slow_disk: threading.Event, warnings: Warnings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cutline.engine.saver.SLOW_SECONDS", 0.2)
    beats: list[float] = []
    monkeypatch.setattr(console, "gone_on", [lambda: beats.append(time.monotonic())])
    saver = build()
    save(saver, 3)
    time.sleep(0.3)
    for _ in range(3):
        assert not saver.due(4)  # as a step asks, which goes on meanwhile
    ((name, what, _),) = warnings
    assert (name, what) == ("slow_disk", "step 3 is not saved after 0 s: the disk is slow, or does not answer")
    monkeypatch.setattr("cutline.engine.saver.SLOW_SECONDS", 60)  # however slow this machine is, once the disk answers
    threading.Timer(2.5, slow_disk.set).start()
    save(saver, 4)  # which has to wait for it, and is no hang
    assert len(beats) >= 2
    saver.wait()
    assert warnings[1:] == [("save", "", ""), ("slow_disk", "", ""), ("save", "", "")]
    assert [entry["blocked"] > 2 for entry in of_kind(tmp_path, "saved")] == [False, True]
