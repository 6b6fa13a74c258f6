"""The one product that a training step is made of, at full speed on any CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LARGE = 256
"""Rows from which on it pays."""
PICTURES = 16


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, for products large enough that their speed is a step's.

    On a CPU, PyTorch gives fp32 matrix products to MKL, which runs at about half speed on processors that are not
    Intel's, and convolutions to oneDNN, which runs at full speed on all. A 1 x 1 convolution is the same product,
    forward and backward; in channels-last order nothing has to be copied.
    """
    slow = inputs.device.type == "cpu" and inputs.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not slow or torch.compiler.is_compiling() or inputs.numel() < LARGE * inputs.shape[-1]:
        return F.linear(inputs, weight, bias)
    rows = inputs.reshape(-1, inputs.shape[-1])
    # Pictures (count, channels, rows, 1), as they lie in memory. On one thread, oneDNN gets only batches of 16 or more.
    count = PICTURES if len(rows) % PICTURES == 0 else 1
    pictures = rows.view(count, -1, 1, rows.shape[1]).permute(0, 3, 1, 2)
    product = F.conv2d(pictures, weight[:, None, None].permute(0, 3, 1, 2), bias)
    return product.permute(0, 2, 3, 1).reshape(*inputs.shape[:-1], len(weight))
