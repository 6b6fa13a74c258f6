"""Several processes that learn as one: the same order, the same curve, one log, one checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cutline.engine import runs

Run = Callable[..., "subprocess.CompletedProcess[str]"]

TOLERANCE = 1e-4
"""Of the loss, relative: floats are added up in another order, and nothing else differs."""


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """Settings under which nothing is random but the order: no dropout; and no batch norm that learns.

    Dropout draws other numbers in each process, and batch norm sees its own process's share only.
    """
    text = tiny_config.read_text().replace("hidden = 48", "hidden = 48\ndropout = 0.0")
    text = text.replace("save_steps = 3", "save_steps = 3\nfeatures = false\naccumulate = 2").replace(
        "batch = 32", "batch = 10"
    )
    file = tmp_path_factory.mktemp("still") / "still.toml"
    file.write_text(text + '\n[encoder]\nname = "small"\ntrain = "nothing"\n')
    return file


def trained(run_cutline: Run, config: Path, data: Path, output: Path, *flags: object) -> Path:
    done = run_cutline("train", "--preset", "scenes", "--config", config, "--data", data, "--output", output, *flags)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, still: Path, scenes_folder: Path, run_cutline: Run) -> Path:
    return trained(run_cutline, still, scenes_folder, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, still: Path, scenes_folder: Path, run_cutline: Run) -> Path:
    return trained(run_cutline, still, scenes_folder, tmp_path_factory.mktemp("two"), "--processes", 2)


def events(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def same_curve(one: Path, two: Path, figures: tuple[str, ...] = ("loss", "norm")) -> None:
    steps = [[e for e in events(run) if e["kind"] == "step"] for run in (one, two)]
    assert len(steps[0]) == len(steps[1]) == 10
    for alone, together in zip(*steps, strict=True):
        for figure in figures:
            assert together[figure] == pytest.approx(alone[figure], rel=TOLERANCE)
        assert together["rate"] == alone["rate"]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(one: Path, two: Path) -> None:
    """96 pictures in batches of 10, two batches a step: shares of 5 and 5, and of 3 and 3 in the last one."""
    same_curve(one, two)


@pytest.mark.slow
def test_kernels_learn_by_muon_in_two_processes_as_in_one(
    tmp_path: Path, still: Path, scenes_folder: Path, run_cutline: Run
) -> None:
    """In an encoder that norms each picture by itself.

    Its rectifiers tip over where floats are added up in another order: norms of gradients were equal to 7 digits at
    first and to 3 at the end, losses to 5.
    """
    text = still.read_text().replace("accumulate = 2", 'accumulate = 2\noptimizer = "muon"')
    config = tmp_path / "muon.toml"
    config.write_text(
        text.replace('"small"\ntrain = "nothing"', '"cnn:width=8,depth=1,stages=3,norm=group"\ntrain = "all"')
    )
    runs = [trained(run_cutline, config, scenes_folder, tmp_path / str(n), "--processes", n) for n in (1, 2)]
    same_curve(*runs, figures=("loss",))


@pytest.mark.slow
def test_all_validation_pictures_are_scored_once(one: Path, two: Path) -> None:
    scores = [[e for e in events(run) if e["kind"] == "validation"] for run in (one, two)]
    for alone, together in zip(*scores, strict=True):
        assert together["en_count"] == alone["en_count"] == 12
        assert {k: v for k, v in together.items() if "_" in k} == pytest.approx(
            {k: v for k, v in alone.items() if "_" in k},
            abs=2,  # a word may tip over
        )


@pytest.mark.slow
def test_a_checkpoint_is_written_once(two: Path) -> None:
    saved = [json.loads(line) for line in (two / "journal.jsonl").read_text().splitlines()]
    paths = [entry["path"] for entry in saved if entry["kind"] == "saved"]
    assert len(paths) == len(set(paths)) > 2
    assert not list((two / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_another_number_of_processes_is_named_and_refused(
    tmp_path: Path, two: Path, still: Path, run_cutline: Run
) -> None:
    run = shutil.copytree(two, tmp_path / "run")
    refused = run_cutline("train", "--resume", run, "--processes", 1)
    assert refused.returncode == 2
    assert "2 processes learned together, now 1" in refused.stderr


@pytest.mark.slow
def test_another_number_of_processes_may_be_allowed(tmp_path: Path, two: Path, run_cutline: Run) -> None:
    run = shutil.copytree(two, tmp_path / "run")
    allowed = run_cutline("train", "--resume", run, "--processes", 1, "--allow-changes")
    assert allowed.returncode == 0, allowed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_torchrun_does_as_well(
    processes: int, tmp_path: Path, still: Path, scenes_folder: Path, one: Path, two: Path
) -> None:
    """Plain torchrun, which starts the processes by itself: the same log as under our own supervisor, byte for byte."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        "-m", "cutline", "train", "--preset", "scenes", "--config", still, "--data", scenes_folder,
        "--output", tmp_path,
    ]  # fmt: skip
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.splitlines()[-1])
    expected = {1: one, 2: two}[processes]
    assert (run / "events.jsonl").read_bytes() == (expected / "events.jsonl").read_bytes()
    seen = runs.Run(run)
    assert (seen.state, seen.history.starts) == ("finished", 1)
    assert seen.spent > 0


