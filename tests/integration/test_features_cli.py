"""`cutline features` in processes of its own, one of them killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COUNT = 240
FILES = ("grid.npy", "pooled.npy", "index.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(COUNT):
        Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"picture number {number}\n")
    return folder


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "cutline", "features", *map(str, words)]


def build(data: Path, out: Path, *more: object) -> list[str]:
    settings = ["--encoder", "small", "--weights", "none", "--backend", "torch", "--batch", 2, "--threads", 1]
    return command("build", data, "--out", out, *settings, *more)


def run(words: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def stop_in_the_middle(words: list[str], journal: Path) -> subprocess.Popen[bytes]:
    """A builder that is halted with some batches finished and others not."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (journal.exists() and len(journal.read_bytes().splitlines()) >= 5):
        assert process.poll() is None, "finished before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    return process


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bytes(data, tmp_path):
    out = tmp_path / "store"
    journal = tmp_path / "store.building" / "journal.jsonl"
    first = stop_in_the_middle(build(data, out), journal)
    try:
        second = run(build(data, out), code=2)
        assert f"being built by process {first.pid} on " in second.stderr
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    finished = journal.read_bytes().count(b"\n")
    assert 5 <= finished < COUNT // 2
    assert not out.exists()
    message = run(command("info", out), code=2).stderr
    assert "not a feature store" in message

    resumed = run(build(data, out))
    assert f"going on with store.building: {2 * finished} of {COUNT} pictures are there" in resumed.stderr
    assert resumed.stdout == f"{out}\n"
    assert run(build(data, tmp_path / "other", "--quiet")).stderr == ""
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
    assert not journal.parent.exists()

    assert f"{COUNT} of {COUNT} pictures" in run(command("verify", out)).stdout
    told = run(command("info", out)).stdout
    assert "encoder    small, weights " in told
    assert " in fp32, error 0 of fp32" in told
    with (out / "pooled.npy").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 255]))
    *checking, damaged = run(command("verify", out), code=1).stderr.splitlines()
    assert f"{COUNT}/{COUNT}" in checking[-1]
    assert damaged == f"{out}: row {COUNT - 1} ({COUNT - 1:03}.png) is damaged"


def test_what_is_wrong_is_said_in_words(data, tmp_path):
    assert "did you mean 'build'?" in run(command("bild"), code=2).stderr
    assert "'trial'" in run(build(data, tmp_path / "store", "--format", "trial"), code=2).stderr
    assert "--bakend" in run(build(data, tmp_path / "store", "--bakend", "torch"), code=2).stderr
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "one.png")
    (tmp_path / "pictures" / "two.png").write_bytes(b"no picture")
    for name in ("one", "two"):
        (tmp_path / "pictures" / f"{name}.txt").write_text("words\n")
    message = run(build(tmp_path / "pictures", tmp_path / "store"), code=2).stderr
    assert "1 of 2 pictures cannot be read" in message
    assert "two.png" in message
    left = run(build(tmp_path / "pictures", tmp_path / "store", "--skip-bad"))
    assert "left out" in left.stderr
    assert "1 (1 left out)" in run(command("info", tmp_path / "store")).stdout
