"""What a person sees: a bar on a terminal, plain lines anywhere else, nothing when quiet."""

import os
import pty
import subprocess
import sys

import pytest

from cutline.console import duration, progress, speed

WORK = """
from cutline.console import progress
with progress("reading", 4, "pictures") as advance:
    for _ in range(4):
        advance(1, note="loss 1.5")
"""


def test_plain_lines_where_there_is_no_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("reading: 4/4 (100 %), ")
    assert lines[-1].endswith("pictures/s  loss 1.5")
    assert "\x1b" not in done.stderr


def test_a_bar_on_a_terminal() -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", WORK], stderr=slave, env=os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            more = os.read(master, 4096)
        except OSError:
            break
        seen += more
    process.wait(timeout=20)
    os.close(master)
    assert "━".encode() in seen
    assert b"4/4" in seen


def test_nothing_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 2, "pictures", quiet=True) as advance:
        advance()
    assert capsys.readouterr() == ("", "")


def test_work_that_was_begun_before_counts_but_not_in_the_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 10, "pictures", done=9) as advance:
        advance()
    assert capsys.readouterr().err.startswith("reading: 10/10 (100 %)")


def test_figures_for_people() -> None:
    assert [duration(seconds) for seconds in (7, 725, 11525)] == ["0:07", "12:05", "3:12:05"]
    assert [speed(14, 10, "steps"), speed(2100, 10, "pictures")] == ["1.4 steps/s", "210 pictures/s"]


def test_a_bar_of_seconds_tells_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training", 60, "s", done=30) as advance:
        advance(3, note="loss 1.0")
    assert speed(30, 30, "s") == ""
    assert "training: 33/60 s (55 %), " in capsys.readouterr().err


def test_work_of_which_nothing_was_expected_does_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 0, "pictures") as advance:
        advance()
    assert capsys.readouterr().err.startswith("reading: 1/0 (100 %)")
