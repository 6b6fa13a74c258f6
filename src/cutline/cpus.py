"""The processors that this process may use: a container or a batch system may give it fewer than the machine has."""

from __future__ import annotations

import os


def count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
