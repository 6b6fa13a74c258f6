"""What becomes of a supervised run when processes die, hang, or are told to stop: real ones, by the real command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import safetensors.numpy
from tests.crash.lives import newest_event
from tests.crash.starts import SETTINGS, STEPS, Start, differences

from cutline.engine.runs import Run

IN_TIME = 10
"""Seconds in which a run that is told to stop has saved and ended."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path) -> Path:
    """A run that nothing has interrupted."""
    start = Start(tmp_path_factory.mktemp("whole"), SETTINGS, scenes_folder, fault="")
    assert start.end() == 0, start.told
    assert newest_event(start.run)["step"] == STEPS
    return start.run


@pytest.mark.slow
def test_a_killed_process_is_started_again(tmp_path: Path, scenes_folder: Path, whole: Path) -> None:
    start = Start(tmp_path, SETTINGS, scenes_folder)
    start.until_step(10)
    (worker,) = start.workers()
    worker.kill()
    assert start.end() == 0, start.told
    (failed,) = start.journal("failed")
    assert "killed (SIGKILL)" in failed["cause"]
    print(f"learning again {start.journal('training')[1]['time'] - failed['time']:.1f} s after that was noticed")
    assert failed["cause"] in start.told
    (resumed,) = start.journal("resumed")
    assert resumed["step"] >= 4
    assert differences(start.run, whole) == []
    assert (start.run / "bundle").is_dir()


TWO = f"processes = 2\n{SETTINGS}"


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path) -> Path:
    """The same by two processes, which add up in another order."""
    start = Start(tmp_path_factory.mktemp("two"), TWO, scenes_folder)
    assert start.end() == 0, start.told
    return start.run


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_of_two_is_killed_both_are_started_again(
    rank: int, tmp_path: Path, scenes_folder: Path, whole_of_two: Path
) -> None:
    start = Start(tmp_path, TWO, scenes_folder)
    start.until_step(10)
    ranks = {int(worker.environ()["RANK"]): worker for worker in start.workers() if "RANK" in worker.environ()}
    assert sorted(ranks) == [0, 1]
    ranks[rank].kill()
    assert start.end() == 0, start.told
    (failed,) = start.journal("failed")
    assert "killed (SIGKILL)" in failed["cause"] or "lost touch" in failed["cause"], failed
    (resumed,) = start.journal("resumed")
    assert resumed["step"] >= 4
    assert differences(start.run, whole_of_two) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_two_processes_save_once_and_end(
    number: signal.Signals, tmp_path: Path, scenes_folder: Path, whole_of_two: Path
) -> None:
    start = Start(tmp_path, TWO, scenes_folder)
    start.until_step(10)
    start.process.send_signal(number)  # a terminal reaches the supervisor alone: the others are groups of their own
    asked = time.monotonic()
    assert start.end() == 128 + number
    took = time.monotonic() - asked
    print(f"two processes ended {took:.1f} s after {number.name}")
    assert took < IN_TIME
    stopped = newest_event(start.run)["step"]
    assert stopped < STEPS
    assert [entry["step"] for entry in start.journal("stopped")] == [stopped]
    assert start.checkpoints().latest().step == stopped
    assert "Traceback" not in start.told

    again = Start(tmp_path, TWO, scenes_folder)
    assert again.end() == 0, again.told
    assert [entry["step"] for entry in again.journal("resumed")] == [stopped]
    assert differences(again.run, whole_of_two) == []


@pytest.mark.slow
def test_it_gives_up_when_starting_again_brings_nothing(tmp_path: Path, scenes_folder: Path) -> None:
    """Killed each time before anything could be saved."""
    once = SETTINGS.replace("save_steps = 4", "save_steps = 0") + "[health]\nrestarts = 1\n"
    start = Start(tmp_path, once, scenes_folder)
    for attempt in (1, 2):
        start.until(lambda: list(start.output.glob("*/words.json")) and len(start.journal("training")) == attempt)  # noqa: B023 - asked at once
        for worker in start.workers():
            worker.kill()
    assert start.end() == 1
    assert "has failed 2 times without a newer checkpoint: the process was killed (SIGKILL)" in start.told
    assert [entry["kind"] for entry in start.journal("failed", "restarting", "gave_up")] == [
        "failed", "restarting", "failed", "gave_up",
    ]  # fmt: skip


