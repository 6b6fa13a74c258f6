"""The kernel's own OOM killer, in a control group that has too little memory: it needs root, and the groups mounted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.control_group import control_group
from tests.crash.starts import SETTINGS, STEPS, Start

LIMIT = 3_000_000_000
TAKES_ALL = """
import sys, time
open("/proc/self/oom_score_adj", "w").write("-1000")
open(sys.argv[1], "w").write("0")
taken = [bytearray(b"1") * 500_000_000 for _ in range(int(sys.argv[2]) // 500_000_000)]
while True:
    taken.append(bytearray(b"1") * 20_000_000)
    time.sleep(0.005)
"""
"""A process that joins the group and takes its memory, and that the kernel may not end."""


@pytest.fixture
def group() -> Iterator[Path]:
    with control_group("memory", "memory.limit_in_bytes", "memory.max", LIMIT) as path:
        yield path


@pytest.mark.slow
def test_the_worker_dies_of_it_and_the_run_does_not(group: Path, tmp_path: Path, scenes_folder: Path) -> None:
    start = Start(tmp_path, SETTINGS, scenes_folder)
    (group / "cgroup.procs").write_text(str(start.process.pid))
    start.until_step(10)
    (worker,) = start.workers()
    assert str(worker.pid) in (group / "cgroup.procs").read_text().split()
    willing = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (start.process.pid, worker.pid)]
    assert willing[0] < willing[1], "the supervisor should go last"
    hog = subprocess.Popen([sys.executable, "-c", TAKES_ALL, str(group / "cgroup.procs"), str(LIMIT // 2)])
    try:
        worker.wait(60)
    finally:
        hog.kill()
        hog.wait()
    assert start.end() == 0, start.told
    (failed,) = start.journal("failed")
    assert "was killed by the OOM killer: memory ran out" in failed["cause"]
    assert failed["cause"] in start.told
    assert "with each batch in 2 parts or more" in start.told
    (resumed,) = start.journal("resumed")
    assert resumed["step"] >= 4
    assert start.events("step")[-1]["step"] == STEPS
