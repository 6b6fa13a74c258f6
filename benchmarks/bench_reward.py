"""A self-critical step: what it costs to judge the captions that it draws, while the decoder goes over them again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench_scores import captions
from benchmarks.common import Row, paired
from cutline.config import EncoderConfig, PicturesConfig, WordsConfig
from cutline.data.corpus import Sample
from cutline.data.words import Words
from cutline.engine.batches import Batch, pad
from cutline.engine.sources import PictureSource
from cutline.engine.task import CaptioningTask, Critic
from cutline.models.captioner import Captioner, build_captioner
from cutline.presets import PRESETS

PICTURES, ROWS, REGIONS, CHANNELS = 32, 5, 81, 1280


class Timed(Critic):
    """Judges as ever, and notes how long it takes."""

    seconds = 0.0

    def __call__(self, batch: Batch, tokens: Tensor) -> Tensor:
        started = time.perf_counter()
        better = super().__call__(batch, tokens)
        self.seconds = time.perf_counter() - started
        return better


class Mute(Critic):
    """Finds all captions alike good, in no time."""

    def __call__(self, batch: Batch, tokens: Tensor) -> Tensor:
        return torch.ones(tokens.shape[:2])


def rows() -> Iterator[Row]:
    texts = captions()[1]
    samples = [Sample(str(n), Path(f"{n}.jpg"), {"en": tuple(group)}, None, "train") for n, group in enumerate(texts)]
    words = Words.learn({"en": [text for group in texts for text in group]}, WordsConfig(max_size=9_000))
    base = PRESETS["flickr8k"]()
    training = replace(base.training, precision="bf16", objective="self_critical", reward_bleu=1.0, ground=0.05)
    encoder = EncoderConfig(name="mobilenetv2_100", weights="none", train="nothing")
    config = replace(base, training=training, encoder=encoder, pictures=PicturesConfig(size=288), stages=())
    torch.manual_seed(0)
    model = build_captioner(config, len(words.pieces))
    features = torch.rand(PICTURES, REGIONS, CHANNELS), torch.rand(PICTURES, CHANNELS)
    given = pad(
        [[[words.begin("en"), *words.encode(text, "en"), words.end] for text in texts[n]] for n in range(PICTURES)]
    )
    batch = Batch(features, given, torch.arange(PICTURES), torch.zeros(PICTURES, dtype=torch.bool))

    source = PictureSource(samples[:1], model.encoder.transform, config.pictures)  # no picture is read
    judge = Timed(samples, ["en"], words, training.reward_bleu)
    mute = Mute(samples, ["en"], words, training.reward_bleu)
    judging: list[float] = []

    def judged() -> None:
        step(CaptioningTask(config, model, words, [], source, judge), model, batch)
        judging.append(judge.seconds)

    def blind() -> None:
        step(CaptioningTask(config, model, words, [], source, mute), model, batch)

    ours, theirs = paired(judged, blind, rounds=7)
    yield Row(
        f"self-critical step, {PICTURES} pictures, {ROWS} captions of {config.search.max_length} words each, bf16",
        "the same without judging them",
        theirs / ours,
        0.95,
        f"{ours * 1e3:.0f} ms, {theirs * 1e3:.0f} ms; judging takes {np.median(judging) * 1e3:.0f} ms beside it",
    )


def step(task: CaptioningTask, model: Captioner, batch: Batch) -> None:
    torch.manual_seed(0)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = task.loss(batch, 1.0, batch.amount, 0.0)
    loss.backward()
