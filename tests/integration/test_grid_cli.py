"""`cutline grid` as a user calls it: runs of real processes, stopped, killed and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cutline.cli import main

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ROWS = """
["no smoothing"]
training.label_smoothing = 0.0
["beam 1"]
search.beam = 1
["consensus"]
search = { consensus = 8.0, beam = 8 }
["nothing to begin from"]
encoder.weights = "nowhere.safetensors"
["two stages"]
stages = [{training = {epochs = 1}}, {training = {epochs = 2}, encoder = {train = "nothing"}}]
"""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--vary", "decoder.kind=lstm,gruu"], "did you mean 'gru'?"),
        (["--vary", "decoder.kinds=lstm,gru"], "unknown setting 'decoder.kinds' (did you mean 'kind'?)"),
        ([], "--vary SETTING=V1,V2,… or --rows FILE, one of the two"),
        (["--seeds", "1"], "or several --seeds alone"),
        (["--vary", "decoder.kind=lstm,gru", "--rows", "rows.toml"], "one of the two"),
        (["--rows", "none.toml"], "none.toml cannot be read"),
        (["--vary", "decoder.kind=lstm,gru", "--seeds", "0,a"], "whole numbers"),
        (["--vary", "decoder.kind=lstm,gru", "--preset", "scene"], "did you mean 'scenes'?"),
        (["--vary", "decoder.kind=lstm,gru", "--data", "no/such/folder"], "no/such/folder"),
        (["--vary", "encoder.name=small,resnt18", "--data", "PICTURES"], "unknown encoder 'resnt18' (did you mean"),
    ],
)
def test_mistakes_are_named_before_anything_is_learned(
    arguments: list[str],
    says: str,
    scenes_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(scenes_folder) if each == "PICTURES" else each for each in arguments]
    assert main(["grid", "--out", "out", *given]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert told.out == ""
    assert not list(tmp_path.glob("out/*/*"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("here already")
    assert main(["grid", "--out", str(tmp_path / "file"), "--vary", "decoder.kind=lstm,gru"]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "here already"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    file = tmp_path_factory.mktemp("small") / "small.toml"
    file.write_text(tiny_config.read_text().replace("captions = 4", "captions = 1").replace("batch = 32", "batch = 12"))
    return file


def of_scenes(small: Path, data: Path) -> list[object]:
    return ["--preset", "scenes", "--config", small, "--data", data]


def runs(out: Path) -> dict[str, Path]:
    """The folder of each run, by the cell and seed that it is of; one each."""
    found = [path.parent for path in out.glob("*/*/config.toml") if not path.parent.is_symlink()]
    assert len({run.parent for run in found}) == len(found)
    return {run.parent.name: run for run in found}


def table(out: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads((out / "table.json").read_text())["rows"]}


def begin(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cutline", "grid", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """A grid takes longer than one command is usually given, on a machine that does other things besides."""
    out, err = process.communicate(timeout=1200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.slow
def test_a_grid_of_rows(tmp_path: Path, small: Path, scenes_folder: Path, run_cutline: Run) -> None:
    """A row that fails is told and does not stop the others; the same again learns nothing twice."""
    file, out = tmp_path / "rows.toml", tmp_path / "grid"
    file.write_text(ROWS)
    base = of_scenes(small, scenes_folder)
    command = [*base, "--rows", file, "--out", out]

    planned = finish(begin(*command, "--dry-run"))
    assert planned.returncode == 1
    assert "nothing to begin from: no weights file" in planned.stdout
    assert "with the weights of base" in planned.stdout
    assert "3 runs, 0:" in planned.stdout
    assert not out.exists()

    done = finish(begin(*command))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    made = runs(out)
    assert set(made) == {"base-seed0", "no-smoothing-seed0", "two-stages-seed0"}
    assert not list(out.glob("nothing-to-begin-from-seed0/*/"))
    assert not list(out.glob("*/*/bundle"))
    told = table(out)
    assert "no weights file nowhere.safetensors" in told["nothing to begin from"]["missing"]["0"]
    assert "no weights file nowhere.safetensors" in done.stdout
    shown = told["two stages"]["seeds"]["0"]
    assert shown["epochs"] == 3
    assert 0 < shown["learning"] < shown["parameters"]  # the encoder rests in the second
    assert shown["memory"] > 10**8
    assert told["base"]["seeds"]["0"]["learning"] == told["base"]["seeds"]["0"]["parameters"]
    assert told["base"]["scores"]["en_cider"]["mean"] > 0
    beam = told["beam 1"]["scores"]
    assert beam.keys() == told["base"]["scores"].keys()
    assert told["consensus"]["scores"]["en_cider"]["mean"] != told["base"]["scores"]["en_cider"]["mean"]
    assert list(made["base-seed0"].glob("consensus-step-*.npz"))
    assert (out / "table.md").read_text().count("\n| ") == 7
    assert all(name in done.stdout for name in told)

    # The base is what `cutline train` makes of the same flags, and a bundle can be made of it later.
    alone = run_cutline("train", *base, "--output", tmp_path / "alone", "--no-bundle")
    assert alone.returncode == 0, alone.stderr
    alone_run = Path(alone.stdout.splitlines()[-1])
    assert not (alone_run / "bundle").exists()
    assert not (alone_run / "report.html").exists()
    assert (alone_run / "events.jsonl").read_bytes() == (made["base-seed0"] / "events.jsonl").read_bytes()
    assert run_cutline("export", made["base-seed0"], "--out", tmp_path / "bundle").returncode == 0

    file.write_text(ROWS.replace('"nowhere.safetensors"', '"none"').replace("nothing to begin from", "at random"))
    assert ", about 0:" in done.stderr  # left
    before = {name: (run / "journal.jsonl").read_bytes() for name, run in made.items()}
    again = finish(begin(*command, "--seeds", "0"))
    assert again.returncode == 0, again.stderr
    assert set(runs(out)) == {*made, "at-random-seed0"}
    assert before == {name: (run / "journal.jsonl").read_bytes() for name, run in made.items()}
    assert table(out)["beam 1"]["scores"] == beam

    refused = finish(begin(*command, "--epochs", 3))
    assert refused.returncode == 2
    assert "another base: training.epochs was 2, now 3" in refused.stderr


@pytest.mark.slow
def test_a_search_scores_what_its_own_run_would(
    tmp_path: Path, small: Path, scenes_folder: Path, run_cutline: Run
) -> None:
    """Where a shared run's best weights are judged with the very same search, the scores are the run's own."""
    base = [*of_scenes(small, scenes_folder), "--epochs", 8, "--batch", 8]
    done = finish(begin(*base, "--vary", "search.beam=1,4", "--seeds", 3, "--quiet", "--out", tmp_path / "a"))
    assert (done.returncode, done.stderr) == (0, "")
    told = table(tmp_path / "a")
    assert told["1"]["scores"] != told["4"]["scores"]
    alone = [*base, "--beam", 4, "--seed", 3, "--output", tmp_path / "b", "--no-bundle"]
    run = Path(run_cutline("train", *alone).stdout.splitlines()[-1])
    validations = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    own = {event["step"]: event for event in validations if event["kind"] == "validation"}
    shared = next((tmp_path / "a").glob("1-seed3/*/events.jsonl"))
    best = [e for line in shared.read_text().splitlines() if (e := json.loads(line)).get("best")][-1]
    assert told["4"]["seeds"]["3"]["scores"]["en_cider"] == pytest.approx(own[best["step"]]["en_cider"], abs=1e-3)


def wait_for_steps(out: Path, cell: str, steps: int) -> Path:
    """Until the run of a cell has taken so many steps; the run."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        for log in out.glob(f"{cell}/2*/events.jsonl"):
            if log.read_text().count('"kind": "step"') >= steps:
                return log.parent
        time.sleep(0.005)
    raise AssertionError(f"{cell} did not come to step {steps}")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Path:
    file = tmp_path_factory.mktemp("long") / "long.toml"
    file.write_text(small.read_text().replace("epochs = 2", "epochs = 6"))
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, long: Path, scenes_folder: Path) -> Path:
    """A grid that nothing has stopped."""
    out = tmp_path_factory.mktemp("whole") / "grid"
    done = finish(begin(*of_scenes(long, scenes_folder), "--vary", "decoder.kind=lstm,gru", "--out", out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_grid_that_was_stopped_or_killed_goes_on(
    number: signal.Signals, tmp_path: Path, long: Path, scenes_folder: Path, whole: Path
) -> None:
    """In the middle of its second run: the first is not learned again, and the second ends as if nothing had been."""
    out = tmp_path / "grid"
    command = [*of_scenes(long, scenes_folder), "--vary", "decoder.kind=lstm,gru", "--out", out]
    process = begin(*command)
    run = wait_for_steps(out, "gru-seed0", 10)
    process.send_signal(number)
    _, told = process.communicate(timeout=200)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert "stopped at gru, seed 0; the same command goes on from there" in told
        assert "Traceback" not in told
    assert table(out)["gru"]["missing"] == {"0": ""}
    assert (run / "events.jsonl").read_text().count('"kind": "step"') < 48, "it was to be stopped before the end"
    first = (runs(out)["lstm-seed0"] / "journal.jsonl").read_bytes()

    done = finish(begin(*command))
    assert done.returncode == 0, done.stderr
    assert runs(out)["gru-seed0"] == run
    assert (runs(out)["lstm-seed0"] / "journal.jsonl").read_bytes() == first
    for name, other in runs(whole).items():
        assert (runs(out)[name] / "events.jsonl").read_bytes() == (other / "events.jsonl").read_bytes()
    assert {name: row["scores"] for name, row in table(out).items()} == {
        name: row["scores"] for name, row in table(whole).items()
    }


@pytest.mark.slow
def test_a_second_grid_in_the_same_folder_waits_its_turn(tmp_path: Path, long: Path, scenes_folder: Path) -> None:
    command = [*of_scenes(long, scenes_folder), "--vary", "decoder.kind=lstm,gru", "--out", tmp_path / "grid"]
    process = begin(*command)
    wait_for_steps(tmp_path / "grid", "lstm-seed0", 1)
    second = finish(begin(*command))
    assert second.returncode == 2
    assert "is in use by process" in second.stderr
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=200)
    assert process.returncode == 143


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy pictures in a folder for each of two colours."""
    place, random = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    for name, colour in (("blue", (0, 0, 250)), ("red", (250, 0, 0))):
        (place / name).mkdir()
        for number in range(20):
            pixels = np.clip(random.normal(np.array(colour) / 2, 60, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / name / f"{number}.png")
    return place


def test_seeds_alone_are_a_grid(tmp_path: Path, coloured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid"
    arguments = ["--task", "classes", "--encoder", "small", "--data", str(coloured), "--epochs", "1", "--seeds", "3,4"]
    assert main(["grid", *arguments, "--dry-run", "--out", str(out)]) == 0
    assert "2 runs" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.slow
def test_a_grid_of_classifiers(tmp_path: Path, coloured: Path) -> None:
    file, out = tmp_path / "classes.toml", tmp_path / "grid"
    file.write_text(
        "threads = 1\n[pictures]\nsize = 24\naugment_mixup = 0.0\n[data]\nval_share = 0.3\ntest_share = 0.0\n"
    )
    done = finish(begin(
        "--task", "classes", "--encoder", "small", "--config", file, "--data", coloured, "--epochs", 2,
        "--batch", 8, "--vary", "classes.head=linear,mlp", "--seeds", "0,1", "--scores", "accuracy,ece", "--out", out,
    ))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(table(out)) == ["linear", "mlp"]
    for row in table(out).values():
        assert {"accuracy", "macro_f1", "ece", "nll"} <= row["scores"].keys()
        assert "top5" not in row["scores"]  # of three classes, all are
        assert row["scores"]["accuracy"]["spread"] is not None
        assert row["seeds"]["0"]["pictures"] == 12
    assert len(runs(out)) == 4
    heading = (out / "table.md").read_text().splitlines()[0]
    assert heading.startswith("| head | accuracy | calibration | learned |")
    assert "BLEU" not in done.stdout
