"""Going on with a run: what must be as it was, and what may change when the user says so."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from cutline import config as configuration
from cutline import durable
from cutline.cli import train as train_verb
from cutline.cli import work
from cutline.config import Config
from cutline.engine import folder, journal, run, weights
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.loop import Loop, Stopped, train
from cutline.engine.ranks import ALONE
from cutline.engine.resume import LoadError, loading, resume, set_aside_failing
from cutline.engine.task import Validation
from cutline.engine.trainer import Trainer
from cutline.engine.watch import RUN
from cutline.errors import ConfigError, CutlineError, ModelError

SETTINGS = {
    "threads": 1,
    "data": {"languages": ["en"]},
    "words": {"min_count": 1},
    "pictures": {"size": 48},
    "decoder": {"hidden": 16},
    "training": {"epochs": 3, "batch": 16, "rate": 3e-3, "warmup": 0, "save_steps": 2},
    "search": {"beam": 1, "max_length": 10},
}


@pytest.fixture
def config(scenes_folder: Path, tmp_path: Path) -> Config:
    base = configuration.from_dict(SETTINGS)
    return replace(base, data=replace(base.data, path=str(scenes_folder)), output=str(tmp_path))


def begin(config: Config) -> Trainer:
    prepared = run.prepare(config, quiet=True)
    return run.trainer(prepared, run.create(prepared))


def again(config: Config, path: Path) -> Trainer:
    return run.trainer(run.prepare(config, quiet=True), path)


def changed(config: Config, **training: object) -> Config:
    return replace(config, training=replace(config.training, **training))  # type: ignore[arg-type]


def stop_after(steps: int, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a stop is asked for in the step after so many."""
    learn = Trainer.step

    def step(self: Trainer, batches: list, *, stop: bool = False) -> dict[str, float]:
        return learn(self, batches, stop=stop or self.at.step == steps)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(Stopped):
            train(trainer, quiet=True)


