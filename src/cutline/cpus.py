"""The processors that this process may use: how many, and what they are good at."""

from __future__ import annotations

import os
import time
from functools import cache

WORTHWHILE = 1.2
"""So many times as fast as fp32 must bf16 be to be worth its rounding."""


def count() -> int:
    """A container or a batch system may give fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def gain_of_bf16() -> float:
    """How many times as fast as in fp32 a convolution is in bf16; 0 where there is no bf16.

    Measured, in turns and on one thread, which waits for none: processors that have bf16 but no units for matrices may
    be slower in it.
    """
    import torch

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return 0.0
    inputs = torch.ones(8, 64, 28, 28).contiguous(memory_format=torch.channels_last)
    kernel = torch.ones(64, 64, 3, 3).contiguous(memory_format=torch.channels_last)
    times: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for _ in range(10):
            for dtype, each in times.items():
                given, weights = inputs.to(dtype), kernel.to(dtype)
                start = time.perf_counter()
                torch.nn.functional.conv2d(given, weights, padding=1)
                each.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return min(times[torch.float32]) / min(times[torch.bfloat16])
