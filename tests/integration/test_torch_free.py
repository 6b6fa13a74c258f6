"""The core installation alone: a real environment that holds what `pip install cutline` would, and nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cutline

Command = tuple[object, ...]


def closure(name: str) -> set[str]:
    """The distributions that `pip install NAME` brings, without extras."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with cutline's core dependencies only, linked from ours."""
    home = tmp_path_factory.mktemp("core") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    for name in closure("cutline") - {"cutline"}:
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            there = Path(str(distribution.locate_file(top)))
            if there.exists():
                (site / top).symlink_to(there)
    shutil.copytree(Path(cutline.__file__).parent, site / "cutline", ignore=shutil.ignore_patterns("__pycache__"))
    return home / "bin" / "python"


def run(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    command = [str(python), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_environment_has_no_torch(core: Path, tmp_path: Path) -> None:
    for module in ("torch", "timm", "onnx", "tokenizers", "safetensors", "openvino", "sklearn"):
        done = run(core, "-c", f"import {module}", cwd=tmp_path)
        assert "ModuleNotFoundError" in done.stderr, module
    for module in ("numpy", "PIL", "onnxruntime", "rich", "tyro", "cutline"):
        done = run(core, "-c", f"import {module}; print({module}.__file__)", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [("--help",), ("--version",), ("doctor",), ("completion", "bash")])
def test_verbs_that_need_no_torch(core: Path, tmp_path: Path, command: Command) -> None:
    done = run(core, "-m", "cutline", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_captions_are_those_of_the_whole_installation(
    core: Path, tiny_run: Path, scenes_folder: Path, run_cutline, tmp_path: Path
) -> None:
    for number, file in enumerate(sorted(scenes_folder.rglob("*.png"))[:4]):
        shutil.copy(file, tmp_path / f"{number}.png")
    arguments = ("caption", ".", "--model", tiny_run / "bundle", "--format", "jsonl", "--lang", "de", "--num", 2)
    done = run(core, "-m", "cutline", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run_cutline(*arguments, cwd=tmp_path).stdout
    predictions = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(predictions) == 4

    (tmp_path / "captions.jsonl").write_text(done.stdout)
    references = {row["path"]: [row["captions"][0]["text"]] for row in predictions}
    (tmp_path / "references.json").write_text(json.dumps(references))
    scored = run(core, "-m", "cutline", "score", "captions.jsonl", "references.json", "--format", "json", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)


@pytest.mark.parametrize(
    "command",
    [
        ("export", "runs/x"),
        ("train", "--data", "scenes"),
        ("train", "--data", "scenes", "--dry-run"),
        ("demo",),
        ("features", "build", "."),
        ("grid", "--vary", "decoder.kind=lstm,gru", "--out", "g"),
        ("benchmark", "classify", "--data", ".", "--out", "b"),
    ],
)
def test_verbs_that_need_torch_name_the_extra(core: Path, tmp_path: Path, command: Command) -> None:
    done = run(core, "-m", "cutline", *command, cwd=tmp_path)
    assert done.returncode == 2
    assert "cutline[train]" in done.stderr
    assert "Traceback" not in done.stderr
