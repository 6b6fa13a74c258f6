"""Pictures that are there twice: who learns from one must not be judged by the other, nor told two things of it."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cutline.console import go_on
from cutline.data.corpus import Problem, Sample

_hash: Callable[[bytes], Any]
try:
    from xxhash import xxh3_128 as _hash
except ImportError:  # the runtime goes without
    from hashlib import blake2b as _hash


def copies_among(sizes: Mapping[Path, int | None]) -> tuple[tuple[Path, ...], ...]:
    """Pictures whose files are equal; only files of the same size are read."""
    by_size: dict[int, list[Path]] = {}
    for image, size in sizes.items():
        if size is not None:
            by_size.setdefault(size, []).append(image)
    by_content: dict[tuple[int, bytes], list[Path]] = {}
    for size, images in by_size.items():
        for image in images if len(images) > 1 else ():
            go_on()
            by_content.setdefault((size, _digest(image)), []).append(image)
    return tuple(tuple(images) for images in by_content.values() if len(images) > 1)


def contradictions(samples: Iterable[Sample], copies: Iterable[Sequence[Path]]) -> list[Problem]:
    """Copies of one picture that are in several splits, or have several labels."""
    found = []
    by_image = {sample.image: sample for sample in samples}
    for group in copies:
        same = [by_image[image] for image in group]
        for what, values in (("splits", [s.split for s in same]), ("labels", [s.label for s in same])):
            if len({*values} - {None}) > 1:
                places = ", ".join(f"{s.id} ({value})" for s, value in zip(same, values))
                found.append(Problem(group[0], None, f"same picture with different {what}: {places}"))
    return found


def sizes_of(samples: Iterable[Sample]) -> dict[Path, int | None]:
    """Bytes of their files; None where there is no file."""
    return {sample.image: _size(sample.image) for sample in samples}


def _size(path: Path) -> int | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None  # nothing may be read that never ends


def _digest(path: Path) -> bytes:
    try:
        return bytes(_hash(path.read_bytes()).digest())
    except OSError:
        return str(path).encode("utf-8", "surrogateescape")  # unreadable: a copy of nothing
