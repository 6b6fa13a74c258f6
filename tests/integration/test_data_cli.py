"""`cutline data` as a user calls it: in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


def cutline(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cutline", "data", *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", **environment},
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = ["image,caption,split"]
    for number in range(25):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,A [red] square of shade {number},{('train', 'val')[number % 2]}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return tmp_path


def test_inspect_a_sound_corpus(folder: Path) -> None:
    done = cutline("inspect", str(folder), "--check-pictures", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "25 pictures: 13 train, 12 val, 0 test" in done.stdout
    assert "und" in done.stdout
    assert "1 / 1 / 1" in done.stdout
    assert "no problems" in done.stdout
    assert "every picture was opened" in done.stdout
    assert max(map(len, done.stdout.removeprefix(str(folder)).splitlines()[1:])) <= 80


def test_inspect_a_table_whose_pictures_lie_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    table = (folder / "t.csv").rename(tmp_path_factory.mktemp("tables") / "t.csv")
    assert "25 × no such picture" in cutline("inspect", str(table)).stdout
    done = cutline("inspect", str(table), "--images", str(folder), "--check-pictures")
    assert done.returncode == 0
    assert "25 pictures: 13 train, 12 val, 0 test" in done.stdout


def test_inspect_shows_problems_and_says_so_by_its_exit_code(folder: Path) -> None:
    for number in range(23):
        (folder / f"{number}.png").unlink()
    (folder / "24.png").write_bytes(b"not a picture")
    done = cutline("inspect", str(folder), "--check-pictures")
    assert done.returncode == 1
    assert "24 problems (23 × no such picture, 1 × unusable picture)" in done.stdout
    assert f"{folder / 't.csv'}:2: no such picture: 0.png" in done.stdout
    assert "… and 4 more" in done.stdout
    assert "opening pictures: 2/2 (100 %)" in done.stderr  # no terminal: plain lines
    every = cutline("inspect", str(folder), "--check-pictures", "--all", "--quiet")
    assert every.stderr == ""
    assert f"{folder / '24.png'}: unusable picture: not a picture but text" in every.stdout
    assert cutline("inspect", str(folder), "--skip-bad").returncode == 0


def test_inspect_as_json(folder: Path) -> None:
    (folder / "3.png").unlink()
    done = cutline("inspect", str(folder), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["splits"] == {"train": 13, "val": 11, "test": 0}
    assert found["problems"] == [{"file": str(folder / "t.csv"), "line": 5, "message": "no such picture: 3.png"}]


def test_mistakes_get_an_answer_and_no_traceback(folder: Path) -> None:
    for arguments, words in (
        (["inspct"], "did you mean 'inspect'"),
        (["inspect", str(folder / "absent")], "there is no"),
        (["inspect", str(folder), "--format", "cvs"], "did you mean 'csv'"),
        (["inspect", str(folder), "--languages", "en,de"], "no captions in en, de"),
        (["scenes", str(folder / "new"), "--count", "0"], "numbers above 0"),
        (["inspect", str(folder), "--skip-bda"], "--skip-bad"),
    ):
        done = cutline(*arguments)
        assert done.returncode == 2, arguments
        assert words in done.stderr, arguments
        assert "Traceback" not in done.stderr


def test_formats_and_help() -> None:
    listed = cutline("formats").stdout
    for name in ("flickr8k", "coco", "karpathy", "csv", "jsonl", "cifar10", "folder", "classes"):
        assert f"\n{name} " in f"\n{listed}"
    assert "inspect" in cutline("--help").stdout
    assert "--check-pictures" in cutline("inspect", "--help").stdout


def test_scenes_are_a_corpus_without_problems(tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    done = cutline("scenes", str(out), "--count", "40", "--languages", "en,de", "--size", "48")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    found = json.loads(cutline("inspect", str(out), "--json", "--check-pictures", "--quiet").stdout)
    assert found["pictures"] == 40
    assert list(found["languages"]) == ["en", "de"]
    assert found["labels"]
    assert found["problems"] == []


def test_inspecting_needs_no_torch(folder: Path) -> None:
    code = "import sys; from cutline.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "data", "inspect", str(folder), "--check-pictures"]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def test_inspect_shows_how_uneven_classes_are(tmp_path: Path) -> None:
    for label, count in [("common", 60), ("rare", 4), *((f"c{number:02}", 20) for number in range(30))]:
        folder = tmp_path / label
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").write_bytes(f"{label} {number}".encode())
    done = cutline("inspect", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^common +60 +48 +6 +6 +▇{20}$", done.stdout, re.MULTILINE)
    assert re.search(r"^rare +4 ", done.stdout, re.MULTILINE)
    assert not re.search(r"^c15 ", done.stdout, re.MULTILINE)  # neither among the commonest nor among the rarest
    assert "32 classes of 4 to 60 pictures (15 to 1); always guessing 'common' would be right 9.0 times" in done.stdout
    assert "classes.balance" in done.stdout
    assert "\nno picture in val, so never judged: 1 of 32 classes\n" in done.stdout
    assert "no picture was opened: --check-pictures does that" in done.stdout
    assert re.search(r"^c15 ", cutline("inspect", str(tmp_path), "--all").stdout, re.MULTILINE)
    found = json.loads(cutline("inspect", str(tmp_path), "--json").stdout)
    assert found["labels"]["rare"] == {"train": 4, "val": 0, "test": 0}
    assert found["balance"]["most"] == 60


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
@pytest.mark.parametrize("encoding", ["utf-8:strict", "cp1252"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_whatever_the_terminal_cannot_write_is_spelt_out(encoding: str, form: str, tmp_path: Path) -> None:
    for label in ("caf\udce9", "tea"):
        (tmp_path / label).mkdir()
        for number in range(3):
            Image.new("L", (4, 4), number).save(tmp_path / label / f"{number}.png")
    (tmp_path / "caf\udce9" / "\udcff.png").write_bytes(b"")
    arguments = ["inspect", str(tmp_path), *(["--json"] if form == "json" else [])]
    command = [sys.executable, "-m", "cutline", "data", *arguments]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, timeout=60)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 1
    assert re.search(rb"caf\\+udce9", done.stdout)
