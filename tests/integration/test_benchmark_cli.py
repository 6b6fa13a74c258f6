"""`cutline benchmark classify` as people run it: whole, again, stopped and gone on with, and with given weights."""

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

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SMALL = """
threads = 1
device = "cpu"
[training]
batch = 32
"""
NETWORK = "cnn:width=8,stages=2"
FOLDER = "cnn-width=8-stages=2-seed0"


@pytest.fixture
def command(tmp_path: Path, scenes_folder: Path) -> list[object]:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return ["benchmark", "classify", "--data", scenes_folder, "--config", file, "--size", 24]


def rows(out: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((out / "table.json").read_text())["rows"]}


def runs(out: Path) -> dict[Path, int]:
    """The run folders, and how long the story of each is."""
    found = {path.parent.resolve() for path in out.glob("*/*/config.toml")}  # `latest` is one of the others
    return {run: (run / "journal.jsonl").stat().st_size for run in found}


@pytest.mark.slow
def test_a_benchmark_fails_only_where_it_must_and_learns_nothing_twice(
    tmp_path: Path, command: list[object], run_cutline: Run
) -> None:
    out = tmp_path / "bench"
    own = [*command, "--minutes", 0.02, "--seeds", "0,1", "--out", out]
    done = run_cutline(*own, "--networks", NETWORK, "resnet")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "resnet (0 of 2)" in done.stdout
    assert "unknown encoder 'resnet'" in done.stdout
    assert "device:" not in done.stdout  # standard output is for the table

    told = rows(out)
    assert set(told) == {NETWORK, "resnet", "pixels, nearest pictures", "pixels, logistic regression"}
    first = told[NETWORK]["seeds"]["0"]
    assert first["parameters"] < 20_000 < first["multiply_adds"]
    assert 1.0 < first["seconds"] < 60.0  # not much more than the 1.2 that it has, however slow a step is
    assert {each["data"] for row in told.values() for each in row["seeds"].values()} == {first["data"]}
    assert {each["pictures"] for row in told.values() for each in row["seeds"].values()} == {first["pictures"]}
    low, high = told[NETWORK]["bounds"]
    assert low <= told[NETWORK]["accuracy"] <= high
    assert (out / "plot.png").exists()

    before = runs(out)
    again = run_cutline(*own, "--networks", NETWORK)
    assert again.returncode == 0, again.stderr
    assert runs(out) == before
    assert rows(out)[NETWORK] == told[NETWORK]
    other = run_cutline(*own, "--networks", NETWORK, "--batch", 7)
    assert other.returncode == 2
    assert "training.batch was 32, now 7" in other.stderr

    given = run_cutline(
        *command, "--minutes", 0.02, "--networks", NETWORK, "--out", tmp_path / "given", "--weights", next(iter(before))
    )
    assert given.returncode == 0, given.stderr
    told = rows(tmp_path / "given")
    ways = ("fine-tuned", "as it is", "nearest pictures", "logistic regression")
    assert {f"cnn, {way}" for way in ways} < set(told)
    assert all(told[f"cnn, {way}"]["seeds"]["0"]["multiply_adds"] >= first["multiply_adds"] - 1000 for way in ways)


@pytest.mark.slow
def test_a_stopped_benchmark_goes_on_where_it_was(tmp_path: Path, command: list[object], run_cutline: Run) -> None:
    out = tmp_path / "bench"
    own = [*command, "--minutes", 0.2, "--networks", NETWORK, "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-m", "cutline", *map(str, own)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "80"},
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(out.glob(f"{FOLDER}/*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    (run,) = runs(out)
    assert not (out / FOLDER / "measured.json").exists()

    done = run_cutline(*own)
    assert done.returncode == 0, done.stderr
    assert set(runs(out)) == {run}
    kinds = [json.loads(line)["kind"] for line in (run / "journal.jsonl").read_text().splitlines()]
    assert kinds.count("resumed") == 1
    assert rows(out)[NETWORK]["seeds"]["0"]["seconds"] >= 12.0
