"""The learning rate as a function of the step: nothing to save, nothing to get out of step on a resume.

Where minutes are limited it is one of the seconds spent as well, which a checkpoint knows.
"""

from __future__ import annotations

import math

from cutline.config import TrainingConfig

GROWN = 0.75
"""Share of a stage after which pictures that grow have their full size."""
GRAIN = 8
"""Pixels by which they grow at a time."""


def rate_factor(config: TrainingConfig, step: int, steps_per_epoch: int, drops: int, seconds: float = 0.0) -> float:
    """What the configured rate is multiplied by at `step`; `drops` counts the plateaus met so far."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "cosine":
        done = share(config, step - config.warmup, steps_per_epoch * config.epochs - config.warmup, seconds)
        return warm * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return warm * float(config.drop ** (step // (steps_per_epoch * config.step_epochs)))
    if config.schedule == "plateau":
        return warm * float(config.drop**drops)
    return warm


def doubt(config: TrainingConfig, steps: int) -> str:
    """What is odd about the rate of a stage of so many steps, if anything."""
    if steps >= config.warmup:
        return ""
    most = f"{100 * steps / config.warmup:.0f} % of training.rate"
    return f"training.warmup is {config.warmup} steps, the stage {steps}: the rate gets no further than {most}"


def share(config: TrainingConfig, step: int, steps: int, seconds: float) -> float:
    """How much of the learning is done, 0 to 1: of its steps, or of its minutes where those are over sooner."""
    by_time = seconds / (60 * config.minutes) if config.minutes else 0.0
    return min(max(step / max(steps, 1), by_time, 0.0), 1.0)


def grown(side: int, first: float, share: float) -> int:
    """Pixels of a side of `side` when this share of a stage is done: `first` times as many in the beginning."""
    if first == 1 or share >= GROWN:
        return side
    part = first + (1 - first) * share / GROWN
    return min(side, max(1, int(side * part) // GRAIN) * GRAIN)
