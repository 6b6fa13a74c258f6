"""Checkpoints are whole or not there, and a damaged one is never taken for a whole one."""

import json
from pathlib import Path

import pytest
import torch

from cutline.engine import checkpoint
from cutline.errors import ModelError


def save(folder: Path, step: int) -> checkpoint.Checkpoint:
    torch.manual_seed(step)
    return checkpoint.save(folder, step, {"model": {"w": torch.randn(3, 4), "b": torch.arange(5)}}, {"step": step})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 12)
    found = checkpoint.latest(tmp_path)
    torch.manual_seed(12)
    assert found.step == 12
    assert found.state == {"step": 12}
    assert torch.equal(found.tensors("model")["w"], torch.randn(3, 4))
    assert torch.equal(found.tensors("model")["b"], torch.arange(5))


def test_one_bit_flipped_anywhere_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    for file in sorted(newest.path.iterdir()):
        whole = file.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << (position % 8)
            file.write_bytes(damaged)
            # A flip inside the manifest's own spacing or hash text must be noticed as well.
            found = checkpoint.latest(tmp_path)
            assert found.step == 1, f"{file.name}, byte {position}"
        file.write_bytes(whole)
    assert checkpoint.latest(tmp_path).step == 2


def test_cut_short_or_missing_files_are_named(tmp_path: Path) -> None:
    saved = save(tmp_path, 3)
    file = saved.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "model.safetensors has" in checkpoint.problem(saved.path)
    file.unlink()
    assert checkpoint.problem(saved.path) == "model.safetensors is missing"
    (saved.path / "manifest.json").unlink()
    assert checkpoint.problem(saved.path) == "manifest.json is missing"
    with pytest.raises(ModelError, match=r"step-00000003: manifest.json is missing"):
        checkpoint.latest(tmp_path)


def test_a_checkpoint_of_another_step_is_refused(tmp_path: Path) -> None:
    saved = save(tmp_path, 3)
    saved.path.rename(tmp_path / "step-00000009")
    assert "holds step 3" in checkpoint.problem(tmp_path / "step-00000009")


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        newest = save(tmp_path, step)
    (tmp_path / ".step-00000005.77.tmp").mkdir()
    checkpoint.retain(tmp_path, newest, 2, {1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003", "step-00000004"]


def test_nothing_is_removed_when_the_newest_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    manifest = newest.path / "manifest.json"
    broken = json.loads(manifest.read_text())
    broken["files"]["state.json"]["xxh3"] = "0" * 32
    manifest.write_text(json.dumps(broken))
    with pytest.raises(ModelError, match="already damaged"):
        checkpoint.retain(tmp_path, newest, 1, set())
    assert checkpoint.latest(tmp_path).step == 1


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 1)
    again = checkpoint.save(tmp_path, 1, {"model": {"w": torch.zeros(1)}}, {"again": True})
    assert checkpoint.latest(tmp_path).state == {"again": True}
    assert [path.name for path in tmp_path.iterdir()] == [again.path.name]


def test_an_optimizer_survives_the_trip(tmp_path: Path) -> None:
    def build() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 3)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def learn(layer: torch.nn.Linear, optimizer: torch.optim.AdamW) -> None:
        optimizer.zero_grad()
        layer(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    layer, optimizer = build()
    learn(layer, optimizer)
    tensors, groups = checkpoint.pack_optimizer(optimizer)
    saved = checkpoint.save(tmp_path, 1, {"model": layer.state_dict(), "optimizer": tensors}, {"groups": groups})
    other, second = build()
    other.load_state_dict(saved.tensors("model"))
    checkpoint.unpack_optimizer(second, saved.tensors("optimizer"), saved.state["groups"])
    learn(layer, optimizer)
    learn(other, second)
    assert torch.equal(layer.weight, other.weight)
