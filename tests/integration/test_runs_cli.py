"""`cutline runs` and `cutline watch` as real processes, beside one that works on a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cutline.cli.watch import sparkline
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.events import Events
from cutline.engine.journal import Journal

Cutline = Callable[..., "subprocess.CompletedProcess[str]"]

WORK = """
import sys
from pathlib import Path
from cutline.engine import folder
from cutline.engine.events import Events
from cutline.engine.journal import Journal

run = Path(sys.argv[1])
with folder.held(run):
    journal, events = Journal(run), Events(run / "events.jsonl", keep_bytes=(run / "events.jsonl").stat().st_size)
    journal.write("started", pid=1, host="box", attempt=0)
    journal.write("training", step=60, total=100, epoch=3, epochs=5, device="cpu", world=1)
    print("at work", flush=True)
    for line in sys.stdin:
        kind, step = line.split()
        if kind == "step":
            events.write("step", int(step), loss=0.125, norm=1.0, rate=1e-3)
        else:
            journal.write(kind, step=int(step))
        print("done", flush=True)
"""
"""Holds a run as training does, and writes what it is told on its standard input."""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with the run `one`, stopped at step 60 of 100 with two checkpoints, and a link to it."""
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"id": "abc"}')
    (run / "config.toml").write_text('[training]\nmetric = "cider"\n')
    journal, events, checkpoints = Journal(run), Events(run / "events.jsonl"), Checkpoints(run, "abc")
    journal.write("started", pid=1, host="box", attempt=0)
    journal.write("training", step=0, total=100, epoch=0, epochs=5, device="cpu", world=1)
    for step in range(1, 61):
        events.write("step", step, loss=6 / step, norm=1.0, rate=1e-3)
        if step % 20 == 0:
            events.write(
                "validation", step, epoch=step // 20, best=step == 40, en_cider=float(step % 60), de_cider=10.0
            )
            state = json.dumps({"progress": {"best_step": 40, "events": events.size}}).encode()
            checkpoints.write(step, {"model.safetensors": os.urandom(5000), "state.json": state})
    events.close()
    journal.write("failed", attempt=0, rank=0, cause="the machine ran out of memory", step=45)
    journal.write("restarting", attempt=1, wait=2)
    journal.write("started", pid=2, host="box", attempt=1)
    journal.write("stopped", step=60, why="asked to")
    (tmp_path / "runs" / "latest").symlink_to("one")
    return tmp_path / "runs"


