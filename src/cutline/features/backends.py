"""What runs an encoder fastest here, and proof that it computes the same.

Every backend but eager PyTorch in fp32 is compared with it on pictures of the data before it is used. The error is
the Euclidean norm of the difference over the norm of the features, all probe pictures together, the larger
of grid and pooled.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cutline import cpus
from cutline.console import say
from cutline.errors import ModelError, choose, require

if TYPE_CHECKING:
    from torch import nn

Pixels = NDArray[np.uint8]
"""(B, H, W, 3)."""
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Grid (B, R, C) and pooled (B, P)."""

_LIBRARY = {"cuda": "torch", "torch": "torch", "openvino": "openvino", "onnxruntime": "onnxruntime"}
NAMES = ("auto", "cpu", "cuda", "openvino", "onnxruntime", "torch")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

TOLERANCE = {"fp32": 1e-3, "bf16": 1e-2, "fp16": 1e-2}
"""Largest error with which a backend of this precision is chosen by itself."""


@dataclass(frozen=True)
class Backend:
    name: str
    precision: str
    version: str
    run: Callable[[Pixels], Pair]

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


def select(
    encoder: nn.Module, probe: Pixels, reference: Pair, name: str, precision: str, threads: int, *, quiet: bool
) -> tuple[Backend, float]:
    """The first candidate that works here and is exact enough, and its error."""
    candidates = list(_candidates(name, precision))
    if not candidates:
        raise ModelError(
            f"backend '{name}' cannot compute in {precision} here",
            fix="--backend auto --precision auto takes the fastest there is",
        )
    asked = len(candidates) == 1
    for backend_name, backend_precision in candidates:
        label = f"{backend_name} {backend_precision}"
        try:
            backend = make(encoder, backend_name, backend_precision, threads)
            found = error(backend.run(probe), reference)
        except Exception as failure:  # exporters and runtimes fail with any kind of exception
            if asked:
                raise ModelError(f"{label} cannot run this encoder: {failure}", fix="--backend auto") from failure
            say(f"not {label}: {str(failure).splitlines()[0] if str(failure) else type(failure).__name__}", quiet=quiet)
            continue
        limit = TOLERANCE[backend_precision]
        if found < limit or (asked and backend_precision != "fp32" and np.isfinite(found)):
            why = "as asked" if asked else "the fastest that is exact enough"
            say(f"backend: {label}, {why} (error {found:.2g} of fp32 on {len(probe)} pictures)", quiet=quiet)
            return backend, found
        say(f"not {label}: error {found:.2g} on {len(probe)} pictures, at most {limit:g} is taken", quiet=quiet)
    raise ModelError(
        f"nothing here computes this encoder as PyTorch does in fp32 (tried {', '.join(map(' '.join, candidates))})"
    )


def error(found: Pair, reference: Pair) -> float:
    """Relative error in the Euclidean norm, the larger of grid and pooled; not finite where either is not."""
    worst = 0.0
    for ours, theirs in zip(found, reference):
        if ours.shape != theirs.shape:
            raise ModelError(f"the backend gave {ours.shape} where PyTorch gives {theirs.shape}")
        scale = float(np.linalg.norm(theirs.astype(np.float64)))
        gap = float(np.linalg.norm(ours.astype(np.float64) - theirs))
        ratio = gap / scale if scale else gap
        worst = ratio if not ratio <= worst else worst
    return worst


def make(encoder: nn.Module, name: str, precision: str, threads: int) -> Backend:
    """This backend and no other. `encoder` itself is neither moved nor changed."""
    still = copy.deepcopy(encoder).eval()
    if name in ("torch", "cuda"):
        return Backend(name, precision, _version(_LIBRARY[name]), _torch(still, name, precision))
    from cutline.models.onnx import export_encoder

    with tempfile.TemporaryDirectory(prefix="cutline-") as folder:
        path = Path(folder) / "encoder.onnx"
        export_encoder(still.cpu(), path)
        data = path.read_bytes()
    runner = {"openvino": _openvino, "onnxruntime": _onnxruntime}[name]
    return Backend(name, precision, _version(_LIBRARY[name]), runner(data, precision, cpus.threads(threads)))


def could_be(name: str, precision: str, version: str, asked: str) -> bool:
    """Whether this backend is still here, unchanged, and one that may be taken when `asked` is."""
    return (name, precision) in _candidates(asked, precision) and version == _version(_LIBRARY[name])


def eager(encoder: nn.Module) -> Callable[[Pixels], Pair]:
    """The reference: PyTorch on the CPU, in fp32."""
    return _torch(copy.deepcopy(encoder).eval(), "torch", "fp32")


def _candidates(name: str, precision: str) -> Iterator[tuple[str, str]]:
    """What there is on this machine, fastest first (docs/features.md has the measurements)."""
    choose(name, NAMES, "backend")
    choose(precision, PRECISIONS, "precision")
    for backend, precisions in _available().items():
        if name not in ("auto", backend) and not (name == "cpu" and backend != "cuda"):
            continue
        yield from ((backend, one) for one in precisions if precision in ("auto", one))


def _available() -> dict[str, tuple[str, ...]]:
    import torch

    found: dict[str, tuple[str, ...]] = {}
    if torch.cuda.is_available():
        found["cuda"] = ("fp16", "fp32")
    if importlib.util.find_spec("openvino"):
        import openvino

        from cutline.models.linear import WORTHWHILE, gain_of_bf16

        able = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        fast = able and gain_of_bf16() >= WORTHWHILE
        found["openvino"] = ("bf16", "fp32") if fast else ("fp32", "bf16") if able else ("fp32",)
    found["onnxruntime"] = ("fp32",)
    found["torch"] = ("fp32", "bf16")
    return found


def _torch(encoder: nn.Module, name: str, precision: str) -> Callable[[Pixels], Pair]:
    import torch

    device = torch.device("cuda" if name == "cuda" else "cpu")
    still = encoder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def run(pixels: Pixels) -> Pair:
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # fp32 is to be fp32
        with torch.inference_mode(), exact, torch.autocast(device.type, dtype, enabled=dtype is not None):
            features = still(torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2))
            grid, pooled = (part.float().cpu().numpy() for part in features)
        return grid, pooled

    return run


def _openvino(data: bytes, precision: str, threads: int) -> Callable[[Pixels], Pair]:
    core = require("openvino", "openvino", "the OpenVINO backend").Core()
    # Left to itself OpenVINO computes in bf16 wherever the CPU can, whatever that does to the features.
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(core.read_model(data, b""), "CPU", settings).create_infer_request()

    def run(pixels: Pixels) -> Pair:
        results = request.infer([np.ascontiguousarray(pixels)])
        return results[0], results[1]

    return run


def _onnxruntime(data: bytes, precision: str, threads: int) -> Callable[[Pixels], Pair]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(pixels: Pixels) -> Pair:
        grid, pooled = session.run(["grid", "pooled"], {"pictures": pixels})
        return grid, pooled

    return run


def _version(library: str) -> str:
    return importlib.metadata.version(library)
