"""The command line itself: verbs, help, completion, doctor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.corpora import PICTURE, fill

from cutline import __version__
from cutline.cli import VERBS, main
from cutline.cli.completion import script

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_help_names_every_verb(run_cutline: Run) -> None:
    done = run_cutline("--help")
    assert done.returncode == 0
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if line[:1] in "│╭╰")
    assert run_cutline().stdout == done.stdout
    assert run_cutline("--version").stdout == f"cutline {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_within_a_terminal(verb: str, run_cutline: Run) -> None:
    done = run_cutline(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: cutline " + verb)
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if line[:1] in "│╭╰")


def test_an_unknown_verb_is_refused_with_the_nearest(run_cutline: Run) -> None:
    done = run_cutline("captoin")
    assert done.returncode == 2
    assert "unknown verb 'captoin' (did you mean 'caption'?)" in done.stderr


def complete(line: str, folder: Path) -> list[str]:
    """What bash would offer after `line`."""
    words = line.split(" ")
    lines = [
        script("bash"),
        f"COMP_WORDS=({' '.join(word or chr(39) * 2 for word in words)}); COMP_CWORD={len(words) - 1}",
        '_cutline; printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.splitlines()


def test_bash_completes_verbs_tasks_flags_and_files(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert complete("cutline ca", tmp_path) == ["caption"]
    assert complete("cutline train --ep", tmp_path) == ["--epochs"]
    assert complete("cutline data ins", tmp_path) == ["inspect"]
    assert complete("cutline data inspect --check", tmp_path) == ["--check-pictures"]
    assert complete("cutline caption pho", tmp_path) == ["photos"]
    (tmp_path / "my photo.jpg").touch()
    assert complete("cutline caption my", tmp_path) == ["my photo.jpg"]


def test_fish_and_zsh_get_the_same_words() -> None:
    assert "complete -c cutline -n __fish_use_subcommand -a caption" in script("fish")
    assert "-l check-pictures" in script("fish")
    assert script("zsh").endswith(script("bash"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_its_script(shell: str, tmp_path: Path) -> None:
    """Told in a shell that has nothing set up; where there is none, at least the quotes come in pairs."""
    text = script(shell)
    assert all(
        line.replace("\\'", "").count("'") % 2 == 0 for line in text.splitlines() if line.startswith("complete ")
    )
    if not shutil.which(shell):
        return
    (tmp_path / "script").write_text(text)
    plain = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [shell, *plain, "-c", f"source {tmp_path}/script"], capture_output=True, text=True,
        env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_doctor_tells_what_is_there(run_cutline: Run) -> None:
    facts = json.loads(run_cutline("doctor", "--json").stdout)
    import numpy

    assert facts["cutline"] == __version__
    assert facts["core"]["numpy"] == numpy.__version__
    assert facts["extra 'train'"]["torch"]
    shown = run_cutline("doctor").stdout
    assert numpy.__version__ in shown
    assert "GPU" in shown


def test_doctor_names_the_extras_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cutline.cli import doctor

    monkeypatch.setattr(doctor, "version", lambda package: None if package == "openvino" else "1.0")
    monkeypatch.setenv("COLUMNS", "80")
    assert doctor.main([]) == 0
    shown = capsys.readouterr().out
    assert "pip install 'cutline[openvino]'" in shown
    assert "cutline[train]" not in shown


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ({}, ("PASSIVE", "5000")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None)),
        ({"GOMP_SPINCOUNT": "7"}, ("PASSIVE", "7")),
    ],
)
def test_threads_that_wait_sleep_unless_told_otherwise(
    given: dict[str, str], used: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that what is set here ends with the test
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["nothing"]) == 2
    assert (os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")) == used


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", ["--help", "--version", "doctor", "data formats"])
def test_a_full_disk_is_told_in_a_line(arguments: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m cutline {arguments} > /dev/full", shell=True, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (2, f"cutline {arguments.split()[0]}: No space left on device\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "> /dev/null 2>&-"])
def test_streams_may_be_closed(closed: str) -> None:
    command = f"{sys.executable} -m cutline data formats {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_of_help_may_go_away() -> None:
    command = f"({sys.executable} -m cutline --help; echo $? >&2) | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() in ("141", "0")  # 0: it was all written before the reader went


def test_doctor_waits_for_nobody(run_cutline: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cutline.cli import doctor

    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(doctor, "PATIENCE", 0.2)
    assert doctor.gpus() == "nvidia-smi does not answer"
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert doctor.disk_here().startswith("not known")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo", "--scenes", "3"), "60 or more"),
        (("demo", "--epochs", "0"), "1 or more"),
        (("features", "build", "scenes", "--limit", "-3"), "--limit -3"),
        (("evaluate", "STARTER", "--data", ".", "--limit", "-3"), "--limit -3"),
        (("evaluate", "STARTER", "--data", ".", "--views", "10"), "puts nothing into classes"),
    ],
)
def test_numbers_that_cannot_be(arguments: tuple[str, ...], said: str, run_cutline: Run, tmp_path: Path) -> None:
    from cutline.starter import starter

    done = run_cutline(*(str(starter()) if each == "STARTER" else each for each in arguments), cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_scored_are_the_languages_that_the_split_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cutline.starter import starter

    rows = [("1.png", "en", "val"), ("2.png", "en", "train"), ("2.png", "de", "train")]
    lines = [{"image": name, "caption": "a dog", "lang": lang, "split": split} for name, lang, split in rows]
    fill(tmp_path, {"1.png": PICTURE, "2.png": PICTURE, "captions.jsonl": lines})
    begin = ("evaluate", str(starter()), "--data", str(tmp_path), "--beam", "1", "--quiet", "--format", "json")
    scored = {}
    for split in ("val", "train", "test"):
        code = main([*begin, "--split", split])
        said = capsys.readouterr()
        scored[split] = list(json.loads(said.out)) if code == 0 else said.err.splitlines()[0]
    assert scored["val"] == ["en"]
    assert scored["train"] == ["en", "de"]
    assert "the references are in none" in scored["test"]
