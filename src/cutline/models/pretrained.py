"""Any timm model as an encoder, with its own preprocessing and weights from the hub, a file, or none.

Importing timm takes seconds, so this module is imported only when such an encoder is asked for.
"""

from __future__ import annotations

import contextlib
import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from cutline.config import EncoderConfig, PicturesConfig
from cutline.data.images import Transform
from cutline.errors import ConfigError, ModelError, nearest
from cutline.models.encoders import Encoder, Features, Normalise, parse
from cutline.models.resting import fold_resting
from cutline.models.weights import WAYS_OUT, first_line, load_weights

OWN = ("mean", "std", "interpolation", "crop_pct")
"""What a name's arguments may say of the preprocessing; all others are the model's."""
_INTERPOLATIONS = ("bilinear", "bicubic")


class TimmEncoder(Encoder):
    """A timm model by name, with arguments where its weights need others than timm's own.

    Converted weights often do: "mobilenetv2_100:pad_type=same,mean=0.5,std=0.5" is one that learned in TensorFlow.
    """

    def __init__(self, config: EncoderConfig, pictures: PicturesConfig) -> None:
        super().__init__()
        self.name = config.name
        kind, arguments = parse(config.name)
        _known(kind)
        own = {key: _sound(key, arguments.pop(key), config.name) for key in OWN if key in arguments}
        self.model: Any = _build(kind, arguments, config.weights, pictures.size)
        self.transform = _transform(self.model, own, pictures)
        self.normalise = Normalise(self.transform)
        self.model.to(memory_format=torch.channels_last)
        _take_places_first(self.model)
        if config.weights not in ("none", "auto", "hub"):
            load_weights(self.model, Path(config.weights), ignore=_classifiers(self.model))
        self.channels, self.pooled_channels, self.grid_side = self._measure()
        noise = torch.rand(1, 3, *(self.transform.size,) * 2, generator=torch.Generator().manual_seed(0)) - 0.5
        self.eval()
        fold_resting(self.model, lambda: self.model.forward_features(noise))
        self.train()

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
        try:
            groups = timm.models.group_parameters(self.model, self.model.group_matcher(coarse=True))
        except (AttributeError, AssertionError):  # timm knows of no parts of this one
            groups = {0: list(named)}
        return [[named[name] for name in groups[key]] for key in sorted(groups)]

    def checkpoint(self, on: bool) -> None:
        with contextlib.suppress(AssertionError):  # that is how timm says that a model cannot
            self.model.set_grad_checkpointing(on)

    def _measure(self) -> tuple[int, int, int]:
        size = self.transform.size
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                grid, pooled = self(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = first_line(error)
            raise ConfigError(f"encoder '{self.name}' cannot see {size} x {size} pixels: {reason}") from None
        except (AttributeError, TypeError) as error:  # of several branches, or asked for all its layers
            raise ConfigError(
                f"encoder '{self.name}' gives something other than one grid of features", expected="another timm model"
            ) from error
        self.train(training)
        side = math.isqrt(grid.shape[1])
        if side * side != grid.shape[1]:
            raise ModelError(f"encoder '{self.name}' gives {grid.shape[1]} regions, which make no square grid")
        return grid.shape[2], pooled.shape[1], side


def _known(kind: str) -> None:
    network, _, weights = kind.partition(".")
    if not timm.is_model(network):
        raise ConfigError(
            f"unknown encoder '{kind}'{nearest(kind, ['small', 'cnn', 'dnn', *timm.list_models()])}",
            expected='"small", "cnn", "dnn", vgg16, resnet50, inception_v3, densenet121, mobilenetv2_100, '
            "or another timm model",
        )
    try:
        timm.get_pretrained_cfg(kind)
    except RuntimeError:
        there = timm.list_models(f"{network}.*", pretrained=True)
        hint = nearest(kind, there)
        raise ConfigError(f"timm has no weights '{weights}' of '{network}'{hint}", expected=", ".join(there)) from None


def _take_places_first(model: nn.Module) -> None:
    """Let 1 x 1 convolutions of few channels take every other place before they compute, which gives the same.

    For their gradients oneDNN 3.13 writes past the end of its memory (channels last, AVX-512): RepVGG, MobileOne and
    FastViT, which begin with one, ended their process about every second time.
    """
    for conv in model.modules():
        if (
            isinstance(conv, nn.Conv2d)
            and conv.kernel_size == (1, 1)
            and conv.padding == (0, 0)
            and max(conv.stride) > 1
            and conv.in_channels // conv.groups < 16
        ):
            conv.register_forward_pre_hook(partial(_every, conv.stride))
            conv.stride = (1, 1)


def _every(stride: tuple[int, ...], conv: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0][..., :: stride[0], :: stride[1]]


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
        reason = first_line(error)
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
        reason = f"{hub.constants.ENDPOINT} cannot be reached ({first_line(error)})"
        raise ModelError(f"no weights for encoder '{kind}': {reason}", fix=WAYS_OUT) from None
    return {"pretrained": True}


def _sound(key: str, value: Any, name: str) -> Any:
    """What a name says of the preprocessing, if it means anything."""
    numbers = value if isinstance(value, tuple | list) and len(value) == 3 and key != "crop_pct" else (value,)
    right = value in _INTERPOLATIONS if key == "interpolation" else all(type(n) in (int, float) for n in numbers)
    if right:
        return value
    one = "a number" if key == "crop_pct" else "a number, or three in brackets"
    expected = " or ".join(_INTERPOLATIONS) if key == "interpolation" else one
    raise ConfigError(f"{key}={value} in encoder '{name}'", expected=expected)


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


def _classifiers(model: Any) -> tuple[str, ...]:
    """What the names of a classifier's weights begin with; it plays no part in encoding."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    names = [names] if isinstance(names, str) else names
    return tuple(f"{name}." for name in (*names, "AuxLogits"))
