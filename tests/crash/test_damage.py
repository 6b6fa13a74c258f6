"""Whatever happens to the files of a checkpoint is noticed, and the one before it is used."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cutline.engine.checkpoint import Checkpoint, Checkpoints
from cutline.errors import ModelError

LARGE = 50 * 2**20
FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def contents(step: int) -> dict[str, bytes]:
    """Different at each step but of the same sizes, so that only the bytes themselves tell them apart."""
    rng = random.Random(step)
    return {
        "model.safetensors": rng.randbytes(300),
        "optimizer.safetensors": rng.randbytes(200),
        "state.json": b'{"step": %d}' % step,
    }


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, "a-run")


@pytest.fixture
def older(checkpoints: Checkpoints) -> Checkpoint:
    return checkpoints.write(1, contents(1))


@pytest.fixture
def newer(checkpoints: Checkpoints, older: Checkpoint) -> Checkpoint:
    return checkpoints.write(2, contents(2))


def assert_used(checkpoints: Checkpoints, wanted: Checkpoint, damage: str = "") -> None:
    found = checkpoints.latest()
    assert found == wanted, f"{damage}: {found.path.name} is used"
    assert {name: found.read(name) for name in found.files} == contents(wanted.step), damage


def flip(file: Path, bit: int) -> None:
    """Flip one bit where it lies; flipping it again mends it."""
    handle = os.open(file, os.O_RDWR)
    try:
        (byte,) = os.pread(handle, 1, bit // 8)
        os.pwrite(handle, bytes([byte ^ 1 << bit % 8]), bit // 8)
    finally:
        os.close(handle)


@pytest.mark.parametrize("name", FILES)
def test_a_bit_flipped_in_any_byte(checkpoints: Checkpoints, older: Checkpoint, newer: Checkpoint, name: str) -> None:
    file = newer.path / name
    for byte in range(file.stat().st_size):
        bit = 8 * byte + byte % 8
        flip(file, bit)
        assert_used(checkpoints, older, f"bit {bit} of {name}")
        flip(file, bit)
    assert_used(checkpoints, newer)


@pytest.fixture
def large(checkpoints: Checkpoints, older: Checkpoint) -> Checkpoint:
    return checkpoints.write(2, {**contents(2), "model.safetensors": random.Random(0).randbytes(LARGE)})


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_bits_of_a_large_file(
    checkpoints: Checkpoints, older: Checkpoint, large: Checkpoint, count: int
) -> None:
    rng, file = random.Random(count), large.path / "model.safetensors"
    for _ in range(count):
        bit = rng.randrange(8 * LARGE)
        flip(file, bit)
        assert checkpoints.latest() == older, f"bit {bit}"
        flip(file, bit)
    assert checkpoints.latest() == large


@pytest.mark.slow
def test_a_large_file_cut_short_at_each_4_kilobytes(
    checkpoints: Checkpoints, older: Checkpoint, large: Checkpoint
) -> None:
    file = large.path / "model.safetensors"
    for size in range(LARGE - 4096, -1, -4096):
        os.truncate(file, size)
        assert checkpoints.latest() == older, f"{size} bytes"


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_too_long_by_any_count(
    checkpoints: Checkpoints, older: Checkpoint, newer: Checkpoint, name: str
) -> None:
    file = newer.path / name
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert_used(checkpoints, older, f"{name} of {size} bytes")
    for more in (b"\0", b"\n", whole):
        file.write_bytes(whole + more)
        assert_used(checkpoints, older, f"{name} with {len(more)} bytes more")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_a_file_of_nothing_but_zeros(
    checkpoints: Checkpoints, older: Checkpoint, newer: Checkpoint, name: str, fill: bytes
) -> None:
    file = newer.path / name
    file.write_bytes(fill * file.stat().st_size)
    assert_used(checkpoints, older)


def replaced_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replaced_by_dangling_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def replaced_by_link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", [Path.unlink, replaced_by_folder, replaced_by_dangling_link, replaced_by_link_to_itself]
)
def test_a_file_that_is_gone_or_no_file(
    checkpoints: Checkpoints, older: Checkpoint, newer: Checkpoint, name: str, damage: Callable[[Path], None]
) -> None:
    damage(newer.path / name)
    assert_used(checkpoints, older)
    assert checkpoints.problem(newer.path).startswith(name)


@pytest.mark.parametrize("name", FILES)
def test_files_swapped_between_two_checkpoints(
    checkpoints: Checkpoints, older: Checkpoint, newer: Checkpoint, name: str
) -> None:
    """As large and as whole as they should be, and of another step."""
    newest = checkpoints.write(3, contents(3))
    aside = newest.path / "aside"
    (newest.path / name).rename(aside)
    (newer.path / name).rename(newest.path / name)
    aside.rename(newer.path / name)
    assert_used(checkpoints, older, f"{name} swapped")


def test_a_manifest_of_the_same_step_but_other_contents(checkpoints: Checkpoints, older: Checkpoint) -> None:
    first = checkpoints.write(2, contents(2))
    again = checkpoints.write(2, contents(7))
    shutil.copy(first.path / "manifest.json", again.path / "manifest.json")
    assert_used(checkpoints, first)


def test_files_of_another_run(checkpoints: Checkpoints, older: Checkpoint, newer: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Checkpoints(tmp_path / "other", "another-run").write(2, contents(2))
    shutil.copy(other.path / "manifest.json", newer.path / "manifest.json")
    assert_used(checkpoints, older, "its manifest")
    shutil.rmtree(newer.path)
    shutil.copytree(other.path, newer.path)
    assert_used(checkpoints, older, "the whole folder")


def empty_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"not a folder")


def a_dangling_link(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("nowhere")


@pytest.mark.parametrize("damage", [empty_folder, a_file, a_dangling_link, shutil.rmtree])
def test_a_checkpoint_that_is_no_checkpoint(
    checkpoints: Checkpoints, older: Checkpoint, newer: Checkpoint, damage: Callable[[Path], None]
) -> None:
    damage(newer.path)
    assert_used(checkpoints, older)
    assert_used(checkpoints, checkpoints.write(3, contents(3)))


def test_where_all_are_damaged_each_is_named(checkpoints: Checkpoints, older: Checkpoint, newer: Checkpoint) -> None:
    (newer.path / "manifest.json").unlink()
    flip(older.path / "state.json", 0)
    with pytest.raises(ModelError) as failure:
        checkpoints.latest()
    assert "step-00000002: manifest.json is missing" in str(failure.value)
    assert "step-00000001: state.json does not match its hash" in str(failure.value)
