"""The power fails at any moment of a save, a removal or a going back: the old or the new checkpoint is used, whole.

What a disk may hold then, `replay` says. Each such state is laid out as real files and the real code is asked. By
default 3,600 states of seven scenarios are tried; marked slow, all 12,000 of them, and 79,000 drawn from those of saves
with so many writes that trying all would take for ever.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from tests.crash import replay
from tests.crash.replay import Call, Recorder

from cutline.engine import checkpoint
from cutline.engine.checkpoint import Checkpoint, Checkpoints
from cutline.errors import ModelError

Act = Callable[[Checkpoints, Recorder], None]


@pytest.fixture(autouse=True)
def small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each file takes several."""
    monkeypatch.setattr(checkpoint, "CHUNK", 100)


def contents(step: int, version: int = 0) -> dict[str, bytes]:
    rng = random.Random(f"{step}.{version}")
    return {"model.safetensors": rng.randbytes(250), "state.json": b'{"step": %d, "of": %d}' % (step, version)}


def of(folder: Path) -> Checkpoints:
    return Checkpoints(folder, "a-run")


def write(checkpoints: Checkpoints, *steps: int) -> Checkpoint:
    return [checkpoints.write(step, contents(step)) for step in steps][-1]


# What is done while the power fails


def first_save(checkpoints: Checkpoints, recorder: Recorder) -> None:
    write(checkpoints, 1)
    recorder.returned()


def save_after_a_start_cut_short(checkpoints: Checkpoints, recorder: Recorder) -> None:
    """The folder was made by a process that was killed before it had it fsynced."""
    checkpoints.folder.mkdir()
    write(checkpoints, 1)
    recorder.returned()


def save_and_remove(checkpoints: Checkpoints, recorder: Recorder) -> None:
    newest = write(checkpoints, 4)
    recorder.returned()
    checkpoints.retain(newest, keep=1, every=0, best=1)


def save_a_step_again(checkpoints: Checkpoints, recorder: Recorder) -> None:
    newest = checkpoints.write(3, contents(3, version=1))
    recorder.returned()
    checkpoints.retain(newest, keep=1, every=0, best=3)


def save_that_fails(checkpoints: Checkpoints, recorder: Recorder) -> None:
    """The disk refuses to make the manifest last, and what was written until then is cleared away."""

    def fsync(handle: int) -> None:
        if recorder.calls and recorder.calls[-1].path.name == checkpoint.MANIFEST:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        recorder.fsync(handle)

    with mock.patch.object(os, "fsync", fsync), pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write(checkpoints, 2)
    recorder.returned()


def go_back(checkpoints: Checkpoints, recorder: Recorder) -> None:
    checkpoints.forget_after(list(checkpoints.verified())[-1])
    recorder.returned()


def set_aside(checkpoints: Checkpoints, recorder: Recorder) -> None:
    checkpoints.quarantine(checkpoints.candidates()[0], "the test wants it")
    recorder.returned()


@dataclass(frozen=True)
class Scenario:
    act: Act
    there: tuple[int, ...]
    """Steps of the checkpoints that are there before, safe."""
    during: tuple[tuple[int, int] | None, ...]
    """Which may be the latest (step, version) before the work has returned; None: none."""
    after: tuple[int, int]
    """Which must be, from then on."""
    stays: tuple[int, ...] = ()
    """Steps that are never lost."""
    stay_then: tuple[int, ...] = ()
    """Steps that are not lost once the work has returned, wherever they lie."""


SCENARIOS = [
    Scenario(first_save, (), (None, (1, 0)), (1, 0)),
    Scenario(save_after_a_start_cut_short, (), (None, (1, 0)), (1, 0)),
    Scenario(save_and_remove, (1, 2, 3), ((3, 0), (4, 0)), (4, 0), stays=(1,)),
    Scenario(save_a_step_again, (1, 3), ((3, 0), (3, 1)), (3, 1)),
    Scenario(go_back, (1, 2, 3), ((1, 0), (2, 0), (3, 0)), (1, 0), stays=(1,)),
    Scenario(set_aside, (1, 2), ((1, 0), (2, 0)), (1, 0), stays=(1,), stay_then=(2,)),
    Scenario(save_that_fails, (1,), ((1, 0),), (1, 0), stays=(1,)),
]
each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.act.__name__)


