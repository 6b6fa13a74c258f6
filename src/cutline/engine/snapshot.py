"""A run's tensors as the bytes of safetensors files, in memory that every save uses again.

The training thread pays for one copy of each tensor and no more: the buffer it copies into is already the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from cutline.engine.checkpoint import Checkpoint

Tensors = Mapping[str, Tensor]

_KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Snapshot:
    """Copies of named groups of tensors, each group laid out as one file."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def take(self, groups: Mapping[str, Tensors]) -> dict[str, memoryview]:
        """Copy all tensors now; the bytes that come back are overwritten by the next `take`."""
        on_gpu = False
        for name, tensors in groups.items():
            layout = [(key, value.dtype, tuple(value.shape)) for key, value in tensors.items()]
            if name not in self._files or self._files[name].layout != layout:
                self._files[name] = _File(layout, pinned=any(value.is_cuda for value in tensors.values()))
            self._files[name].fill(tensors)
            on_gpu |= self._files[name].pinned
        if on_gpu:
            torch.cuda.synchronize()
        return {f"{name}.safetensors": self._files[name].bytes for name in groups}


class _File:
    """The bytes of one safetensors file, with a view of each tensor in its place."""

    def __init__(self, layout: list[tuple[str, torch.dtype, tuple[int, ...]]], *, pinned: bool) -> None:
        self.layout, self.pinned = layout, pinned
        header: dict[str, Any] = {}
        end = 0
        # The widest first, so that all are aligned; and by name, so that the same state gives the same bytes.
        for key, dtype, shape in sorted(layout, key=lambda each: (-each[1].itemsize, each[0])):
            start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
            header[key] = {"dtype": _KINDS[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        first = 8 + len(text)
        buffer = torch.empty(first + end, dtype=torch.uint8, pin_memory=pinned).zero_()  # touched, so that it is there
        self.bytes = buffer.numpy().data
        self.bytes[:first] = len(text).to_bytes(8, "little") + text
        self.views, self.places = {}, {}
        for key, dtype, shape in layout:
            start, end = (first + offset for offset in header[key]["data_offsets"])
            self.views[key] = buffer[start:end].view(dtype).view(shape)
            self.places[key] = buffer[start:end].numpy()

    def fill(self, tensors: Tensors) -> None:
        """Copy each tensor to its place: those that lie in memory in one piece byte for byte, the others by torch.

        Of two threads the one that is free copies the next tensor. Torch has all of its threads copy a part of each,
        and waits for the one that another process holds up.
        """
        plain, others = [], []
        for key, value in tensors.items():
            if value.device.type == "cpu" and value.is_contiguous():
                plain.append((self.places[key], value.detach().view(-1).view(torch.uint8).numpy()))
            else:
                others.append(key)
        todo = iter(plain)

        def copy() -> None:
            for place, value in todo:
                np.copyto(place, value)

        with ThreadPoolExecutor(1) as pool:
            helper = pool.submit(copy)
            copy()
            helper.result()  # which raises what went wrong there: half a copy must never be saved
        if others:
            with torch.no_grad():
                torch._foreach_copy_([self.views[key] for key in others], [tensors[key] for key in others], self.pinned)


def tensors(saved: Checkpoint, name: str) -> dict[str, Tensor]:
    """A group of tensors out of a checkpoint, its bytes checked."""
    return safetensors.torch.load(saved.read(f"{name}.safetensors"))


def has(saved: Checkpoint, name: str) -> bool:
    return f"{name}.safetensors" in saved.files


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors; its groups are plain numbers, for JSON."""
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor], groups: list[Any]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:  # laid out in memory as its parameter is: a fused step goes by place
                values[name] = torch.empty_like(parameter).copy_(value)
