"""What a model costs, against what can be counted."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cutline.errors import ModelError
from cutline.evaluation.cost import memory, multiply_adds, parameters, stored_parameters, time_per_picture


@pytest.fixture
def network() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 5))
    return nn.Sequential(*layers)


def test_parameters_and_multiply_adds(network: nn.Module) -> None:
    assert parameters(network) == (3 * 9 + 1) * 8 + 2 * 8 + (2048 + 1) * 5
    before = network[1].running_mean.clone()
    assert multiply_adds(network, torch.ones(1, 3, 16, 16)) == 16 * 16 * 8 * 27 + 2048 * 5
    assert network.training
    assert (network[1].running_mean == before).all()  # counting is no training


def test_parameters_as_they_are_stored(network: nn.Module, tmp_path: Path) -> None:
    tensors = network.state_dict()
    parts = [{k: v for k, v in tensors.items() if k.startswith("0.") is first} for first in (True, False)]
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file, part in zip(files, parts):
        save_file(part, file)
    assert stored_parameters(*files) == parameters(network)
    files[0].write_bytes(b"\xff" * 40)
    with pytest.raises(ModelError, match=r"a\.safetensors"):
        stored_parameters(*files)


def test_time_is_that_of_a_picture() -> None:
    calls: list[float] = []

    def call() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.02)

    found = time_per_picture(call, pictures=4, seconds=0.1, least=3)
    assert 0.005 <= found.low <= found.median <= found.high
    assert found.median < 0.02
    assert len(calls) >= 4  # one of them to warm up


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_memory_is_what_a_call_adds() -> None:
    if memory(lambda: None) is None:
        pytest.skip("this system does not tell")
    held = memory(lambda: np.ones(10_000_000))
    assert held is not None
    assert 79e6 < held < 100e6
