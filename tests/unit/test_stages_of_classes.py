"""Classes in stages: each begins with the best weights of those before it, and teaches the part that it names."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.coloured import SMALL_CNN, changed

from cutline.cli import work
from cutline.config import Config
from cutline.engine import folder, run, trained, weights
from cutline.engine.classes import ClassValidation
from cutline.engine.ranks import ALONE
from cutline.engine.trainer import Progress, Trainer
from cutline.models.own import ConvEncoder

GIVEN = SimpleNamespace(resume=None, allow_changes=False, quiet=True, tensorboard=False, no_bundle=True)
State = dict[str, torch.Tensor]


def state_of(model: weights.Model) -> State:
    return {name: value.detach().clone() for name, value in weights.named(model).items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_stage_begins_with_the_best_and_teaches_from_its_part_on(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("nothing", "stage1", "all")
    stages = tuple({"encoder": {"train": part}, "training": {"epochs": 2}} for part in parts)
    config = changed(config, encoder={**SMALL_CNN, "weights": "none"}, training={"validate_every": 1, "keep": 9})
    path = folder.make(config)
    scores = iter([50.0, 40.0, 60.0, 55.0, 70.0, 80.0])  # the last weights are not the best of a stage
    monkeypatch.setattr(ClassValidation, "metric", lambda self, name: next(scores))
    begin, learn = Trainer.begin_stage, Trainer.step
    began, best, first = list[State](), list[State](), list[State]()
    portions = list[list[set[str]]]()

    def begin_stage(self: Trainer, before: Progress) -> None:
        began.append(state_of(self.task.model))
        best.append(state_of(trained.load_model(path)[0]))
        begin(self, before)

    def step(self: Trainer, batches: list, *, stop: bool = False) -> dict[str, float]:
        if self.at.step == 0:
            first.append(state_of(self.task.model))
        if len(portions) == self.at.stage:
            known = {id(value): name for name, value in self.task.model.named_parameters()}
            portions.append([{known[id(value)] for value in stage} for stage in self.task.model.encoder.stages()])
        return learn(self, batches, stop=stop)

    monkeypatch.setattr(Trainer, "begin_stage", begin_stage)
    monkeypatch.setattr(Trainer, "step", step)
    work._train(GIVEN, replace(config, stages=stages), ALONE, path)

    assert len(began) == 2
    assert all(map(same, began, best))
    ends = [*best, state_of(trained.load_model(path)[0])]
    for number, (before, after) in enumerate(zip([*first, *began], ends, strict=True)):
        learned = {name for name in before if not torch.equal(before[name], after[name])}
        encoder = [learned & portion for portion in portions[number]]
        assert [bool(some) for some in encoder] == [part >= (9, 1, 0)[number] for part in range(len(encoder))]
        assert any(not name.startswith("encoder.") for name in learned)  # the head, in all of them


def test_rates_of_parts_that_are_not_known_are_told(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(config, encoder={**SMALL_CNN, "decay": 0.5})
    run.prepare(config)
    assert "encoder.decay" not in capsys.readouterr().err
    monkeypatch.setattr(ConvEncoder, "stages", lambda self: [list(self.parameters())])
    run.prepare(config)
    assert "encoder.decay changes nothing" in capsys.readouterr().err
