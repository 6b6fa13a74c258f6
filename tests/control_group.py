"""A control group of this machine's own kernel, of whichever version is mounted: it needs root."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

GROUPS = Path("/sys/fs/cgroup")


@contextmanager
def control_group(controller: str, first: str, second: str, limit: int) -> Iterator[Path]:
    """A new group whose `limit` stands in the file `first` or `second` of that version; gone when its processes are."""
    unified = (GROUPS / "cgroup.controllers").exists()
    path = (GROUPS if unified else GROUPS / controller) / f"cutline-test-{os.getpid()}"
    try:
        path.mkdir()
        (path / (second if unified else first)).write_text(str(limit))
    except OSError as error:
        path.rmdir() if path.is_dir() else None
        pytest.skip(f"no control group can be made here: {error}")
    yield path
    deadline = time.monotonic() + 20
    while path.is_dir() and time.monotonic() < deadline:
        try:
            path.rmdir()
        except OSError:  # its processes are not all gone yet
            time.sleep(0.1)
