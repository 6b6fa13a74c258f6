"""A run that learns captions and classes at once, as a user meets it: two bundles, exported, compared, judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path, scenes_folder: Path, run_cutline: Run) -> Path:
    place = tmp_path_factory.mktemp("both")
    config = place / "both.toml"
    config.write_text('task = "both"\n' + tiny_config.read_text())
    done = run_cutline(
        "train", "--preset", "scenes", "--config", config, "--data", scenes_folder, "--output", place / "runs"
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def test_each_of_the_two_is_exported_as_training_has_left_it(
    both: Path, scenes_folder: Path, tmp_path: Path, run_cutline: Run
) -> None:
    picture = next(scenes_folder.rglob("*.png"))
    for verb, more, own in (("caption", (), "bundle"), ("classify", ("--classes",), "bundle-classes")):
        out = tmp_path / f"{verb}.cutline"
        done = run_cutline("export", both, *more, "--out", out, "--one-file")
        assert done.returncode == 0, done.stderr
        said = [run_cutline(verb, picture, "--model", model, "--format", "json") for model in (out, both / own, both)]
        assert [each.returncode for each in said] == [0, 0, 0], said[0].stderr
        assert len({each.stdout for each in said}) == 1
        assert json.loads(said[0].stdout)[0]["captions" if verb == "caption" else "classes"]


def test_it_is_judged_and_compared_by_both(both: Path, run_cutline: Run) -> None:
    found = json.loads(run_cutline("compare", both, "--format", "json").stdout)
    scores = found["runs"][0]["scores"]
    assert {"accuracy", "CIDEr-D en", "CIDEr-D de"} <= scores.keys()
    assert found["runs"][0]["time"]["median"] > 0
    judged = json.loads(run_cutline("evaluate", both, "--format", "json").stdout)
    assert {"en", "de", "classes"} <= judged.keys()
    assert judged["classes"]["accuracy"] == pytest.approx(scores["accuracy"], abs=100 / 12)  # of twelve, one may tip
    assert judged["en"]["cider"] == pytest.approx(scores["CIDEr-D en"], abs=2)
