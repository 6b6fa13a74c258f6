"""What being supervised costs a healthy run, and how soon a killed one learns again."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.common import Row

SETTINGS = """
[data]
languages = ["en"]
scenes = 1000
[pictures]
size = 48
[decoder]
hidden = 128
[training]
epochs = {epochs}
batch = 32
save_minutes = {minutes}
validate_limit = 32
validate_every = 1000
"""


def rows() -> Iterable[Row]:
    with tempfile.TemporaryDirectory(prefix="cutline-bench-") as place:
        folder = Path(place)
        yield _cost(folder)
        yield _recovery(folder)


def _cost(folder: Path) -> Row:
    """The same run with a supervisor, health samples and journal, and without anything of it; in turns."""
    settings = folder / "cost.toml"
    settings.write_text(SETTINGS.format(epochs=12, minutes=0))
    plain = folder / "plain.toml"
    plain.write_text(settings.read_text() + "[health]\nsample_seconds = 0\n")
    speeds: dict[str, list[float]] = {"alone": [], "watched": []}
    for turn in range(6):
        alone = turn % 2 == 0
        output = folder / f"cost-{turn}"
        environment = {"RANK": "0", "WORLD_SIZE": "1"} if alone else {}
        command = _command(plain if alone else settings, output)
        subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
        speeds["alone" if alone else "watched"].append(_speed(next(output.glob("*/journal.jsonl"))))
    alone, watched = (statistics.median(speeds[kind]) for kind in ("alone", "watched"))
    return Row(
        "steps of a supervised run", "the same process by itself, no health samples", watched / alone, 0.98,
        f"{watched:.1f} and {alone:.1f} steps/s, medians of 3",
    )  # fmt: skip


def _recovery(folder: Path) -> Row:
    """From SIGKILL to the first new step, less the time that the process took to start in the first place."""
    settings = folder / "recovery.toml"
    settings.write_text(SETTINGS.format(epochs=1000, minutes=0.02))
    process = subprocess.Popen(_command(settings, folder / "recovery"), stdout=subprocess.DEVNULL)
    taken = []
    for kill in range(3):
        journal = _wait(lambda: next((folder / "recovery").glob("*/journal.jsonl"), None))
        begun = _wait(lambda: _times(journal, "training")[kill:])[0]  # noqa: B023 - called at once
        started = _times(journal, "started")[kill]
        _wait(lambda: _times(journal, "saved")[-1:] > [begun])  # noqa: B023
        worker = int((journal.parent / "worker.lock").read_text().split()[1])
        killed = time.time()
        os.kill(worker, signal.SIGKILL)
        again = _wait(lambda: _times(journal, "training")[kill + 1 :])[0]  # noqa: B023
        taken.append((again - killed) - (begun - started))
    process.send_signal(signal.SIGTERM)
    process.wait()
    worst = max(taken)
    return Row(
        "from a killed process to the first step of the next, beyond its own start", "10 s", 10 / max(worst, 0.05), 1,
        "s beyond the start: " + ", ".join(f"{seconds:.2f}" for seconds in taken),
    )  # fmt: skip


def _command(settings: Path, output: Path) -> list[str]:
    return [
        sys.executable, "-m", "cutline", "train", "--preset", "scenes", "--config", str(settings),
        "--output", str(output), "--quiet",
    ]  # fmt: skip


def _speed(journal: Path) -> float:
    """Steps a second from the beginning of training to the last checkpoint."""
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    begun = next(entry for entry in entries if entry["kind"] == "training")
    last = [entry for entry in entries if entry["kind"] == "saved"][-1]
    return float(last["step"] / (last["time"] - begun["time"]))


def _times(journal: Path, kind: str) -> list[float]:
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    return [entry["time"] for entry in entries if entry["kind"] == kind]


def _wait(found):  # type: ignore[no-untyped-def]
    until = time.monotonic() + 120
    while not (result := found()):
        if time.monotonic() > until:
            raise TimeoutError("nothing came in two minutes")
        time.sleep(0.02)
    return result
