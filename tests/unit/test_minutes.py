"""Learning by the clock: it ends with its minutes, at a rate of nothing, and goes on where it was with what is left."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cutline import config as configuration
from cutline.config import Config, TrainingConfig
from cutline.engine import folder, run, trainer
from cutline.engine.checkpoint import Checkpoint, Checkpoints
from cutline.engine.loop import Loop, train
from cutline.engine.resume import differences, resume
from cutline.engine.schedule import rate_factor, share
from cutline.engine.trainer import Progress, Trainer

SETTINGS: dict[str, Any] = {
    "task": "classes",
    "threads": 1,
    "device": "cpu",
    "pictures": {"size": 16},
    "encoder": {"name": "cnn:width=8,stages=2"},
    "training": {"epochs": 50, "batch": 32, "rate": 3e-3, "warmup": 0, "validate_limit": 20, "keep": 100},
}
SECONDS = 2
"""That a step takes, with its loading, by the clock of these tests."""


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at the time sees it a second later than whoever did before: loading and a step take one each."""
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=itertools.count(0.0, 1.0).__next__))


@pytest.fixture
def config(scenes_folder: Path, tmp_path: Path) -> Config:
    return configuration.from_dict({**SETTINGS, "output": str(tmp_path), "data": {"path": str(scenes_folder)}})


def trainer_of(config: Config, path: Path | None = None) -> Trainer:
    prepared = run.prepare(config, quiet=True)
    return run.trainer(prepared, path or run.create(prepared))


def of_minutes(config: Config, seconds: float, **training: Any) -> Config:
    return configuration.from_dict({"training": {"minutes": seconds / 60, **training}}, config)


def events(place: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["kind"] == kind]


def newest(place: Path) -> Checkpoint:
    return Checkpoints(place, folder.identity(place)).latest()


def test_the_rate_ends_with_the_minutes_or_with_the_epochs() -> None:
    config = TrainingConfig(epochs=10, minutes=1, warmup=0)
    assert [rate_factor(config, 0, 10, 0, seconds) for seconds in (0, 30, 60, 90)] == pytest.approx(
        [1, 0.5, 0, 0], abs=1e-9
    )
    assert [rate_factor(config, step, 10, 0, 6.0) for step in (0, 50, 100)] == pytest.approx(
        [0.97553, 0.5, 0], abs=1e-5
    )
    assert share(config, 20, 100, 30) == 0.5
    endless = TrainingConfig(epochs=10, warmup=0)
    assert rate_factor(endless, 50, 10, 0, 1e9) == rate_factor(endless, 50, 10, 0) == pytest.approx(0.5)


def test_a_run_ends_with_its_minutes_in_the_middle_of_an_epoch(config: Config) -> None:
    begun = trainer_of(of_minutes(config, 7 * SECONDS, validate_every=1000))
    assert begun.steps_per_epoch == 3
    at = train(begun, quiet=True)
    assert (at.step, at.epoch, at.batch, at.seconds) == (7, 3, 0, 7 * SECONDS)
    rates = [event["rate"] for event in events(begun.run, "step")]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(3e-3)
    assert rates[-1] < 3e-3 * 0.06
    (validation,) = events(begun.run, "validation")  # not one on the way, but one in the end
    assert (validation["step"], validation["epoch"]) == (7, 3)
    assert newest(begun.run).step == at.best_step == 7


def test_epochs_end_a_run_that_has_minutes_left(config: Config) -> None:
    at = train(trainer_of(of_minutes(config, 1e6, epochs=2)), quiet=True)
    assert (at.step, at.epoch) == (6, 2)


def test_a_run_without_a_limit_notes_no_time(config: Config) -> None:
    """What it saves would hang on the clock, and an interrupted run would not be as one that was not."""
    begun = trainer_of(configuration.from_dict({"training": {"epochs": 1}}, config))
    assert train(begun, quiet=True).seconds == 0.0


def test_a_resumed_run_has_what_was_left_of_its_minutes(config: Config) -> None:
    whole = trainer_of(of_minutes(config, 8 * SECONDS, save_steps=1))
    train(whole, quiet=True)
    before = events(whole.run, "step")
    saved = Checkpoints(whole.run, folder.identity(whole.run))
    saved.forget_after(min(saved.verified(), key=lambda each: each.step))
    again = trainer_of(whole.task.config, whole.run)
    resume(again, quiet=True)
    assert 0 < again.at.seconds == again.at.step * SECONDS < 8 * SECONDS
    assert train(again, quiet=True).step == 8
    assert events(whole.run, "step") == before  # by a clock that runs alike, all is as it was


def test_a_run_that_ended_before_its_last_validation_learns_no_more_and_is_validated(config: Config) -> None:
    begun = trainer_of(of_minutes(config, 4 * SECONDS))
    for batch in (1, 2, 3, 1):
        begun.at.batch = batch - 1
        begun.step(next(begun.groups()))
        begun.at.batch = batch
    begun.at.epoch = begun.at.validated = 1  # one step into the second epoch
    assert begun.out_of_time
    loop = Loop(begun, lambda *told: None, quiet=True)
    at = loop.train()
    assert (at.step, at.epoch, at.validated, at.batch) == (4, 2, 2, 0)
    assert len(events(begun.run, "validation")) == 1


def test_a_run_that_was_saved_before_there_was_the_setting_goes_on(config: Config) -> None:
    begun = trainer_of(configuration.from_dict({"training": {"epochs": 1}}, config))
    train(begun, quiet=True)
    state = json.loads(json.dumps(newest(begun.run).state))
    del state["config"]["training"]["minutes"], state["progress"]["seconds"]
    now = {**begun.facts, "world": 1}
    assert differences(state, now) == []
    assert asdict(Progress(**state["progress"])) == asdict(begun.at)
    state["config"]["training"]["minutes"] = 3.0
    assert differences(state, now) == ["training.minutes was 3.0, now 0.0"]
