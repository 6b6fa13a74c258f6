"""Any timm model as an encoder, with its own preprocessing and weights from the hub, a file, or none.

Importing timm takes seconds, so this module is imported only when such an encoder is asked for.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from cutline.config import EncoderConfig, PicturesConfig
from cutline.data.images import Transform
from cutline.errors import ConfigError, ModelError, nearest
from cutline.models.encoders import Features, Normalise, keep_frozen_still

WAYS_OUT = 'give a file with encoder.weights, or learn without: encoder.weights = "none", or encoder.name = "small"'
OWN = ("mean", "std", "interpolation", "crop_pct")
"""What a name's arguments may say of the preprocessing; all others are the model's."""


class TimmEncoder(nn.Module):
    """A timm model by name, with arguments where its weights need others than timm's own.

    Converted weights often do: "mobilenetv2_100:pad_type=same,mean=0.5,std=0.5" is one that learned in TensorFlow.
    """

    def __init__(self, config: EncoderConfig, pictures: PicturesConfig) -> None:
        super().__init__()
        self.name, self.checkpointing = config.name, False
        self.given = config.weights != "none"
        kind, arguments = parse(config.name)
        own = {key: arguments.pop(key) for key in OWN if key in arguments}
        self.model: Any = _build(kind, arguments, config.weights, pictures.size)
        self.transform = _transform(self.model, own, pictures)
        self.normalise = Normalise(self.transform)
        self.model.to(memory_format=torch.channels_last)
        if config.weights not in ("none", "auto", "hub"):
            load_file(self.model, Path(config.weights))
        self.channels, self.pooled_channels, self.grid_side = self._measure()

    def forward(self, pictures: Tensor) -> Features:
        features = self.model.forward_features(self.normalise(pictures))
        pooled = self.model.forward_head(features, pre_logits=True)
        if features.ndim == 4:  # channels before the two sides, or after them
            wide = self.model.num_features
            grid = features.flatten(2).mT if features.shape[1] == wide else features.flatten(1, 2)
        else:  # a sequence, with class tokens and the like before the regions
            grid = features[:, getattr(self.model, "num_prefix_tokens", 0) :]
        return Features(grid, pooled.flatten(1))

    def stages(self) -> list[list[nn.Parameter]]:
        named = dict(self.model.named_parameters())
        groups = timm.models.group_parameters(self.model, self.model.group_matcher(coarse=True))
        return [[named[name] for name in groups[key]] for key in sorted(groups)]

    def train(self, mode: bool = True) -> TimmEncoder:
        super().train(mode)
        keep_frozen_still(self)
        return self

    @property
    def checkpointing(self) -> bool:
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self._checkpointing = on
        if "model" in self._modules and hasattr(self.model, "set_grad_checkpointing"):
            self.model.set_grad_checkpointing(on)

    def _measure(self) -> tuple[int, int, int]:
        size = self.transform.size
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                grid, pooled = self(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = _first_line(error)
            raise ConfigError(f"encoder '{self.name}' cannot see {size} x {size} pixels: {reason}") from None
        self.train(training)
        side = math.isqrt(grid.shape[1])
        if side * side != grid.shape[1]:
            raise ModelError(f"encoder '{self.name}' gives {grid.shape[1]} regions, which make no square grid")
        return grid.shape[2], pooled.shape[1], side


def parse(name: str) -> tuple[str, dict[str, Any]]:
    """ "vgg16" or "mobilenetv2_100:pad_type=same,mean=0.5" as a timm name and its arguments."""
    kind, _, given = name.partition(":")
    arguments: dict[str, Any] = {}
    for part in filter(None, given.split(",")):
        key, equals, value = part.partition("=")
        if not (key.isidentifier() and equals):
            raise ConfigError(f"'{part}' in encoder '{name}' is no argument", expected="NAME:key=value,key=value")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    if not timm.is_model(kind.split(".")[0]):
        raise ConfigError(
            f"unknown encoder '{kind}'{nearest(kind, ['small', *timm.list_models()])}",
            expected='"small", vgg16, resnet50, inception_v3, densenet121, mobilenetv2_100, or another timm model',
        )
    return kind, arguments


def _build(kind: str, arguments: dict[str, Any], weights: str, size: int) -> nn.Module:
    """The model without its classifier; vision transformers are told the size of their pictures."""
    from_hub = weights in ("auto", "hub")
    configured = timm.get_pretrained_cfg(kind)
    if size and configured is not None and configured.fixed_input_size:
        arguments = {"img_size": size, **arguments}
    if from_hub:
        arguments = {**_from_hub(kind), **arguments}
    try:
        model: nn.Module = timm.create_model(kind, num_classes=0, **arguments)
    except Exception as error:
        reason = _first_line(error)
        if from_hub:  # its client has a dozen ways to say that something went wrong on the way
            raise ModelError(f"no weights for encoder '{kind}' from the hub: {reason}", fix=WAYS_OUT) from None
        if not arguments:
            raise
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise ConfigError(f"encoder '{kind}' cannot be built with {given}: {reason}") from None
    return model


def _from_hub(kind: str) -> dict[str, Any]:
    """What makes timm load the hub's weights: from this machine's cache, or over the network if there is one.

    The hub's client would try for most of a minute to reach a network that is not there.
    """
    import huggingface_hub as hub

    repository = timm.get_pretrained_cfg(kind).hf_hub_id
    kept = hub.try_to_load_from_cache(repository, "model.safetensors") if repository else None
    if isinstance(kept, str):
        return {"pretrained": True, "pretrained_cfg_overlay": {"file": kept}}
    try:
        hub.get_session().head(hub.constants.ENDPOINT, timeout=5)
    except Exception as error:
        reason = f"{hub.constants.ENDPOINT} cannot be reached ({_first_line(error)})"
        raise ModelError(f"no weights for encoder '{kind}': {reason}", fix=WAYS_OUT) from None
    return {"pretrained": True}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _transform(model: nn.Module, own: dict[str, Any], pictures: PicturesConfig) -> Transform:
    """timm's preprocessing of this model, with what the name says otherwise."""
    settings = {**timm.data.resolve_model_data_config(model), **own}
    size = pictures.size or min(settings["input_size"][1:])
    interpolation: Literal["bilinear", "bicubic"] = "bilinear" if settings["interpolation"] == "bilinear" else "bicubic"
    mean, std = (v if isinstance(v, tuple | list) else (v,) * 3 for v in (settings["mean"], settings["std"]))
    return Transform(
        size=size,
        fit=pictures.fit,
        interpolation=interpolation,
        crop_pct=float(settings["crop_pct"]),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
    )


def load_file(model: nn.Module, path: Path) -> None:
    """Weights from a safetensors file, or a PyTorch file that holds tensors and nothing else."""
    given = _read(path)
    classifiers = _classifiers(model)
    given = {k: v for k, v in given.items() if not k.startswith(classifiers)}
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
                expected="weights in timm's naming, of the very model that encoder.name says",
            )
    model.load_state_dict({k: v.to(wanted[k].dtype) for k, v in given.items()}, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"no weights file {path}", expected='a file, "hub" or "none"', fix=WAYS_OUT)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return load(path.read_bytes())
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = _first_line(error)
        raise ModelError(f"cannot read weights from {path}: {reason}", expected="a safetensors file") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not (isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values())):
        raise ModelError(f"{path} holds no table of weights", expected="a safetensors file")
    return found


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """What the names of a classifier's weights begin with; it plays no part in encoding."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    names = [names] if isinstance(names, str) else names
    return tuple(f"{name}." for name in (*names, "AuxLogits"))
