"""What many tests share: a drawn corpus, a captioner trained on it, and the command line as a real process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]

TINY = """
name = "tiny"
threads = 1
[data]
languages = ["en", "de"]
[words]
min_count = 1
[pictures]
size = 48
[decoder]
hidden = 48
[training]
epochs = 2
batch = 32
captions = 4
rate = 4e-3
warmup = 5
save_steps = 3
validate_every = 1
[search]
beam = 2
max_length = 16
"""


def cutline(*arguments: object, cwd: Path | None = None, input: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `cutline …` as its own process, at the 80 columns of a plain terminal."""
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "cutline", *map(str, arguments)],
        cwd=cwd, input=input, capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def run_cutline() -> Run:
    return cutline


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 drawn scenes with captions in English and German."""
    from cutline.data.scenes import draw

    return draw(tmp_path_factory.mktemp("corpus") / "scenes", count=120, languages=("en", "de"), size=48, seed=1)


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings for a captioner that trains in a few seconds; it need not be good."""
    file = tmp_path_factory.mktemp("config") / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path, tiny_config: Path) -> Path:
    """The run folder of a tiny captioner, trained by the real command line, once for all test processes."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    output = shared / "tiny-runs"
    with FileLock(shared / "tiny-runs.lock"):
        if not (output / "done").exists():
            data = shutil.copytree(scenes_folder, output / "scenes")
            done = cutline("train", "--preset", "scenes", "--config", tiny_config, "--data", data, "--output", output)
            assert done.returncode == 0, done.stderr
            (output / "done").write_text(done.stdout.splitlines()[-1])
    return Path((output / "done").read_text())


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that CUTLINE_DATA names; tests marked `data` skip without it."""
    folder = Path(os.environ.get("CUTLINE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "flickr8k").is_dir():
        pytest.skip(f"no real data in {folder} (CUTLINE_DATA names the folder)")
    return folder
