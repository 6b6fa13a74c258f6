"""Steps that are as long in rare directions as in common ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.coloured import SMALL_CNN, changed, trainer_of
from torch import nn

from cutline.config import Config
from cutline.engine import run
from cutline.engine.loop import train
from cutline.engine.muon import ROUNDS, Muon, even, suits
from cutline.engine.resume import resume
from cutline.engine.weights import parameter_groups
from cutline.errors import ConfigError

SETTINGS = {"lr": 0.01, "weight_decay": 0.05}


def group(parameters: list[nn.Parameter], muon: bool) -> dict[str, object]:
    return {"params": parameters, "muon": muon, **SETTINGS}


def kernel(*shape: int) -> nn.Parameter:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return nn.Parameter(drawn.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("shape", [(16, 90), (90, 16), (24, 24)])
def test_every_direction_counts_about_the_same_and_stays_what_it_is(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(kernel(*shape, 1, 1).detach().flatten(1), full_matrices=False)
    lengths = torch.logspace(0, -1.5, len(right))  # the rarest a thirtieth of the commonest
    made = even(left * lengths @ right)
    assert made.shape == shape
    within = left.mT @ made @ right.mT
    assert within.diagonal().min() > 0.6
    assert within.diagonal().max() < 1.25
    assert (within - within.diagonal().diag()).abs().max() < 1e-3
    torch.testing.assert_close(made, left @ within @ right, atol=1e-3, rtol=0)


def test_nothing_learned_is_nothing_moved() -> None:
    assert not even(torch.zeros(8, 20)).any()


@pytest.mark.parametrize("shape", [(24, 16, 1, 1), (12, 20, 1, 1)])
def test_a_matrix_moves_as_under_the_muon_of_pytorch(shape: tuple[int, ...]) -> None:
    """Which rounds to bf16 within a step, and so is only near."""
    own, other = kernel(*shape), nn.Parameter(kernel(*shape).detach().flatten(1))
    begun = other.detach().clone()
    one = Muon([group([own], True)])
    two = torch.optim.Muon([other], **SETTINGS, adjust_lr_fn="match_rms_adamw", ns_steps=ROUNDS)
    draw = torch.Generator().manual_seed(1)
    for _ in range(6):
        gradient = torch.randn(other.shape, generator=draw)
        own.grad, other.grad = gradient.view(shape).clone(), gradient.clone()
        one.step()
        two.step()
    moved, wanted = own.detach().flatten(1) - begun, other.detach() - begun
    assert (moved - wanted).norm() < 0.02 * wanted.norm()


def test_what_does_not_suit_it_learns_as_by_adamw() -> None:
    parameters = [kernel(8, 5, 3, 3), kernel(8, 3, 3, 3), kernel(8, 1, 3, 3), nn.Parameter(torch.ones(6, 8))]
    assert [suits(each) for each in parameters] == [True, False, False, False]
    others = [nn.Parameter(each.detach().clone(memory_format=torch.preserve_format)) for each in parameters]
    one = Muon([group(parameters[:1], True), group(parameters[1:], False)], fused=True)
    two = torch.optim.AdamW(others, **SETTINGS, fused=True)
    for _ in range(3):
        for each in [*parameters, *others]:
            each.grad = each.detach().sin()
        one.step()
        two.step()
    same = [torch.equal(each, other) for each, other in zip(parameters, others, strict=True)]
    assert same == [False, True, True, True]


def test_a_step_that_overflows_moves_nothing() -> None:
    parameter, plain = kernel(8, 5, 3, 3), nn.Parameter(torch.ones(4, 4))
    before = parameter.detach().clone()
    optimizer = Muon([group([parameter], True), group([plain], False)], fused=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(math.inf * (parameter.sum() + plain.sum())).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert torch.equal(parameter, before)
    assert torch.equal(plain, torch.ones(4, 4))
    assert not optimizer.state


def test_only_convolutions_that_mix_channels_are_moved_so_in_a_run(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(config, encoder=SMALL_CNN, training={"optimizer": "muon", "rate": 0.01})
    prepared = run.prepare(config)
    trainer = run.trainer(prepared, run.create(prepared))
    names = {id(parameter): name for name, parameter in trainer.task.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    evenly = {names[id(p)] for each in groups if each["muon"] for p in each["params"]}
    assert len(evenly) == 5
    assert all("conv" in name or "past" in name for name in evenly)
    assert sum(len(each["params"]) for each in groups) == len(names)
    assert "as by adamw" not in capsys.readouterr().err
    run.prepare(changed(config, encoder={"name": "dnn:hidden=8"}))
    assert "no convolutions that learn, and so all of it learns as by adamw" in capsys.readouterr().err
    plain = replace(config, training=replace(config.training, optimizer="adamw"))
    assert not any(each["muon"] for each in parameter_groups(trainer.task.model, plain))


@pytest.mark.parametrize("first", ["adamw", "muon"])
def test_one_optimizer_does_not_go_on_with_what_another_has_noted(config: Config, first: str) -> None:
    """Also where their groups are as many: of this encoder only kernels that suit it learn, and scales."""
    config = changed(config, encoder=SMALL_CNN | {"train": "stage2"}, training={"optimizer": first})
    begun = trainer_of(config)
    train(begun, quiet=True)
    other = "muon" if first == "adamw" else "adamw"
    after = run.trainer(run.prepare(changed(config, training={"optimizer": other}), quiet=True), begun.run)
    assert len(after.optimizer.param_groups) == len(begun.optimizer.param_groups)
    with pytest.raises(ConfigError, match="what one optimizer knows is of no use to another"):
        resume(after, allow_changes=True, quiet=True)