CHANGED = """
import os, runpy, sys
second = os.environ["RANK"] == "1"
{change}
sys.argv[0] = "cutline"
runpy.run_module("cutline", run_name="__main__")
"""


def under_torchrun(place: Path, config: Path, data: Path | str, change: str) -> subprocess.CompletedProcess[str]:
    """`cutline train` in two processes, after a `change` that may be of one of them."""
    (place / "changed.py").write_text(CHANGED.format(change=change))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(place / "changed.py"), "train", "--preset", "scenes", "--config", str(config), "--data", str(data)]
    command += ["--output", str(place / "runs")]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=place)


@pytest.mark.slow
def test_machines_that_do_not_see_the_same_data_do_not_begin(tmp_path: Path, still: Path, scenes_folder: Path) -> None:
    for name in ("one", "other"):
        shutil.copytree(scenes_folder, tmp_path / name / "data")
    rows = (tmp_path / "other" / "data" / "scenes.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other" / "data" / "scenes.jsonl").write_text("".join(rows[:-1]))
    done = under_torchrun(tmp_path, still, "data", "os.chdir('other' if second else 'one')")
    assert done.returncode != 0
    said = "the processes do not see the same pictures and captions: 96 to learn from"
    assert done.stderr.count(said) == 1, "what all have to say is said once"


@pytest.mark.slow
def test_what_stops_one_of_the_ranks_is_said(tmp_path: Path, still: Path, scenes_folder: Path) -> None:
    shutil.copytree(scenes_folder, tmp_path / "data")
    done = under_torchrun(tmp_path, still, "data", "os.chdir('/' if second else '.')")
    assert done.returncode != 0
    assert "rank 1: there is no data" in done.stderr


@pytest.mark.slow
def test_smaller_parts_of_one_rank_are_remembered_for_all(tmp_path: Path, still: Path, scenes_folder: Path) -> None:
    change = """
import torch
from cutline.engine.trainer import Trainer
part, failures = Trainer._part, [0] * second
def fail_once(*arguments):
    if failures:
        failures.pop()
        raise torch.OutOfMemoryError("CUDA out of memory")
    return part(*arguments)
Trainer._part = fail_once
"""
    done = under_torchrun(tmp_path, still, scenes_folder, change)
    assert done.returncode == 0, done.stderr
    assert "batches are now learned from in 2 parts" in done.stderr
    run = Path(done.stdout.splitlines()[-1])
    assert json.loads(next((run / "checkpoints").glob("step-*/state.json")).read_text())["progress"]["split"] == 2
