"""The undo file: torn, damaged, held by another, or something else altogether."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest
from tests.sorted_pictures import SORTED, all_of, draw, everything, put, take_back, without_undo, write

from cutline import sorting, undo
from cutline.cli.classify import main
from cutline.errors import CutlineError, DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path)


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


def test_an_undo_file_of_which_no_line_can_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "undo.jsonl", undo._HEADER + b"mended by hand\n" * 2)
    assert main(["--undo", str(file)]) == 1
    said = capsys.readouterr().err
    assert f"{file}: line 3 cannot be read" in said
    assert "bringing back: 2/2 (100 %)" in said
    assert "0 pictures are back, 2 are left as they are" in said
    assert file.exists()


@pytest.mark.parametrize(("left", "named"), [(b'"source": "x"', True), (b"\n", False), (b'\n{"a\n\xff\n', False)])
def test_a_last_line_is_named_where_a_person_may_have_written_it(
    photos: Path, tmp_path: Path, left: bytes, named: bool
) -> None:
    """And not what only a power loss leaves: blank lines, and bytes that nobody types."""
    to = tmp_path / "sorted"
    put(to, *all_of(photos))
    with (to / sorting.UNDO).open("ab") as file:
        file.write(left + b"\n")
    count = len((to / sorting.UNDO).read_bytes().splitlines())
    assert take_back(to) == ([f"{to / sorting.UNDO}: line {count} cannot be read"] if named else [])


@pytest.mark.parametrize("move", [False, True])
def test_an_undo_file_that_was_moved_without_its_pictures_is_refused(photos: Path, tmp_path: Path, move: bool) -> None:
    before, to, other = everything(photos), tmp_path / "sorted", tmp_path / "other"
    put(to, *all_of(photos), move=move)
    other.mkdir()
    (to / sorting.UNDO).rename(other / sorting.UNDO)
    files = everything(tmp_path)
    with pytest.raises(DataError, match="does not lie where its pictures are"):
        take_back(other)
    assert everything(tmp_path) == files
    (other / sorting.UNDO).rename(to / sorting.UNDO)
    assert take_back(to) == []
    assert everything(photos) == before
    assert not to.exists()


def test_an_undo_file_of_which_all_was_undone_but_itself_is_not_refused(photos: Path, tmp_path: Path) -> None:
    """An interruption may leave that."""
    to = tmp_path / "sorted"
    put(to, *all_of(photos), move=True)
    with undo.held(to / sorting.UNDO) as file:
        file.tidy = lambda: None  # type: ignore[method-assign]
        assert not any(sorting.bring_back(file))
    for name in ("cat", "dog", "a_b"):
        (to / name).rmdir()
    assert take_back(to) == []
    assert not to.exists()


def test_undo_files_of_earlier_versions_are_read(photos: Path, tmp_path: Path) -> None:
    """They named every source in full, also below their folder, and did not say what was moved."""
    before, to = everything(photos), tmp_path / "sorted"
    put(to, *all_of(photos), move=True, sure=0.1)
    put(to, (to / "unsure/2.jpg", "cat"), move=True)
    text = (to / sorting.UNDO).read_text().replace(', "moved": true', "")
    (to / sorting.UNDO).write_text(text.replace('"source": "unsure/', f'"source": "{to}/unsure/'))
    assert f'"{to}/unsure/2.jpg"' in (to / sorting.UNDO).read_text()
    write(photos / "3.jpg", b"three")
    put(to, (photos / "3.jpg", "cat"))
    assert take_back(to) == []
    assert everything(photos) == before | {"3.jpg": b"three"}
    assert not to.exists()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("/tmp/stolen", "../secret"),
        ("/tmp/stolen", "/etc/x"),
        ("/tmp/stolen", "a/../../secret"),
        ("../stolen", "secret"),
    ],
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
