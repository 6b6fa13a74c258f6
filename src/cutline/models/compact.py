"""Smaller ONNX files: weights stored in one or two bytes each, and computed with in fp32 all the same.

The stored numbers are turned back into fp32 by nodes of the graph itself, which a runtime does once, while it loads.
So the file shrinks to a third or a half, nothing is slower, and nothing but rounding changes what is computed.

With "int8", kernels of convolutions take two bytes: in one byte their errors add up over fifty layers, which cost a
captioner with MobileNetV2 two points of CIDEr-D, while matrices in one byte cost it nothing that could be measured.
So do vectors: each number of one is a channel of its own, and would need a scale of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cutline.errors import require

Weights = Literal["fp32", "fp16", "int8"]
SMALLEST = 2048
"""Fewer numbers than this stay as they are: biases, norms, constants."""

Floats = NDArray[np.float32]


def compact(path: Path, weights: Weights) -> None:
    """Store the weights of the graph at `path` as `weights` says."""
    onnx = require("onnx", "train", "storing weights in fewer bytes")
    if weights == "fp32":
        return
    model = onnx.load(path)
    graph = model.graph
    kept, unpacking = [], []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < SMALLEST:
            kept.append(tensor)
            continue
        kind: Weights = weights if len(tensor.dims) == 2 else "fp16"
        parts, nodes = _packed(onnx, tensor.name, onnx.numpy_helper.to_array(tensor), kind)
        kept += parts
        unpacking += nodes
    nodes = [*unpacking, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())


def _packed(onnx: Any, name: str, values: Floats, weights: Weights) -> tuple[list[Any], list[Any]]:
    """A weight as smaller tensors, and the nodes that make the weight of them."""

    def node(kind: str, given: list[str], made: str, **how: Any) -> Any:
        return onnx.helper.make_node(kind, given, [made], name=f"{made}:unpack", **how)

    stored = f"{name}:{weights}"
    to_fp32 = {"to": onnx.TensorProto.FLOAT}
    if weights == "fp16":
        half = onnx.numpy_helper.from_array(values.astype(np.float16), stored)
        return [half], [node("Cast", [stored], name, **to_fp32)]
    whole, scale = rounded(values)
    parts = [onnx.numpy_helper.from_array(whole, stored), onnx.numpy_helper.from_array(scale, f"{name}:scale")]
    unscaled = f"{name}:unscaled"
    return parts, [node("Cast", [stored], unscaled, **to_fp32), node("Mul", [unscaled, f"{name}:scale"], name)]


def rounded(values: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Whole numbers of one byte, and the scale of each channel that they are to be multiplied by.

    Channels are along the first axis or the second, whichever loses less: it depends on what a weight is for, and on
    which way round the exporter has written it.
    """
    tries = []
    for axis in range(2):
        others = tuple(other for other in range(values.ndim) if other != axis)
        scale = np.abs(values).max(axis=others, keepdims=True) / 127
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        whole = np.rint(values / scale).astype(np.int8)
        tries.append((float(np.square(whole * scale - values).sum()), whole, scale))
    _, whole, scale = min(tries, key=lambda each: each[0])
    return whole, scale
