"""Beam search of a batch of pictures against one picture at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.common import Row, paired
from cutline.config import DecoderConfig, PicturesConfig, SearchConfig
from cutline.models.captioner import Captioner, TorchStep
from cutline.models.decoder import build_decoder
from cutline.models.encoders import Features, SmallEncoder
from cutline.search import Hypothesis, search

BATCH, REGIONS, CHANNELS, HIDDEN, WORDS = 64, 49, 2048, 512, 9_000
SETTINGS = SearchConfig(method="beam", beam=3, max_length=20)


def rows() -> Iterator[Row]:
    captioner = captioner_of()
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(BATCH, REGIONS, CHANNELS, generator=generator)
    batch = Features(grid, grid.mean(1))
    exact, rough = TorchStep(captioner), TorchStep(captioner, precision="bf16")

    def together(step: TorchStep) -> list[list[Hypothesis]]:
        return search(step, batch, 3, 1, (0, 2, 3), SETTINGS)

    def one_by_one() -> list[list[Hypothesis]]:
        each = (Features(grid[i : i + 1], batch.pooled[i : i + 1]) for i in range(BATCH))
        return [search(exact, features, 3, 1, (0, 2, 3), SETTINGS)[0] for features in each]

    words = [[found[0].tokens for found in captions] for captions in (together(exact), one_by_one())]
    assert words[0] == words[1], "a batch's captions are not those of its pictures"
    for name, step, target in (("fp32, equal captions", exact, 5.5), ("bf16", rough, 10.0)):
        ours, theirs = paired(lambda step=step: together(step), one_by_one)
        figures = f"{BATCH / ours:.0f} pictures/s, {BATCH / theirs:.0f} pictures/s"
        yield Row(f"beam 3, batch 64, {name}", "one picture at a time, fp32", theirs / ours, target, figures)


def captioner_of() -> Captioner:
    """Weights at random, but sure of its words: near ties would be decided by rounding."""
    torch.manual_seed(0)
    config = DecoderConfig(hidden=HIDDEN, dropout=0.0)
    sizes = {"words": WORDS, "channels": CHANNELS, "pooled_channels": CHANNELS, "regions": REGIONS}
    decoder = build_decoder(config, **sizes)
    with torch.no_grad():
        decoder.vocabulary.weight *= 4
    return Captioner(SmallEncoder(PicturesConfig()), decoder)
