"""Pictures into folders and back: nothing is lost or written over, wherever it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from cutline import durable, sorting, undo
from cutline.errors import ConfigError, CutlineError, DataError
from cutline.sorting import bring_back, folder_names, sort_into
from cutline.undo import held


@pytest.fixture(autouse=True)
def hasty(monkeypatch) -> None:
    """A process that is killed loses nothing that it has written; what a power loss needs has a test of its own."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


LABELS = ("cat", "dog", "a/b")
SURE = 0.9


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def everything(place: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def put(
    folder: Path, *wanted: tuple[Path, str], move: bool = False, least: float = 0.5, sure: float = SURE
) -> list[str]:
    """Sort pictures; what is said of those that had to stay."""
    stayed = []
    with sort_into(folder, LABELS, move=move, least=least) as sorting:
        for picture, label in wanted:
            try:
                sorting.put(picture, label, sure)
            except DataError as error:
                stayed.append(str(error))
    return stayed


def take_back(folder: Path) -> list[str]:
    """What is left as it is."""
    with held(folder / sorting.UNDO) as file:
        return [reason for reason in bring_back(file) if reason]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures of two names, two of them with the same bytes."""
    for name, data in {"1.jpg": b"one" * 99, "a/1.jpg": b"other", "b/1.jpg": b"one" * 99, "b/2.jpg": b"two"}.items():
        write(tmp_path / "photos" / name, data)
    return tmp_path / "photos"


def all_of(photos: Path) -> list[tuple[Path, str]]:
    return [
        (photos / name, label)
        for name, label in {"1.jpg": "cat", "a/1.jpg": "cat", "b/1.jpg": "dog", "b/2.jpg": "a/b"}.items()
    ]


SORTED = {"cat/1.jpg": b"one" * 99, "cat/1-2.jpg": b"other", "dog/1.jpg": b"one" * 99, "a_b/2.jpg": b"two"}


def without_undo(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in everything(folder).items() if name != sorting.UNDO}


@pytest.mark.parametrize("move", [False, True])
def test_pictures_go_into_folders_and_come_back(photos: Path, tmp_path: Path, move: bool) -> None:
    before, to = everything(photos), tmp_path / "sorted"
    assert put(to, *all_of(photos), move=move) == []
    assert without_undo(to) == SORTED
    assert everything(photos) == ({} if move else before)
    assert take_back(to) == []
    assert everything(photos) == before
    assert not to.exists()


def test_dates_and_permissions_go_along(photos: Path, tmp_path: Path) -> None:
    os.utime(photos / "1.jpg", (1, 1_000_000))
    (photos / "1.jpg").chmod(0o600)
    put(tmp_path / "sorted", (photos / "1.jpg", "cat"))
    about = (tmp_path / "sorted/cat/1.jpg").stat()
    assert (about.st_mtime, about.st_mode & 0o777) == (1_000_000, 0o600)


def test_the_unsure_have_a_folder_of_their_own(photos: Path, tmp_path: Path) -> None:
    put(tmp_path / "sorted", (photos / "1.jpg", "cat"), sure=0.49)
    put(tmp_path / "sorted", (photos / "b/2.jpg", "cat"), sure=0.5)
    assert set(without_undo(tmp_path / "sorted")) == {"unsure/1.jpg", "cat/2.jpg"}


@pytest.mark.parametrize("move", [False, True])
def test_nothing_that_is_there_is_written_over_or_taken_for_ours(photos: Path, tmp_path: Path, move: bool) -> None:
    to = tmp_path / "sorted"
    theirs = {"cat/1.jpg": b"theirs", "dog/1.jpg": b"one" * 99, "notes.txt": b"mine"}
    for name, data in theirs.items():
        write(to / name, data)
    (to / "a_b").mkdir()
    before = everything(photos)
    assert put(to, *all_of(photos), move=move) == []
    found = without_undo(to)
    assert {name: found.pop(name) for name in theirs} == theirs
    assert found == {"cat/1-2.jpg": b"one" * 99, "cat/1-3.jpg": b"other", "a_b/2.jpg": b"two"}
    assert (photos / "b/1.jpg").exists(), "its bytes were there, but no one had moved them"
    assert take_back(to) == []
    assert everything(photos) == before
    assert everything(to) == theirs
    assert (to / "a_b").is_dir(), "a folder that was there stays"


@pytest.mark.parametrize("move", [False, True])
def test_a_second_sort_goes_on(photos: Path, tmp_path: Path, move: bool) -> None:
    before, to = everything(photos), tmp_path / "sorted"
    put(to, *all_of(photos)[:2], move=move)
    again = [(path, label) for path, label in all_of(photos) if path.exists()]
    assert put(to, *again, move=move) == []
    assert without_undo(to) == SORTED
    if not move:  # by another opinion, too: undo first, or sort into another folder
        put(to, *((path, "dog") for path, _ in again))
        assert without_undo(to) == SORTED
    assert take_back(to) == []
    assert everything(photos) == before


def test_what_was_sorted_can_be_sorted_again_and_all_of_it_comes_back(photos: Path, tmp_path: Path) -> None:
    before, to = everything(photos), tmp_path / "sorted"
    put(to, *all_of(photos), move=True, sure=0.1)
    put(to, (to / "unsure/2.jpg", "cat"), move=True)
    write(photos / "b/3.jpg", b"three")
    put(to, (photos / "b/3.jpg", "dog"), move=True)
    assert {"cat/2.jpg", "dog/3.jpg"} < set(without_undo(to))
    assert take_back(to) == []
    assert everything(photos) == before | {"b/3.jpg": b"three"}
    assert not to.exists()


def test_undo_leaves_what_has_changed_and_what_is_in_the_way(photos: Path, tmp_path: Path) -> None:
    to = tmp_path / "sorted"
    put(to, *all_of(photos), move=True)
    (to / "cat/1.jpg").write_bytes(b"edited")
    write(photos / "a/1.jpg", b"new at this place")
    (to / "dog/1.jpg").unlink()
    left = sorted(take_back(to))
    assert len(left) == 3
    assert "another file" in left[0]
    assert "has changed" in left[1]
    assert "no longer there" in left[2]
    assert without_undo(to) == {"cat/1.jpg": b"edited", "cat/1-2.jpg": b"other"}
    assert everything(photos) == {"a/1.jpg": b"new at this place", "b/2.jpg": b"two"}
    (photos / "a/1.jpg").unlink()  # once it is out of the way, undo can be called again
    assert len(take_back(to)) == 2
    assert (photos / "a/1.jpg").read_bytes() == b"other"


def test_undo_of_a_copy_whose_picture_is_gone_gives_it_back(photos: Path, tmp_path: Path) -> None:
    before, to = everything(photos), tmp_path / "sorted"
    put(to, *all_of(photos))
    shutil.rmtree(photos)
    assert take_back(to) == []
    assert everything(photos) == before


def test_a_sorted_folder_may_be_moved_as_a_whole(photos: Path, tmp_path: Path) -> None:
    before = everything(photos)
    put(tmp_path / "sorted", *all_of(photos), move=True)
    (tmp_path / "sorted").rename(tmp_path / "elsewhere")
    assert take_back(tmp_path / "elsewhere") == []
    assert everything(photos) == before


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


def test_a_link_is_copied_and_never_moved(photos: Path, tmp_path: Path) -> None:
    link, to = tmp_path / "link.jpg", tmp_path / "sorted"
    link.symlink_to(photos / "1.jpg")
    (said,) = put(to, (link, "cat"), move=True)
    assert "a link" in said
    assert put(to, (link, "cat")) == []
    assert (to / "cat/link.jpg").read_bytes() == b"one" * 99
    assert not (to / "cat/link.jpg").is_symlink()
    assert take_back(to) == []
    assert link.is_symlink()


def test_a_file_in_the_way_of_a_folder_is_named(photos: Path, tmp_path: Path) -> None:
    write(tmp_path / "sorted/cat", b"a file")
    before = everything(photos)
    said = put(tmp_path / "sorted", *all_of(photos), move=True)
    assert len(said) == 2
    assert all("sorted/cat" in each for each in said)
    assert take_back(tmp_path / "sorted") == []
    assert everything(photos) == before
    with pytest.raises(ConfigError, match="cannot be a folder"):
        put(tmp_path / "sorted/cat", *all_of(photos))


def test_two_cannot_sort_into_one_folder_at_once(photos: Path, tmp_path: Path) -> None:
    put(tmp_path / "sorted", *all_of(photos)[:1])
    with (tmp_path / "sorted/undo.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for work in (lambda: put(tmp_path / "sorted", *all_of(photos)), lambda: take_back(tmp_path / "sorted")):
            with pytest.raises(CutlineError, match="in use"):
                work()
    assert set(without_undo(tmp_path / "sorted")) == {"cat/1.jpg"}


def test_an_undo_file_that_its_holder_removed_is_not_gone_on_with(photos: Path, tmp_path: Path, monkeypatch) -> None:
    put(tmp_path / "sorted", *all_of(photos)[:1])
    monkeypatch.setattr(fcntl, "flock", lambda *_: (tmp_path / "sorted/undo.jsonl").unlink())
    with pytest.raises(CutlineError, match="in use"):
        put(tmp_path / "sorted", *all_of(photos))
    assert set(everything(tmp_path / "sorted")) == {"cat/1.jpg"}


def test_a_folder_that_leads_into_the_sorted_one_costs_no_picture(photos: Path, tmp_path: Path) -> None:
    """The picture is at its old place because that is now the new place."""
    to = tmp_path / "sorted"
    put(to, *all_of(photos)[:1], move=True)
    photos.rename(tmp_path / "old")
    photos.symlink_to(to / "cat")
    (said,) = take_back(to)
    assert "the same file" in said
    assert (to / "cat/1.jpg").read_bytes() == b"one" * 99
    assert put(to, (photos / "1.jpg", "cat"), move=True) != []
    assert (to / "cat/1.jpg").read_bytes() == b"one" * 99


def test_a_torn_last_line_was_never_begun(photos: Path, tmp_path: Path) -> None:
    before, to = everything(photos), tmp_path / "sorted"
    put(to, *all_of(photos)[:3], move=True)
    whole = (to / sorting.UNDO).read_bytes()
    put(to, *all_of(photos)[3:], move=True)
    lines = (to / sorting.UNDO).read_bytes()[len(whole) :]
    shutil.move(to / "a_b/2.jpg", photos / "b/2.jpg")
    for cut in range(1, len(lines), 7):
        (to / sorting.UNDO).write_bytes(whole + lines[:cut])
        put(to)
        assert put(to, *all_of(photos)[3:], move=True) == []
        assert without_undo(to) == SORTED
        shutil.move(to / "a_b/2.jpg", photos / "b/2.jpg")
    assert take_back(to) == []
    assert everything(photos) == before


def test_a_damaged_line_is_named_and_the_others_are_undone(photos: Path, tmp_path: Path) -> None:
    before, to = everything(photos), tmp_path / "sorted"
    put(to, *all_of(photos), move=True)
    lines = (to / sorting.UNDO).read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if "dog/1.jpg" in line)
    lines[number] = lines[number][:-9]
    (to / sorting.UNDO).write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=f"line {number + 1} cannot be read"):
        put(to, *all_of(photos))
    assert take_back(to) == [f"{to / sorting.UNDO}: line {number + 1} cannot be read"]
    assert everything(photos) == {name: data for name, data in before.items() if name != "b/1.jpg"}
    assert without_undo(to) == {"dog/1.jpg": b"one" * 99}


@pytest.mark.parametrize(
    ("source", "target"),
    [("/tmp/stolen", "../secret"), ("/tmp/stolen", "/etc/x"), ("/tmp/stolen", "a/../../secret"), ("stolen", "secret")],
)
def test_an_undo_file_reaches_nothing_outside_its_folder(tmp_path: Path, source: str, target: str) -> None:
    write(tmp_path / "secret", b"secret")
    row = {"source": source, "target": target, **sorting._fingerprint(tmp_path / "secret")._asdict()}
    write(tmp_path / "sorted/undo.jsonl", undo._HEADER + json.dumps(row).encode() + b"\n")
    assert "line 2" in take_back(tmp_path / "sorted")[0]
    assert (tmp_path / "secret").exists()


@pytest.mark.parametrize("data", [b"mine\n", b"mine", b'{"path": "1.jpg"}\n', b"{}"])
def test_a_file_of_another_kind_is_no_undo_file(photos: Path, tmp_path: Path, data: bytes) -> None:
    write(tmp_path / "sorted/undo.jsonl", data)
    for work in (lambda: put(tmp_path / "sorted", *all_of(photos)), lambda: take_back(tmp_path / "sorted")):
        with pytest.raises(DataError, match="not an undo file"):
            work()
    assert everything(tmp_path / "sorted") == {"undo.jsonl": data}


def test_folders_have_safe_names_that_differ() -> None:
    long = "é" * 300
    labels = ["cat", "Cat", "a/b", "a_b", "..", ".", "", "CON", "nul.txt", "a:b", "end. .", " lead", ".git", "unsure"]
    labels += ["undo.jsonl", long, long + "x", "tab\there", "e\u0301", "é", "\udc80", "日本"]
    names = folder_names(labels)
    assert list(names) == sorted(names, key=list(names).index)
    assert set(names) == set(labels)
    assert (names["cat"], names["a_b"], names["日本"]) == ("cat", "a_b", "日本")
    assert names["a/b"] != "a_b"
    seen = set()
    for name in names.values():
        assert 0 < len(os.fsencode(name)) <= 255
        assert name not in (".", "..", "unsure", "undo.jsonl")
        assert not name.startswith((".", " "))
        assert not name.endswith((".", " "))
        assert not set(name) & set('/\\:*?"<>|\t')
        assert name.split(".")[0].casefold() not in ("con", "nul")
        seen.add(sorting._alike(name))
    assert len(seen) == len(labels)


def test_a_long_name_gets_its_number_and_keeps_its_ending(tmp_path: Path) -> None:
    name = "ü" * 125 + ".jpg"
    first, second = (write(tmp_path / place / name, place.encode()) for place in "ab")
    put(tmp_path / "sorted", (first, "cat"), (second, "cat"))
    names = sorted(path.name for path in (tmp_path / "sorted/cat").iterdir())
    assert name in names
    assert [each for each in names if each.endswith("-2.jpg")]


def test_names_that_are_no_utf8_go_and_come_back(tmp_path: Path) -> None:
    picture = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    picture.write_bytes(b"picture")
    put(tmp_path / "sorted", (picture, "cat"), move=True)
    assert not picture.exists()
    assert take_back(tmp_path / "sorted") == []
    assert picture.read_bytes() == b"picture"


def test_between_real_file_systems(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    to = shared / f"cutline-{os.getpid()}"
    picture = write(tmp_path / "1.jpg", b"one")
    try:
        assert put(to, (picture, "cat"), move=True) == []
        assert not picture.exists()
        assert take_back(to) == []
        assert picture.read_bytes() == b"one"
        assert not to.exists()
    finally:
        shutil.rmtree(to, ignore_errors=True)
