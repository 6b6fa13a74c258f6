"""`cutline compare` as a user calls it: on runs of which only what it reads is there, and on a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

Run = Any


def make(folder: Path, *, seed: int = 0, data: str = "same", rate: float = 1e-3, **scores: float) -> Path:
    """A run with a checkpoint of 1,000 parameters and statistics beside them, and two validations."""
    step = folder / "checkpoints" / "step-00000007"
    step.mkdir(parents=True)
    (folder / "run.json").write_text('{"id": "x"}')
    (folder / "config.toml").write_text(f'seed = {seed}\noutput = "{folder}"\n[training]\nrate = {rate}\n')
    worse = {name: value / 2 for name, value in scores.items()}
    events = [
        {"kind": "validation", "step": 7, "best": True, "count": 200, **scores},
        {"kind": "validation", "step": 8, "best": False, "count": 200, **worse},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    tensors = {"a.weight": np.zeros((10, 80), np.float32), "a.running_mean": np.zeros(50, np.float32)}
    save_file(tensors, step / "model.safetensors")
    save_file({"weight": np.zeros(200, np.float32)}, folder / "encoder-0.safetensors")
    (step / "manifest.json").write_text("{}")
    (step / "state.json").write_text(json.dumps({"data": {"hash": data}, "progress": {"stage": 0}}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make(tmp_path / "a", seed=0, accuracy=60.0, top5=90.0)
    make(tmp_path / "b", seed=1, accuracy=64.0, top5=92.0)
    make(tmp_path / "c", seed=0, rate=1e-2, accuracy=70.0, top5=95.0)
    return tmp_path


def test_the_best_comes_first_and_seeds_are_taken_together(run_cutline: Run, runs: Path) -> None:
    done = run_cutline("compare", runs)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["c", "b", "a"]
    assert "0.00 M" in lines[1]
    assert "small, 2 seeds: accuracy 62.0 ± 25.4, best five 91.0 ± 12.7" in done.stdout
    assert "an accuracy of 70.0 means 63.3 to 75.9" in done.stdout
    assert "cannot be compared" not in done.stdout


def test_all_that_is_known_as_json(run_cutline: Run, runs: Path) -> None:
    found = json.loads(run_cutline("compare", runs / "a", runs / "b", "--format", "json", "--no-time").stdout)
    assert [run["name"] for run in found["runs"]] == ["b", "a"]
    assert found["runs"][0]["parameters"] == 1000
    assert found["runs"][0]["scores"] == {"accuracy": 64.0, "best five": 92.0}
    assert found["runs"][0]["time"] is None
    assert found["seeds"][0]["runs"] == ["b", "a"]


def test_runs_on_other_data_are_not_compared_without_a_word(run_cutline: Run, runs: Path) -> None:
    make(runs / "d", data="other", accuracy=99.0)
    done = run_cutline("compare", runs, "--no-time")
    assert "not scored on the same pictures" in done.stdout


def test_best_is_by_accuracy_whatever_else_is_there(run_cutline: Run, tmp_path: Path) -> None:
    make(tmp_path / "a", accuracy=40.0, top5=100.0, ece=30.0)
    make(tmp_path / "b", accuracy=95.0, top5=100.0, ece=2.0, rate=1e-2)
    found = json.loads(run_cutline("compare", tmp_path, "--format", "json", "--no-time").stdout)
    assert [run["name"] for run in found["runs"]] == ["b", "a"]


def test_an_accuracy_is_as_sure_as_the_pictures_with_a_label_are_many(run_cutline: Run, tmp_path: Path) -> None:
    make(tmp_path / "a", accuracy=60.0, en_cider=40.0, en_count=5000)
    done = run_cutline("compare", tmp_path, "--no-time")
    assert "of 200 pictures, an accuracy of 60.0 means 53.1 to 66.5" in done.stdout


def test_best_of_several_languages_is_by_their_mean(run_cutline: Run, tmp_path: Path) -> None:
    make(tmp_path / "a", en_cider=60.0, de_cider=20.0, en_bleu_4=20.0)
    make(tmp_path / "b", en_cider=50.0, de_cider=45.0, en_bleu_4=70.0, rate=1e-2)
    make(tmp_path / "c", en_cider=40.0, de_cider=20.0, en_bleu_4=99.0, rate=1e-1)
    found = json.loads(run_cutline("compare", tmp_path, "--format", "json", "--no-time").stdout)
    assert [run["name"] for run in found["runs"]] == ["b", "a", "c"]


def test_the_same_seed_twice_tells_nothing_of_luck(run_cutline: Run, runs: Path) -> None:
    make(runs / "again", seed=1, accuracy=64.0, top5=92.0)
    found = json.loads(run_cutline("compare", runs, "--format", "json").stdout)
    assert [len(group["runs"]) for group in found["seeds"]] == [2]


def test_runs_of_which_little_is_left(run_cutline: Run, runs: Path) -> None:
    (runs / "a" / "checkpoints" / "step-00000007" / "model.safetensors").write_bytes(b"damaged")
    (runs / "b" / "events.jsonl").unlink()
    (runs / "c" / "checkpoints" / "step-00000007" / "state.json").write_text("{")
    done = run_cutline("compare", runs)
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()[1:4]} == {"a", "b", "c"}


def test_mistakes_get_an_answer_and_no_traceback(run_cutline: Run, runs: Path) -> None:
    (runs / "empty").mkdir()
    for arguments, words in (
        ([runs / "absent"], "there is no"),
        ([runs / "empty"], "holds no run"),
        ([runs, "--fromat", "json"], "--format"),
        ([], "there is no runs"),
    ):
        done = run_cutline("compare", *arguments)
        assert done.returncode == 2, arguments
        assert words in done.stderr.lower(), arguments
        assert "Traceback" not in done.stderr


def test_a_real_run_with_its_time(run_cutline: Run, tiny_run: Path) -> None:
    (found,) = json.loads(run_cutline("compare", tiny_run, "--format", "json").stdout)["runs"]
    assert found["model"] == "small + lstm"
    assert {"CIDEr-D en", "CIDEr-D de", "BLEU-4 en", "BLEU-4 de"} == set(found["scores"])
    assert 10_000 < found["parameters"] < 1_000_000
    assert found["bytes"] > 4 * found["parameters"] / 2
    assert 0 < found["time"]["low"] <= found["time"]["median"] < 1


def test_of_two_runs_with_the_same_seed_the_newest_counts(run_cutline: Run, tmp_path: Path) -> None:
    make(tmp_path / "20260101-better", seed=0, accuracy=66.0)
    make(tmp_path / "20260102-worse", seed=0, accuracy=60.0)
    make(tmp_path / "20260103-other", seed=1, accuracy=62.0)
    found = json.loads(run_cutline("compare", tmp_path, "--format", "json", "--no-time").stdout)
    assert found["seeds"][0]["scores"]["accuracy"]["mean"] == 61.0
