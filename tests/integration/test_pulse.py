"""Processes without a supervisor of ours, real ones, that hang, stand still, or lose one another."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

LIMIT = 2.0
BODY = """
import time
from cutline.config import Config, HealthConfig
from cutline.console import progress
from cutline.engine.ranks import joined

config = Config(health=HealthConfig(hang_minutes={minutes}))
print("ready", flush=True)
input()
with joined(config) as ranks, progress("work", 100, "steps", quiet=True) as advance:
    ranks.gather(None)
    print("met", flush=True)
    {body}
print("over", flush=True)
"""
Start = Callable[..., "list[subprocess.Popen[str]]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(*bodies: str) -> list[subprocess.Popen[str]]:
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        for rank, body in enumerate(bodies):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(bodies), "MASTER_PORT": port}
            environment = os.environ | {name: str(value) for name, value in place.items()}
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", BODY.format(minutes=LIMIT / 60, body=body)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                    env=environment | {"MASTER_ADDR": "localhost"},
                )
            )  # fmt: skip
        for process in started:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in started:  # all at once: what they wait for each other is limited too
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        for process in started:
            assert process.stdout
            assert process.stdout.readline() == "met\n"
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


WORK = f"for _ in range(15): time.sleep({LIMIT / 10}); advance()"


@pytest.mark.parametrize(
    "bodies",
    [
        pytest.param([WORK], marks=pytest.mark.slow),
        pytest.param([WORK, "pass"], marks=pytest.mark.slow),
        [f"time.sleep({1.5 * LIMIT})", WORK],
    ],
)
def test_nobody_is_ended_as_long_as_one_goes_on(start: Start, bodies: list[str]) -> None:
    for process in start(*bodies):
        out, told = process.communicate(timeout=60)
        assert (process.returncode, out, told) == (0, "over\n", "")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_hang_of_all_ends_all(start: Start, processes: int) -> None:
    for rank, process in enumerate(start(*["time.sleep(600)"] * processes)):
        out, told = process.communicate(timeout=60)
        assert (process.returncode, out) == (1, "")
        if rank == 0:  # the other may see only that this one is gone
            assert "nothing went on for 0:02: it hangs" in told
            assert 'File "<string>", line 13 in <module>' in told  # where the main thread is


def test_one_that_waits_for_a_process_that_stands_still_is_ended(start: Start) -> None:
    """As for one whose machine has lost power: it says nothing, and its connection stays."""
    waits, still = start("ranks.gather(None)", "time.sleep(600)")
    begun = time.monotonic()
    still.send_signal(signal.SIGSTOP)
    out, told = waits.communicate(timeout=60)
    assert (waits.returncode, out) == (1, "")
    assert "rank 0 ends itself: another process is gone" in told
    assert LIMIT < time.monotonic() - begun < LIMIT + 20


@pytest.mark.slow
def test_an_error_of_one_is_its_own_to_tell(start: Start) -> None:
    fails, works = start("raise KeyError('of its own')", "time.sleep(600)")
    out, told = fails.communicate(timeout=60)
    assert fails.returncode == 1
    assert "KeyError: 'of its own'" in told
    assert "ends itself" not in told
    out, told = works.communicate(timeout=60)
    assert (works.returncode, out) == (1, "")
    assert "rank 1 ends itself: another process is gone" in told
