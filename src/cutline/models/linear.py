"""The one product that a training step is made of, at full speed on any CPU, and whether bf16 makes it faster."""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from cutline import cpus

MKL_IS_FAST = cpus.are_intel()
LARGE = 256
"""Rows from which on it pays."""
PICTURES = 16


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, for products large enough that their speed is a step's.

    On a CPU, PyTorch gives fp32 matrix products to MKL, which runs at about half speed on processors that are not
    Intel's, and convolutions to oneDNN, which runs at full speed on all. A 1 x 1 convolution is the same product,
    forward and backward; in channels-last order nothing has to be copied.
    """
    fp32 = inputs.device.type == "cpu" and inputs.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not fp32 or MKL_IS_FAST or torch.compiler.is_compiling() or inputs.numel() < LARGE * inputs.shape[-1]:
        return F.linear(inputs, weight, bias)
    rows = inputs.reshape(-1, inputs.shape[-1])
    # Pictures (count, channels, rows, 1), as they lie in memory. On one thread, oneDNN gets only batches of 16 or more.
    count = PICTURES if len(rows) % PICTURES == 0 else 1
    pictures = rows.view(count, -1, 1, rows.shape[1]).permute(0, 3, 1, 2)
    product = F.conv2d(pictures, weight[:, None, None].permute(0, 3, 1, 2), bias)
    return product.permute(0, 2, 3, 1).reshape(*inputs.shape[:-1], len(weight))


WORTHWHILE = 1.2
"""So many times as fast as fp32 must bf16 be to be worth its rounding."""


@cache
def gain_of_bf16() -> float:
    """How many times as fast as in fp32 a convolution is in bf16 on this CPU; 0 where there is no bf16.

    Measured, in turns and on one thread, which waits for none: processors that have bf16 but no units for matrices may
    be slower in it.
    """
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
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
                F.conv2d(given, weights, padding=1)
                each.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return min(times[torch.float32]) / min(times[torch.bfloat16])
