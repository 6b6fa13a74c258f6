"""Ranks that tell each other that they live, where nothing of ours watches them: under plain torchrun.

torchrun sees a process that ends. It does not see one that hangs, nor a machine that has lost its power or its network,
which closes no connection: the others would wait for it as long as ranks may wait for each other's work.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from cutline import console
from cutline.console import duration, say

GRACE = 5.0
"""Seconds for a process to end by itself, once it has lost another: in its own words, and after what it must do."""


@contextlib.contextmanager
def beating(limit: float, world: int) -> Iterator[None]:
    """End this process when one of all is gone without a word, or when none of them has gone on, for `limit` seconds.

    On a clean end they part together. After an error nobody waits: the others may never come.
    """
    pulse = _Pulse(limit, world)
    console.gone_on.append(pulse.beat)
    try:
        pulse.thread.start()
        yield
        pulse.part()
    except BaseException:
        pulse.failed = True
        raise
    finally:
        console.gone_on.remove(pulse.beat)


class _Pulse:
    def __init__(self, limit: float, world: int) -> None:
        self.limit = limit
        self.group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=limit)) if world > 1 else None
        self.thread = threading.Thread(target=self._watch, name="pulse", daemon=True)
        self.failed = False
        """Whether this process is ending by an error, in its own words."""
        self._last = time.monotonic()
        self._parting = threading.Event()

    def beat(self) -> None:
        self._last = time.monotonic()

    def part(self) -> None:
        self._parting.set()
        self.thread.join()

    def _watch(self) -> None:
        while True:
            still, parting = time.monotonic() - self._last, float(self._parting.is_set())
            try:
                still, parting = self._least(still, parting)
            except RuntimeError as error:
                if not parting:  # else all was done, and so was theirs
                    time.sleep(GRACE)
                    self._end(f"another process is gone, or its machine or the network ({error})")
                return
            if parting or self.failed:
                return
            if still > self.limit:
                faulthandler.dump_traceback()
                self._end(f"nothing went on for {duration(self.limit)}: it hangs, where is said above")
            self._parting.wait(min(1.0, self.limit / 10))

    def _least(self, *numbers: float) -> list[float]:
        """The least of all ranks' numbers: the shortest time that one has stood still, whether all are parting."""
        least = torch.tensor(numbers, dtype=torch.float64)
        if self.group is not None:
            dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
        return least.tolist()

    def _end(self, why: str) -> None:
        if self.failed:
            return
        say(f"rank {os.environ['RANK']} ends itself: {why}")
        os._exit(1)  # the main thread may be waiting where no exception reaches it
