"""Encoders that another run has taught: `encoder.weights` may be that run's folder. Names only; no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cutline.config import Config, EncoderConfig
from cutline.engine import folder
from cutline.engine.checkpoint import Checkpoints
from cutline.errors import ConfigError


def by(encoder: EncoderConfig) -> Path | None:
    """The run folder that the weights are to come from; nothing where they come from elsewhere."""
    path = Path(encoder.weights)
    if encoder.weights in ("auto", "hub", "none") or not path.is_dir():
        return None
    if not (path / "config.toml").is_file():
        raise ConfigError(
            f"the weights are to come from {path}, which is a folder and no run",
            expected='a folder that cutline train made, a file, "hub" or "none"',
        )
    return path


def without(config: Config) -> Config:
    """The same with no weights where they would come from a run."""
    return replace(config, encoder=replace(config.encoder, weights="none")) if by(config.encoder) else config


def named(config: Config, base: Config, *, keep: bool) -> Config:
    """With the name of the encoder that the weights are of, and the size of the pictures that it has learned from.

    What is said otherwise stays: a size, and a name that is to be kept or is no longer the one of the `base`.
    """
    run = by(config.encoder)
    if run is None:
        return config
    teacher = folder.settings(run)
    best = Checkpoints(run, folder.identity(run)).best().stage
    name = config.encoder.name if keep or config.encoder.name != base.encoder.name else teacher.encoder.name
    return replace(
        config,
        encoder=replace(config.encoder, name=name),
        pictures=replace(config.pictures, size=config.pictures.size or teacher.stage(best).pictures.size),
    )
