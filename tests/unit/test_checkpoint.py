"""Checkpoints are whole or not there, older ones go only when a newer one is known good, and none is ever lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cutline.engine import checkpoint
from cutline.engine.checkpoint import Checkpoint, Checkpoints
from cutline.errors import ModelError


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, "a-run")


def save(checkpoints: Checkpoints, step: int, text: bytes = b"") -> Checkpoint:
    state = json.dumps({"step": step}).encode()
    return checkpoints.write(step, {"model.safetensors": text or b"weights of %d" % step, "state.json": state})


def names(checkpoints: Checkpoints) -> list[str]:
    """All that is in the folder, hidden leftovers too."""
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_what_is_saved_comes_back(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CHUNK", 1000)  # so that the large file is written and read in parts
    large = bytes(range(256)) * 20
    written = checkpoints.write(12, {"large": memoryview(large), "none": b"", "state.json": b'{"step": 12}'})
    found = checkpoints.latest()
    assert found == written
    assert found.step == 12
    assert found.state == {"step": 12}
    assert found.read("large") == large
    assert found.read("none") == b""
    assert found.bytes == len(large) + 12
    assert names(checkpoints) == ["step-00000012"]
    assert sorted(path.name for path in found.path.iterdir()) == ["large", "manifest.json", "none", "state.json"]


def test_no_folder_and_no_checkpoint(checkpoints: Checkpoints) -> None:
    assert checkpoints.candidates() == checkpoints.leftovers() == checkpoints.set_aside() == []
    with pytest.raises(ModelError, match=r"no valid checkpoint in .*checkpoints"):
        checkpoints.latest()


def test_the_newest_step_is_the_latest(checkpoints: Checkpoints) -> None:
    for step in (9, 100_000_000, 10):
        save(checkpoints, step)
    assert [path.name for path in checkpoints.candidates()] == ["step-100000000", "step-00000010", "step-00000009"]
    assert checkpoints.latest().step == 100_000_000


def test_a_step_saved_again_has_a_name_of_its_own(checkpoints: Checkpoints) -> None:
    for text in (b"first", b"second", b"third"):
        save(checkpoints, 5, text)
    assert names(checkpoints) == ["step-00000005", "step-00000005.1", "step-00000005.2"]
    assert checkpoints.latest().read("model.safetensors") == b"third"
    shutil.rmtree(checkpoints.folder / "step-00000005.1")
    save(checkpoints, 5, b"fourth")
    assert checkpoints.latest().read("model.safetensors") == b"fourth"


def test_what_is_wrong_is_said_in_words(checkpoints: Checkpoints) -> None:
    save(checkpoints, 2)
    saved = save(checkpoints, 3)
    file = saved.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert checkpoints.problem(saved.path) == "model.safetensors has 11 bytes, the manifest says 12"
    file.write_bytes(b"weights of 4")
    assert checkpoints.problem(saved.path) == "model.safetensors does not match its hash"
    file.unlink()
    assert checkpoints.problem(saved.path) == "model.safetensors is missing"
    assert checkpoints.latest().step == 2
    (saved.path / "manifest.json").unlink()
    assert checkpoints.problem(saved.path) == "manifest.json is missing"
    shutil.rmtree(checkpoints.folder / "step-00000002")
    with pytest.raises(ModelError, match=r"step-00000003: manifest.json is missing"):
        checkpoints.latest()


def test_damage_after_opening_is_noticed_when_reading(checkpoints: Checkpoints) -> None:
    save(checkpoints, 3)
    found = checkpoints.latest()
    (found.path / "state.json").write_bytes(b'{"step": 4}')
    with pytest.raises(ModelError, match=r"state\.json does not match its hash"):
        found.state  # noqa: B018 - a property that reads


def test_a_checkpoint_of_another_step_or_run_or_format_is_refused(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 3).path.rename(checkpoints.folder / "step-00000009")
    assert "holds step 3" in checkpoints.problem(checkpoints.folder / "step-00000009")
    (tmp_path / "other").mkdir()
    foreign = save(Checkpoints(tmp_path / "other", "another-run"), 10).path
    foreign.rename(checkpoints.folder / foreign.name)
    assert checkpoints.problem(checkpoints.folder / foreign.name) == "it belongs to another run"
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        newer = save(checkpoints, 11)
    assert "this version reads" in checkpoints.problem(newer.path)
    assert save(checkpoints, 1) == checkpoints.latest()


def test_retention_keeps_the_newest_and_the_best(checkpoints: Checkpoints) -> None:
    for step in (1, 2, 3, 4):
        newest = save(checkpoints, step)
    gone = checkpoints.retain(newest, keep=2, every=0, best=1)
    assert [path.name for path in gone] == ["step-00000002"]
    assert names(checkpoints) == ["step-00000001", "step-00000003", "step-00000004"]


def test_retention_keeps_the_first_of_every_interval(checkpoints: Checkpoints) -> None:
    for step in range(5, 65, 5):
        checkpoints.retain(save(checkpoints, step), keep=2, every=20, best=0)
    assert [int(name[5:]) for name in names(checkpoints)] == [5, 20, 40, 55, 60]


def test_of_the_best_step_the_newest_stays(checkpoints: Checkpoints) -> None:
    for text in (b"old", b"new"):
        save(checkpoints, 3, text)
    newest = save(checkpoints, 8)
    checkpoints.retain(newest, keep=1, every=0, best=3)
    assert names(checkpoints) == ["step-00000003.1", "step-00000008"]


@pytest.mark.parametrize("keep", [0, 1])
def test_keeping_one_removes_the_old_only_when_the_new_is_there(checkpoints: Checkpoints, keep: int) -> None:
    save(checkpoints, 1)
    newest = save(checkpoints, 2)
    assert names(checkpoints) == ["step-00000001", "step-00000002"], "writing removes nothing"
    checkpoints.retain(newest, keep=keep, every=0, best=0)
    assert names(checkpoints) == ["step-00000002"]


def test_nothing_is_removed_when_the_newest_is_damaged(checkpoints: Checkpoints) -> None:
    for step in (1, 2):
        save(checkpoints, step)
    newest = save(checkpoints, 3)
    (newest.path / "model.safetensors").write_bytes(b"weights of 7")
    with pytest.raises(OSError, match=r"already damaged: model\.safetensors does not match"):
        checkpoints.retain(newest, keep=1, every=0, best=0)
    assert names(checkpoints) == ["step-00000001", "step-00000002", "step-00000003"]
    assert checkpoints.latest().step == 2


def test_on_a_full_disk_the_newest_good_one_and_the_best_stay(checkpoints: Checkpoints) -> None:
    assert checkpoints.thin(best=1) == []
    for step in (1, 2, 3, 4, 5):
        save(checkpoints, step)
    (checkpoints.folder / "step-00000005" / "state.json").unlink()
    checkpoints.thin(best=1)
    assert names(checkpoints) == ["step-00000001", "step-00000004"]
    (checkpoints.folder / "step-00000004" / "state.json").unlink()
    (checkpoints.folder / "step-00000001" / "state.json").unlink()
    assert checkpoints.thin(best=0) == [], "where none is good, none is removed"


def test_going_back_forgets_what_is_newer(checkpoints: Checkpoints) -> None:
    kept = [save(checkpoints, step) for step in (1, 2, 2, 3)][1]
    gone = checkpoints.forget_after(kept)
    assert [path.name for path in gone] == ["step-00000003", "step-00000002.1"]
    assert checkpoints.latest() == kept


def test_what_is_set_aside_is_neither_used_nor_lost(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    for text in (b"one", b"two"):
        checkpoints.quarantine(save(checkpoints, 2, text).path, f"it was {text.decode()}")
    assert checkpoints.latest().step == 1
    assert [path.name for path in checkpoints.set_aside()] == ["step-00000002", "step-00000002-1"]
    assert (checkpoints.set_aside()[1] / "model.safetensors").read_bytes() == b"two"
    shutil.rmtree(checkpoints.set_aside()[0])
    checkpoints.quarantine(save(checkpoints, 2, b"three").path, "again")
    assert len(checkpoints.set_aside()) == 2, "a name that is free again does not mislead"
    checkpoints.quarantine(checkpoints.latest().path, "the last")
    with pytest.raises(ModelError, match="step-00000002-1: set aside, it was two"):
        checkpoints.latest()


def test_what_is_no_folder_can_be_set_aside(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    stray, dangling = checkpoints.folder / "step-00000007", checkpoints.folder / "step-00000008"
    stray.write_bytes(b"a file")
    dangling.symlink_to("nowhere")
    assert checkpoints.latest().step == 1
    assert save(checkpoints, 7).path.name == "step-00000007.1"
    for path in (stray, dangling):
        checkpoints.quarantine(path, checkpoints.problem(path))
    assert names(checkpoints) == ["quarantine", "step-00000001", "step-00000007.1"]
    assert [path.name for path in checkpoints.set_aside()] == ["step-00000007", "step-00000008"]


def test_leftovers_are_never_used_and_can_be_swept(checkpoints: Checkpoints) -> None:
    whole = save(checkpoints, 1)
    for name in (".step-00000002.77.tmp", ".step-00000003.gone.tmp"):
        shutil.copytree(whole.path, checkpoints.folder / name)
    assert checkpoints.latest() == whole
    (checkpoints.folder / ".step-00000004.gone.tmp").write_bytes(b"a file")
    (checkpoints.folder / ".step-00000005.gone.tmp").symlink_to(whole.path)
    assert len(checkpoints.leftovers()) == len(checkpoints.sweep()) == 4
    assert names(checkpoints) == ["step-00000001"]
    assert checkpoints.latest() == whole


def test_a_name_taken_by_a_leftover_stops_neither_saving_nor_removing(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    shutil.copytree(checkpoints.latest().path, checkpoints.folder / ".step-00000001.gone.tmp")
    checkpoints.retain(save(checkpoints, 2), keep=1, every=0, best=0)
    assert names(checkpoints) == ["step-00000002"]


def test_looking_for_a_step_reads_no_other(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(1, 6):
        save(checkpoints, step)
    read: list[str] = []
    plain = Checkpoints.problem
    monkeypatch.setattr(Checkpoints, "problem", lambda self, path: (read.append(path.name), plain(self, path))[1])
    found = checkpoints.of_step(2)
    assert found
    assert read == [found.path.name]
    assert checkpoints.of_step(9) is None


def test_a_run_that_was_moved_away_is_not_begun_where_it_was(tmp_path: Path) -> None:
    moved = Checkpoints(tmp_path / "moved", "a-run")
    with pytest.raises(FileNotFoundError):
        save(moved, 1)
    assert not moved.folder.parent.exists()


def test_a_sealed_file_tells_whether_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "encoder-0.safetensors"
    checkpoint.seal(file, b"weights" * 100)
    assert checkpoint.unsealed(file) == ""
    data = bytearray(file.read_bytes())
    data[300] ^= 1
    file.write_bytes(data)
    assert "does not match its hash" in checkpoint.unsealed(file)
    file.write_bytes(data[:-1])
    assert "has 699 bytes" in checkpoint.unsealed(file)
    file.with_suffix(".json").write_text("{")
    assert "cannot be read" in checkpoint.unsealed(file)
    file.with_suffix(".json").unlink()  # as older runs have it
    assert checkpoint.unsealed(file) == ""
