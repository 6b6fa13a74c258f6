"""The commands that the README and the docs show are run as they stand there, page by page.

What stands in a ```bash block is run in a folder with `photos/`, captioned pictures of our own drawing, and with a
hub cache that holds the encoder's weights (random ones), as it would after a first download. Commands that install
something, take minutes or need what a test has not stand in ```sh blocks and are only checked for their flags.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = """
threads = 1
[words]
min_count = 1
[decoder]
hidden = 32
[training]
epochs = 2
batch = 16
patience = 0
[search]
max_length = 14
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(script: str) -> list[str]:
    joined = script.replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in joined.splitlines() if line.split("#")[0].strip()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache as a first download leaves it, but with random weights."""
    import safetensors.torch
    import timm

    model = timm.create_model("mobilenetv2_100")
    name = f"models--{timm.get_pretrained_cfg('mobilenetv2_100').hf_hub_id.replace('/', '--')}"
    home = tmp_path_factory.mktemp("hub")
    snapshot = home / "hub" / name / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    safetensors.torch.save_file(model.state_dict(), snapshot / "model.safetensors")
    (home / "hub" / name / "refs").mkdir()
    (home / "hub" / name / "refs" / "main").write_text("0" * 40)
    return home


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path, hub: Path) -> tuple[Path, dict[str, str]]:
    """A folder to follow the docs in: photographs with captions, a `cutline` on the path that trains little, a run."""
    folder = tmp_path_factory.mktemp("desk")
    photos = folder / "photos"
    photos.mkdir()
    rows = [json.loads(line) for line in (scenes_folder / "scenes.jsonl").read_text().splitlines()][:40]
    for number, row in enumerate(rows):
        shutil.copy(scenes_folder / row["image"], photos / f"{number}.png")
        (photos / f"{number}.txt").write_text("\n".join(row["captions"]["en"]), encoding="utf-8")
    bin = folder / "bin"
    bin.mkdir()
    (bin / "small.toml").write_text(SMALL)
    wrapper = bin / "cutline"
    wrapper.write_text(
        "#!/bin/bash\n"
        'if [ "$1" = train ] && [[ " $* " != *" --config "* ]] && [[ " $* " != *" --resume "* ]]; then\n'
        f'  set -- "$@" --config "{bin}/small.toml"\n'
        "fi\n"
        f'exec "{sys.executable}" -m cutline "$@"\n'
    )
    wrapper.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{bin}:{os.environ['PATH']}", "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1",
        "CUTLINE_CACHE": str(folder / "bin" / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "80",
    }  # fmt: skip
    shell("cutline train --preset scenes --data photos --quiet", folder, environment)
    return folder, environment


@pytest.fixture
def desk(tmp_path: Path, trained: tuple[Path, dict[str, str]]) -> tuple[Path, dict[str, str]]:
    folder, environment = trained
    shutil.copytree(folder / "photos", tmp_path / "photos")
    shutil.copytree(folder / "runs", tmp_path / "runs", symlinks=True)
    return tmp_path, environment


def shell(script: str, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def runnable() -> list[Any]:
    """Pages with commands; those that train, or compute features, are long."""
    pages = [page for page in PAGES if blocks(page, "bash")]
    long = {page for page in pages if re.search("cutline (train|features build)", "".join(blocks(page, "bash")))}
    return [pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page in long)) for page in pages]


@pytest.mark.parametrize("page", runnable())
def test_commands_do_what_the_page_says(page: Path, desk: tuple[Path, dict[str, str]]) -> None:
    folder, environment = desk
    shell("".join(blocks(page, "bash")), folder, environment)
    for code in blocks(page, "python"):
        (folder / "page.py").write_text(code, encoding="utf-8")
        shell(f"{sys.executable} page.py", folder, environment)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_a_page_names_exist(page: Path) -> None:
    """Also of commands that are not run here: a flag renamed in the program must be renamed in the docs."""
    from cutline.cli.completion import flags_of

    for script in blocks(page, "sh") + blocks(page, "bash"):
        for command in commands(script):
            match = re.match(r"cutline ([a-z]+)(?: ([a-z]+))?(.*)", command)
            if not match:
                continue
            verb, rest = match[1], f"{match[2] or ''} {match[3]}"
            named = set(re.findall(r"(?<!\S)--[a-z-]+", rest))
            assert named <= set(
                flags_of(verb, match[2] if verb in ("data", "features", "runs", "benchmark") else None)
            ), command
