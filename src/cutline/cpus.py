"""The processors that this process may use: how many there are, and whose."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def count() -> int:
    """A container or a batch system may give fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def are_intel() -> bool:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = platform.processor()
    return "GenuineIntel" in told