@pytest.mark.slow
def test_nothing_works_on_when_the_supervisor_is_gone(tmp_path: Path, scenes_folder: Path, whole: Path) -> None:
    start = Start(tmp_path, SETTINGS, scenes_folder)
    start.until_step(10)
    (worker,) = start.workers()
    start.process.kill()
    worker.wait(60)
    stopped = newest_event(start.run)["step"]
    assert stopped < STEPS
    assert [entry["step"] for entry in start.journal("stopped")] == [stopped]

    again = Start(tmp_path, SETTINGS, scenes_folder)
    assert again.end() == 0, again.told
    assert [entry["step"] for entry in again.journal("resumed")] == [stopped]
    assert differences(again.run, whole) == []


@pytest.mark.slow
def test_one_run_is_never_started_twice(tmp_path: Path, scenes_folder: Path, whole: Path) -> None:
    first = Start(tmp_path, SETTINGS, scenes_folder)
    first.until_step(10)
    (worker,) = first.workers()
    worker.suspend()  # so that it is there for as long as the second one takes
    second = Start(tmp_path, SETTINGS, scenes_folder)
    assert second.end() == 2
    assert f"is in use by process {first.process.pid}" in second.told
    assert "Traceback" not in second.told
    worker.resume()
    assert first.end() == 0, first.told
    assert differences(first.run, whole) == []


@pytest.mark.slow
def test_a_run_that_is_only_being_prepared_is_one_already(tmp_path: Path, scenes_folder: Path, whole: Path) -> None:
    first = Start(tmp_path, SETTINGS, scenes_folder)
    first.until(lambda: list(first.output.glob("*/journal.jsonl")) and first.workers())
    (worker,) = first.workers()
    worker.suspend()
    assert not (first.run / "config.toml").exists()
    second = Start(tmp_path, SETTINGS, scenes_folder)
    assert second.end() == 2
    assert f"is in use by process {first.process.pid}" in second.told
    first.process.kill()
    worker.kill()
    worker.wait(60)
    assert not (first.run / "config.toml").exists()

    again = Start(tmp_path, SETTINGS, scenes_folder)
    assert again.end() == 0, again.told
    assert again.run == first.run  # there is no other
    assert differences(again.run, whole) == []


LONG_VALIDATION = SETTINGS.replace("max_length = 12", "max_length = 800\nmin_length = 800")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("validating", [False, True])
def test_told_to_stop_it_saves_and_ends(
    number: signal.Signals, workers: int, validating: bool, tmp_path: Path, scenes_folder: Path
) -> None:
    settings = LONG_VALIDATION.replace("batch = 8", "batch = 4") if validating else SETTINGS
    start = Start(tmp_path, settings, scenes_folder, "--workers", workers)
    start.until_step(24 if validating else 10)
    if validating:
        time.sleep(0.3)
        assert newest_event(start.run) == start.events("step")[-1], "validation is over already"
    start.process.send_signal(number)
    asked = time.monotonic()
    assert start.end() == 128 + number
    took = time.monotonic() - asked
    print(f"ended {took:.1f} s after {number.name}")
    assert took < IN_TIME
    stopped = newest_event(start.run)["step"]
    assert stopped == 24 or not validating, "it has validated to the end"
    assert [entry["step"] for entry in start.journal("stopped")] == [stopped]
    assert start.checkpoints().latest().step == stopped
    assert f"stopped at step {stopped}" in start.told
    assert "Traceback" not in start.told


