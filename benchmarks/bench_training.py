"""A training step of the decoders against the per-word loop of tutorials; what keeping memory gives to one of encoders;
and what checkpointing saves and costs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import Row, paired
from benchmarks.plain import PlainRecurrent
from cutline.config import DecoderConfig, EncoderConfig, PicturesConfig
from cutline.engine.machine import peak_memory
from cutline.engine.runtime import keep_memory
from cutline.models.decoder import Decoder, build_decoder
from cutline.models.dropout import Dropout
from cutline.models.encoders import build_encoder
from cutline.models.vocabulary import PAD

BATCH, REGIONS, CHANNELS, HIDDEN, WORDS, TOKENS = 64, 49, 2048, 512, 9_000, 20
TARGETS = {("bahdanau", "fp32"): 2.5, ("bahdanau", "bf16"): 3.5, ("luong", "fp32"): 6.0, ("luong", "bf16"): 13.0}


def rows() -> Iterator[Row]:
    batch = features_and_captions()
    for attention in ("bahdanau", "luong"):
        decoder = decoder_of("lstm", attention)
        check_gradients(decoder, batch)
        for precision in ("fp32", "bf16"):
            ours, theirs = paired(step(decoder, batch, precision), plain_step(decoder, batch))
            yield Row(
                f"training step, {attention.title()}, {precision}",
                "a loop over words, fp32",
                theirs / ours,
                TARGETS[attention, precision],
                f"{ours * 1e3:.0f} ms, {theirs * 1e3:.0f} ms",
            )
    yield from padding_rows()
    yield dropout_row()
    yield from keeping_rows()
    print()
    print_memory()
    print()


def decoder_of(kind: str, attention: str = "luong", layers: int = 1) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(kind=kind, attention=attention, hidden=HIDDEN, layers=layers, dropout=0.0)
    sizes = {"words": WORDS, "channels": CHANNELS, "pooled_channels": CHANNELS, "regions": REGIONS}
    return build_decoder(config, **sizes).train()


def features_and_captions(rows: int = 1, pictures: int = BATCH, tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(pictures, REGIONS, CHANNELS, generator=generator)
    return grid, grid.mean(1), torch.randint(3, WORDS, (pictures, rows, tokens + 1), generator=generator)


def step(decoder: Decoder, batch: tuple[Tensor, Tensor, Tensor], precision: str) -> Callable[[], None]:
    """Forward, loss and backward, as the training loop does it."""
    grid, pooled, captions = batch

    def run() -> None:
        decoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs, _ = decoder.outputs(grid, pooled, captions[..., :-1])
            loss = decoder.vocabulary.cross_entropy(outputs, captions[..., 1:]) / captions[..., 1:].numel()
        loss.backward()

    return run


def plain_step(decoder: Decoder, batch: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    """The same, one word after the other."""
    plain = PlainRecurrent(decoder)
    grid, pooled, captions = batch

    def run() -> None:
        decoder.zero_grad()
        logits, _ = plain(grid, pooled, captions[:, 0, :-1])
        F.cross_entropy(logits.flatten(0, 1), captions[:, 0, 1:].flatten()).backward()

    return run


def check_gradients(decoder: Decoder, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """Faster is only better when it is the same: every gradient within 1e-4 of the plain one."""
    step(decoder, batch, "fp32")()
    ours = {name: parameter.grad.clone() for name, parameter in decoder.named_parameters()}
    plain_step(decoder, batch)()
    for name, parameter in decoder.named_parameters():
        error = float((ours[name] - parameter.grad).norm() / parameter.grad.norm())
        assert error < 1e-4, f"the gradient of {name} is off by {error:.1e}"


def padding_rows() -> Iterator[Row]:
    """Steps of five captions a picture, about as long as those of Flickr8k, in groups of about one length."""
    grid, pooled, captions = features_and_captions(rows=5, pictures=32, tokens=40)
    lengths = torch.randn(captions.shape[:2], generator=torch.Generator().manual_seed(0)).mul(0.33).add(2.4).exp() + 2
    captions = captions[..., : int(lengths.max())].clone()
    captions[torch.arange(captions.shape[-1]) >= lengths[..., None]] = PAD
    for kind, attention in (("lstm", "luong"), ("lstm", "bahdanau"), ("transformer", "luong")):
        run = step(decoder_of(kind, attention, 2 if kind == "transformer" else 1), (grid, pooled, captions), "bf16")

        def together(run: Callable[[], None] = run) -> None:
            with patch("cutline.models.decoder.GROUP", captions.numel()):
                run()

        ours, theirs = paired(run, together)
        name = attention.title() if kind == "lstm" else "Transformer, 2 layers"
        yield Row(
            f"training step, captions of {int(lengths.min())} to {int(lengths.max())} words, {name}, bf16",
            "all padded to the longest",
            theirs / ours,
            1.05,
            f"{ours * 1e3:.0f} ms, {theirs * 1e3:.0f} ms",
        )


def dropout_row() -> Row:
    inputs = torch.randn(160, 24, HIDDEN, requires_grad=True)

    def drop(module: nn.Module) -> None:
        module(inputs).sum().backward()

    ours, theirs = paired(partial(drop, Dropout(0.5)), partial(drop, nn.Dropout(0.5)))
    detail = f"{ours * 1e3:.1f} ms, {theirs * 1e3:.1f} ms"
    return Row(
        f"dropout, {inputs.numel() / 1e6:.1f} M numbers, forward and back", "nn.Dropout", theirs / ours, 1.5, detail
    )


def keeping_rows() -> Iterator[Row]:
    """Steps of encoders that learn, which fill and free large pieces of memory; each process does it one way."""
    for name, size, batch in (("cnn:width=48", 64, 128), ("mobilenetv2_100", 224, 32)):
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(6):
            found = apart(f"encoder_step({name!r}, {size}, {batch}, {turn % 2 == 0})")
            seconds[turn % 2 == 0].append(found["seconds"])
        kept, handed_back = (statistics.median(seconds[keep]) for keep in (True, False))
        yield Row(
            f"training step, {name}, {batch} pictures of {size} x {size}, bf16",
            "memory handed back to the system",
            handed_back / kept,
            1.0,
            f"{kept * 1e3:.0f} ms, {handed_back * 1e3:.0f} ms",
        )


def encoder_step(name: str, size: int, batch: int, keep: bool) -> None:
    if keep:
        keep_memory()
    encoder = build_encoder(EncoderConfig(name=name, weights="none"), PicturesConfig(size=size)).train()
    pictures = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    optimizer = torch.optim.AdamW(encoder.parameters(), fused=True)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = encoder(pictures).pooled.float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.median(times[2:])}))


def apart(call: str) -> dict[str, float]:
    """What a function of this file prints, in a process of its own."""
    code = f"from benchmarks import bench_training; bench_training.{call}"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def print_memory() -> None:
    """Peak memory and speed with and without checkpointing and mixed precision, each in a process of its own."""
    print("| decoder | precision | checkpointing | peak memory | time of a step |\n|---|---|---|---|---|")
    for name in ("Bahdanau", "Transformer, 4 layers"):
        for precision in ("fp32", "bf16"):
            for checkpointing in (False, True):
                found = apart(f"measure({name!r}, {precision!r}, {checkpointing})")
                held = f"{found['bytes'] / 1e6:.0f} MB" if found["bytes"] else "not told here"
                figures = f"{held} | {found['seconds'] * 1e3:.0f} ms"
                print(f"| {name} | {precision} | {'on' if checkpointing else 'off'} | {figures} |", flush=True)


def measure(name: str, precision: str, checkpointing: bool) -> None:
    """Of four captions a picture, so that there is something to store; the whole process counts, PyTorch included."""
    decoder = decoder_of("transformer", layers=4) if name.startswith("T") else decoder_of("lstm", "bahdanau")
    decoder.checkpointing = checkpointing
    run = step(decoder, features_and_captions(rows=4), precision)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    print(json.dumps({"bytes": peak_memory(), "seconds": min(times)}))