@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [("fp32", "adamw"), ("bf16", "muon"), pytest.param("fp16", "muon", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_anywhere_ends_the_same(
    precision: str, optimizer: str, workers: int, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"precision": precision, "optimizer": optimizer, "workers": workers}
    config = changed(config, **settings, ema=0.9, accumulate=2, batch=8, schedule="plateau")
    whole = begin(config)
    train(whole, quiet=True)
    parts = begin(config)
    for steps in (1, 5, 9, 13):  # in the middle of epochs of 6 steps
        stop_after(steps, parts, monkeypatch)
        parts = again(config, parts.run)
        resume(parts, quiet=True)
    train(parts, quiet=True)
    assert (parts.run / "events.jsonl").read_bytes() == (whole.run / "events.jsonl").read_bytes()
    one, other = (trainer.checkpoints.latest() for trainer in (whole, parts))
    assert {name for name in one.files if name.endswith(".safetensors")} == {
        "model.safetensors", "optimizer.safetensors", "average.safetensors",
    }  # fmt: skip
    for name in one.files:
        if name.endswith(".safetensors"):
            assert one.read(name) == other.read(name), name
    assert one.state["progress"] == other.state["progress"]
    assert one.state["scaler"] == other.state["scaler"]


Change = Callable[[Config, Path], Config]


def fewer_pictures(config: Config, path: Path) -> Config:
    return replace(config, data=replace(config.data, limit=50))


def other_words(config: Config, path: Path) -> Config:
    return replace(config, words=replace(config.words, min_count=9))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config, path: changed(config, batch=24), r"training.batch was 16, now 24"),
        (lambda config, path: changed(config, optimizer="muon"), r"training.optimizer was 'adamw', now 'muon'"),
        (lambda config, path: changed(config, rate=1e-4), r"training.rate was 0.003, now 0.0001"),
        (fewer_pictures, r"the pictures or captions are others \(they were 96 to learn from"),
        (other_words, r"the vocabulary is another \(\d+ words, now \d+\)"),
        (lambda config, path: replace(config, seed=4), r"seed was 0, now 4"),
    ],
)
def test_what_changed_is_named_and_refused(
    change: Change, named: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(config)
    stop_after(7, first, monkeypatch)
    other = again(change(config, first.run), first.run)
    with pytest.raises(ConfigError, match=named):
        resume(other, quiet=True)
    if change is other_words:  # asked for all the same: it cannot fit, and that is not the checkpoint's fault
        with pytest.raises(ModelError, match="the model's is"):
            resume(other, allow_changes=True, quiet=True)
        assert not loading(first.run)


def test_changes_are_let_through_when_asked_for(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(config)
    stop_after(8, first, monkeypatch)
    other = again(changed(config, batch=24), first.run)
    resume(other, allow_changes=True, quiet=True)
    assert (other.at.step, other.at.epoch, other.at.batch) == (9, 1, 0)  # another order: the epoch begins again
    train(other, quiet=True)
    assert other.at.step == 9 + 2 * 4
    assert folder.settings(first.run).training.batch == 24
    story = [entry for entry in journal.read(first.run) if entry["kind"] == "changed"]
    assert story[0]["settings"] == ["training.batch was 16, now 24"]
    resume(again(changed(config, batch=24), first.run), quiet=True)  # it is the run's own now


def test_schedules_go_on_from_the_epoch_that_was_reached(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though an epoch has fewer steps now: counted in those, the old ones would be more than there are in all."""
    first = begin(config)
    stop_after(12, first, monkeypatch)
    assert first.share == pytest.approx(13 / 18)
    other = again(changed(config, batch=48, weight_decay=0.25), first.run)
    resume(other, allow_changes=True, quiet=True)
    assert other.share == pytest.approx(2 / 3)
    assert max(group["weight_decay"] for group in other.optimizer.param_groups) == 0.25
    train(other, quiet=True)
    assert other.share == 1


def test_scores_of_other_pictures_are_not_compared(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(config)
    stop_after(8, first, monkeypatch)
    assert first.at.best_step == 6
    other = again(fewer_pictures(config, first.run), first.run)
    resume(other, allow_changes=True, quiet=True)
    assert (other.at.best, other.at.best_step, other.at.bad) == (-math.inf, -1, 0)


def test_fewer_pictures_to_validate_on_leave_the_epoch_as_it_is(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(config)
    stop_after(8, first, monkeypatch)
    other = again(changed(config, validate_limit=5), first.run)
    with pytest.raises(ConfigError, match=r"not learned like this: training\.validate_limit was 1000, now 5\n"):
        resume(other, quiet=True)
    resume(other, allow_changes=True, quiet=True)
    assert (other.at.epoch, other.at.batch, other.at.best_step) == (1, 3, -1)


@pytest.mark.parametrize(("base", "staged", "batch"), [(16, 24, 0), (24, 16, 3)])
def test_an_epoch_keeps_its_order_while_the_stage_keeps_its_batches(
    base: int, staged: int, batch: int, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of the setting that the stage changes."""
    first = begin(replace(config, stages=({"training": {"batch": 16}},)))
    stop_after(8, first, monkeypatch)
    changes = ({"training": {"batch": staged}},)
    other = again(replace(changed(config, batch=base), stages=changes), first.run)
    resume(other, allow_changes=True, quiet=True)
    assert (other.at.step, other.at.epoch, other.at.batch) == (9, 1, batch)


def test_the_settings_of_a_run_are_never_half_written(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(config)
    stop_after(3, first, monkeypatch)

    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise OSError("the power is gone")

    monkeypatch.setattr(durable, "write", write)
    with pytest.raises(OSError, match="the power is gone"):
        resume(again(changed(config, batch=24), first.run), allow_changes=True, quiet=True)
    assert folder.settings(first.run).training.batch == 16


def test_another_metric_has_its_own_best(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(config, patience=2)
    first = begin(config)
    monkeypatch.setattr(Validation, "metric", lambda self, name: {"cider": 500.0, "bleu4": 20.0}[name])
    stop_after(14, first, monkeypatch)
    assert (first.at.best, first.at.best_step, first.at.bad) == (500.0, 6, 1)
    other = again(changed(config, metric="bleu4"), first.run)
    resume(other, allow_changes=True, quiet=True)
    train(other, quiet=True)
    assert (other.at.best, other.at.best_step, other.at.bad) == (20.0, 18, 0)
    assert other.checkpoints.best().step == 18


def test_an_average_may_begin_later(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(config)
    stop_after(3, first, monkeypatch)
    other = again(changed(config, ema=0.9), first.run)
    resume(other, allow_changes=True, quiet=True)
    assert other.average
    saved = weights.learned(first.task.model)
    assert all(torch.equal(value, saved[name]) for name, value in other.average.mean.items())
    stop_after(5, other, monkeypatch)
    assert "average.safetensors" in other.checkpoints.latest().files


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), pytest.param("fp16", "fp32", marks=pytest.mark.slow)])
def test_the_precision_may_change(before: str, after: str, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(changed(config, precision=before))
    stop_after(3, first, monkeypatch)
    other = again(changed(config, precision=after), first.run)
    resume(other, allow_changes=True, quiet=True)
    stop_after(5, other, monkeypatch)
    assert bool(other.checkpoints.latest().state["scaler"]) == (after == "fp16")


def test_changes_that_do_not_fit_are_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(config)
    stop_after(3, first, monkeypatch)
    other = again(replace(config, encoder=replace(config.encoder, decay=0.5)), first.run)
    with pytest.raises(ConfigError, match=r"encoder\.decay was 1\.0, now 0\.5"):
        resume(other, allow_changes=True, quiet=True)
    assert not loading(first.run)


def test_a_run_that_is_beyond_the_stages_given_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ({"training": {"epochs": 1}}, {"training": {"epochs": 2}})
    given = SimpleNamespace(resume=None, allow_changes=True, quiet=True, tensorboard=False, no_bundle=True)
    place = folder.make(config)
    learn, seen = Trainer.step, []

    def step(self: Trainer, batches: list, *, stop: bool = False) -> dict[str, float]:
        seen.append(self.at.stage)
        return learn(self, batches, stop=stop or len(seen) == 8)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(Stopped):
        work._train(given, replace(config, stages=stages), ALONE, place)
    assert seen[-1] == 1
    for fewer in (stages[:1], ()):
        with pytest.raises(ConfigError, match="has come to stage 2, and there are settings for 1"):
            work._train(given, replace(config, stages=fewer), ALONE, place)


def test_what_has_no_part_in_learning_may_change(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(config)
    stop_after(3, first, monkeypatch)
    kept = changed(config, workers=1, save_steps=5, keep=4, save_minutes=1)
    assert resume(again(replace(kept, threads=2), first.run), quiet=True).step == 4


def test_nothing_valid_is_an_error_that_says_why_of_each(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(config)
    stop_after(5, first, monkeypatch)
    there = first.checkpoints.candidates()
    (there[0] / "model.safetensors").write_bytes(b"short")
    for path in there[1:]:
        (path / "manifest.json").unlink()
    with pytest.raises(ModelError) as refused:
        resume(again(config, first.run), quiet=True)
    assert f"{there[0].name}: model.safetensors has 5 bytes" in str(refused.value)
    assert f"{there[1].name}: manifest.json is missing" in str(refused.value)


def test_a_checkpoint_that_fails_to_load_twice_is_set_aside(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(config)
    stop_after(5, first, monkeypatch)
    good = first.checkpoints.latest()
    wrong = first.checkpoints.write(99, {"state.json": json.dumps(good.state).encode(), "model.safetensors": b"\0" * 8})
    for failures in (1, 2):
        with pytest.raises(LoadError, match="step-00000099 could not be loaded"):
            resume(again(config, first.run), quiet=True)
        assert loading(first.run)["failures"] == failures
    set_aside_failing(first.run, first.checkpoints)
    assert resume(again(config, first.run), quiet=True).step == good.step
    assert not wrong.path.exists()
    assert "failed to load 2 times" in (first.checkpoints.set_aside()[0] / "why.txt").read_text()
    assert [e["kind"] for e in journal.read(first.run) if e["kind"] == "quarantined"]
    assert not loading(first.run)


def test_memory_that_runs_out_while_loading_is_no_fault_of_the_checkpoint(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(config)
    stop_after(5, first, monkeypatch)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        other = again(config, first.run)
        with monkeypatch.context() as patch:
            patch.setattr(other.optimizer, "load_state_dict", Mock(side_effect=error))
            with pytest.raises(type(error)):
                resume(other, quiet=True)
        assert loading(first.run)["failures"] == 0
    assert resume(again(config, first.run), quiet=True).step == 6


def test_where_the_only_checkpoint_of_a_stage_is_set_aside_the_stage_is_learned_all_the_same(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, stages=({"training": {"epochs": 1}}, {"training": {"epochs": 1, "save_steps": 1}}))
    given = SimpleNamespace(resume=None, allow_changes=False, quiet=True, tensorboard=False, no_bundle=True)
    place, learn = folder.make(config), Trainer.step

    def step(self: Trainer, batches: list, *, stop: bool = False) -> dict[str, float]:
        return learn(self, batches, stop=stop or self.at.step == 6)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(Stopped):
            work._train(given, config, ALONE, place)
    newest = Checkpoints(place, folder.identity(place)).latest()
    assert (newest.stage, newest.step) == (1, 7)
    told = {"name": newest.path.name, "failures": 2, "why": "it lacks a tensor"}
    (newest.path.parent / "loading.json").write_text(json.dumps(told))
    work._train(given, config, ALONE, place)
    (end,) = [entry for entry in journal.read(place) if entry["kind"] == "finished"]
    assert end["step"] == 12


def test_a_run_is_found_again_by_its_settings(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder.unfinished(config) is None
    first = begin(config)
    assert folder.unfinished(config) == first.run
    assert folder.unfinished(changed(config, batch=8)) is None
    assert folder.unfinished(replace(config, health=replace(config.health, port=9)))  # no part of what it learns
    assert folder.unfinished(replace(config, processes=2))  # which is refused by name, and not begun anew
    journal.Journal(first.run).write("finished", step=1)
    assert folder.unfinished(config) is None


def test_a_run_that_is_only_being_prepared_is_found_too(config: Config) -> None:
    place = folder.make(config)
    assert folder.unfinished(config) == place
    folder.unmake(place)
    assert folder.unfinished(config) is None


def test_a_new_run_is_begun_once_and_then_gone_on_with(config: Config) -> None:
    """By whom torchrun starts again with the same command, `--new` and all."""
    given, places = SimpleNamespace(resume=None, new=True), []
    for _ in range(3):
        with work._owned(given, config, ALONE) as place:
            places.append(place)
            if len(places) == 1:  # of another day
                os.utime(place / "run.json", (0, 0))
    assert places[0] != places[1] == places[2]


def test_a_run_that_is_named_by_a_link_stays_the_one_it_was(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run that begins meanwhile moves the link."""
    place, link, taken = shutil.copytree(tiny_run, tmp_path / "one"), tmp_path / "latest", []
    link.symlink_to("one")
    monkeypatch.setattr("cutline.engine.supervise.supervise", lambda run, *_: taken.append(run) or 0)
    train_verb.main(["--resume", str(link)])
    monkeypatch.setattr("cutline.cli.work.work", lambda given, config: taken.append(given.resume) or 0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(RUN, str(place))
    link.unlink()
    link.symlink_to("another")
    train_verb.main(["--resume", str(link)])
    assert taken == [place, place]


@pytest.mark.parametrize("name", [folder.LOCK, folder.WORKERS_LOCK])
def test_a_folder_that_somebody_has_is_not_removed(name: str, config: Config) -> None:
    config = replace(config, output=f"{config.output}/runs")
    place = folder.make(config)
    with folder.held(place, name):
        folder.unmake(place)
        assert folder.unfinished(config) == place
    (place / "words.json").touch()  # somebody has begun with it
    folder.unmake(place)
    assert folder.unfinished(config) == place
    (place / "words.json").unlink()
    folder.unmake(place)
    assert not place.parent.exists()


def test_who_waits_for_a_folder_that_is_removed_does_not_own_it(config: Config) -> None:
    place = folder.make(config)
    waits = threading.Event()

    def wait() -> str:
        waits.set()
        with pytest.raises(CutlineError) as refused, folder.held(place, patience=60):
            pass
        return refused.value.what

    with ThreadPoolExecutor() as pool:
        with folder.held(place):
            answer = pool.submit(wait)
            waits.wait(10)
            time.sleep(0.5)  # until it has the file open, which nobody can see
            shutil.rmtree(place)
        assert answer.result(60) == f"{place} is no longer there"


def test_where_no_folder_can_be_made_it_is_said(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for odd in (replace(config, output=str(tmp_path / "file")), replace(config, name="x" * 300)):
        with pytest.raises(ConfigError, match="cannot be made") as refused:
            folder.make(odd)
        assert "--output" in refused.value.fix


def test_a_file_system_without_locks_is_not_taken_for_one_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))))
    says = "cannot be kept from other processes: No locks available"
    with pytest.raises(CutlineError, match=says) as refused, folder.held(tmp_path, patience=60):
        pass
    assert "locks" in refused.value.expected


def test_only_one_can_own_a_folder(tmp_path: Path) -> None:
    with folder.held(tmp_path):
        with pytest.raises(CutlineError, match=r"is in use by process \d+ on"), folder.held(tmp_path):
            pass
        with folder.held(tmp_path, "another"):
            pass
    with folder.held(tmp_path):
        pass


def test_a_log_that_lost_lines_is_told(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = begin(changed(config, epochs=1))
    train(trainer, quiet=True)
    (trainer.run / "events.jsonl").write_text("")
    other = again(changed(config, epochs=1), trainer.run)
    resume(other, quiet=True)
    Loop(other, lambda *words: None, quiet=True).close()
    assert "lacks" in capsys.readouterr().err


def test_a_run_of_another_folder_is_refused(config: Config) -> None:
    one, other = begin(changed(config, epochs=1)), begin(changed(config, epochs=1))
    train(one, quiet=True)
    one.checkpoints.folder.rename(other.run / "checkpoints")
    with pytest.raises(ModelError, match="it belongs to another run"):
        resume(again(changed(config, epochs=1), other.run), quiet=True)
    assert Checkpoints(other.run, folder.identity(one.run)).latest().step == 6


def test_a_checkpoint_holds_what_made_it(config: Config) -> None:
    trainer = begin(changed(config, epochs=1))
    train(trainer, quiet=True)
    state = trainer.checkpoints.latest().state
    assert configuration.from_dict(state["config"]) == trainer.task.config
    assert state["versions"]["torch"] == torch.__version__
    assert (state["world"], state["data"]["train"], state["progress"]["step"]) == (1, 96, 6)
