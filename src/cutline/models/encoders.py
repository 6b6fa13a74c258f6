"""Encoders: pictures to a grid of regions and one pooled vector. Normalising happens inside, so pictures are uint8."""

from __future__ import annotations

import ast
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cutline.config import EncoderConfig, PicturesConfig
from cutline.data.images import Transform
from cutline.errors import ConfigError, choose, require
from cutline.models.weights import load_weights


class Features(NamedTuple):
    grid: Tensor
    """(B,R,C): regions row by row from the top, each row from the left."""
    pooled: Tensor
    """(B,P)."""


class Encoder(nn.Module, ABC):
    """What the rest knows of an encoder."""

    name: str
    """As in the config."""
    transform: Transform
    still: bool = False
    """Batch norms keep the statistics that they came with: what learns on from given weights sees too few pictures at a
    time to take better ones."""
    channels: int
    pooled_channels: int
    grid_side: int

    @abstractmethod
    def forward(self, pictures: Tensor) -> Features:
        """Pictures uint8 (B,3,H,W)."""

    @abstractmethod
    def stages(self) -> list[list[nn.Parameter]]:
        """All parameters, from the picture inwards, in the portions in which learning can be switched on."""

    @abstractmethod
    def checkpoint(self, on: bool) -> None:
        """Recompute in the backward pass what would otherwise be stored for it."""

    def train(self, mode: bool = True) -> Self:
        """As any module; but what does not learn stays still: batch norms keep their statistics, dropout rests."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            frozen = parameters and module is not self and not any(p.requires_grad for p in parameters)
            if frozen or (self.still and isinstance(module, nn.modules.batchnorm._BatchNorm)):
                module.eval()
        return self


def build_encoder(config: EncoderConfig, pictures: PicturesConfig) -> Encoder:
    """The encoder of a config, with its weights, and with what is not to learn frozen."""
    encoder: Encoder
    kind, arguments = parse(config.name)
    ours = kind in ("small", "cnn", "dnn")
    if ours:
        from cutline.models.own import build_own

        if kind == "small" and arguments:
            raise ConfigError(
                f"'{config.name}' has arguments, and the encoder 'small' takes none", expected="small, or cnn:width=48"
            )
        encoder = SmallEncoder(pictures) if kind == "small" else build_own(config.name, kind, arguments, pictures)
        if config.weights == "hub":
            raise ConfigError(f"the hub has no weights of the encoder '{kind}'", fix='encoder.weights = "none"')
        if config.weights not in ("auto", "none"):
            load_weights(encoder, Path(config.weights))
    else:
        require("timm", "train", f"the encoder '{config.name}'")
        from cutline.models.pretrained import TimmEncoder

        encoder = TimmEncoder(config, pictures)
    return settle(encoder, config.train, learned=begins_learned(config))


def begins_learned(config: EncoderConfig) -> bool:
    """Whether the weights that a config names are worth something already: of our own, "auto" is none."""
    ours = parse(config.name)[0] in ("small", "cnn", "dnn")
    return config.weights != "none" and not (ours and config.weights == "auto")


def settle(encoder: Encoder, train: str, *, learned: bool) -> Encoder:
    """Freeze what is not to learn; `learned` says whether the weights are worth something already."""
    encoder.still = learned
    freeze(encoder, train if train != "auto" else "nothing" if learned else "all")
    return encoder.train()


def parse(name: str) -> tuple[str, dict[str, Any]]:
    """ "vgg16" or "mobilenetv2_100:pad_type=same,mean=0.5" as a network's name and its arguments."""
    kind, _, given = name.partition(":")
    arguments: dict[str, Any] = {}
    for part in re.split(r",(?![^(\[]*[)\]])", given) if given else ():  # commas, but for those in brackets
        key, equals, value = part.partition("=")
        if not (key.isidentifier() and equals):
            raise ConfigError(f"'{part}' in encoder '{name}' is no argument", expected="NAME:key=value,key=value")
        try:
            arguments[key] = ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    return kind, arguments


def freeze(encoder: Encoder, part: str) -> None:
    """Let only `part` learn: "nothing", "all", or from "stageN" on."""
    stages = encoder.stages()
    names = [f"stage{index}" for index in range(len(stages))]
    if part not in ("nothing", "all"):
        choose(part, ["nothing", "all", *names], f"part of the encoder '{encoder.name}'")
    first = {"nothing": len(stages), "all": 0}.get(part, names.index(part) if part in names else 0)
    for index, stage in enumerate(stages):
        for parameter in stage:
            parameter.requires_grad_(index >= first)


def takes(encoder: Encoder, side: int) -> bool:
    """Whether an encoder can see pictures of that side, too."""
    training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=next(encoder.parameters()).device))
    except (RuntimeError, AssertionError, ValueError):
        return False
    finally:
        encoder.train(training)
    return True


def see(encoder: Encoder, pictures: Tensor) -> Features:
    """What `encoder` gives, also for one picture alone, as the last batch of an epoch may have it.

    Behind pooling a batch norm has one value for each channel of a picture, and a single one has no spread. Batch norms
    then rest, until training is next switched on.
    """
    features: Features
    try:
        features = encoder(pictures)
    except ValueError:
        if len(pictures) > 1 or not encoder.training:
            raise
        for module in encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        features = encoder(pictures)
    return features


def weights_hash(encoder: Encoder) -> str:
    """One short name for what the encoder computes: its kind and every weight."""
    digest = require("xxhash", "train", "naming an encoder's weights").xxh3_128()
    digest.update(encoder.name.encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return str(digest.hexdigest())


class Normalise(nn.Module):
    """Pictures uint8 (B,3,H,W) to floats of the mean and spread that an encoder expects, channels last."""

    scale: Tensor
    shift: Tensor

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (transform.mean, transform.std))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        scaled: Tensor = pictures.to(self.scale.dtype) * self.scale + self.shift
        return scaled.contiguous(memory_format=torch.channels_last)


class SmallEncoder(Encoder):
    """Our own, for drawn scenes and small data: learns from scratch in minutes on a CPU.

    A cell of its 8 x 8 grid sees about four cells' width: enough for a whole shape, too little for the whole picture,
    so that attention has to go where the thing is. The kernels are as wide as keeps what a cell sees in the middle of
    the cell: with the usual 3 x 3 at each stride, a grid looks half a cell up and to the left of where it is drawn.
    """

    name = "small"

    def __init__(self, pictures: PicturesConfig) -> None:
        super().__init__()
        size = pictures.size or 96
        if size < 12:
            raise ConfigError(f"encoder 'small' cannot see {size} x {size} pixels", expected="12 x 12 or more")
        self.transform = Transform(
            size=size, fit=pictures.fit, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
        self.channels = self.pooled_channels = 192
        self.grid_side = size // 12  # strides of 3, 2 and 2
        self.checkpointing = False
        self.normalise = Normalise(self.transform)
        self.blocks = nn.Sequential(
            _block(3, 32, 5, stride=3),
            _block(32, 64, 4, stride=2),
            _block(64, 128, 4, stride=2),
            _block(128, 192, 3),
            _block(192, 192, 1),
        ).to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Features:
        x = self.normalise(pictures)
        for block in self.blocks:
            recompute = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        grid = x.flatten(2).mT
        return Features(grid, grid.mean(1))

    def stages(self) -> list[list[nn.Parameter]]:
        return [list(block.parameters()) for block in self.blocks]

    def checkpoint(self, on: bool) -> None:
        self.checkpointing = on


def _block(before: int, after: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, (size - stride) // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
