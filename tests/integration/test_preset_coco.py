"""`--preset coco` on a folder as Karpathy's split of COCO lies on a disk, with a real ResNet-101 from a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm

Run = Callable[..., Any]

SMALL = """
threads = 1
[words]
min_count = 1
[pictures]
size = 64
[training]
precision = "fp32"
[[stages]]
[stages.training]
epochs = 3
batch = 8
warmup = 2
rate = 5e-3
[[stages]]
[stages.training]
epochs = 1
batch = 16
objective = "self_critical"
rate = 5e-5
"""


@pytest.mark.slow
def test_from_karpathys_split_to_captions(scenes_folder: Path, tmp_path: Path, run_cutline: Run) -> None:
    data = tmp_path / "coco"
    (data / "val2014").mkdir(parents=True)
    images = []
    for number, line in enumerate((scenes_folder / "scenes.jsonl").read_text().splitlines()[:60]):
        row = json.loads(line)
        name = f"COCO_val2014_{number:012}.png"
        shutil.copy(scenes_folder / row["image"], data / "val2014" / name)
        sentences = [{"raw": text, "imgid": number} for text in row["captions"]["en"]]
        split = "val" if number % 6 == 0 else "restval" if number % 2 else "train"
        about = {"filename": name, "filepath": "val2014", "cocoid": number, "split": split, "sentences": sentences}
        images.append(about)
    (data / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    weights, config = tmp_path / "resnet101.safetensors", tmp_path / "small.toml"
    safetensors.torch.save_file(timm.create_model("resnet101").state_dict(), weights)
    config.write_text(SMALL)
    train = ["train", "--preset", "coco", "--config", config, "--data", data, "--format", "karpathy"]
    train += ["--weights", weights, "--output", tmp_path / "runs"]

    planned = run_cutline(*train, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    told = dict(line.split(None, 1) for line in planned.stdout.splitlines() if line[:1].isalpha())
    assert told["data"].startswith("50 pictures to learn from, 10 to validate on")
    assert "64 x 64 pixels -> 2 x 2 regions of 2048" in told["model"]
    assert {"memory", "disk", "time"} <= {name.rstrip(":") for name in told}
    assert not (tmp_path / "runs").exists()

    done = run_cutline(*train)
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.splitlines()[-1])
    judged = json.loads(run_cutline("evaluate", run, "--split", "val", "--format", "json").stdout)["en"]
    assert judged["count"] == 10
    losses = [event["loss"] for event in map(json.loads, (run / "events.jsonl").open()) if event["kind"] == "step"]
    assert min(losses[:-4]) > 0 > max(losses[-4:]), "by words for three epochs of 7 steps, then by rewards for one of 4"
    assert (run / "search.json").exists()
    picture = data / "val2014" / images[0]["filename"]
    said = json.loads(run_cutline("caption", picture, "--model", run / "bundle", "--format", "json").stdout)
    assert said[0]["captions"][0]["text"]


@pytest.mark.data
@pytest.mark.slow
def test_the_part_of_coco_at_hand(real_data: Path, tmp_path: Path, run_cutline: Run) -> None:
    """Most pictures of the annotations are absent, which is said; the rest is enough to say what the preset takes."""
    planned = run_cutline(
        "train", "--preset", "coco", "--data", real_data / "coco", "--divide", "anew", "--skip-bad",
        "--weights", "none", "--dry-run", "--output", tmp_path,
    )  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    assert "left out: 4841 that cannot be used" in planned.stderr
    assert "127 pictures to learn from, 20 to validate on" in planned.stdout
    assert "224 x 224 pixels -> 7 x 7 regions of 2048" in planned.stdout
