"""Learning in stages, in one run.

Words first, then captions drawn freely, on smaller pictures, with an encoder that stays as it became.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.numpy

Run = Callable[..., "subprocess.CompletedProcess[str]"]

STAGES = """
[[stages]]
[stages.training]
epochs = 2
[[stages]]
[stages.training]
epochs = 2
objective = "self_critical"
rate = 1e-3
[stages.encoder]
train = "nothing"
[stages.pictures]
size = 36
[health]
memory = 0.0001
sample_seconds = 0.2
"""


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    file = tmp_path_factory.mktemp("staged") / "staged.toml"
    changed = tiny_config.read_text().replace("batch = 32", "batch = 12\nema = 0.9\nchoose_search = true")
    changed = changed.replace("[search]", "[search]\nconsensus = 1.0")
    assert "consensus" in changed
    file.write_text(changed + STAGES)
    return file


def command(staged: Path, data: Path, output: Path) -> list[object]:
    return ["train", "--preset", "scenes", "--config", staged, "--data", data, "--output", output]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, staged: Path, scenes_folder: Path, run_cutline: Run) -> Path:
    done = run_cutline(*command(staged, scenes_folder, tmp_path_factory.mktemp("whole")))
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def events(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_stages_follow_each_other_in_one_log(whole: Path) -> None:
    steps = [event for event in events(whole) if event["kind"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 33))  # 96 pictures by 12, four epochs
    first, second = steps[:16], steps[16:]
    assert all(event["loss"] > 0 for event in first)
    assert all(event["loss"] < 0 for event in second)  # a reward, below nought
    assert second[0]["rate"] < second[4]["rate"] == pytest.approx(1e-3, rel=0.2)  # warmed up again
    assert len([event for event in events(whole) if event["kind"] == "validation"]) == 4


@pytest.mark.slow
def test_a_trouble_that_outlasts_a_stage_is_told_once(whole: Path) -> None:
    journal = [json.loads(line) for line in (whole / "journal.jsonl").read_text().splitlines()]
    told = [(entry["kind"], entry["name"]) for entry in journal if entry["kind"].startswith("alert")]
    assert told == [("alert", "memory"), ("alert_over", "memory")]


@pytest.mark.slow
def test_a_stage_may_look_at_pictures_of_another_size(whole: Path) -> None:
    newest = max((whole / "checkpoints").glob("step-*"))
    places = safetensors.numpy.load_file(newest / "model.safetensors")["decoder.values.places"]
    assert places.shape == (9, 48)  # 36 pixels are 3 x 3 regions, the 48 before were 4 x 4


@pytest.mark.slow
def test_the_bundle_searches_as_scored_best_on_validation(whole: Path, run_cutline: Run) -> None:
    told = json.loads((whole / "search.json").read_text())
    names = ("beam", "groups", "length_penalty", "consensus")
    tried = {tuple(each[name] for name in names): each["metric"] for each in told["tried"]}
    assert {tuple(shape) for *shape, _, _ in tried} == {*((n, 1) for n in (1, 2, 3, 5, 10, 20)), (20, 4), (40, 4)}
    assert len({penalty for *_, penalty, _ in tried}) == 5
    assert len({weight for *_, weight in tried}) == 6
    chosen = told["chosen"]
    as_told = {**chosen, "groups": chosen["groups"] if chosen["method"] == "diverse" else 1}
    scored = tried[tuple(as_told[name] for name in names)]
    assert scored == max(tried.values()) > 0
    judged = json.loads(run_cutline("evaluate", whole, "--split", "val", "--format", "json").stdout)
    assert sum(each["cider"] for each in judged.values()) / 2 == pytest.approx(scored, abs=0.01)  # by a real search
    bundle = json.loads((whole / "bundle" / "bundle.json").read_text())
    assert bundle["search"] == chosen
    assert "consensus.npz" in bundle["files"]


@pytest.mark.slow
def test_a_consensus_is_of_the_weights_that_it_goes_with(whole: Path, tmp_path: Path, run_cutline: Run) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (own,) = run.glob("consensus-*.npz")
    assert (run / "checkpoints" / own.stem.removeprefix("consensus-")).is_dir()
    learned = own.read_bytes()
    (run / "consensus-step-00000001.npz").write_bytes(b"of weights that are no longer the best")
    own.unlink()
    done = run_cutline("export", run, "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    assert own.read_bytes() == learned
    assert list(run.glob("consensus-*.npz")) == [own]


@pytest.mark.slow
def test_a_kill_in_the_second_stage_changes_nothing(
    tmp_path: Path, staged: Path, scenes_folder: Path, whole: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cutline", *map(str, command(staged, scenes_folder, tmp_path))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    run = Path(process.stdout.readline().strip())
    deadline = time.monotonic() + 120
    while not ((run / "events.jsonl").exists() and '"step": 22,' in (run / "events.jsonl").read_text()):
        assert time.monotonic() < deadline, "the second stage did not come"
        time.sleep(0.002)
    os.kill(int((run / "worker.lock").read_text().split()[1]), signal.SIGKILL)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    assert "was killed (SIGKILL)" in told
    assert (run / "events.jsonl").read_bytes() == (whole / "events.jsonl").read_bytes()
    newest = [max((each / "checkpoints").glob("step-*")) for each in (run, whole)]
    for name in ("model", "optimizer", "average"):
        one, other = ((path / f"{name}.safetensors").read_bytes() for path in newest)
        assert one == other, name


def test_what_a_stage_may_not_change_is_named(tmp_path: Path, run_cutline: Run) -> None:
    file = tmp_path / "wrong.toml"
    for text, says in (
        ("[[stages]]\n[stages.decoder]\nhidden = 3\n", "stage 1 changes 'decoder'"),
        ("[[stages]]\n[[stages]]\n[stages.training]\nepoks = 3\n", "stage 2: unknown setting 'training.epoks'"),
    ):
        file.write_text(text)
        refused = run_cutline("train", "--config", file, "--print-config")
        assert refused.returncode == 2
        assert says in refused.stderr