def rehearse(scenario: Scenario, run: Path) -> tuple[Callable[[], replay.Folder], list[Call]]:
    """Do the work once, for real; what the disk held before, and the calls."""
    run.mkdir()
    for step in scenario.there:
        write(of(run), step)
    shutil.copytree(run, run.with_name("before"))
    with replay.record(run) as recorder:
        scenario.act(of(run), recorder)

    def before() -> replay.Folder:
        found = replay.read_disk(run.with_name("before"))
        assert isinstance(found, replay.Folder)
        return found

    return before, recorder.calls


def violations(scenario: Scenario, before: replay.Folder, calls: list[Call], folder: Path, most: int) -> Iterator[str]:
    """Every state after which something promised is not so; an empty text for every other."""
    for count, (promises, call, tree) in enumerate(replay.crash_states(before, calls, most)):
        run = folder / "state"
        run.parent.mkdir(exist_ok=True)
        replay.build(tree, run)
        allowed = (scenario.after,) if promises else scenario.during
        stays = scenario.stays + (scenario.stay_then if promises else ())
        problem = wrong(of(run), allowed, stays) or (goes_on(of(run)) if count % 31 == 0 else "")
        yield problem and f"after '{call}': {problem}"
        shutil.rmtree(run)


def wrong(checkpoints: Checkpoints, allowed: tuple[tuple[int, int] | None, ...], stays: tuple[int, ...]) -> str:
    found = None
    try:
        latest = checkpoints.latest()
    except ModelError:
        pass
    else:
        held = {name: latest.read(name) for name in latest.files}
        same = [version for version in (0, 1) if contents(latest.step, version) == held]
        if not same:
            return f"{latest.path.name} is taken for whole and is a mixture"
        found = (latest.step, same[0])
    if found not in allowed:
        return f"the latest is {found}, allowed are {allowed}"
    lost = [step for step in stays if not any(is_whole(path, step) for path in places(checkpoints))]
    return f"step {lost[0]} is lost" if lost else ""


def places(checkpoints: Checkpoints) -> list[Path]:
    return checkpoints.candidates() + checkpoints.set_aside()


def is_whole(path: Path, step: int) -> bool:
    files = contents(step)
    return all((path / name).is_file() and (path / name).read_bytes() == data for name, data in files.items())


def goes_on(checkpoints: Checkpoints) -> str:
    """Whether the next process can clear up, save and remove as if nothing had been."""
    checkpoints.sweep()
    newest = write(checkpoints, 9)
    checkpoints.retain(newest, keep=1, every=0, best=0)
    there = sorted(path.name for path in checkpoints.folder.iterdir() if path.name != "quarantine")
    return "" if there == ["step-00000009"] and checkpoints.latest() == newest else f"then there are {there}"


@each_scenario
@pytest.mark.parametrize(
    ("chunk", "most"),
    [(100, 200), pytest.param(100, 10**6, marks=pytest.mark.slow), pytest.param(25, 1000, marks=pytest.mark.slow)],
    ids=["drawn", "all", "many-writes"],
)
def test_the_old_or_the_new_and_nothing_else(
    scenario: Scenario, chunk: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHUNK", chunk)
    before, calls = rehearse(scenario, tmp_path / "run")
    found = list(violations(scenario, before(), calls, tmp_path, most))
    print(f"{len(found)} states after {len(calls)} calls")
    assert not any(found), next(filter(None, found))


@pytest.mark.parametrize("act", [first_save, go_back, set_aside])
def test_without_any_one_fsync_it_would_fail(act: Act, tmp_path: Path) -> None:
    """Each is needed, and the test above sees what is missing."""
    scenario = next(each for each in SCENARIOS if each.act is act)
    before, calls = rehearse(scenario, tmp_path / "run")
    syncs = [index for index, call in enumerate(calls) if call.kind == "sync"]
    assert syncs
    for index in syncs:
        without = calls[:index] + calls[index + 1 :]
        found = violations(scenario, before(), without, tmp_path / str(index), 50)
        assert any(found), f"nothing is wrong without '{calls[index]}'"


def test_without_hashes_a_mixture_would_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the check itself: by sizes alone, files that were not fsynced are taken for whole."""
    monkeypatch.setattr(checkpoint, "_wrong_hash", lambda *_: "")
    scenario = next(each for each in SCENARIOS if each.act is save_and_remove)
    before, calls = rehearse(scenario, tmp_path / "run")
    lazy = [call for call in calls if not (call.kind == "sync" and call.path.name in contents(0))]
    found = violations(scenario, before(), lazy, tmp_path, 50)
    assert any("is a mixture" in problem for problem in found)
