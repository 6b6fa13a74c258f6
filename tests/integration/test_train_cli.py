"""`cutline train` from pictures to a run folder, stopped and resumed, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def events(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, bytes]:
    newest = max((run / "checkpoints").iterdir())
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


def test_a_run_folder_holds_all_of_a_run(tiny_run: Path) -> None:
    assert {"config.toml", "words.json", "events.jsonl", "checkpoints", "bundle", "report.html"} <= {
        path.name for path in tiny_run.iterdir()
    }
    log = events(tiny_run)
    losses = [event["loss"] for event in log if event["kind"] == "step"]
    assert len(losses) == 6  # 96 pictures in batches of 32, twice
    assert losses[-1] < losses[0]
    validations = [event for event in log if event["kind"] == "validation"]
    assert [event["epoch"] for event in validations] == [1, 2]
    assert all(f"{lang}_cider" in validations[0] for lang in ("en", "de"))


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """Settings with all that a resume must get right: averages, accumulation, an epoch of several steps."""
    text = tiny_config.read_text().replace("epochs = 2", "epochs = 8\nema = 0.9\naccumulate = 2")
    file = tmp_path_factory.mktemp("longer") / "longer.toml"
    file.write_text(text.replace("batch = 32", "batch = 16").replace("captions = 4", "captions = 1"))
    return file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path, longer: Path, run_cutline: Run) -> Path:
    """A run that nothing has stopped."""
    output = tmp_path_factory.mktemp("whole")
    done = run_cutline("train", "--preset", "scenes", "--config", longer, "--data", scenes_folder, "--output", output)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(
    workers: int, tmp_path: Path, scenes_folder: Path, longer: Path, whole: Path, run_cutline: Run
) -> None:
    """Stopped by SIGTERM in the middle of an epoch, resumed: the same weights, bit for bit, and the same log."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cutline", "train", "--preset", "scenes", "--config", longer, "--data", scenes_folder,
         "--output", tmp_path, "--workers", str(workers)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    stopped = Path(process.stdout.readline().strip())
    log = stopped / "events.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count('"kind": "step"') >= 8):
        assert time.monotonic() < deadline, "no step in a minute"
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    steps = [event["step"] for event in events(stopped) if event["kind"] == "step"]
    assert len(steps) < 24, "it was to be stopped before the end"

    resumed = run_cutline("train", "--resume", stopped)
    assert resumed.returncode == 0, resumed.stderr
    assert weights(stopped) == weights(whole)
    assert (stopped / "events.jsonl").read_bytes() == (whole / "events.jsonl").read_bytes()


@pytest.mark.slow
def test_a_picture_damaged_meanwhile_is_in_no_score_and_ends_nothing(
    tmp_path: Path, tiny_run: Path, tiny_config: Path, run_cutline: Run
) -> None:
    """Neither in training nor afterwards, and what cannot be read is left out of later scores as well."""
    from cutline.data.readers import read_corpus

    data = tmp_path / "data"
    shutil.copytree(Path(tomllib.loads((tiny_run / "config.toml").read_text())["data"]["path"]), data)
    first = read_corpus(data).split("val")[0].image
    first.write_bytes(first.read_bytes()[:300])
    settings = tmp_path / "short.toml"
    settings.write_text(tiny_config.read_text().replace("epochs = 2", "epochs = 1"))
    given = ("train", "--preset", "scenes", "--config", settings, "--data", data, "--output", tmp_path / "runs")
    done = run_cutline(*given)
    assert done.returncode == 0, done.stderr
    assert "in no score, since they cannot be read: 1 of the split val" in done.stderr
    run = Path(done.stdout.splitlines()[-1])
    assert (run / "report.html").exists()
    scored = run_cutline("evaluate", run, "--split", "val", "--format", "json", "--quiet")
    assert scored.returncode == 0, scored.stderr
    assert "is in no score" in scored.stderr
    assert str(first) in scored.stderr
    count = len(read_corpus(data).split("val"))
    assert {each["count"] for each in json.loads(scored.stdout).values()} == {count - 1}
    exported = run_cutline("export", run, "--out", tmp_path / "bundle")
    assert exported.returncode == 0, exported.stderr


def test_what_evaluate_writes_is_scored_alike_in_each_language(
    tmp_path: Path, tiny_run: Path, run_cutline: Run
) -> None:
    done = run_cutline("evaluate", tiny_run, "--out", tmp_path / "said.jsonl", "--format", "json", "--quiet")
    assert done.returncode == 0, done.stderr
    evaluated = json.loads(done.stdout)
    assert len(evaluated) == 2
    data = tomllib.loads((tiny_run / "config.toml").read_text())["data"]["path"]
    for lang, found in evaluated.items():
        scored = run_cutline(
            "score", tmp_path / "said.jsonl", data, "--split", "val", "--lang", lang, "--format", "json"
        )
        assert scored.returncode == 0, scored.stderr
        names = ("cider", "bleu_4", "rouge_l", "count")
        assert [json.loads(scored.stdout)[name] for name in names] == pytest.approx([found[name] for name in names])


