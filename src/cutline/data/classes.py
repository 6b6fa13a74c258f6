"""Folders whose names are the classes of the pictures in them, as most data sets of classes come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cutline.data.draft import Draft, split_folders
from cutline.data.files import files_in, folders, read_lines
from cutline.data.images import is_picture, walk

_LISTS = "_annotations.txt"
_LISTED = 5
_BESIDE = (".txt", ".csv", ".json", ".xml", ".db", ".ini")
"""Endings of files that are often beside pictures and are none."""
_PICTURES = "images"
"""The folder in which ImageNet's smaller kin keep the pictures of a class, or of a split without classes."""


def read_classes(path: Path, draft: Draft) -> None:
    """A folder for each class, perhaps in a folder for each split.

    A split may instead list its pictures' classes in `val_annotations.txt`, or give none, as where a test is secret.
    """
    by_split = split_folders(path)
    for other in (folder for folder in folders(path) if by_split and folder.name not in by_split):
        if count := _count(other):
            draft.notes.append(f"{count:,} pictures in {other.name}, which is no split, are left out")
    if by_split and (count := sum(is_picture(file.name) for file in files_in(path, ""))):
        draft.notes.append(f"{count:,} pictures beside the splits are left out")
    for top in [path / name for name in by_split] or [path]:
        inner = folders(top)
        if lists := files_in(top, _LISTS):
            _read_lists(top, lists, by_split.get(top.name), draft)
        elif by_split and {folder.name for folder in inner} <= {_PICTURES}:
            if count := _count(top):
                draft.notes.append(f"{count:,} pictures in {top.name} have no label and are left out")
        else:
            _read_folders(top, inner, by_split.get(top.name), draft)


def _count(folder: Path) -> int:
    """Pictures in it, however deep."""
    return sum(is_picture(name) for _, names in walk(folder) for name in names)


def _read_folders(top: Path, classes: list[Path], split: str | None, draft: Draft) -> None:
    for name in filter(is_picture, (file.name for file in files_in(top, ""))):
        draft.problem(top / name, None, "picture outside a class folder: it has no label")
    passed_over = list[str]()
    for folder in classes:
        found, others = False, list[str]()
        for where, names in walk(folder):
            others += (name for name in names if not is_picture(name) and not name.lower().endswith(_BESIDE))
            for name in filter(is_picture, names):
                file = Path(where, name)
                found = True
                if entry := draft.found(file.relative_to(draft.root).as_posix(), file, None):
                    draft.label(entry, folder.name, file, None)
                    entry.split = split
        if not found:
            there = f"none of its files ({_endings(others)}) is one" if others else "an empty class folder"
            draft.problem(folder, None, f"no pictures: {there}")
        else:
            passed_over += others
    if passed_over:
        draft.notes.append(
            f"{len(passed_over):,} files in {top.name} with no picture's ending ({_endings(passed_over)}) are left out"
        )


def _endings(names: list[str]) -> str:
    found = sorted({Path(name).suffix.lower() or "no ending" for name in names})
    return ", ".join(found[:_LISTED]) + (", …" if found[_LISTED:] else "")


def _read_lists(top: Path, lists: list[Path], split: str | None, draft: Draft) -> None:
    """Reads the classes that lists give to the pictures of their folder; those that none of them names are noted."""
    named = {image for file in lists for image in _read_list(file, split, draft)}
    told = " or ".join(file.name for file in lists)
    for where, names in walk(top):
        for picture in (Path(where, name) for name in filter(is_picture, names)):
            if picture not in named:
                draft.problem(picture, None, f"picture without a label: {told} does not name it")


def _read_list(file: Path, split: str | None, draft: Draft) -> Iterator[Path]:
    """Reads `name.jpg<TAB>class` lines, whatever else they say; gives the pictures that they name."""
    for line, text in enumerate(read_lines(file, draft.problem), 1):
        name, tab, rest = text.partition("\t")
        label = rest.partition("\t")[0].strip()
        if not text.strip():
            continue
        if not tab or not label:
            draft.problem(file, line, "malformed line: not 'picture.jpg', a tab, and a class")
            continue
        inner = f"{_PICTURES}/{name}"
        if entry := draft.picture(inner if draft.has(inner, file) else name, file, line):
            entry.split = split
            draft.label(entry, label, file, line)
            yield entry.image
