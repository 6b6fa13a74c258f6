"""A snapshot is a copy of its moment, is already the file, and uses the same memory each time."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from cutline.engine.checkpoint import Checkpoints
from cutline.engine.snapshot import Snapshot, has, pack_optimizer, tensors, unpack_optimizer


def every_kind() -> dict[str, Tensor]:
    """Every number format, in an order that would misalign them, and every awkward shape."""
    torch.manual_seed(0)
    kinds = [torch.bool, torch.float64, torch.uint8, torch.bfloat16, torch.int64, torch.int8]
    kinds += [torch.float32, torch.int16, torch.float16, torch.int32]
    found = {str(kind): torch.randint(0, 2, (3, 5)).to(kind) for kind in kinds}
    found |= {f"one of {kind}": torch.ones((), dtype=kind) for kind in kinds}
    found |= {f"none of {kind}": torch.zeros(0, 7, dtype=kind) for kind in kinds}
    found |= {"turned": torch.randn(4, 6).t(), "strided": torch.randn(9)[::2], "spread": torch.randn(3, 1).expand(3, 4)}
    tied = torch.nn.Parameter(torch.randn(2, 3))
    return found | {"tied": tied, "tied too": tied, 'a "name" \\ with é': torch.arange(3)}


def load(data: memoryview) -> dict[str, Tensor]:
    return safetensors.torch.load(bytes(data))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Names, number formats, shapes and every bit."""
    return one.keys() == other.keys() and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.detach(), b.detach())
        for a, b in ((one[key], other[key]) for key in one)
    )


def address(data: memoryview) -> int:
    return torch.frombuffer(data, dtype=torch.uint8).data_ptr()


def test_the_bytes_are_safetensors_files() -> None:
    files = Snapshot().take({"model": every_kind(), "average": {"w": torch.randn(2)}, "nothing": {}})
    assert list(files) == ["model.safetensors", "average.safetensors", "nothing.safetensors"]
    assert same(load(files["model.safetensors"]), every_kind())
    assert load(files["nothing.safetensors"]) == {}


def test_special_numbers_keep_their_bits() -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    odd.view(torch.int32)[0] |= 0x1234  # what a NaN carries
    back = load(Snapshot().take({"m": {"odd": odd}})["m.safetensors"])["odd"]
    assert torch.equal(back.view(torch.int32), odd.view(torch.int32))


def test_what_is_saved_comes_back_from_disk(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "a-run")
    checkpoints.write(1, Snapshot().take({"model": every_kind()}))
    saved = checkpoints.latest()
    assert has(saved, "model")
    assert not has(saved, "optimizer")
    assert same(tensors(saved, "model"), every_kind())


def test_a_snapshot_is_of_its_moment() -> None:
    weights = {"w": torch.ones(1000)}
    data = Snapshot().take({"model": weights})["model.safetensors"]
    weights["w"].zero_()
    assert torch.equal(load(data)["w"], torch.ones(1000))


def test_half_a_copy_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, copyto, failed = threading.get_ident(), np.copyto, threading.Event()

    def fails_elsewhere(place: np.ndarray, value: np.ndarray) -> None:
        if threading.get_ident() != mine:
            failed.set()
            raise MemoryError
        assert failed.wait(10)
        copyto(place, value)

    monkeypatch.setattr(np, "copyto", fails_elsewhere)
    with pytest.raises(MemoryError):
        Snapshot().take({"model": {f"w{number}": torch.ones(10) for number in range(4)}})


def test_memory_is_used_again() -> None:
    snapshot = Snapshot()
    weights = {"w": torch.zeros(100, 100), "b": torch.zeros(5)}
    first = snapshot.take({"model": weights})["model.safetensors"]
    weights["w"].fill_(7)
    second = snapshot.take({"model": weights})["model.safetensors"]
    assert address(first) == address(second)
    assert len(first) == len(second)
    assert same(load(second), weights)


def test_memory_is_laid_out_again_when_the_tensors_change() -> None:
    snapshot = Snapshot()
    for weights in (
        {"w": torch.randn(4, 4)},
        {"w": torch.randn(2, 8)},
        {"w": torch.randn(2, 8).double()},
        {"v": torch.randn(2, 8).double()},
        {"v": torch.randn(2, 8).double(), "w": torch.randn(1)},
        {},
    ):
        assert same(load(snapshot.take({"model": weights})["model.safetensors"]), weights)


def test_groups_come_and_go() -> None:
    snapshot = Snapshot()
    snapshot.take({"model": {"w": torch.ones(2)}, "average": {"w": torch.ones(2)}})
    assert list(snapshot.take({"model": {"w": torch.zeros(2)}})) == ["model.safetensors"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_from_a_gpu() -> None:
    weights = {
        "w": torch.randn(1000, 100, device="cuda"),
        "step": torch.tensor(3.0),
        "turned": torch.randn(5, 3).cuda().t(),
    }
    snapshot = Snapshot()
    for _ in range(2):
        weights["w"].normal_()
        data = snapshot.take({"model": weights})["model.safetensors"]
        assert same(load(data), {key: value.cpu() for key, value in weights.items()})


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_optimizer_survives_the_trip(tmp_path: Path, steps: int) -> None:
    def build() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 3)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def learn(layer: torch.nn.Linear, optimizer: torch.optim.AdamW) -> None:
        optimizer.zero_grad()
        layer(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    layer, optimizer = build()
    for _ in range(steps):
        learn(layer, optimizer)
    checkpoints = Checkpoints(tmp_path, "a-run")
    checkpoints.write(1, Snapshot().take({"model": layer.state_dict(), "optimizer": pack_optimizer(optimizer)}))
    saved = checkpoints.latest()
    other, second = build()
    other.load_state_dict(tensors(saved, "model"))
    unpack_optimizer(second, tensors(saved, "optimizer"), optimizer.state_dict()["param_groups"])
    learn(layer, optimizer)
    learn(other, second)
    assert torch.equal(layer.weight, other.weight)


def test_a_fused_step_is_the_plain_one_wherever_weights_lie_in_memory() -> None:
    """It goes through memory place by place, so what it notes of a parameter must lie as the parameter does."""

    def trained(**how: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.Conv2d(5, 4, 3))
        model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **how)
        for step in range(6):
            pictures = torch.randn(2, 3, 8, 8)
            optimizer.zero_grad()
            model(pictures).square().mean().backward()
            optimizer.step()
            if step == 2:
                saved = load(Snapshot().take({"optimizer": pack_optimizer(optimizer)})["optimizer.safetensors"])
                groups = optimizer.state_dict()["param_groups"]
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **how)
                unpack_optimizer(optimizer, saved, groups)
        return {name: value.detach() for name, value in model.named_parameters()}

    plain, fused = trained(foreach=False), trained(fused=True)
    assert all(torch.allclose(plain[name], fused[name], atol=1e-6) for name in plain)