def test_without_training_captions_none_are_called_new(tmp_path: Path, tiny_run: Path, run_cutline: Run) -> None:
    shutil.copy(
        next(Path(tomllib.loads((tiny_run / "config.toml").read_text())["data"]["path"]).rglob("*.png")), tmp_path
    )
    (picture,) = tmp_path.glob("*.png")
    (tmp_path / "t.csv").write_text(f"image,caption,lang,split\n{picture.name},a red box,en,test\n")
    done = run_cutline("evaluate", tiny_run / "bundle", "--data", tmp_path, "--split", "test", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["en"]["novel"] is None


def test_resume_refuses_other_data(tmp_path: Path, tiny_run: Path, run_cutline: Run) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    config = (run / "config.toml").read_text()
    data = shutil.copytree(tomllib.loads(config)["data"]["path"], tmp_path / "data")
    (run / "config.toml").write_text(config.replace(tomllib.loads(config)["data"]["path"], str(data)))
    rows = (data / "scenes.jsonl").read_text().splitlines()
    (data / "scenes.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    again = run_cutline("train", "--resume", run)
    assert again.returncode == 2
    assert "the pictures or captions are others" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--epoks", "3"], "--epochs"),
        (["--preset", "scene"], "did you mean 'scenes'?"),
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--resume", "no/such/run"], "is not a run folder"),
        (["--decoder", "lsmt"], "lstm"),
        (["--preset", "scenes", "--device", "cuda:77"], "device 'cuda:77' is not there"),
        (["--config", "none.toml"], "no config file none.toml"),
        (["--batch", "0"], "'training.batch' is 0"),
        (["--preset", "transfer", "--epochs", "3"], "each stage has its own training.epochs"),
        (["--dry-run", "--config", "deaf.toml"], "'health.command' names a program that is not there"),
    ],
)
def test_mistakes_are_named(arguments: list[str], says: str, tmp_path: Path, run_cutline: Run) -> None:
    (tmp_path / "deaf.toml").write_text("[health]\ncommand = 'no-such-program'\n")
    done = run_cutline("train", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_without_a_valid_checkpoint_each_is_named(tmp_path: Path, tiny_run: Path, run_cutline: Run) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for checkpoint in (run / "checkpoints").iterdir():
        os.truncate(checkpoint / "state.json", 5)
    refused = run_cutline("train", "--resume", run)
    assert refused.returncode == 2
    assert refused.stderr.count("state.json has 5 bytes") == len(list((run / "checkpoints").iterdir()))


def test_a_flag_of_nought_is_a_value(tmp_path: Path, run_cutline: Run) -> None:
    file = tmp_path / "seeded.toml"
    file.write_text("seed = 5\n[training]\npatience = 3\n")
    shown = run_cutline("train", "--config", file, "--seed", 0, "--patience", 0, "--print-config").stdout
    assert (tomllib.loads(shown)["seed"], tomllib.loads(shown)["training"]["patience"]) == (0, 0)


def test_print_config_can_be_read_back(tmp_path: Path, run_cutline: Run) -> None:
    first = run_cutline("train", "--preset", "scenes", "--rate", "0.5", "--print-config")
    assert tomllib.loads(first.stdout)["training"]["rate"] == 0.5
    file = tmp_path / "again.toml"
    file.write_text(first.stdout)
    assert run_cutline("train", "--config", file, "--print-config").stdout == first.stdout


def test_dry_run_says_what_it_would_take_and_leaves_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path, tiny_config: Path, run_cutline: Run
) -> None:
    slow = tmp_path_factory.mktemp("slow") / "slow.toml"
    slow.write_text(tiny_config.read_text().replace("warmup = 5", "warmup = 50"))
    done = run_cutline(
        "train", "--preset", "scenes", "--config", slow, "--data", scenes_folder, "--dry-run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert {"data", "model", "steps", "memory", "disk", "time"} <= set(lines)
    assert "48 x 48 pixels" in lines["model"]
    assert lines["steps"].startswith("6: 2 epochs of 3, ")
    assert lines["steps"].endswith(
        "; training.warmup is 50 steps, the stage 6: the rate gets no further than 12 % of training.rate"
    )
    assert list(tmp_path.iterdir()) == []
