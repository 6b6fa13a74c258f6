"""`cutline classify` as people run it: real processes, real files, and a bundle that tells colours apart."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

import cutline
from cutline.data.images import Transform
from cutline.export import export_classifier
from cutline.starter import FILE as CAPTIONER

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue/sky": (0, 0, 250)}
GREY = (120, 120, 120)


class ByColour(nn.Module):
    """Sure of a picture of one colour, and unsure of a grey one."""

    class encoder:  # noqa: N801  # as a classifier has one
        transform = Transform(size=24)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0].float().mean((2, 3)) / 50


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "bundle"
    return export_classifier(ByColour().eval(), list(COLOURS), 1.0, out, {})  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two of each colour, a grey one, and one that is no picture."""
    folder = tmp_path / "photos"
    random = np.random.default_rng(0)
    for number, colour in enumerate([*COLOURS.values(), *COLOURS.values(), GREY]):
        pixels = np.clip(random.normal(colour, 20, (24, 24, 3)), 0, 255).astype(np.uint8)
        place = folder / ("more" if number > 2 else "") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    (folder / "7.png").write_bytes(b"not a picture")
    return folder


def everything(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def shown(folder: Path) -> set[str]:
    return {name for name in everything(folder) if name != "undo.jsonl"}


def test_one_picture_gives_its_classes_in_a_line(run_cutline, bundle: Path, photos: Path) -> None:
    done = run_cutline("classify", photos / "0.png", "--model", bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "red 98.2 %\n"  # what comes to less than 1 % is left out
    grey = run_cutline("classify", photos / "more/6.png", "--model", bundle, "--top", 2)
    assert len(grey.stdout.split(", ")) == 2
    (row,) = json.loads(run_cutline("classify", photos / "0.png", "--model", bundle, "--format", "json").stdout)
    assert [entry["label"] for entry in row["classes"]][:1] == ["red"]
    assert sum(entry["probability"] for entry in row["classes"]) == pytest.approx(1, abs=1e-5)
    classifier = cutline.load(bundle)
    assert row["classes"][0]["probability"] == pytest.approx(classifier.classify(photos / "0.png")[0][0].probability)


def test_folder_glob_list_and_bytes(run_cutline, bundle: Path, photos: Path) -> None:
    (photos / "7.png").unlink()
    options = ("--model", bundle, "--format", "jsonl", "--top", 1)
    folder = run_cutline("classify", photos, *options)
    assert folder.returncode == 0, folder.stderr
    rows = [json.loads(line) for line in folder.stdout.splitlines()]
    assert [Path(row["path"]).name for row in rows] == [f"{number}.png" for number in range(7)]
    assert [row["classes"][0]["label"] for row in rows[:6]] == [*COLOURS] * 2
    assert run_cutline("classify", photos / "**" / "*.png", *options).stdout == folder.stdout
    listed = run_cutline("classify", "-", *options, input="".join(row["path"] + "\n" for row in rows))
    assert listed.stdout == folder.stdout
    text = run_cutline("classify", photos, "--model", bundle, "--top", 1).stdout.splitlines()
    assert text[0].startswith(f"{photos / '0.png'}: red 9")
    done = subprocess.run(
        [sys.executable, "-m", "cutline", "classify", "-", "--model", str(bundle), "--top", "1"],
        input=(photos / "2.png").read_bytes(), capture_output=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith(b"blue/sky 9")


def test_a_broken_picture_is_named_in_every_format(run_cutline, bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "classes.csv"
    done = run_cutline("classify", photos, "--model", bundle, "--format", "csv", "--top", 2, "--out", out)
    assert done.returncode == 1
    assert "1 of 8 pictures could not be classified" in done.stderr
    assert done.stdout == ""
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert list(rows[0]) == ["path", "label", "probability", "label_2", "probability_2", "error"]
    broken = next(row for row in rows if row["path"].endswith("7.png"))
    assert (broken["label"], broken["label_2"], broken["error"]) == ("", "", "not a picture but text")
    assert all(0 < float(row["probability_2"]) < float(row["probability"]) for row in rows if not row["error"])
    refused = run_cutline("classify", photos, "--model", bundle, "--out", out)
    assert refused.returncode == 2
    assert "already there" in refused.stderr
    lines = run_cutline("classify", photos, "--model", bundle, "--format", "jsonl", "--quiet")
    assert {"error"} == {key for line in lines.stdout.splitlines() for key in json.loads(line)} - {"path", "classes"}
    assert "7.png" in lines.stderr
    wide = run_cutline("classify", photos, "--model", bundle, "--format", "csv", "--top", 99)
    assert "label_3" in wide.stdout
    assert "label_4" not in wide.stdout


def test_the_newest_classifier_is_found_and_no_captioner(
    run_cutline, bundle: Path, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    picture, runs = photos / "0.png", tmp_path / "runs"
    none = run_cutline("classify", picture, cwd=tmp_path)
    assert none.returncode == 2
    assert "cutline train" in none.stderr
    assert "--model" in none.stderr
    for age, name in enumerate(["damaged", "captioner.cutline", "new", "old"]):
        place = runs / name
        place.parent.mkdir(exist_ok=True)
        if name == "captioner.cutline":
            shutil.copy(CAPTIONER, place)
        else:
            shutil.copytree(bundle, place / "bundle")
            place = place / "bundle" / "bundle.json"
        if name == "damaged":
            place.write_text("{")
        os.utime(place, (2e9 - age, 2e9 - age))
    found = run_cutline("classify", picture, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert f"model: {Path('runs/new/bundle')}" in found.stderr
    assert "passed over: runs/damaged/bundle" in found.stderr
    captioned = run_cutline("caption", picture, cwd=tmp_path)
    assert captioned.returncode == 0, captioned.stderr
    assert "model: runs/captioner.cutline" in captioned.stderr
    monkeypatch.setenv("CUTLINE_CLASSIFIER", str(runs / "old"))
    named = run_cutline("classify", picture, cwd=tmp_path)
    assert (named.returncode, named.stderr) == (0, "")


def test_a_bundle_of_the_other_kind_names_the_other_command(run_cutline, bundle: Path, photos: Path) -> None:
    wrong = run_cutline("classify", photos, "--model", CAPTIONER)
    assert wrong.returncode == 2
    assert "cutline caption --model" in wrong.stderr
    wrong = run_cutline("caption", photos, "--model", bundle)
    assert wrong.returncode == 2
    assert "cutline classify --model" in wrong.stderr


def test_a_run_that_learned_both_gives_each_command_its_own(
    run_cutline, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(CAPTIONER) as archive:
        archive.extractall(tmp_path / "both" / "bundle")
    shutil.copytree(bundle, tmp_path / "both" / "bundle-classes")
    picture = photos / "1.png"
    classified = run_cutline("classify", picture, "--model", tmp_path / "both")
    assert classified.stdout.startswith("green 9")
    captioned = run_cutline("caption", picture, "--model", tmp_path / "both")
    assert captioned.returncode == 0, captioned.stderr
    assert isinstance(cutline.load(tmp_path / "both"), cutline.Captioner)


def test_sorting_and_undo(run_cutline, bundle: Path, photos: Path) -> None:
    before = everything(photos)
    to = photos / "sorted"
    command = ("classify", photos, "--model", bundle, "--sort", to)
    done = run_cutline(*command)
    assert done.returncode == 1  # one is no picture
    assert "7 pictures copied" in done.stderr
    assert "1 of them into unsure (less than 50 % sure)" in done.stderr.replace("\n", " ")
    assert "'blue/sky' is blue_sky" in done.stderr
    assert "7.png: not a picture" in done.stderr
    assert len(done.stdout.splitlines()) == 7
    names = {"red/0.png", "green/1.png", "blue_sky/2.png", "red/3.png", "green/4.png", "blue_sky/5.png", "unsure/6.png"}
    assert shown(to) == names
    again = run_cutline(*command, "--quiet")
    assert again.stderr == f"{photos / '7.png'}: not a picture but text\n1 of 8 pictures could not be sorted\n"
    assert shown(to) == names
    undone = run_cutline("classify", "--undo", to / "undo.jsonl")
    assert (undone.returncode, undone.stdout) == (0, "")
    assert "7 pictures are back" in undone.stderr
    assert everything(photos) == before
    assert not to.exists()


def test_moving_and_what_is_sorted_again(run_cutline, bundle: Path, photos: Path) -> None:
    before, to = everything(photos), photos / "sorted"
    options = ("--model", bundle, "--sort", to, "--move", "--quiet")
    assert run_cutline("classify", photos, *options, "--least", 0.99).returncode == 1
    assert shown(photos) == {"7.png", "sorted/undo.jsonl", *(f"sorted/unsure/{number}.png" for number in range(7))}
    (photos / "7.png").unlink()
    # Once more with the same folder: what is sorted is no source; a list on standard input is none either.
    listed = "".join(f"{to}/unsure/{number}.png\n" for number in range(7))
    none = run_cutline("classify", "-", "--model", bundle, "--sort", to, "--move", input=listed)
    assert (none.returncode, none.stdout) == (0, "")
    assert "passed over: 7 pictures that are in" in none.stderr
    # But named by itself, a folder in it is sorted.
    assert run_cutline("classify", to / "unsure", *options).returncode == 0
    assert {"red/0.png", "blue_sky/5.png", "unsure/6.png"} < shown(to)
    into_itself = run_cutline("classify", to, *options)
    assert into_itself.returncode == 2
    assert "into itself" in into_itself.stderr
    (to / "red/0.png").write_bytes(b"edited")
    undone = run_cutline("classify", "--undo", to)
    assert undone.returncode == 1
    assert "red/0.png: has changed" in undone.stderr
    assert shown(to) == {"red/0.png"}
    assert everything(photos).items() >= {name: before[name] for name in before if name[0] not in "07"}.items()


def test_the_same_picture_named_twice_is_sorted_once(run_cutline, bundle: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "7.png").unlink()
    done = run_cutline(
        "classify", photos, photos / "0.png", "photos/*.png", "--model", bundle, "--sort", tmp_path / "to", "--move",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "7 pictures moved" in done.stderr


def test_a_picture_that_cannot_be_moved_has_an_error_in_its_row(
    run_cutline, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "8.png").symlink_to(photos / "0.png")
    (photos / "7.png").unlink()
    command = ("classify", photos, "--model", bundle, "--sort", tmp_path / "to", "--format", "jsonl")
    done = run_cutline(*command, "--move")
    assert done.returncode == 1
    assert "1 of 8 pictures could not be sorted" in done.stderr
    (row,) = (row for row in map(json.loads, done.stdout.splitlines()) if "error" in row)
    assert row["path"].endswith("8.png")
    assert row["error"].startswith("stays where it is: it is a link")


def test_a_killed_sort_is_undone(bundle: Path, photos: Path, tmp_path: Path, run_cutline) -> None:
    before, to = everything(photos), tmp_path / "sorted"
    command = [sys.executable, "-m", "cutline", "classify", "-", "--sort", str(to), "--move", "--batch", "1"]
    with subprocess.Popen(
        [*command, "--model", str(bundle)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("".join(f"{photos / f'{number}.png'}\n" for number in range(3)).encode())
        process.stdin.flush()
        assert b"red" in process.stdout.readline()  # it waits for more paths, having moved one or two
        process.send_signal(signal.SIGKILL)
    assert not (photos / "0.png").exists()
    assert run_cutline("classify", "--undo", to).returncode == 0
    assert everything(photos) == before
    assert not to.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no pictures"),
        (("--sort", "to"), "no pictures"),
        (("nowhere.png",), "nowhere.png"),
        ((".", "--top", "0"), "--top"),
        ((".", "--batch", "0"), "batch"),
        ((".", "--format", "xml"), "jsonl"),
        ((".", "--move"), "--sort"),
        ((".", "--least", "0.3"), "--sort"),
        ((".", "--sort", "to", "--least", "50"), "0 to 1"),
        ((".", "--sort", "to", "--move", "--out", "x.csv", "--format", "csv", "--resume"), "--move"),
        ((".", "--sort", "0.png"), "cannot be a folder"),
        ((".", "--undo", "undo.jsonl"), "alone"),
        (("--undo", "undo.jsonl"), "undo.jsonl"),
        (("--undo", "0.png"), "not an undo file"),
        ((".", "--sortt", "to"), "--sort"),
    ],
)
def test_mistakes_are_said_without_a_traceback(run_cutline, bundle: Path, photos: Path, arguments, said: str) -> None:
    before = everything(photos)
    done = run_cutline("classify", *arguments, "--model", bundle, cwd=photos, input="")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert everything(photos) == before


def test_bytes_cannot_be_sorted_and_torch_is_not_needed(bundle: Path, photos: Path, tmp_path: Path) -> None:
    code = "import sys; from cutline.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", f"{code}; sys.exit(code)", "classify", "-", "--model", str(bundle)]
    done = subprocess.run(
        [*command, "--sort", str(tmp_path / "to")], input=(photos / "0.png").read_bytes(), capture_output=True
    )
    assert done.returncode == 2
    assert b"no file that could be sorted" in done.stderr
    assert not (tmp_path / "to").exists()
    done = subprocess.run([*command, "--sort", str(tmp_path / "to")], input=bytes(photos / "0.png"))
    assert done.returncode == 0
