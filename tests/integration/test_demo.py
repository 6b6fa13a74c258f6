"""The demo keeps its word: it learns to describe scenes that it has never seen, and looks at what it names."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cutline.cli import demo
from cutline.engine.loop import Loop
from cutline.engine.runs import Run


@pytest.mark.slow
def test_a_demo_can_be_watched_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever looks at its run meanwhile, or tidies it, sees that it is worked on; told to stop, it saves first."""
    seen = []
    write_step = Loop._write_step

    def stop_at_once(loop: Loop, *arguments: Any) -> None:
        write_step(loop, *arguments)
        seen.append(Run(loop.trainer.run).state)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Loop, "_write_step", stop_at_once)
    assert demo.main(["--out", str(tmp_path), "--scenes", "60", "--epochs", "2"]) == 143
    (run,) = (tmp_path / "runs").glob("2*")
    assert set(seen) == {"running"}
    assert Run(run).state == "stopped"
    assert f"cutline train --resume {run}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_reaches_its_score(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cutline", "demo", "--out", str(tmp_path / "demo")],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    score = float(re.search(r"^BLEU-4 +([\d.]+)$", done.stdout, re.MULTILINE)[1])  # type: ignore[index]
    guess = float(re.search(r"commonest training caption.*BLEU-4 ([\d.]+)", done.stdout)[1])  # type: ignore[index]
    times = float(re.search(r"([\d.]+) times its share", done.stdout)[1])  # type: ignore[index]
    assert score >= 85
    assert guess < 20
    assert times >= 3
    assert "captions are the same as in PyTorch" in done.stderr
    page = Path(re.search(r"^look: +(.+)$", done.stdout, re.MULTILINE)[1])  # type: ignore[index]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    command = re.search(r"^try: +(.+)$", done.stdout, re.MULTILINE)[1].split()  # type: ignore[index]
    tried = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(tried.stdout.split()) >= 3


@pytest.mark.slow
def test_a_short_demo_shows_its_steps(tmp_path: Path) -> None:
    """Ten seconds' worth of the demo: every part of it runs, whatever the captions."""
    done = subprocess.run(
        [sys.executable, "-m", "cutline", "demo", "--out", str(tmp_path / "demo"), "--scenes", "60", "--epochs", "1"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line[:3] for line in done.stderr.splitlines() if line[1:3] == "/4"] == ["1/4", "2/4", "3/4", "4/4"]
    assert "BLEU-4" in done.stdout
