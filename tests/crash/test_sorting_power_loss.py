"""The power fails at any moment of sorting pictures, or of taking it back: no picture is lost, and all come back.

What a disk may hold then, `replay` says; each such state is laid out as real files, at the same place.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.crash import replay
from tests.crash.replay import Call, Recorder

from cutline.errors import DataError
from cutline.sorting import UNDO, bring_back, sort_into
from cutline.undo import held

PICTURES = {"a/1.jpg": random.Random(1).randbytes(40), "b/1.jpg": random.Random(2).randbytes(50)}
Files = dict[str, bytes]


def below(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sort(place: Path, *, move: bool) -> list[str]:
    """Sort what is still there; why some pictures could not be."""
    stayed = []
    with sort_into(place / "new" / "sorted", ("cat",), move=move, least=0) as sorting:
        for name in PICTURES:
            if (picture := place / "photos" / name).exists():
                try:
                    sorting.put(picture, "cat", 1)
                except DataError as error:
                    stayed.append(error.what)
    return stayed


def take_back(place: Path) -> list[str]:
    with held(place / "new" / "sorted" / UNDO) as undo:
        return [reason for reason in bring_back(undo) if reason]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk that counts here is the one that `replay` works out."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def no_links(source: object, target: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.fixture(params=["copy", "move", "move to another disk"])
def move(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "move to another disk":
        monkeypatch.setattr(Recorder, "link", lambda self, source, target: no_links(source, target))
    return bool(request.param != "copy")


def rehearse(place: Path, work: Callable[[], object]) -> tuple[replay.Folder, list[Call]]:
    """Do the work once, for real; what the disk held before, and the calls. Then the place is free for what may be."""
    before = replay.read_disk(place)
    assert isinstance(before, replay.Folder)
    with replay.record(place) as recorder:
        work()
        recorder.returned()
    shutil.rmtree(place)
    return before, recorder.calls


def states(place: Path, before: replay.Folder, calls: list[Call]) -> Iterator[tuple[int, str]]:
    """Each state of the disk, laid out; how often the work had returned, and the last call."""
    for promises, call, tree in replay.crash_states(before, calls, 10**6):
        replay.build(tree, place)
        yield promises, call
        shutil.rmtree(place)


def photos_at(place: Path) -> None:
    for name, data in PICTURES.items():
        (place / "photos" / name).parent.mkdir(parents=True)
        (place / "photos" / name).write_bytes(data)


def wrong_after_sorting(place: Path, promises: int) -> str:
    photos, to = place / "photos", place / "new" / "sorted"
    if not set(below(place).values()) >= set(PICTURES.values()):
        return "a picture is lost"
    if promises and not set(below(to).values()) >= set(PICTURES.values()):
        return "a picture is no longer sorted"
    try:
        left = take_back(place) if (to / UNDO).exists() else []
    except DataError:  # it was not even begun
        left = []
    if below(photos) != PICTURES:
        return f"not all is back: {left}"
    # A copy that was not yet on the disk may be left behind as anything; it is named, since it might be someone's.
    return "" if len(left) == len([name for name in below(to) if name != UNDO]) <= 1 else f"left behind: {left}"


def wrong_after_undoing(place: Path, promises: int) -> str:
    photos, to = place / "photos", place / "new" / "sorted"
    if not set(below(place).values()) >= set(PICTURES.values()):
        return "a picture is lost"
    if promises and below(photos) != PICTURES:
        return "a picture is no longer back"
    left = take_back(place) if (to / UNDO).exists() else []
    if left:  # a copy that was not yet on the disk is anything, and might be someone's: a person has to remove it
        assert len(left) == 1
        assert "another file is at" in left[0]
        Path(left[0].partition("another file is at ")[2]).unlink()
        left = take_back(place)
    return "" if below(photos) == PICTURES and not left and not below(to) else f"after undoing again: {left}"


def violations(place: Path, wrong: Callable[[Path, int], str], before: replay.Folder, calls: list[Call]) -> list[str]:
    """For each state what is wrong, or an empty text."""
    found = []
    for promises, call in states(place, before, calls):
        problem = wrong(place, promises)
        found.append(problem and f"after '{call}': {problem}")
    return found


def test_sorting(tmp_path: Path, move: bool) -> None:
    place = tmp_path / "place"
    photos_at(place)
    before, calls = rehearse(place, lambda: sort(place, move=move))
    found = violations(place, wrong_after_sorting, before, calls)
    print(f"{len(found)} states after {len(calls)} calls")
    assert not any(found), next(filter(None, found))


def test_taking_it_back(tmp_path: Path, move: bool) -> None:
    place = tmp_path / "place"
    photos_at(place)
    assert sort(place, move=move) == []
    before, calls = rehearse(place, lambda: take_back(place))
    found = violations(place, wrong_after_undoing, before, calls)
    print(f"{len(found)} states after {len(calls)} calls")
    assert not any(found), next(filter(None, found))


def test_without_any_one_fsync_of_a_folder_a_picture_would_be_lost(tmp_path: Path) -> None:
    """Each is needed, and the tests above see what is missing."""
    place, kept = tmp_path / "place", tmp_path / "kept"
    photos_at(place)
    shutil.copytree(place, kept)
    _, calls = rehearse(place, lambda: sort(place, move=True))
    last = {call.path: index for index, call in enumerate(calls) if call.kind == "sync" and call.path.name != UNDO}
    assert len(last) == 4
    for index in last.values():
        before = replay.read_disk(kept)
        assert isinstance(before, replay.Folder)
        found = violations(place, wrong_after_sorting, before, calls[:index] + calls[index + 1 :])
        assert any("a picture is lost" in problem for problem in found), calls[index]
