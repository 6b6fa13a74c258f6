"""Which GPU each of several processes has, before any of them is touched."""

from __future__ import annotations

import pytest
import torch

from cutline.config import Config
from cutline.engine.ranks import joined
from cutline.engine.watch import RUN
from cutline.errors import ConfigError


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As our own supervisor starts them, on a machine with one GPU."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", RUN: "run"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return monkeypatch


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_two_processes_on_one_gpu_are_refused(two_processes: pytest.MonkeyPatch, device: str) -> None:
    with (
        pytest.raises(ConfigError, match=f"2 processes on 1 GPUs, with the device '{device}'"),
        joined(Config(device=device)),
    ):
        pass


def test_so_are_two_processes_on_a_gpu_that_is_named(two_processes: pytest.MonkeyPatch) -> None:
    two_processes.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(ConfigError, match="'cuda:3'"), joined(Config(device="cuda:3")):
        pass


def test_a_launcher_may_show_each_process_a_gpu_of_its_own(two_processes: pytest.MonkeyPatch) -> None:
    two_processes.delenv(RUN)
    taken: list[int] = []
    two_processes.setattr(torch.cuda, "set_device", taken.append)

    def stop(*_: object, **__: object) -> None:
        raise InterruptedError("far enough")

    two_processes.setattr(torch.distributed, "init_process_group", stop)
    with pytest.raises(InterruptedError), joined(Config()):
        pass
    assert taken == [0]
