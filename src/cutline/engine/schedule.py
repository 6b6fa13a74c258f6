"""The learning rate as a function of the step: nothing to save, nothing to get out of step on a resume."""

from __future__ import annotations

import math

from cutline.config import TrainingConfig


def rate_factor(config: TrainingConfig, step: int, steps_per_epoch: int, drops: int) -> float:
    """What the configured rate is multiplied by at `step`; `drops` counts the plateaus met so far."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "cosine":
        total = max(steps_per_epoch * config.epochs - config.warmup, 1)
        done = min(max(step - config.warmup, 0) / total, 1.0)
        return warm * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return warm * float(config.drop ** (step // (steps_per_epoch * config.step_epochs)))
    if config.schedule == "plateau":
        return warm * float(config.drop**drops)
    return warm
