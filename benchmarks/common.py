"""What every benchmark shares: a row of the table, and fair timing of two ways to do the same work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One measured ratio: how many times faster (or what share of the speed) `work` is than `against`."""

    work: str
    against: str
    ratio: float
    target: float
    detail: str = ""
    """The two figures behind the ratio, with units."""

    @property
    def reached(self) -> bool:
        return self.ratio >= self.target


def paired(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 5) -> tuple[float, float]:
    """Median seconds of each, taken in turns so that a noisy machine troubles both alike."""
    ours(), theirs()  # warm up: allocators, caches, code generation
    mine, other = [], []
    for _ in range(rounds):
        for function, times in ((ours, mine), (theirs, other)):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return statistics.median(mine), statistics.median(other)
