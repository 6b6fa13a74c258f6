"""The feature store against an array in memory, encoder backends against eager PyTorch, and from files to a store.

The encoders run in one thread each: waiting for a core that others use would flatter whoever waits least.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.common import Row, paired
from cutline.config import EncoderConfig, PicturesConfig
from cutline.data.corpus import Sample
from cutline.data.images import Transform
from cutline.features import backends, build
from cutline.models.encoders import build_encoder

ENCODERS = {"resnet50": "ResNet50", "densenet121": "DenseNet121", "inception_v3": "InceptionV3", "vgg16": "VGG16"}
BATCH = 8
STORED = 1500
PHOTOGRAPHS = 7000


def rows() -> Iterable[Row]:
    torch.manual_seed(0)
    yield _gather()
    yield from _photographs()
    torch.set_num_threads(1)
    for name, label in ENCODERS.items():
        yield from _encode(name, label)


class Wide(nn.Module):
    """As large as ResNet50's features and nearly free to compute: only the store is measured."""

    name = "wide"
    transform = Transform(size=7)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        regions = pictures.float().mean(1).flatten(1)
        grid = regions[:, :, None] * torch.linspace(-1, 1, 2048)
        return grid, grid.mean(1)


def _gather() -> Row:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        samples = []
        for number in range(STORED):
            path = Path(folder, f"{number}.png")
            Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8)).save(path)
            samples.append(Sample(path.name, path))
        store = build(samples, Wide(), Path(folder, "store"), backend="torch", quiet=True)
        grid, pooled = np.array(store.grid), np.array(store.pooled)
        batches = [random.integers(0, STORED, 64) for _ in range(20)]
        ours, theirs = paired(
            lambda: [store[batch] for batch in batches],
            lambda: [(grid[batch], pooled[batch]) for batch in batches],
            rounds=25,
        )
    detail = f"{1e3 * ours / 20:.2f} ms against {1e3 * theirs / 20:.2f} ms a batch of 64 x 49 x 2048"
    return Row("feature store, random batches, warm", "a NumPy array in memory", theirs / ours, 0.9, detail)


def _encode(name: str, label: str) -> Iterator[Row]:
    encoder = build_encoder(EncoderConfig(name=name, weights="none"), PicturesConfig()).eval()
    pixels = _pictures(encoder.transform)
    reference = backends.eager(encoder)(pixels)
    eager = _as_timm_makes_it(encoder, pixels)

    available = backends._available()
    if "bf16" in available.get("openvino", ()):
        fast = backends.make(encoder, "openvino", "bf16", 1)
        yield _compare(label, fast, pixels, reference, eager, 7.0)
    exact = [backends.make(encoder, one, "fp32", 1) for one in ("openvino", "onnxruntime") if one in available]
    yield max((_compare(label, one, pixels, reference, eager, 1.4) for one in exact), key=lambda row: row.ratio)


def _as_timm_makes_it(encoder: nn.Module, pixels: backends.Pixels) -> Callable[[], object]:
    """The baseline: timm's model as it comes, called as its documentation shows (ours works channels last)."""
    model = copy.deepcopy(encoder.model).to(memory_format=torch.contiguous_format)
    pictures = encoder.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous()

    def eager() -> object:
        with torch.inference_mode():
            grid = model.forward_features(pictures)
            return grid, model.forward_head(grid, pre_logits=True)

    return eager


def _compare(
    label: str,
    backend: backends.Backend,
    pixels: backends.Pixels,
    reference: backends.Pair,
    eager: Callable[[], object],
    target: float,
) -> Row:
    ours, theirs = paired(lambda: backend.run(pixels), eager, rounds=5)
    error = backends.error(backend.run(pixels), reference)
    taken = "" if error < backends.TOLERANCE[backend.precision] else ", so never chosen by itself"
    detail = f"{BATCH / ours:.1f} against {BATCH / theirs:.1f} pictures/s, error {100 * error:.2g} %{taken}"
    return Row(f"{label}, batch {BATCH}, {backend}", "eager fp32", theirs / ours, target, detail)


def _pictures(transform: Transform) -> backends.Pixels:
    """Coarse noise made smooth: neighbouring pixels are alike, as in a photograph."""
    random = np.random.default_rng(0)
    coarse = [Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(BATCH)]
    return np.stack([transform(picture) for picture in coarse])


def _photographs() -> Iterator[Row]:
    """From JPEG files to a finished store, with the real encoder and photographs where they are there."""
    data = Path(os.environ.get("CUTLINE_DATA", "../shared/data"))
    weights = data / "weights" / "mobilenetv2_100.safetensors"
    files = sorted((data / "flickr8k").rglob("*.jpg"))[:PHOTOGRAPHS]
    if not weights.exists() or not files:
        return
    encoder = build_encoder(EncoderConfig(name="mobilenetv2_100", weights=str(weights)), PicturesConfig()).eval()
    samples = [Sample(file.name, file) for file in files]

    def loop() -> None:
        with torch.inference_mode():
            for first in range(0, len(files), 32):
                pixels = np.stack([encoder.transform.from_file(file) for file in files[first : first + 32]])
                encoder(torch.from_numpy(pixels).permute(0, 3, 1, 2))

    with tempfile.TemporaryDirectory() as folder:
        names = iter(range(100))
        made = []

        def ours() -> None:
            out = Path(folder, str(next(names)))
            made.append(build(samples, encoder, out, quiet=True))

        seconds, plain = paired(ours, loop, rounds=1)
        index = made[-1].index
    how = f"{index['backend']} {index['precision']}, error {100 * index['error']:.2g} %"
    detail = f"{len(files) / seconds:.0f} against {len(files) / plain:.0f} pictures/s, export included; {how}"
    work = f"MobileNetV2, {len(files)} JPEG files to a finished store"
    yield Row(work, "decode and eager fp32 in turns", plain / seconds, 1.4, detail)
