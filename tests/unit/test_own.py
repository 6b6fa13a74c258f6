"""Networks of our own: what a name asks for is what is built, and it learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cutline.config import EncoderConfig, PicturesConfig
from cutline.errors import ConfigError
from cutline.models.classifier import Classifier
from cutline.models.encoders import Encoder, build_encoder


def build(name: str, size: int = 0) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(name=name, weights="none"), PicturesConfig(size=size))


def pictures(encoder: Encoder, count: int = 3) -> torch.Tensor:
    side = encoder.transform.size
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "size", "grid", "channels"),
    [
        ("cnn", 0, 4, 512),
        ("cnn:width=16,depth=2,stages=3", 0, 8, 64),
        ("cnn:width=16,stages=2,stride=1", 33, 17, 32),
        ("cnn:width=16,stages=2,stride=4", 50, 7, 32),
        ("cnn:width=16,stages=2,residual=false,norm=group", 0, 16, 32),
        ("cnn:width=16,stages=1,norm=none", 0, 32, 16),
        ("dnn:hidden=40,layers=2", 24, 1, 40),
    ],
)
def test_shapes_are_as_the_name_says(name: str, size: int, grid: int, channels: int) -> None:
    encoder = build(name, size)
    found = encoder(pictures(encoder))
    assert found.grid.shape == (3, grid**2, channels)
    assert found.pooled.shape == (3, channels)
    assert (encoder.grid_side, encoder.channels, encoder.pooled_channels) == (grid, channels, channels)
    everything = [parameter for stage in encoder.stages() for parameter in stage]
    assert {id(p) for p in everything} == {id(p) for p in encoder.parameters()}
    assert all(p.requires_grad for p in everything), "it learns from scratch"


def test_settings_make_the_network() -> None:
    count = {kind: sum(isinstance(m, kind) for m in build("cnn").modules()) for kind in (nn.Conv2d, nn.BatchNorm2d)}
    assert count == {nn.Conv2d: 1 + 4 * 2 + 3, nn.BatchNorm2d: 1 + 4 * 2}
    plain = build("cnn:residual=false,norm=none,depth=2")
    assert sum(isinstance(m, nn.Conv2d) for m in plain.modules()) == 1 + 4 * 2 * 2
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    assert [m.p for m in build("dnn:dropout=0.3").modules() if isinstance(m, nn.Dropout)] == [0.3] * 3


def test_a_residual_block_passes_on_what_it_gets() -> None:
    encoder = build("cnn:width=8,stages=1")
    block = encoder.parts[1][0]  # type: ignore[index, union-attr]
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block.eval()(x), x.relu())


@pytest.mark.parametrize("width", [8, 40, 56])
def test_group_norm_takes_any_width(width: int) -> None:
    encoder = build(f"cnn:width={width},stages=2,norm=group", 16)
    assert encoder(pictures(encoder)).pooled.shape == (3, 2 * width)


@pytest.mark.parametrize("name", ["dnn:hidden=8", "cnn:width=8,stages=5", "resnet10t"])
def test_one_picture_alone_can_be_learned_from(name: str) -> None:
    """Where a batch norm has one value for each channel of a picture, as a last batch of one picture has it."""
    encoder = build(name, 16)
    classifier = Classifier(encoder, nn.Linear(encoder.pooled_channels, 2)).train()
    classifier((pictures(encoder, 1),)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in classifier.parameters())
    norms = [m for m in classifier.train().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    classifier((pictures(encoder, 3),))
    assert all(norm.training for norm in norms)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cnn:widht=3", "did you mean 'width'"),
        ("cnn:norm=layer", "norm=layer"),
        ("cnn:depth=0", "depth=0"),
        ("cnn:residual=1", "residual=1"),
        ("dnn:dropout=1", "dropout=1"),
        ("dnn:layers=two", "layers=two"),
        ("cnn:width", "is no argument"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(name)


@pytest.mark.parametrize("name", ["cnn:width=8,stages=2", "cnn:width=8,stages=2,norm=group", "dnn:hidden=32,dropout=0"])
def test_it_learns_and_recomputing_changes_nothing(name: str) -> None:
    encoder = build(name, 16)
    given = pictures(encoder, 12)
    wanted = (given.float().mean((1, 2, 3)) > 127).float()
    head = nn.Linear(encoder.pooled_channels, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 1e-2)
    losses = []
    for _ in range(30):
        loss = nn.functional.binary_cross_entropy_with_logits(head(encoder(given).pooled)[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    encoder.eval()
    before = encoder(given).pooled
    encoder.checkpoint(True)
    torch.testing.assert_close(encoder(given).pooled, before)
