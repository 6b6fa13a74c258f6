"""`cutline caption` as people run it: real processes, real files, a bundle that a tiny run left."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cutline.cli.pictures import _looks_like_a_picture


@pytest.fixture(scope="module")
def bundle(tiny_run: Path) -> Path:
    return tiny_run / "bundle"


@pytest.fixture(scope="module")
def photos(scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures, and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    found = sorted(path for path in scenes_folder.rglob("*.png"))[:5]
    for number, path in enumerate(found):
        shutil.copy(path, folder / f"photo {number}.png")
    return folder


@pytest.fixture
def mixed(photos: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(photos, tmp_path / "mixed")
    (folder / "photo 2.png").write_bytes(b"not a picture")
    return folder


def texts(lines: str) -> list[str]:
    return [json.loads(line)["captions"][0]["text"] for line in lines.splitlines()]


def test_one_picture_gives_its_caption_and_nothing_else(run_cutline, bundle: Path, photos: Path) -> None:
    done = run_cutline("caption", photos / "photo 0.png", "--model", bundle)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.strip()


def test_folder_glob_list_and_files_are_the_same_pictures(run_cutline, bundle: Path, photos: Path) -> None:
    files = [photos / f"photo {number}.png" for number in range(5)]
    options = ("--model", bundle, "--format", "jsonl")
    folder = run_cutline("caption", photos, *options)
    assert folder.returncode == 0, folder.stderr
    rows = [json.loads(line) for line in folder.stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(file) for file in files]
    assert all(row.keys() == {"path", "captions"} for row in rows)
    assert all(caption.keys() == {"text", "score", "lang"} for row in rows for caption in row["captions"])
    assert run_cutline("caption", photos / "*.png", *options).stdout == folder.stdout
    assert run_cutline("caption", *files, *options).stdout == folder.stdout
    listed = run_cutline("caption", "-", *options, input="".join(f"{file}\n" for file in files) + "\n")
    assert listed.stdout == folder.stdout
    text = run_cutline("caption", photos, "--model", bundle)
    assert text.stdout.splitlines() == [f"{f}: {t}" for f, t in zip(files, texts(folder.stdout))]


def test_what_is_passed_over_in_a_folder_is_counted(run_cutline, bundle: Path, photos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    for name in ("film.MOV", "raw.cr2", "more/another.cr2", "LICENCE", ".DS_Store"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    done = run_cutline("caption", folder, "--model", bundle)
    said = "passed over: 4 files that are no pictures by their names (2 .cr2, 1 .mov, 1 without ending)"
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 5)
    assert said in done.stderr
    assert "passed over" not in run_cutline("caption", folder, "--model", bundle, "--quiet").stderr


def test_bytes_on_standard_input_are_a_picture(run_cutline, bundle: Path, photos: Path) -> None:
    file = photos / "photo 1.png"
    expected = run_cutline("caption", file, "--model", bundle).stdout
    for name, options in (("png", {}), ("webp", {"lossless": True}), ("bmp", {}), ("ppm", {})):
        data = io.BytesIO()
        Image.open(file).convert("RGB").save(data, name, **options)
        done = subprocess.run(
            [sys.executable, "-m", "cutline", "caption", "-", "--model", str(bundle)],
            input=data.getvalue(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode() == expected


@pytest.mark.parametrize(
    ("head", "is_picture"),
    [
        (b"P6\n4 4\n255\n", True),
        (b"P2 # by hand\n4 4\n255\n", True),
        (b"P3\r\n640\t480\r\n255", True),
        (b"P1 beach.png\nP2 beach.png\n", False),
        (b"P1 2.png\n", False),
        (b"photos/P6 4.png\n", False),
    ],
)
def test_a_list_of_paths_is_told_from_a_plain_picture(head: bytes, is_picture: bool) -> None:
    assert _looks_like_a_picture(head) == is_picture


def test_a_broken_picture_is_named_and_the_others_go_on(run_cutline, bundle: Path, mixed: Path) -> None:
    done = run_cutline("caption", mixed, mixed / "photo 0.png", "--model", bundle, "--format", "jsonl")
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 6
    assert rows[2].keys() == {"path", "error"}
    assert all(row["captions"] for number, row in enumerate(rows) if number != 2)
    assert "photo 2.png" in done.stderr
    assert "1 of 6" in done.stderr
    assert "Traceback" not in done.stderr
    listed = run_cutline("caption", "-", "--model", bundle, input=f"absent.png\n{mixed / 'photo 0.png'}\n")
    assert listed.returncode == 1
    assert listed.stdout.startswith(str(mixed / "photo 0.png"))


def test_formats_and_options(run_cutline, bundle: Path, photos: Path) -> None:
    done = run_cutline(
        "caption", photos, "--model", bundle, "--format", "json", "--num", 3, "--lang", "de", "--attention"
    )
    rows = json.loads(done.stdout)
    assert len(rows) == 5
    for row in rows:
        captions = row["captions"]
        assert len(captions) == 3
        assert {caption["lang"] for caption in captions} == {"de"}
        for caption in captions:
            assert " ".join(look["word"] for look in caption["attention"]).split()
            weights = [sum(map(sum, look["weights"])) for look in caption["attention"]]
            assert weights == pytest.approx([1] * len(weights), abs=0.01)
    table = run_cutline("caption", photos, "--model", bundle, "--format", "csv", "--beam", 1)
    assert len(list(csv.DictReader(io.StringIO(table.stdout)))) == 5
    draws = [
        run_cutline("caption", photos, "--model", bundle, "--method", "sample", "--seed", seed).stdout
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_output_file_is_whole_and_never_overwritten(run_cutline, bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "captions.jsonl"
    options = ("--model", bundle, "--format", "jsonl", "--out", out)
    done = run_cutline("caption", photos, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert len(texts(out.read_text())) == 5
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    before = out.read_bytes()
    refused = run_cutline("caption", photos / "photo 0.png", *options)
    assert refused.returncode == 2
    assert "already there" in refused.stderr
    assert out.read_bytes() == before
    forced = run_cutline("caption", photos / "photo 0.png", *options, "--force")
    assert forced.returncode == 0
    assert len(texts(out.read_text())) == 1
    failed = run_cutline("caption", tmp_path / "absent.png", *options, "--force")
    assert failed.returncode == 2
    assert len(texts(out.read_text())) == 1
    assert [file.name for file in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("format", ["csv", "json", "jsonl"])
def test_a_killed_folder_goes_on_to_the_same_file(
    format: str, run_cutline, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "many", tmp_path / f"captions.{format}"
    folder.mkdir()
    for number in range(400):
        shutil.copy(photos / f"photo {number % 5}.png", folder / f"{number}.png")
    options = ["caption", folder, "--model", bundle, "--format", format, "--num", 2, "--batch", 4, "--quiet"]
    assert run_cutline(*options, "--out", tmp_path / "whole").returncode == 0
    command = [sys.executable, "-m", "cutline", *map(str, options), "--out", str(out)]
    partial = out.with_name(out.name + ".partial")
    process = subprocess.Popen(command)
    while not (partial.exists() and partial.stat().st_size > 1000):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not out.exists()
    refused = run_cutline(*options, "--out", out)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    done = run_cutline(*options[:-1], "--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    kept = int(re.search(r"kept: (\d+) pictures", done.stderr)[1])
    assert 0 < kept < 399
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not partial.exists()


def test_what_is_missing_in_a_file_is_added(
    run_cutline, bundle: Path, mixed: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "captions.csv"
    options = ("caption", mixed, "--model", bundle, "--format", "csv", "--out", out)
    assert run_cutline(*options).returncode == 1  # one is no picture
    shutil.copy(photos / "photo 2.png", mixed / "photo 2.png")
    shutil.copy(photos / "photo 0.png", mixed / "a new one.png")
    done = run_cutline(*options, "--resume")
    assert done.returncode == 0, done.stderr
    assert "kept: 3 pictures" in done.stderr
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert sorted(Path(row["path"]).name for row in rows) == [
        "a new one.png", *(f"photo {number}.png" for number in range(5)),
    ]  # fmt: skip
    assert all(row["caption"] and not row["error"] for row in rows)


def test_what_cannot_be_gone_on_with_is_told_and_kept(run_cutline, bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.csv"
    out.write_text("name,price\nhammer,3\n")
    options = ("caption", photos, "--model", bundle, "--resume")
    for more, says in (
        ((), "--resume goes on with a file"),
        (("--out", out), "--resume needs rows that say whose they are"),
        (("--out", out, "--format", "csv", "--force"), "--resume keeps what is there, and --force does not"),
        (("--out", out, "--format", "csv"), f"{out}: its first line does not name the columns path, caption"),
    ):
        refused = run_cutline(*options, *more)
        assert refused.returncode == 2
        assert says in refused.stderr
        assert [file.name for file in tmp_path.iterdir()] == [out.name]
        assert out.read_text() == "name,price\nhammer,3\n"


def test_the_newest_model_is_found_and_without_any_the_one_in_the_box(
    run_cutline, tiny_run: Path, photos: Path, tmp_path: Path
) -> None:
    none = run_cutline("caption", photos, cwd=tmp_path)
    assert none.returncode == 0, none.stderr
    assert none.stderr.count("the one that comes with Cutline") == 1
    shutil.copytree(tiny_run / "bundle", tmp_path / "runs" / "old" / "bundle")
    os.utime(tmp_path / "runs" / "old" / "bundle" / "bundle.json", (1, 1))
    shutil.copytree(tiny_run / "bundle", tmp_path / "runs" / "new" / "bundle")
    found = run_cutline("caption", photos, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert str(Path("runs/new/bundle")) in found.stderr
    wrong = run_cutline("caption", photos, "--model", tmp_path / "runs" / "none")
    assert wrong.returncode == 2
    assert "there is no bundle" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no pictures"),
        (("nowhere.png",), "nowhere.png"),
        (("none/*.png",), "none/*.png"),
        (("-", "x.png"), "-"),
        ((".", "--lang", "xx"), "en"),
        ((".", "--num", "0"), "num"),
        ((".", "--batch", "0"), "batch"),
        ((".", "--attention"), "jsonl"),
        ((".", "--formatt", "csv"), "--format"),
        ((".", "--format", "xml"), "jsonl"),
    ],
)
def test_mistakes_are_said_without_a_traceback(run_cutline, bundle: Path, photos: Path, arguments, said: str) -> None:
    done = run_cutline("caption", *arguments, "--model", bundle, cwd=photos, input="")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "."], "is no file"),
        (["--out", "/dev/null", "--force"], "/dev/null is no file"),
        (["--out", "photo 0.png/x.csv"], "photo 0.png"),
        (["--out", "/proc/x/y.csv"], "/proc/x"),
        (["--model", "x" * 300], "File name too long"),
    ],
)
def test_places_that_cannot_be_are_told_in_a_line(
    run_cutline, bundle: Path, photos: Path, arguments, said: str
) -> None:
    done = run_cutline("caption", ".", *arguments, *([] if "--model" in arguments else ["--model", bundle]), cwd=photos)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in photos.iterdir()) == [f"photo {number}.png" for number in range(5)]


def test_names_that_cannot_be_stop_nothing_else(run_cutline, bundle: Path, photos: Path) -> None:
    for wrong in ("~nobody-of-that-name/x.jpg", "x" * 300 + ".jpg", "x" * 300 + "*.jpg"):
        done = run_cutline("caption", wrong, "--model", bundle)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    lines = "".join(f"{photos}/photo {number % 5}.png\n" for number in range(40)) + "a\0b.png\n"
    done = run_cutline("caption", "-", "--model", bundle, "--format", "jsonl", input=lines)
    assert done.returncode == 1, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [("captions" in row) for row in rows] == [True] * 40 + [False]


def test_a_reader_that_goes_away_is_no_error(bundle: Path, photos: Path) -> None:
    command = f"'{sys.executable}' -m cutline caption '{photos}' --model '{bundle}' | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
