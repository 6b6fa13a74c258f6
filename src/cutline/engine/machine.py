"""What the machine has left: memory (the container's limit as well), disk, processors, GPUs.

Memory is the tighter of two: what the machine has, and what the process's control groups allow. A container, a batch
system or a systemd unit sets the second, and it is the one that ends a run with no word but SIGKILL.

Functions that read what the system tells in files take the root of the file system, below which they find them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from cutline import control_groups
from cutline.control_groups import ROOT


@dataclass(frozen=True)
class Gpu:
    index: int
    """As PyTorch counts them: only those that `CUDA_VISIBLE_DEVICES` shows."""
    name: str
    use: float | None
    """Share of the time that it computes; like the rest, None where the driver does not tell."""
    memory_used: int | None
    memory_total: int | None
    celsius: float | None


@dataclass(frozen=True)
class Sample:
    """One look at the machine; sizes in bytes, shares from 0 to 1."""

    memory_used: int
    memory_total: int
    limit: int
    """Memory that the control group with the least room may use; 0 where no group has a limit."""
    limit_used: int
    process_memory: int
    """Of this process and its children; what several of them share counts in each."""
    disk_free: int
    disk_total: int
    cpu: float
    """Share of all processors in use since the last look of this thread."""
    gpus: tuple[Gpu, ...]


def sample(run: Path, root: Path = ROOT, *, gpus: Collection[int] | None = None) -> Sample:
    """The machine now, with the disk that the run folder is on, and all GPUs unless it is told which of them."""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(run)
    group = min(control_groups.memory(root), key=lambda each: each.left, default=control_groups.Memory(0, 0))
    return Sample(
        memory_used=memory.total - memory.available,
        memory_total=memory.total,
        limit=group.limit,
        limit_used=group.used,
        process_memory=_process_memory(),
        disk_free=disk.free,
        disk_total=disk.total,
        cpu=psutil.cpu_percent() / 100,
        gpus=tuple(gpu for gpu in _gpus() if gpus is None or gpu.index in gpus),
    )


def memory_available(root: Path = ROOT) -> int:
    """Bytes that this process can still take before the machine or one of its groups runs out."""
    return max(0, min([int(psutil.virtual_memory().available), *(group.left for group in control_groups.memory(root))]))


def disk_free(place: Path) -> int:
    """Bytes left where this is, or will be once it is made."""
    whole = place.absolute()
    return shutil.disk_usage(next(each for each in (whole, *whole.parents) if each.exists())).free


def die_first(root: Path = ROOT) -> None:
    """Where memory runs out, let the kernel end this process before the supervisor, which can start another."""
    file = root / "proc/self/oom_score_adj"
    with contextlib.suppress(OSError, ValueError):
        file.write_text(str(max(500, int(file.read_text()))))


def peak_memory(root: Path = ROOT) -> int | None:
    """The most bytes that this process has held, since it forgot or ever; None where none can tell."""
    with contextlib.suppress(OSError):
        # Not from getrusage, which begins with what the process that started this one held.
        for line in (root / "proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def forget_peak_memory(root: Path = ROOT) -> None:
    """Let it begin anew, where the system lets us."""
    with contextlib.suppress(OSError):
        (root / "proc/self/clear_refs").write_text("5")


def _process_memory() -> int:
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        try:
            # What several of them share, such as decoded pictures, is in each one's resident memory, but there once.
            total += process.memory_full_info().pss if psutil.LINUX else process.memory_info().rss
        except psutil.Error:  # a child that has just ended
            continue
    return total


def _gpus() -> Iterator[Gpu]:
    nvml = _nvml()
    if nvml is None:
        return
    handles = {}
    for number in range(_told(nvml.nvmlDeviceGetCount) or 0):
        handle = _told(nvml.nvmlDeviceGetHandleByIndex, number)
        if handle is not None:  # one that has failed is left out
            handles[_told(nvml.nvmlDeviceGetUUID, handle) or str(number)] = handle
    for index, uuid in enumerate(visible(list(handles), os.environ.get("CUDA_VISIBLE_DEVICES"))):
        handle = handles.get(uuid) or _told(nvml.nvmlDeviceGetHandleByUUID, uuid)
        if handle is None:
            continue
        use, memory = _told(nvml.nvmlDeviceGetUtilizationRates, handle), _told(nvml.nvmlDeviceGetMemoryInfo, handle)
        yield Gpu(
            index=index,
            name=str(_told(nvml.nvmlDeviceGetName, handle) or "GPU"),
            use=use.gpu / 100 if use is not None else None,
            memory_used=memory.used if memory is not None else None,
            memory_total=memory.total if memory is not None else None,
            celsius=_told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        )


def visible(uuids: list[str], setting: str | None) -> list[str]:
    """The GPUs, in the order that CUDA numbers them under `CUDA_VISIBLE_DEVICES`, by their UUIDs.

    Numbers count in the order of the bus, which is also CUDA's own where all GPUs are of one model. As with CUDA, what
    names no GPU ends the list. A slice of a GPU (`MIG-…`) is not among `uuids` and is passed on as it is.
    """
    if setting is None:
        return uuids
    chosen: list[str] = []
    for name in (part.strip() for part in setting.split(",")):
        if name.isdecimal() and int(name) < len(uuids):
            chosen.append(uuids[int(name)])
        elif name.startswith("MIG-"):
            chosen.append(name)
        elif name.startswith("GPU-") and (match := next((each for each in uuids if each.startswith(name)), "")):
            chosen.append(match)
        else:
            break
    return chosen


@functools.cache
def _nvml() -> ModuleType | None:
    """NVIDIA's library, or None where it or the driver is absent; starting it takes long enough to do it once."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # whatever is wrong with it, a run can do without
        return None
    return nvml


def _told(question: Callable[..., Any], *arguments: Any) -> Any:
    """What the driver answers, or None where it cannot: not every GPU tells everything, and one may be lost."""
    nvml = _nvml()
    assert nvml is not None
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None
