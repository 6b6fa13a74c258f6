"""Sorting pictures and taking it back: kills at any moment, full disks, other programs in the way."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.sorted_pictures import SORTED, all_of, draw, everything, put, take_back, without_undo, write

from cutline import durable, sorting
from cutline.errors import CutlineError


@pytest.fixture(autouse=True)
def hasty(monkeypatch) -> None:
    """A process that is killed loses nothing that it has written; what a power loss needs has a test of its own."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path)


def other_file_system(event: str, _: tuple[object, ...]) -> None:
    if event == "os.link":
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def cut_in_half(handle: int, data: bytes) -> None:
    """A process that is killed in the middle of a copy."""
    os.write(handle, data[: len(data) // 2])
    if not data.startswith(b"{"):
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(handle, data[len(data) // 2 :])


class Killer:
    """Ends the process before its nth change of the disk."""

    EVENTS = ("open", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __call__(self, event: str, _: tuple[object, ...]) -> None:
        if event in self.EVENTS:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[[], object], *hooks: Callable[[str, tuple[object, ...]], None]) -> bool:
    """Do some work in a process of its own, with these looking at all that it does; whether it was killed."""
    if not (pid := os.fork()):
        status = 1
        try:
            for hook in hooks:
                sys.addaudithook(hook)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL)
    return bool(status)


HOW = {"copy": (False, ()), "move": (True, ()), "move to another disk": (True, (other_file_system,))}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("then", ["undo", "go on"])
def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path, how: str, then: str) -> None:
    move, hooks = HOW[how]
    pictures = {"1.jpg": b"one" * 99, "a/1.jpg": b"other"}
    for moment in range(1000):
        place = tmp_path / str(moment)
        photos, to = place / "photos", place / "sorted"
        for name, data in pictures.items():
            write(photos / name, data)
        wanted = [(photos / name, "cat") for name in pictures]
        ended = not killed(lambda: put(to, *wanted, move=move), Killer(moment), *hooks)  # noqa: B023
        kept = {data for name, data in everything(place).items() if name != "sorted/undo.jsonl"}
        assert kept >= set(pictures.values())
        if then == "go on":
            assert put(to, *((path, label) for path, label in wanted if path.exists()), move=move) == []
            assert without_undo(to) == {"cat/1.jpg": b"one" * 99, "cat/1-2.jpg": b"other"}
            assert everything(photos) == ({} if move else pictures)
        if (to / sorting.UNDO).exists():
            assert take_back(to) == []
        assert everything(photos) == pictures
        assert everything(to) == {}
        shutil.rmtree(place)
        if ended:
            break
    assert moment > 10


@pytest.mark.parametrize("how", HOW)
def test_undo_may_be_killed_at_any_moment(photos: Path, tmp_path: Path, how: str) -> None:
    move, hooks = HOW[how]
    before, to = everything(photos), tmp_path / "sorted"
    for moment in range(1000):
        assert put(to, *all_of(photos), move=move) == []
        ended = not killed(lambda: take_back(to), Killer(moment), *hooks)
        if (to / sorting.UNDO).exists():
            assert take_back(to) == []
        assert everything(photos) == before
        assert everything(to) == {}
        if ended:
            break
    assert moment > 10


@pytest.mark.parametrize("then", ["undo", "go on"])
@pytest.mark.parametrize("move", [False, True])
def test_a_copy_that_was_cut_short_is_no_picture(
    photos: Path, tmp_path: Path, monkeypatch, move: bool, then: str
) -> None:
    before, to = everything(photos), tmp_path / "sorted"
    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_all", cut_in_half)
        assert killed(lambda: put(to, *all_of(photos), move=move), other_file_system)
    assert 0 < (to / "cat/1.jpg").stat().st_size < 297
    if then == "go on":
        put(to, *all_of(photos), move=move)
        assert without_undo(to) == SORTED
        with monkeypatch.context() as patched:  # and now on the way back
            patched.setattr(durable, "write_all", cut_in_half)
            assert killed(lambda: take_back(to), other_file_system) == move
    if (to / sorting.UNDO).exists():
        assert take_back(to) == []
    assert everything(photos) == before
    assert not to.exists()


def test_a_name_that_is_taken_in_the_last_moment_is_theirs(photos: Path, tmp_path: Path, monkeypatch) -> None:
    to, bring = tmp_path / "sorted", sorting._bring

    def late(source: Path, target: Path, *rest: object, **more: object) -> None:
        if target.name == "1.jpg":
            write(target, b"theirs")
        bring(source, target, *rest, **more)  # type: ignore[arg-type]

    for move, data in ((False, b"one" * 99), (True, b"one" * 99)):
        with monkeypatch.context() as patched:
            patched.setattr(sorting, "_bring", late)
            assert put(to, (photos / "1.jpg", "cat"), move=move) == []
        assert without_undo(to) == {"cat/1.jpg": b"theirs", "cat/1-2.jpg": data}
        assert take_back(to) == []
        assert everything(to) == {"cat/1.jpg": b"theirs"}
        assert (photos / "1.jpg").read_bytes() == data
        (to / "cat/1.jpg").unlink()


def test_a_picture_that_changes_meanwhile_stays(photos: Path, tmp_path: Path, monkeypatch) -> None:
    to, remove = tmp_path / "sorted", sorting._remove

    def late(path: Path, *rest: object) -> None:
        path.rename(path.with_name("old"))
        path.write_bytes(b"edited and saved")
        remove(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sorting, "_remove", late)
    (said,) = put(to, (photos / "1.jpg", "cat"), move=True)
    assert "changed in this moment" in said
    assert (photos / "1.jpg").read_bytes() == b"edited and saved"
    assert not to.exists()


def test_a_disk_that_writes_something_else_is_found_out(photos: Path, tmp_path: Path, monkeypatch) -> None:
    before = everything(photos)

    def wrong(handle: int, data: bytes) -> None:
        os.write(handle, data if data.startswith(b"{") else b"x" * 297)

    monkeypatch.setattr(durable, "write_all", wrong)
    (said,) = put(tmp_path / "sorted", (photos / "1.jpg", "cat"))
    assert "not what the file was" in said
    assert everything(photos) == before
    assert not (tmp_path / "sorted").exists()


def test_a_full_disk_leaves_pictures_where_they_are_and_an_undo_file_that_can_be_read(
    photos: Path, tmp_path: Path, monkeypatch
) -> None:
    before, to, really = everything(photos), tmp_path / "sorted", os.write
    room = 300

    def full(handle: int, data: bytes) -> int:
        """A disk that takes so many bytes, of the last line only a part; then someone makes room."""
        nonlocal room
        if not room:
            room = 10_000
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        took = really(handle, data[:room])
        room -= took
        return took

    monkeypatch.setattr(os, "write", full)
    (said,) = put(to, *all_of(photos), move=True)
    assert "No space left" in said
    assert set(everything(photos)) == {"a/1.jpg"}
    assert set(without_undo(to)) == {"cat/1.jpg", "dog/1.jpg", "a_b/2.jpg"}
    assert put(to, *all_of(photos)[1:2], move=True) == []
    assert take_back(to) == []
    assert everything(photos) == before


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_disk_that_is_full_from_the_start_is_said(photos: Path, tmp_path: Path, monkeypatch, lines: int) -> None:
    before, really = everything(photos), os.write

    def full(handle: int, data: bytes) -> int:
        nonlocal lines
        if not lines:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        lines -= 1
        return really(handle, data)

    monkeypatch.setattr(os, "write", full)
    if lines < 2:
        with pytest.raises(CutlineError, match="No space left"):
            put(tmp_path / "sorted", *all_of(photos), move=True)
    else:
        assert len(put(tmp_path / "sorted", *all_of(photos), move=True)) == 4
    assert everything(photos) == before


def test_undo_needs_no_room(photos: Path, tmp_path: Path, monkeypatch) -> None:
    before = everything(photos)
    put(tmp_path / "sorted", *all_of(photos), move=True)

    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    assert take_back(tmp_path / "sorted") == []
    assert everything(photos) == before
    assert not (tmp_path / "sorted").exists()


@pytest.mark.parametrize(
    ("hooks", "steps"),
    [
        ((), ["link", "sync cat", "remove"]),
        ((other_file_system,), ["open", "sync 1.jpg", "sync cat", "remove"]),
    ],
)
def test_what_a_power_loss_must_not_undo_is_on_the_disk_first(
    photos: Path, tmp_path: Path, monkeypatch, hooks, steps: list[str]
) -> None:
    """The line before the picture is touched; the picture, and its name, before it is removed where it was."""
    handle = os.open(tmp_path / "order", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, given: tuple[object, ...]) -> None:
        new = event == "open" and isinstance(given[2], int) and given[2] & os.O_EXCL
        if (new or event in ("os.link", "os.remove")) and os.fsdecode(given[0]).endswith("1.jpg"):  # type: ignore[arg-type]
            os.write(handle, f"{event.removeprefix('os.')}\n".encode())

    def noted(file: int) -> None:
        os.write(handle, f"sync {Path(f'/proc/self/fd/{file}').readlink().name}\n".encode())

    monkeypatch.setattr(os, "fsync", noted)
    assert not killed(lambda: put(tmp_path / "sorted", (photos / "1.jpg", "cat"), move=True), *hooks, note)
    os.close(handle)
    assert (tmp_path / "order").read_text().splitlines()[-len(steps) - 1 :] == ["sync undo.jsonl", *steps]
