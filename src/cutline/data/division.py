"""Who learns and who judges: a split for each picture that its source gives none, the same for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cutline.data.corpus import SPLITS

if TYPE_CHECKING:
    from cutline.data.draft import Entry


def divide(entries: Sequence[Entry], shares: tuple[float, float], seed: int) -> str:
    """Give a split to each entry that has none, and say how; `shares` are those of validation and testing.

    Where the source says what is for training and what for testing and no more, validation gets its share of what is
    for training: whoever chooses by the test's pictures has none left to test on.
    """
    undivided = [entry for entry in entries if entry.split is None]
    given = Counter(entry.split for entry in entries)
    if not undivided and given["train"] and not given["val"] and shares[0]:
        undivided, shares = [entry for entry in entries if entry.split == "train"], (shares[0], 0.0)
    if not undivided:
        return ""
    labelled = all(entry.label is not None and not entry.captions for entry in undivided)
    if labelled:
        _by_class(undivided, shares, seed)
    else:
        _by_place(undivided, shares, seed)
    if len(undivided) >= len(SPLITS):
        _fill(entries, undivided, shares, seed)
    how = ", each class by itself" if labelled else ""
    what = "training pictures" if len(undivided) < len(entries) or given["train"] else "pictures"
    return f"{len(undivided):,} {what} divided by seed {seed}{how}"


def _by_place(entries: Sequence[Entry], shares: tuple[float, float], seed: int) -> None:
    """Each by its own hash: a new picture never moves an old one."""
    val, test = shares
    for entry in entries:
        where = place(entry.id, seed)
        entry.split = "val" if where < val else "test" if where < val + test else "train"


def _by_class(entries: Sequence[Entry], shares: tuple[float, float], seed: int) -> None:
    """The same shares of every class; a new picture moves at most one or two of its class, and none of another.

    Shares of a small class come to parts of pictures. They are rounded up or down by the class's own hash, so that
    many small classes together give the share that was asked for; but each class keeps a picture to learn from.
    """
    classes: dict[str | None, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: (place(entry.id, seed), entry.id)):
        classes.setdefault(entry.label, []).append(entry)
    for label, members in classes.items():
        luck = place(f"class {label}", seed)
        held = min(int(len(members) * sum(shares) + luck), len(members) - 1)
        val = min(int(len(members) * shares[0] + luck), held)
        for number, entry in enumerate(members):
            entry.split = "val" if number < val else "test" if number < held else "train"


def _fill(entries: Sequence[Entry], undivided: Sequence[Entry], shares: tuple[float, float], seed: int) -> None:
    """A few pictures may all fall on one side, but each split that is wanted needs at least one of all `entries`."""
    ordered = sorted(undivided, key=lambda entry: (place(entry.id, seed), entry.id))
    for split, share in zip(SPLITS, (1.0, *shares)):
        if share and not any(entry.split == split for entry in entries):
            largest = Counter(entry.split for entry in undivided).most_common(1)[0][0]
            # Rather one whose class has others there, so that it is still learned.
            classes = Counter(entry.label for entry in undivided if entry.split == largest)
            there = [entry for entry in ordered if entry.split == largest]
            next((entry for entry in there if classes[entry.label] > 1), there[0]).split = split


def place(id: str, seed: int) -> float:
    """Where a picture falls between 0 and 1: always the same for its id and the seed."""
    digest = hashlib.blake2b(f"{seed}/{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
