"""The captioner in the box: a photograph, a folder of them, and what larger and slower ways take for the same words.

All write captions of exactly WORDS words, so that none gains by saying less.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import Row, paired
from cutline.starter import starter

WORDS = 12
FOLDER = 128
"""Photographs in the folder."""


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        photos = _photographs(Path(temporary))
        yield from _one(photos[0])
        yield _folder(photos)
        yield _start(photos[0])


def _one(photo: Path) -> Iterator[Row]:
    """A photograph, once all is loaded."""
    ours, eager = _starter("greedy"), _eager()
    picture = Image.open(photo).convert("RGB")
    mine, theirs = paired(lambda: ours.caption(picture), lambda: eager([photo]), rounds=9)
    told = f"{1000 * mine:.0f} ms (at most 150 ms wanted) against {1000 * theirs:.0f} ms"
    yield Row("the starter, a photograph, greedy", "the same model in eager PyTorch", theirs / mine, 1.0, told)
    large = _blip()
    mine, theirs = paired(lambda: ours.caption(picture), lambda: large(picture), rounds=3)
    told = f"{1000 * mine:.0f} ms against {1000 * theirs:.0f} ms"
    yield Row("the starter, a photograph, greedy", "BLIP-base's shape in transformers", theirs / mine, 30.0, told)


def _folder(photos: list[Path]) -> Row:
    """A folder of photographs, from JPEG files to captions."""
    ours, eager = _starter("greedy"), _eager()

    def in_torch() -> None:
        for first in range(0, len(photos), 32):
            eager(photos[first : first + 32])

    mine, theirs = paired(lambda: list(ours.caption_all(photos)), in_torch, rounds=3)
    told = f"{FOLDER / mine:.0f} photographs/s (at least 40 wanted) against {FOLDER / theirs:.0f}"
    return Row("the starter, a folder, greedy", "the same model in eager PyTorch", theirs / mine, 1.0, told)


def _start(photo: Path) -> Row:
    """From the start of a process to the caption, as it is searched for by default."""

    def run(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    ours = run("-m", "cutline", "caption", str(photo), "--model", "starter")
    mine, theirs = paired(ours, run("-c", "import torch, timm"), rounds=5)
    told = f"{mine:.2f} s (at most 1.5 s wanted) against {theirs:.2f} s"
    return Row(
        "cutline caption photo.jpg, from process start", "importing torch and timm alone", theirs / mine, 4.0, told
    )


def _starter(method: str) -> Any:
    from cutline.predict import load

    captioner = load(starter())
    captioner.settings = replace(captioner.settings, method=method, min_length=WORDS, max_length=WORDS)
    return captioner


def _eager() -> Callable[[list[Path]], object]:
    """A captioner of the starter's shape in PyTorch: how long it takes does not depend on the weights."""
    import torch

    from cutline import config
    from cutline.models.captioner import TorchStep, build_captioner
    from cutline.search import search

    ours = _starter("greedy")
    settings = config.Config(
        encoder=config.EncoderConfig(name="mobilenetv2_100", weights="none"),
        pictures=config.PicturesConfig(size=ours.transform.size),
    )
    torch.manual_seed(0)
    step = TorchStep(build_captioner(settings, len(ours.words.pieces)))
    words = ours.words

    def caption(photos: list[Path]) -> object:
        pixels = np.stack([ours.transform.from_file(photo) for photo in photos])
        return search(step, pixels, words.begin("en"), words.end, words.forbidden, ours.settings)

    return caption


def _blip() -> Callable[[Image.Image], object]:
    """A captioner of BLIP-base's shape with random weights in transformers: 384 pixels, ViT-B and BERT-base."""
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration

    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig(vision_config={"image_size": 384})).eval()

    @torch.inference_mode()
    def caption(picture: Image.Image) -> object:
        pixels = torch.from_numpy(np.asarray(picture.resize((384, 384)), np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        return model.generate(pixel_values=pixels, min_new_tokens=WORDS, max_new_tokens=WORDS, num_beams=1)

    return caption


def _photographs(folder: Path) -> list[Path]:
    """JPEG files of 640 x 480 with as much in them as photographs have."""
    draw = np.random.default_rng(0)
    paths = []
    for number in range(FOLDER):
        coarse = draw.integers(0, 256, (30, 40, 3), np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    return paths