@pytest.mark.slow
def test_told_to_stop_while_the_bundle_is_made(tmp_path: Path, scenes_folder: Path) -> None:
    start = Start(tmp_path, SETTINGS.replace("epochs = 8", "epochs = 1"), scenes_folder)
    start.until(lambda: "exporting the bundle" in start.told)
    start.process.terminate()
    assert start.end() == 128 + signal.SIGTERM
    assert [(entry["step"], entry["why"]) for entry in start.journal("stopped")] == [(12, "SIGTERM")]
    assert Run(start.run).state == "stopped"
    assert start.journal("finished") == []

    again = Start(tmp_path, SETTINGS.replace("epochs = 8", "epochs = 1"), scenes_folder)
    assert again.end() == 0, again.told
    assert Run(again.run).state == "finished"
    assert (again.run / "bundle" / "bundle.json").exists()


@contextlib.contextmanager
def hang_ups(handler: signal.Handlers) -> Iterator[None]:
    """What processes that are started meanwhile do at first when their terminal is closed."""
    kept = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, kept)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_when_its_terminal_is_closed_it_saves_and_goes_on_later(
    workers: int, tmp_path: Path, scenes_folder: Path, whole: Path
) -> None:
    with hang_ups(signal.SIG_DFL):  # also where this test itself runs under nohup
        start = Start(tmp_path, SETTINGS, scenes_folder, "--workers", workers)
    start.until_step(10)
    start.process.send_signal(signal.SIGHUP)
    assert start.end() == 128 + signal.SIGHUP
    stopped = newest_event(start.run)["step"]
    assert [(entry["step"], entry["why"]) for entry in start.journal("stopped")] == [(stopped, "SIGHUP")]
    assert start.checkpoints().latest().step == stopped
    assert "Traceback" not in start.told

    again = Start(tmp_path, SETTINGS, scenes_folder, "--workers", workers)
    assert again.end() == 0, again.told
    assert [entry["step"] for entry in again.journal("resumed")] == [stopped]
    assert differences(again.run, whole) == []


@pytest.mark.slow
def test_under_nohup_it_learns_on(tmp_path: Path, scenes_folder: Path, whole: Path) -> None:
    with hang_ups(signal.SIG_IGN):  # all that nohup does
        start = Start(tmp_path, SETTINGS, scenes_folder)
    start.until_step(10)
    (worker,) = start.workers()
    start.process.send_signal(signal.SIGHUP)
    worker.send_signal(signal.SIGHUP)
    assert start.end() == 0, start.told
    assert len(start.journal("started")) == 1
    assert differences(start.run, whole) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_while_features_are_made(number: signal.Signals, tmp_path: Path, scenes_folder: Path) -> None:
    frozen = SETTINGS.replace("size = 48", "size = 320") + '[encoder]\nname = "small"\ntrain = "nothing"\n'
    start = Start(tmp_path, frozen, scenes_folder)
    start.until(lambda: list((tmp_path / "cache").rglob("*.npy")))
    start.process.send_signal(number)
    asked = time.monotonic()
    assert start.end() == 128 + number
    took = time.monotonic() - asked
    print(f"ended {took:.1f} s after {number.name}")
    assert took < IN_TIME
    assert "Traceback" not in start.told

    again = Start(tmp_path, frozen, scenes_folder)
    again.until_step(1)
    again.process.send_signal(number)
    assert again.end() == 128 + number


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_that_hang_are_ended_and_started_again(
    processes: int, tmp_path: Path, scenes_folder: Path, whole: Path
) -> None:
    settings = f"processes = {processes}\n{SETTINGS}[health]\nhang_minutes = 0.5\n"
    start = Start(tmp_path, settings, scenes_folder)
    start.until_step(10)
    start.workers()[-1].suspend()  # one of them
    since = time.monotonic()
    start.until(lambda: start.journal("failed"))
    took = time.monotonic() - since
    print(f"ended {took:.1f} s after {processes} process(es) stood still, of 30 s that were set")
    assert took < 30 + 25  # and what it takes to end them
    assert start.end() == 0, start.told
    (failed,) = start.journal("failed")
    assert "it hangs" in failed["cause"] or processes == 2, failed  # two also find that they have lost each other
    if processes == 1:
        assert differences(start.run, whole) == []
    assert newest_event(start.run)["step"] == STEPS


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_loaded_is_set_aside(tmp_path: Path, scenes_folder: Path, whole: Path) -> None:
    """It is whole, byte for byte as it was written; but it lacks a tensor."""
    start = _stopped(tmp_path, scenes_folder)
    checkpoints = start.checkpoints()
    good = checkpoints.latest()
    files = {name: good.read(name) for name in good.files}
    tensors = safetensors.numpy.load(files["model.safetensors"])
    del tensors[min(tensors)]
    bad = checkpoints.write(good.step + 1, files | {"model.safetensors": safetensors.numpy.save(tensors)})

    again = Start(tmp_path, SETTINGS, scenes_folder)
    assert again.end() == 0, again.told
    assert len(again.journal("failed")) == 2
    assert all("could not load a checkpoint" in entry["cause"] for entry in again.journal("failed"))
    (aside,) = again.journal("quarantined")
    assert Path(aside["path"]).name == bad.path.name
    assert f"{bad.path.name} is set aside" in again.told
    assert [entry["step"] for entry in again.journal("resumed")] == [good.step]
    assert differences(again.run, whole) == []


