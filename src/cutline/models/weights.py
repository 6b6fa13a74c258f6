"""Weights from a file: of the very model they are for, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cutline.errors import ModelError

WAYS_OUT = (
    'name a file (--weights FILE), or learn from scratch (--weights "none", or --encoder "small", and for either '
    "--train-encoder all)"
)


def load_weights(model: nn.Module, path: Path, ignore: tuple[str, ...] = ()) -> None:
    """From a safetensors file, or a PyTorch file that holds tensors and nothing else, but for names that begin so."""
    fit_weights(model, {key: tensor for key, tensor in _read(path).items() if not key.startswith(ignore)}, path)


def fit_weights(model: nn.Module, given: Mapping[str, Tensor], path: Path) -> None:
    """Take all of these, which came from `path`; they must be of this very model."""
    wanted = model.state_dict()
    # Counters of training steps, which evaluation does not need and converted files do not have.
    absent = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    surplus = [key for key in given if key not in wanted]
    shapes = [key for key, tensor in given.items() if key in wanted and tensor.shape != wanted[key].shape]
    for problem, keys in (("lacks", absent), ("has besides", surplus), ("has in another shape", shapes)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelError(
                f"{path} does not fit the encoder: it {problem} {', '.join(keys[:3])}{more}",
                expected="weights of the very model that encoder.name says, in timm's naming if it is timm's, and of a "
                "plain deep network at the same pictures.size",
            )
    model.load_state_dict({k: v.to(wanted[k].dtype) for k, v in given.items()}, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"no weights file {path}", expected='a file, a run folder, "hub" or "none"', fix=WAYS_OUT)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return load(path.read_bytes())
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = first_line(error)
        raise ModelError(f"cannot read weights from {path}: {reason}", expected="a safetensors file") from None
    for wrapping in ("state_dict", "model"):  # as timm and torchvision save what they train
        found = found.get(wrapping, found) if isinstance(found, dict) else found
    if not (isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values())):
        raise ModelError(f"{path} holds no table of weights", expected="a safetensors file")
    for wrapper in ("module.", "_orig_mod."):  # of parallel and of compiled modules
        if all(key.startswith(wrapper) for key in found):
            found = {key.removeprefix(wrapper): tensor for key, tensor in found.items()}
    return found


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
