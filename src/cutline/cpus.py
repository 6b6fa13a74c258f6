"""The processors that this process may use: how many there are, and whose."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from cutline import control_groups


def count() -> int:
    """A container or a batch system may give fewer than the machine has, or only a share of their time."""
    return min(_cores(), control_groups.processors() or _cores())


def threads(asked: int) -> int:
    """What to tell a library that counts processors by itself: as many as were asked for, or 0, as it likes.

    Libraries know nothing of shares of time. With more threads than that pays for, all of them stand still together
    until the next tenth of a second.
    """
    return asked or (count() if count() < _cores() else 0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def are_intel() -> bool:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = platform.processor()
    return "GenuineIntel" in told
