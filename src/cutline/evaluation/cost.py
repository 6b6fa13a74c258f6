"""What a model costs: its parameters, and for a picture its multiply-adds, its time and its memory."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutline.errors import ModelError, require

_NOT_LEARNED = ("running_mean", "running_var", "num_batches_tracked")
"""What the names of tensors end with that are kept with the parameters and are none: statistics of batches."""


def parameters(model: Any) -> int:
    """Of a module of torch, whether or not they learn."""
    return sum(parameter.numel() for parameter in model.parameters())


def stored_parameters(*files: Path) -> int:
    """The same from its weights as safetensors: only what stands before the tensors is read."""
    shapes: dict[str, list[int]] = {}
    for path in files:
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                head = json.loads(file.read(min(length, path.stat().st_size)))
            shapes |= {name: about["shape"] for name, about in head.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise ModelError(f"{path} is no safetensors file that can be read: {error}") from None
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(_NOT_LEARNED))


def multiply_adds(model: Any, *inputs: Any) -> int:
    """Of convolutions and products of matrices, as a module of torch does them on these inputs; nothing else counts."""
    torch = require("torch", "train", "counting multiply-adds")
    counter = require("torch.utils.flop_counter", "train", "counting multiply-adds").FlopCounterMode(display=False)
    training = model.training
    model.eval()
    with torch.no_grad(), counter:
        model(*inputs)
    model.train(training)
    return int(counter.get_total_flops()) // 2


@dataclass(frozen=True)
class Timing:
    """Seconds for a picture."""

    median: float
    low: float
    """A quarter of the calls are no slower."""
    high: float
    """A quarter of the calls are no faster."""

    def __str__(self) -> str:
        return f"{1000 * self.median:.3g} ms ({1000 * self.low:.3g} to {1000 * self.high:.3g})"


def time_per_picture(call: Callable[[], object], pictures: int = 1, *, seconds: float = 1.0, least: int = 5) -> Timing:
    """Call again and again for so many seconds, `least` times at the least, after a first call that warms up."""
    call()
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < least or time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        took.append((time.perf_counter() - begun) / pictures)
    took.sort()
    low, median, high = (took[round(place * (len(took) - 1))] for place in (0.25, 0.5, 0.75))
    return Timing(median, low, high)


def memory(call: Callable[[], object]) -> int | None:
    """Bytes that this process holds at the most while it calls, beyond what it held before; None where none can tell.

    Memory that was let go of before and not given back to the system is not seen: measure in a fresh process.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
        before = _status("VmRSS")
        call()
        return max(_status("VmHWM") - before, 0)
    except OSError:  # another system, or one that does not let us
        return None


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name}")
