"""Where and how a run computes: device, precision, threads and randomness."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import shutil
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from cutline import cpus
from cutline.errors import ConfigError
from cutline.models.linear import WORTHWHILE, gain_of_bf16


@dataclass(frozen=True)
class Device:
    torch: torch.device
    reason: str

    def __str__(self) -> str:
        return f"{self.torch} ({self.reason})"


def choose_device(name: str, local: int = 0) -> Device:
    """The device of that name, or for "auto" the best there is, and why; `local` is the process's number here."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        if gpus:
            name = torch.cuda.get_device_name(local % gpus)
            return Device(torch.device("cuda", local % gpus), f"{name}, number {local % gpus + 1} of {gpus} GPUs")
        why = "this torch build has no CUDA" if torch.version.cuda is None else "no CUDA GPU answers"
        return Device(torch.device("cpu"), f"{why}; {torch.get_num_threads()} threads")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'", expected="auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"Cutline does not learn on '{name}'", expected="auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ConfigError(f"device '{name}' is not there", expected=f"one of {gpus} CUDA GPUs", fix="--device auto")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local % gpus)
    return Device(device, "as asked")


def choose_precision(device: torch.device) -> tuple[str, str]:
    """bf16 where the device computes faster in it, or else fp32; and why."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU has it") if able else ("fp32", "the GPU has no bf16")
    gain = gain_of_bf16()
    why = f"bf16 is {gain:.1f} times as fast as fp32 here" if gain else "this processor has no bf16"
    return "bf16" if gain >= WORTHWHILE else "fp32", why


FORKS = sys.platform == "linux"
"""Whether another process can begin as a copy of this one: macOS has it, and its own libraries do not bear it."""

SHARED, ROOM = Path("/dev/shm"), 2**28
"""Where readers leave their batches, and the bytes that must be free there for each process that learns."""


def readers(device: torch.device, here: int) -> int:
    """Processes that make batches ahead for each of the `here` that learn on this machine.

    A GPU is fed by several; where processors learn, making batches takes little beside that, and one is enough. Only
    forked ones share what they decode; where there are none it is left to whoever asks for them. So it is where there
    is little shared memory, through which batches come: a container has 64 MB unless told otherwise.
    """
    if not FORKS or not SHARED.exists() or shutil.disk_usage(SHARED).free < ROOM * here:
        return 0
    return max(0, min(cpus.count() // here - 1, 8 if device.type == "cuda" else 1))


def use_threads(asked: int, here: int = 1) -> None:
    """As many as were asked for, else all that there is time for, shared among the `here` that learn on a machine."""
    threads = asked or max(1, min(torch.get_num_threads(), cpus.count()) // here)
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of glibc's mallopt."""


def keep_memory() -> None:
    """Let glibc keep memory that is freed, for the next step, which wants as much again.

    Otherwise it hands large pieces back to the system, which clears each page of them when it is asked for again: a
    fifth of what a step took. Elsewhere than with glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


class Precision:
    """How a step computes: plain fp32, or autocast, with loss scaling for fp16.

    fp16 keeps its gradients above the smallest number it can hold by scaling the loss; bf16 has fp32's range
    and needs none.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        # It makes its scale when it first scales something, and a rank without pictures has no loss to be scaled.
        self.scaler.scale(torch.zeros((), device=device))

    @property
    def searching(self) -> bool:
        """Whether a gradient that is no number may only mean that fp16's loss is scaled too high, as it is at first."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def reseed(seed: int, step: int, rank: int = 0) -> None:
    """Make every random choice of this step a function of the run's seed, the step and the rank alone.

    Dropout after a resume is then what it would have been without one, whatever was drawn in between.
    """
    torch.manual_seed((seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63)


def free_memory() -> None:
    """Give back what nothing holds any more, so that others may have it."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where there is no GPU


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the GPU's or the machine's way of saying that memory has run out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = (
        "can't allocate memory", "Cannot allocate memory", "could not allocate", "out of memory", "ALLOC_FAILED",
        "bad_alloc",
        # What a full GPU says where a library cannot begin, or finds no way to compute in what is left.
        "CUBLAS_STATUS_NOT_INITIALIZED", "unable to find an engine to execute this computation",
    )  # fmt: skip
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
