"""What a supervisor says of an end, and what is checked before a beginning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from cutline.config import from_dict
from cutline.engine import alerts, supervise
from cutline.engine.estimate import Needs, dry_run
from cutline.engine.supervise import _cause, _weight
from cutline.engine.watch import FOLDER, Outcome, Watch
from cutline.errors import CutlineError


@pytest.mark.parametrize(
    ("code", "told", "out_of_memory", "says"),
    [
        (-signal.SIGKILL, None, True, "killed by the OOM killer: memory ran out"),
        (-signal.SIGKILL, None, False, "was killed (SIGKILL): by hand, or by the OOM killer"),
        (-signal.SIGSEGV, None, False, "died of SIGSEGV: a fault in compiled code"),
        (-signal.SIGBUS, None, False, "died of SIGBUS: a file that it read was cut short"),
        (1, Outcome("error", "OutOfMemoryError: CUDA out of memory. Tried to"), False, "ran out of GPU memory: "),
        (1, Outcome("error", "AcceleratorError: CUDA error: out of memory"), False, "ran out of GPU memory: "),
        (1, Outcome("error", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), False, "ran out of GPU memory: "),
        (1, Outcome("error", "AcceleratorError: CUDA error: unspecified launch failure"), False, "lost its GPU: "),
        (
            1,
            Outcome("error", "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"),
            False,
            "ran out of GPU memory",
        ),
        (1, Outcome("error", "AcceleratorError: CUDA error: device-side assert triggered"), False, "asked the GPU for"),
        (1, Outcome("error", "OSError: [Errno 28] No space left on device"), False, "found the disk full"),
        (1, Outcome("error", "LoadError: step-00000009 could not be loaded"), False, "could not load a checkpoint"),
        (1, Outcome("error", "ZeroDivisionError: division by zero"), False, "failed: ZeroDivisionError"),
        (3, None, False, "ended with code 3 and without a word"),
    ],
)
def test_causes_are_told_in_words(code: int, told: Outcome | None, out_of_memory: bool, says: str) -> None:
    assert says in _cause(code, told, out_of_memory)[0]


def test_of_several_failures_the_first_cause_is_believed() -> None:
    mistake = Outcome("mistake", "no such picture")
    lost = Outcome("error", "RuntimeError: [gloo] Connection closed by peer")
    own = Outcome("error", "ValueError: something is wrong here")
    told = [(lost, 1), (None, -signal.SIGTERM), (own, 1), (None, -signal.SIGKILL), (mistake, 2)]
    ordered = sorted(told, key=lambda each: _weight(*each))
    # Who says nothing and was told to stop has only waited for one of the others.
    assert ordered == [(mistake, 2), (None, -signal.SIGKILL), (own, 1), (lost, 1), (None, -signal.SIGTERM)]


def test_the_first_cause_is_told_though_it_is_another_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As by torch's launcher: the rank that failed, and those that it has ended after that."""
    watch = Watch(tmp_path, 2)
    config = from_dict({"processes": 2})
    for kind, what in (("error", "OutOfMemoryError: CUDA out of memory. Tried to"), ("mistake", "DataError: no data")):
        (tmp_path / "outcome-1.json").write_text(json.dumps({"kind": kind, "what": what, "details": ""}))
        end = supervise._judge(tmp_path, config, watch, {0: -signal.SIGTERM, 1: 1}, [], False)
        if kind == "error":
            assert end.cause.startswith("rank 1 ran out of GPU memory")
            assert end.starved
    assert end.code == 2
    assert capsys.readouterr().err == "rank 1: no data\n"


BUGGY = """
from cutline.engine.watch import Watched

try:
    nothing = None
    nothing.learn()
except AttributeError as error:
    Watched(0).report("error", error)
    raise SystemExit(1)
"""
SUPERVISOR = """
import pathlib, sys
from cutline.config import Config, HealthConfig
from cutline.engine.supervise import supervise

sys.exit(supervise(pathlib.Path(sys.argv[1]), Config(health=HealthConfig(restarts=5)), ["buggy"]))
"""


def test_a_mistake_in_the_program_is_not_tried_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "buggy.py").write_text(BUGGY)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"id": "abc"}')
    (run / "lock").touch()
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISOR, str(run)],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "failed in the same way twice: the process failed: AttributeError: 'NoneType'" in done.stderr
    kinds = [json.loads(line)["kind"] for line in (run / "journal.jsonl").read_text().splitlines()]
    assert kinds.count("started") == 2