@pytest.mark.slow
def test_leftovers_are_not_taken_for_checkpoints(tmp_path: Path, scenes_folder: Path, whole: Path) -> None:
    """Another run's checkpoint of a higher step, a half-written one, a half-removed one, a damaged one."""
    start = _stopped(tmp_path, scenes_folder)
    checkpoints = start.checkpoints()
    good = checkpoints.latest()
    files = {name: good.read(name) for name in good.files}
    other = type(checkpoints)(start.run, "another run").write(STEPS - 1, files)
    damaged = checkpoints.write(STEPS - 2, files)
    os.truncate(damaged.path / "optimizer.safetensors", 1000)
    for name in (".step-00000090.4711.tmp", ".step-00000002.gone.tmp"):
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "model.safetensors").write_bytes(b"half")

    again = Start(tmp_path, SETTINGS, scenes_folder, fault="")
    assert again.end() == 0, again.told
    assert [entry["step"] for entry in again.journal("resumed")] == [good.step]
    assert checkpoints.leftovers() == []
    assert differences(again.run, whole) == []
    state = json.loads((checkpoints.latest().path / "state.json").read_text())
    assert state["progress"]["step"] == STEPS
    assert not other.path.exists() or checkpoints.problem(other.path)


def _stopped(place: Path, data: Path) -> Start:
    """A run that was told to stop in the middle."""
    start = Start(place, SETTINGS, data, fault="")
    start.until_step(10)
    psutil.Process(start.process.pid).terminate()
    assert start.end() == 128 + signal.SIGTERM
    return start


STARVES = """
import os

if "RANK" in os.environ:
    from cutline.engine.task import CaptioningTask

    whole = CaptioningTask.loss

    def loss(task, batch, *given):
        if len(batch) > 2:
            raise RuntimeError("could not create a primitive")
        return whole(task, batch, *given)

    CaptioningTask.loss = loss
"""


@pytest.mark.slow
def test_after_running_out_of_memory_another_process_takes_smaller_parts(
    tmp_path: Path, scenes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What oneDNN says for as long as a process lives, once it got no memory: splitting there and then is no help."""
    (tmp_path / "sitecustomize.py").write_text(STARVES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start = Start(tmp_path, SETTINGS, scenes_folder)
    assert start.end() == 0, start.told
    assert ["ran out of memory" in each["cause"] for each in start.journal("failed")] == [True, True]
    assert "with each batch in 4 parts or more" in start.told
    assert len(start.events("step")) == STEPS
    assert start.checkpoints().latest().state["progress"]["split"] == 4
