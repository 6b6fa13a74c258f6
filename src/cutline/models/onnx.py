"""An encoder as an ONNX file: what runs it fast on a CPU, and the first graph of a bundle."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from cutline.errors import require

OPSET = 18


class Pictures(nn.Module):
    """`encoder` behind the input that pictures have everywhere outside torch: `uint8 (B, H, W, 3)`."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        grid, pooled = self.encoder(pictures.permute(0, 3, 1, 2))
        return grid, pooled


def export_encoder(encoder: nn.Module, path: Path) -> None:
    """Write `encoder` to `path`: pictures `uint8 (B, H, W, 3)` -> grid `(B, R, C)`, pooled `(B, P)`, any B."""
    size = int(encoder.transform.size)  # type: ignore[arg-type]
    pictures = torch.zeros(2, size, size, 3, dtype=torch.uint8)  # one picture would be taken as a constant
    export_module(Pictures(encoder), (pictures,), path, ["pictures"], ["grid", "pooled"], ({0: torch.export.Dim("B")},))


def export_module(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    dynamic: tuple[dict[int, object], ...],
) -> None:
    """Export `module` as it is in evaluation and in fp32, quietly; `path` appears whole or not at all."""
    require("onnxscript", "train", "exporting to ONNX")
    training = module.training
    module.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        try:
            with torch.no_grad(), _quiet():
                torch.onnx.export(
                    module,
                    example,
                    draft,
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=inputs,
                    output_names=outputs,
                    dynamic_shapes=dynamic,
                    external_data=False,
                    verbose=False,
                )
        finally:
            module.train(training)
        draft.replace(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and logs what it skips; none of it is for the user."""
    logger = logging.getLogger("torch.onnx")
    level, environment = logger.level, os.environ.get("TORCH_ONNX_VERBOSE")
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if environment is not None:
            os.environ["TORCH_ONNX_VERBOSE"] = environment
