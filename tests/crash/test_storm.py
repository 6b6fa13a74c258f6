"""Runs that are killed again and again, at moments that nobody chose, end as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def storm(*arguments: str) -> str:
    """The storm in a process of its own, since it forks: this one may have computed with torch already."""
    command = [sys.executable, "-m", "tests.crash.storm", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return done.stdout


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not() -> None:
    told = storm("--kills", "6", "--seed", "3", "--kinds", "2 loader workers", "accumulated, averaged")
    assert "half written" in told, "no kill came while a checkpoint was written"


@pytest.mark.slow
def test_two_hundred_kills() -> None:
    told = storm("--kills", "200", "--seed", "0")
    hit = next(line for line in told.splitlines() if line.startswith("hit: "))
    counts = {name: int(count) for count, name in (each.split(" ", 1) for each in hit[5:].split(", "))}
    in_saves = ("a checkpoint half written", "an older one half removed", "a new one not yet checked")
    assert sum(counts.values()) == 200
    assert sum(counts.get(name, 0) for name in in_saves) >= 50
