"""Pictures into folders and back, by every way that people may take."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tests.sorted_pictures import LABELS, SORTED, all_of, draw, everything, put, take_back, without_undo, write

from cutline import sorting
from cutline.errors import ConfigError
from cutline.sorting import folder_names, sort_into


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path)


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


@pytest.mark.parametrize("label", ["cat", "dog"])
def test_pictures_that_were_copied_are_not_moved_afterwards(photos: Path, tmp_path: Path, label: str) -> None:
    """Their bytes are there already, be it in the folder that they would go to or in another."""
    before, to = everything(photos), tmp_path / "sorted"
    pictures = [(photos / name, "cat") for name in ("1.jpg", "a/1.jpg", "b/2.jpg")]
    put(to, *pictures)
    sorted_before = everything(to)
    with sorting.sort_into(to, LABELS, move=True, least=0) as second:
        for path, _ in pictures:
            second.put(path, label, 1)
        assert (second.put_into.total(), second.there) == (0, 3)
    assert everything(photos) == before
    assert everything(to) == sorted_before
    assert take_back(to) == []
    assert everything(photos) == before
    assert not to.exists()


def half_moved(photos: Path, to: Path) -> Path:
    """A move that was interrupted before its last step; the picture."""
    picture = photos / "1.jpg"
    put(to, *all_of(photos)[1:], (picture, "cat"), move=True)
    os.link(to / "cat/1-2.jpg", picture)
    return picture


def test_an_interrupted_move_is_finished_and_counted(photos: Path, tmp_path: Path) -> None:
    before, to = everything(photos), tmp_path / "sorted"
    picture = half_moved(photos, to)
    write(photos / "b/2.jpg", b"two")  # no interruption: moved long ago, and put here again since
    with sorting.sort_into(to, LABELS, move=True, least=0) as second:
        second.put(photos / "b/2.jpg", "a/b", 1)
        second.put(picture, "cat", 1)
        assert str(second) == f"1 pictures moved into {to}, 1 not moved: the same picture is there already"
    assert everything(photos) == {"b/2.jpg": b"two"}
    assert take_back(to) == []
    assert everything(photos) == before


@pytest.mark.parametrize("differs", ["class", "copy", "undo file of an earlier version"])
def test_nothing_else_is_taken_for_an_interrupted_move(photos: Path, tmp_path: Path, differs: str) -> None:
    before, to = everything(photos), tmp_path / "sorted"
    picture = half_moved(photos, to)
    if differs.startswith("undo file"):
        old = (to / sorting.UNDO).read_bytes().replace(b', "moved": true', b"")
        (to / sorting.UNDO).write_bytes(old)
    with sorting.sort_into(to, LABELS, move=differs != "copy", least=0) as second:
        second.put(picture, "dog" if differs == "class" else "cat", 1)
        assert (second.put_into.total(), second.there) == (0, 1)
    assert picture.exists()
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


def test_another_file_where_a_picture_was_is_not_that_picture(photos: Path, tmp_path: Path) -> None:
    to = tmp_path / "sorted"
    put(to, *all_of(photos), move=True)
    (to / "dog/1.jpg").unlink()
    write(photos / "b/1.jpg", b"new at this place")
    said = f"{to / 'dog/1.jpg'}: is no longer there, and another file is at {photos / 'b/1.jpg'}"
    for _ in range(2):  # it is known the next time, too
        assert take_back(to) == [said]
    assert (photos / "b/1.jpg").read_bytes() == b"new at this place"
    write(photos / "b/1.jpg", b"one" * 99)  # from a backup
    assert take_back(to) == []
    assert not to.exists()


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


@pytest.mark.parametrize("by", ["its name", "a link", "a way around"])
def test_what_was_sorted_again_comes_back_when_all_of_it_was_moved(photos: Path, tmp_path: Path, by: str) -> None:
    before, to = everything(photos), tmp_path / "sorted"
    (tmp_path / "link").symlink_to(to)
    way = {"its name": to, "a link": tmp_path / "link", "a way around": tmp_path / "photos/../sorted"}[by]
    put(to, *all_of(photos), move=True, sure=0.1)
    put(to, *((way / "unsure" / name, "cat") for name in ("1.jpg", "2.jpg")), move=True)
    assert {"cat/1.jpg", "cat/2.jpg", "unsure/1-2.jpg"} == set(without_undo(to))
    (tmp_path / "link").unlink()
    to.rename(tmp_path / "elsewhere")
    assert take_back(tmp_path / "elsewhere") == []
    assert everything(photos) == before
    assert not to.exists()
    assert not (tmp_path / "elsewhere").exists()


def test_an_interrupted_move_within_the_folder_is_finished_by_whatever_link(photos: Path, tmp_path: Path) -> None:
    before, to, link = everything(photos), tmp_path / "sorted", tmp_path / "link"
    put(to, *all_of(photos), move=True, sure=0.1)
    put(to, (to / "unsure/2.jpg", "cat"), move=True)
    os.link(to / "cat/2.jpg", to / "unsure/2.jpg")
    link.symlink_to(to)
    with sorting.sort_into(link, LABELS, move=True, least=0) as again:
        again.put(link / "unsure/2.jpg", "cat", 1)
        assert (again.put_into.total(), again.there) == (1, 0)
    assert not (to / "unsure/2.jpg").exists()
    assert take_back(to) == []
    assert everything(photos) == before


@pytest.mark.parametrize("there", ["", "a", "a/b"])
def test_folders_that_were_made_to_hold_the_sorted_one_go_with_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    monkeypatch.chdir(tmp_path)
    to = Path("a/b/sorted")
    Path(there).mkdir(parents=True, exist_ok=True)
    before = set(tmp_path.rglob("*"))
    put(to)  # nothing at all
    assert set(tmp_path.rglob("*")) == before
    put(to, *all_of(photos)[:1], move=True)
    put(to, *all_of(photos)[1:], move=True)
    monkeypatch.chdir("/")
    assert take_back(tmp_path / to) == []
    assert set(tmp_path.rglob("*")) == before


def test_folders_that_hold_anything_else_by_now_stay(photos: Path, tmp_path: Path) -> None:
    to = tmp_path / "a/b/c/sorted"
    put(to, *all_of(photos))
    write(tmp_path / "a/notes.txt", b"mine")
    (tmp_path / "theirs").mkdir()
    to.rename(tmp_path / "theirs/sorted")
    assert take_back(tmp_path / "theirs/sorted") == []
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["notes.txt"]
    assert list((tmp_path / "theirs").iterdir()) == []  # sorting did not make this one


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


def test_a_folder_that_leads_into_the_sorted_one_costs_no_picture(photos: Path, tmp_path: Path) -> None:
    """The picture is at its old place because that is now the new place."""
    to = tmp_path / "sorted"
    put(to, *all_of(photos)[:1], move=True)
    photos.rename(tmp_path / "old")
    photos.symlink_to(to / "cat")
    (said,) = take_back(to)
    assert "the same file" in said
    assert (to / "cat/1.jpg").read_bytes() == b"one" * 99
    assert put(to, (photos / "1.jpg", "cat"), move=True) == []  # it is there already
    assert (to / "cat/1.jpg").read_bytes() == b"one" * 99


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


def test_many_pictures_of_one_name_are_not_compared_with_each_other_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one size, too, so that only their bytes tell them apart; the last is there already."""
    sources = [tmp_path / "photos" / f"{number}" / "cover.bmp" for number in range(40)]
    for number, source in enumerate(sources):
        source.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4), (number % 39, 0, 0)).save(source)
    read: list[Path] = []
    plain = sorting._fingerprint
    monkeypatch.setattr(sorting, "_fingerprint", lambda path: (read.append(path), plain(path))[1])
    for _ in range(2):
        with sort_into(tmp_path / "sorted", ["a"], move=False, least=0.5) as into:
            for source in sources:
                into.put(source, "a", 1.0)
    names = {path.name for path in (tmp_path / "sorted" / "a").iterdir()}
    assert names == {"cover.bmp", *(f"cover-{number}.bmp" for number in range(2, 40))}
    assert len(read) < 5 * len(sources)
