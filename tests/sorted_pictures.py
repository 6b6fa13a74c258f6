"""Pictures to sort, and how tests sort them: what they share that ask whether anything is lost."""

from __future__ import annotations

from pathlib import Path

from cutline.errors import DataError
from cutline.sorting import UNDO, bring_back, sort_into
from cutline.undo import held

LABELS = ("cat", "dog", "a/b")
SURE = 0.9


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def draw(place: Path) -> Path:
    """Four pictures of two names, two of them with the same bytes."""
    for name, data in {"1.jpg": b"one" * 99, "a/1.jpg": b"other", "b/1.jpg": b"one" * 99, "b/2.jpg": b"two"}.items():
        write(place / "photos" / name, data)
    return place / "photos"


def all_of(photos: Path) -> list[tuple[Path, str]]:
    return [
        (photos / name, label)
        for name, label in {"1.jpg": "cat", "a/1.jpg": "cat", "b/1.jpg": "dog", "b/2.jpg": "a/b"}.items()
    ]


SORTED = {"cat/1.jpg": b"one" * 99, "cat/1-2.jpg": b"other", "dog/1.jpg": b"one" * 99, "a_b/2.jpg": b"two"}


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
    with held(folder / UNDO) as file:
        return [reason for reason in bring_back(file) if reason]


def without_undo(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in everything(folder).items() if name != UNDO}
