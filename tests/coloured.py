"""Pictures of three colours as classes, and what learns them in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from cutline import config as configuration
from cutline.config import Config
from cutline.engine import run
from cutline.engine.trainer import Trainer

SETTINGS = {
    "task": "classes",
    "threads": 1,
    "data": {"val_share": 0.2, "test_share": 0.0},
    "pictures": {"size": 24},
    "training": {"epochs": 2, "batch": 8, "rate": 3e-3, "warmup": 0, "schedule": "constant"},
}
COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}
SMALL_CNN = {"name": "cnn:width=8,stages=2"}
"""Sees pictures of any size."""


def draw(place: Path) -> Path:
    """Noisy pictures in a folder for each of three colours: 24 blue, 12 green, 6 red."""
    random = np.random.default_rng(0)
    for count, (name, colour) in zip((24, 12, 6), COLOURS.items(), strict=True):
        (place / name).mkdir()
        for number in range(count):
            pixels = np.clip(random.normal(np.array(colour) / 2, 60, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / name / f"{number}.png")
    return place


def settings(coloured: Path, output: Path) -> Config:
    return configuration.from_dict(
        {**SETTINGS, "output": str(output)}, Config(data=replace(Config().data, path=str(coloured)))
    )


def changed(config: Config, **tables: dict[str, object]) -> Config:
    return configuration.from_dict(tables, config)


def trainer_of(config: Config) -> Trainer:
    prepared = run.prepare(config, quiet=True)
    return run.trainer(prepared, run.create(prepared))
