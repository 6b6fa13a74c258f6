"""What a run would take, from a few real steps on the real data, before it begins."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import psutil
import torch

from cutline.config import Config
from cutline.console import duration
from cutline.engine import run, weights
from cutline.engine.loop import Trainer
from cutline.errors import CutlineError

WARM, TIMED = 1, 3


def dry_run(config: Config, *, quiet: bool = False) -> str:
    """Read everything, take a few steps, and say what the whole would take; nothing is left behind."""
    prepared = run.prepare(config, quiet=quiet, build_features=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = run.trainer(prepared, Path(folder))
        seconds, words = _step_seconds(trainer)
        checked = _validation_seconds(trainer)
    steps = trainer.steps_per_epoch * config.training.epochs
    validations = -(-config.training.epochs // config.training.validate_every)
    learned = sum(v.numel() * v.element_size() for v in weights.learned(prepared.model).values())
    frozen = sum(v.numel() * v.element_size() for v in prepared.model.encoder.state_dict().values())
    copies = 4 if config.training.ema else 3  # weights, two moments of Adam, and their average
    disk = learned * copies * (config.training.keep + 2) + frozen
    notes = []
    if prepared.features_bytes:
        disk += prepared.features_bytes
        notes.append(f"features   {prepared.features_bytes / 1e9:.2f} GB to be stored first, once")
    output = Path(config.output)
    there = next(path for path in [output.absolute(), *output.absolute().parents] if path.exists())
    free = shutil.disk_usage(there).free
    learn, judge = len(prepared.batches.captions.rows), len(prepared.task.samples)
    took = duration(steps * seconds + validations * checked)
    lines = [
        f"data       {learn} pictures to learn from, {judge} to validate on",
        f"model      {_shapes(prepared)}",
        f"steps      {steps}: {config.training.epochs} epochs of {trainer.steps_per_epoch}, {words} words in a step",
        *notes,
        f"memory     {_memory(prepared.device.torch)}",
        f"disk       {disk / 1e9:.2f} GB at most in {output}, {free / 1e9:.1f} GB free",
        f"time       {took}: {seconds * 1e3:.0f} ms a step, {checked:.0f} s a validation",
    ]
    if disk > free:
        raise CutlineError(
            "\n".join(lines) + f"\nthe run would need {disk / 1e9:.2f} GB of disk where {free / 1e9:.1f} GB are free",
            fix="--output on a larger disk, or training.keep = 1 in the config file",
        )
    return "\n".join(lines)


def _step_seconds(trainer: Trainer) -> tuple[float, int]:
    """Seconds of a step, reading included, and its words."""
    groups, words, started = trainer.groups(), 0, 0.0
    done = 0
    for done, group in enumerate(groups, 1):
        trainer.step(group)
        words = sum(int((batch.tokens[..., 1:] != 0).sum()) for batch in group)
        if done == WARM:
            started = time.perf_counter()
        if done == WARM + TIMED:
            break
    if done <= WARM:  # one step is the whole epoch: take it again, to have a warm one
        started = time.perf_counter()
        trainer.step(next(trainer.groups()))
        done = WARM + 1
    return (time.perf_counter() - started) / (done - WARM), words


def _validation_seconds(trainer: Trainer) -> float:
    """Seconds to caption all validation pictures, from one batch of them."""
    task = trainer.task
    batch = min(trainer.config.batch, len(task.samples))
    started = time.perf_counter()
    languages = [lang for lang in task.words.languages if any(s.captions.get(lang) for s in task.samples)]
    for _ in task.decode(range(batch), languages[0], task.config.search, batch, trainer.device):
        pass
    return (time.perf_counter() - started) / batch * len(task.samples) * len(languages)


def _shapes(prepared: run.Prepared) -> str:
    encoder = prepared.model.encoder
    side = encoder.grid_side
    total = sum(p.numel() for p in prepared.model.parameters())
    return (
        f"{encoder.transform.size} x {encoder.transform.size} pixels -> {side} x {side} regions of {encoder.channels}"
        f" -> {len(prepared.words.pieces)} words, {total / 1e6:.1f} M parameters"
    )


def _memory(device: torch.device) -> str:
    if device.type == "cuda":
        peak, whole = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return f"{peak / 1e9:.1f} GB of the GPU's {whole / 1e9:.1f} GB at the peak of a step"
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{peak / 1e9:.1f} GB at the peak so far, {psutil.virtual_memory().available / 1e9:.1f} GB available"
