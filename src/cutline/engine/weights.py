"""A model's learned weights by name: what an optimizer changes, what is averaged, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cutline.config import Config
from cutline.engine.muon import suits
from cutline.errors import ConfigError, ModelError
from cutline.models.attention import spread
from cutline.models.captioner import Captioner
from cutline.models.classifier import Classifier
from cutline.models.encoders import build_encoder, freeze

Model = Captioner | Classifier
"""What a run may teach; each has an encoder, and the rest of it."""


def learned(model: Model) -> dict[str, Tensor]:
    """What changes as a model learns, live: all but a frozen encoder."""
    prefix = "encoder." if is_frozen(model.encoder) else "\0"
    return {name: value for name, value in named(model).items() if not name.startswith(prefix)}


def load(model: Model, tensors: dict[str, Tensor]) -> None:
    """Take these values in place of the model's own; they must be all of them."""
    live = learned(model)
    if set(live) != set(tensors):
        odd = sorted(set(live) ^ set(tensors))
        raise ModelError(
            f"the weights do not fit the model: {odd[0]} and {len(odd) - 1} more are in only one of them",
            expected="weights of a model with the same settings",
        )
    with torch.no_grad():
        for name, value in live.items():
            if value.shape != tensors[name].shape:
                raise ModelError(f"{name} is {tuple(tensors[name].shape)}, the model's is {tuple(value.shape)}")
            value.copy_(tensors[name])


def named(model: Model) -> dict[str, Tensor]:
    """All of the model's tensors, live: each once though it may be tied to two places."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def put(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Take these values, whichever of the model's they are; they may be of one that saw pictures of another size."""
    live, kept = named(model), model.state_dict().keys()
    with torch.no_grad():
        for name, value in tensors.items():
            if name not in kept:  # such as a mask, which the model makes for its own size of pictures
                continue
            of_regions = name.rpartition(".")[2] == "places"
            live[name].copy_(spread(value, len(live[name])) if of_regions else value)


def check_stages(config: Config) -> None:
    """Refuse stages that the encoder cannot go through, before the first of them has learned for hours.

    They may name a part of it that it does not have, or a size of pictures at which it has other weights than before,
    one for each place perhaps.
    """
    first: dict[str, torch.Size] = {}
    stages = [config.stage(number) for number in range(len(config.stages))]
    parts = {stage.encoder.train for stage in stages} - {"auto", "all", "nothing"}
    sizes = dict.fromkeys(stage.pictures.size for stage in stages)
    for size in sizes if len(sizes) > 1 or parts else ():
        pictures = replace(config.pictures, size=size)
        encoder = build_encoder(replace(config.encoder, weights="none", train="all"), pictures)
        for part in sorted(parts):
            freeze(encoder, part)
        shapes = {name: value.shape for name, value in encoder.state_dict().items()}
        first = first or shapes
        if shapes != first:
            raise ConfigError(
                f"the encoder '{encoder.name}' has other weights for pictures of {encoder.transform.size} pixels, and "
                "cannot go on with those of the stages before",
                expected="one pictures.size for all stages, or an encoder without weights for each place",
            )


def statistics(model: Model) -> list[Tensor]:
    """What a model notes of its inputs as it learns, beside its weights: the running figures of batch norm, live."""
    noted = {name for name, _ in model.named_buffers()}
    return [value for name, value in learned(model).items() if name in noted]


def is_frozen(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())


def parameter_groups(model: Model, config: Config) -> list[dict[str, Any]]:
    """The encoder, or each of its stages, and then the rest with their own rates; biases and scales do not decay.

    The last group is always of the rest, which learns at the run's rate.
    """
    training, encoder = config.training, config.encoder
    stages = model.encoder.stages() if encoder.decay < 1 else [list(model.encoder.parameters())]
    own = encoder.rate or training.rate
    rates = [own * encoder.decay**distance for distance in reversed(range(len(stages)))]
    rest = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    groups = []
    for portion, rate in zip([*stages, rest], [*rates, training.rate], strict=True):
        for kind in ("kernels", "matrices", "scales"):
            chosen = [p for p in portion if p.requires_grad and _kind(p, training.optimizer) == kind]
            if chosen:
                decay = 0.0 if kind == "scales" else training.weight_decay
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay, "muon": kind == "kernels"})
    return groups


def _kind(parameter: Tensor, optimizer: str) -> str:
    if optimizer == "muon" and suits(parameter):
        return "kernels"
    return "matrices" if parameter.ndim > 1 else "scales"
