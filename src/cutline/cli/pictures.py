"""What the verbs share that say something of pictures: which pictures, and with which model."""

from __future__ import annotations

import io
import os
import re
import sys
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cutline.console import say
from cutline.errors import ConfigError, ModelError

_KINDS = 5
"""Most endings that are told of files that are no pictures."""


class Named(NamedTuple):
    """The pictures that a command line names."""

    files: Iterable[str | Path | bytes]
    total: int | None
    """How many, where that is known before the last."""


def named(arguments: Sequence[str], *, quiet: bool = False) -> Named:
    """Pictures, folders and globs; or `-`: the paths on standard input, or the one picture whose bytes are there."""
    from cutline.data.images import find_pictures

    if not arguments:
        raise ConfigError("no pictures named", expected="pictures, folders, globs, or -")
    if "-" not in arguments:
        others: Counter[str] = Counter()

        def other(name: str) -> None:
            others[Path(name).suffix.lower() or "without ending"] += 1

        found = [picture for argument in arguments for picture in find_pictures(argument, other)]
        if others:
            kinds = ", ".join(f"{count} {ending}" for ending, count in others.most_common(_KINDS))
            say(f"passed over: {others.total()} files that are no pictures by their names ({kinds})", quiet=quiet)
        return Named(found, len(found))
    if len(arguments) > 1:
        raise ConfigError("- stands for all pictures, and there are others", fix="name - alone")
    if sys.stdin is None:
        raise ConfigError("standard input is closed", fix="name pictures, folders or globs")
    source = sys.stdin.buffer
    assert isinstance(source, io.BufferedReader)
    if _looks_like_a_picture(source.peek(512)[:512]):
        return Named([source.read()], 1)
    if source.peek(len(BOM_UTF8)).startswith(BOM_UTF8):  # some programs begin a list with a mark
        source.read(len(BOM_UTF8))
    lines = (line.rstrip(b"\r\n") for line in source)
    return Named((os.fsdecode(line) for line in lines if line), None)


def _looks_like_a_picture(head: bytes) -> bool:
    """Paths are text; every picture format soon has a byte that is not, but PNM's, which has its size there."""
    return any(byte < 9 for byte in head) or bool(re.match(rb"P[1-6]\s+(#|\d+\s+\d+\s)", head))


def find_model(kind: str, variable: str) -> Path | None:
    """What this environment variable names, or the newest bundle of this kind in the usual places below this folder."""
    from cutline.bundle import MANIFEST, kind_of

    if there := os.environ.get(variable):
        return Path(there)
    places = [Path(place) for place in ("runs", "demo")]
    found = [path.parent for place in places for path in place.glob(f"**/{MANIFEST}")]
    found += [path for place in places for path in place.glob("**/*.cutline")]
    # A bundle that is being written lies in a hidden folder.
    whole = [path for path in found if not any(part.startswith(".") for part in path.parts)]
    for path in sorted(whole, key=_written, reverse=True):
        try:
            fits = kind_of(path) == kind
        except ModelError as error:
            say(f"passed over: {error.what}")
            continue
        if fits:
            say(f"model: {path}")
            return path
    return None


def _written(bundle: Path) -> float:
    from cutline.bundle import MANIFEST

    try:
        return (bundle / MANIFEST if bundle.is_dir() else bundle).stat().st_mtime
    except OSError:  # a link that leads nowhere, which is told when it is opened
        return 0.0