PROCESS = """
import sys, time
from cutline import console
from cutline.engine.watch import Watched
watched = Watched(0)
with console.progress("work", 5, "pieces", quiet=True) as advance:
    for _ in range(5):
        time.sleep(0.2)
        advance()
def stand_still():
    time.sleep(60)
stand_still()
"""


def test_a_process_that_stands_still_is_noticed_and_says_where(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS], env=os.environ | {FOLDER: str(tmp_path)}, start_new_session=True
    )
    try:
        watch = Watch(tmp_path, 1)
        while not watch.pids():
            time.sleep(0.01)
        until = time.monotonic() + 60
        while watch.still_for() < 3 and time.monotonic() < until:
            time.sleep(0.02)
        assert watch.still_for() >= 3
        assert "stand_still" in watch.stacks()
        watch.kill()
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()


def test_processes_that_have_not_come_as_far_as_to_tell_who_they_are_are_ended_too(tmp_path: Path) -> None:
    """As where what they import is on a disk that does not answer."""
    code = (
        "import pathlib, subprocess, sys; from cutline.engine.watch import Watch\n"
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "Watch(pathlib.Path(sys.argv[1]), 1).kill(); sys.exit(-child.wait(20))\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == signal.SIGKILL


class Later(BaseHTTPRequestHandler):
    """A webhook that takes nothing at the first two tries."""

    names: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.names.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["name"])
        self.send_response(503 if len(self.names) < 3 else 200)
        self.end_headers()


def test_that_a_run_has_been_given_up_is_told_also_when_the_network_is_gone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text('{"id": "abc"}')
    (tmp_path / "lock").touch()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(alerts, "PAUSES", (0.2, 6.0))  # more than the 5 s that are waited for other alerts
    monkeypatch.setattr(supervise, "_attempt", lambda *_: supervise.End(None, "the process has failed"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Later) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        config = from_dict({"health": {"restarts": 0, "webhook": f"http://127.0.0.1:{server.server_address[1]}"}})
        assert supervise.supervise(tmp_path, config, ["none"]) == 1
        server.shutdown()
    assert Later.names == ["gave_up"] * 3


def test_last_words_survive_the_process(tmp_path: Path) -> None:
    code = "from cutline.engine.watch import Watched\nWatched(1).report('error', ValueError('first\\nsecond'))"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {FOLDER: str(tmp_path)}, check=True)
    watch = Watch(tmp_path, 2)
    told = watch.outcome(1)
    assert told
    assert (told.kind, told.what) == ("error", "ValueError: first")
    assert "second" in told.details
    assert watch.outcome(0) is None
    (tmp_path / "outcome-0.json").write_text(json.dumps({"kind": "error"})[:-3])
    assert watch.outcome(0) is None


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (Needs(disk=10**18, memory=0), r"needs 1000000000.0 GB of disk in .*GB are free"),
        (Needs(disk=0, memory=10**15), r"needs 1000000.0 GB of memory for its state alone"),
    ],
)
def test_what_there_is_no_room_for_is_not_begun(needs: Needs, says: str, tmp_path: Path) -> None:
    with pytest.raises(CutlineError, match=says):
        needs.check(tmp_path / "not" / "there" / "yet")


def test_what_the_gpu_has_no_room_for_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3_000_000_000, 8_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1_000_000_000)
    with pytest.raises(CutlineError, match=r"needs 4.1 GB of the GPU's memory for its state alone, 4.0 GB are free"):
        Needs(disk=0, memory=0, gpu=4_100_000_000).check(tmp_path)
    Needs(disk=0, memory=0, gpu=3_900_000_000).check(tmp_path)


def test_what_there_is_room_for_is_begun(tmp_path: Path) -> None:
    Needs(disk=1000, memory=1000).check(tmp_path)


def test_a_model_that_memory_cannot_hold_is_told_before_a_beginning(tmp_path: Path, scenes_folder: Path) -> None:
    data, output = {"path": str(scenes_folder), "languages": ["en"]}, str(tmp_path)
    config = from_dict({"data": data, "output": output, "decoder": {"hidden": 10**12}})
    with pytest.raises(CutlineError, match="not enough memory to try it"):
        dry_run(config, quiet=True)