@contextmanager
def at_work(run: Path) -> Iterator[Callable[[str], None]]:
    with subprocess.Popen(
        [sys.executable, "-c", WORK, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin
        assert worker.stdout
        assert worker.stdout.readline() == "at work\n"

        def write(line: str) -> None:
            assert worker.stdin
            assert worker.stdout
            print(line, file=worker.stdin, flush=True)
            worker.stdout.readline()

        yield write
        worker.stdin.close()


def checkpoints(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def damage(checkpoint: Path) -> None:
    os.truncate(checkpoint / "model.safetensors", 4999)


def test_the_list_says_where_each_run_is(runs: Path, run_cutline: Cutline) -> None:
    shutil.copytree(runs / "one", runs / "[old]" / "other-run-with-quite-a-long-name")
    for arguments in ((), ("runs",), ("list", "runs")):
        done = run_cutline("runs", *arguments, cwd=runs.parent)
        assert done.returncode == 0, done.stderr
        rows = [line.split("  ") for line in done.stdout.splitlines()]
        assert [row[0] for row in rows] == ["name", "[old]/other-run-with-quite-a-long-name", "one"]
        facts = [cell.strip() for cell in rows[2] if cell.strip()]
        assert facts[1:4] == ["stopped", "60/100 (60 %)", "25.0"]
    (known, _) = json.loads(run_cutline("runs", "--format", "json", cwd=runs.parent).stdout)
    assert (known["state"], known["step"], known["total"], known["best"]) == ("stopped", 60, 100, 25.0)
    assert known["checkpoint"]["step"] == 60
    assert known["restarts"] == 1


def test_no_runs_is_no_mistake_but_a_misspelt_task_is(runs: Path, tmp_path: Path, run_cutline: Cutline) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, cwd in (((), tmp_path / "empty"), (("empty",), tmp_path)):
        done = run_cutline("runs", *arguments, cwd=cwd)
        assert (done.returncode, done.stdout.split(";")[0].split(" in ")[0]) == (0, "no runs")
    for arguments, says in (
        (["shwo", "runs/one"], "did you mean 'show'?"),
        (["nowhere"], "neither a folder nor a task nowhere"),
        (["list", "nowhere"], "there is no folder nowhere"),
        (["show", "nowhere"], "there is no nowhere"),
        (["show", "empty"], "empty is not a run folder"),
        (["verify", "nowhere"], "there is no folder nowhere"),
        (["verify", "empty"], "there are no runs in empty"),
        (["clean", "empty"], "there are no runs in empty"),
        (["--fromat", "json"], "--format"),
    ):
        done = run_cutline("runs", *arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments
        assert says in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


def test_show_tells_the_story(runs: Path, run_cutline: Cutline) -> None:
    done = run_cutline("runs", "show", cwd=runs.parent)
    assert done.returncode == 0, done.stderr
    for said in (
        "60/100 (60 %), epoch 4/5", "cider 25.0 at step 40", "1 restart after failures",
        "process 0 ended badly: the machine ran out of memory", "stopped at step 60: asked to",
    ):  # fmt: skip
        assert said in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["2", "40", "40.0", "10.0", "25.0", "best", "so", "far"] in lines
    kept = {line[0]: line[-1] for line in lines if line and line[0].startswith("step-")}
    assert kept == {"step-00000060": "newest", "step-00000040": "best", "step-00000020": "–"}
    known = json.loads(run_cutline("runs", "show", "--format", "json", cwd=runs.parent).stdout)
    assert [saved["kept"] for saved in known["checkpoints"]] == ["newest", "best", ""]
    assert [event["epoch"] for event in known["validations"]] == [1, 2, 3]
    assert known["story"][-1]["why"] == "asked to"


def test_verify_exits_with_1_where_something_is_damaged(runs: Path, run_cutline: Cutline) -> None:
    whole = run_cutline("runs", "verify", "runs", cwd=runs.parent)
    assert (whole.returncode, whole.stdout.splitlines()[-1]) == (0, "all is as it was written")
    damage(runs / "one" / "checkpoints" / "step-00000040")
    done = run_cutline("runs", "verify", "runs/one", cwd=runs.parent)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "damaged  " in line]
    assert line.split()[0] == "step-00000040"
    assert "has 4999 bytes, the manifest says 5000" in line


def test_clean_asks_first_and_keeps_what_is_needed(runs: Path, run_cutline: Cutline) -> None:
    run = runs / "one"
    damage(run / "checkpoints" / "step-00000060")
    before = checkpoints(run)
    asked = run_cutline("runs", "clean", run)
    assert (asked.returncode, checkpoints(run)) == (0, before)
    assert "step-00000020" in asked.stdout
    assert "nothing is removed yet: --yes removes 2 things" in asked.stdout
    done = run_cutline("runs", "clean", run, "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("removed 2 things: ")
    assert checkpoints(run) == {"step-00000040"}
    assert "there is nothing to remove" in run_cutline("runs", "clean", runs, "--yes").stdout


def test_a_running_run_is_left_alone(runs: Path, run_cutline: Cutline) -> None:
    before = checkpoints(runs / "one")
    with at_work(runs / "one"):
        done = run_cutline("runs", "clean", runs, "--yes")
        assert "is left alone" in done.stdout
        assert checkpoints(runs / "one") == before
        assert " running " in run_cutline("runs", cwd=runs.parent).stdout
    assert " interrupted " in run_cutline("runs", cwd=runs.parent).stdout


def test_watch_follows_to_the_end(runs: Path) -> None:
    with at_work(runs / "one") as write:
        watcher = watch(runs.parent)
        assert watcher.stdout
        first = watcher.stdout.readline()
        assert first == "running, step 60/100 (60 %), loss 0.100, best cider 25.0, saved at 60, 1 restart\n"
        for step in range(61, 101):
            write(f"step {step}")
        write("finished 100")
        assert watcher.poll() is None
    rest, errors = watcher.communicate(timeout=120)
    assert (watcher.returncode, errors) == (0, "")
    assert rest.splitlines()[-1].startswith("finished, step 100/100 (100 %), loss 0.125, ")


def watch(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cutline", "watch"]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background ignores it
    )  # fmt: skip


def test_watch_once_shows_all_at_40_columns_and_at_80(runs: Path) -> None:
    Journal(runs / "one").write("alert", name="disk", what="0.4 GB of disk are free", fix="make room on the disk")
    gpu = {"index": 0, "name": "G", "use": 0.97, "memory_used": 30e9, "memory_total": 80e9, "celsius": 71}
    Journal(runs / "one").write("health", memory_used=6e9, memory_total=8e9, disk_free=40e9, gpus=[gpu])
    for columns in (40, 80):
        done = subprocess.run(
            [sys.executable, "-m", "cutline", "watch", "--once"], cwd=runs.parent, capture_output=True, text=True,
            env=os.environ | {"COLUMNS": str(columns)}, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert max(len(line) for line in done.stdout.splitlines()) <= columns
        shown = " ".join(done.stdout.split())
        for said in (
            "one state stopped, 1 restart", "60/100 (60 %), epoch 4/5", "loss 0.100", "█", "epoch 2: cider 25.0 best",
            "saved step 60", "memory 6.0 GB of 8.0 GB", "GPU 0, 97 %, 30 GB of 80 GB", "to fix: make room on the disk",
        ):  # fmt: skip
            assert said in shown, (columns, said)


def test_leaving_watch_is_no_failure(runs: Path) -> None:
    with at_work(runs / "one"):
        watcher = watch(runs.parent)
        assert watcher.stdout
        watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        _, errors = watcher.communicate(timeout=120)
        assert (watcher.returncode, errors) == (0, "")


def test_a_sparkline_is_as_wide_as_there_is_room() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([8, 8, 1, 1], 2) == "█▁"
    assert sparkline([3, 3], 10) == "▁▁"
    assert sparkline([5.0], 1) == "▁"
    assert len(sparkline([float(value) for value in range(400)], 32)) == 32
