"""Decoders: a picture's features to the words of its captions. What all of them promise, and how one is made.

Axes: B pictures, N rows of each (captions in training, beams in search), T tokens, R regions, C channels, P pooled
channels, H hidden, V words. What belongs to the picture is computed once and shared by its rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutline.config import DecoderConfig
from cutline.models.vocabulary import PAD, Vocabulary

Tensors = tuple[Tensor, ...]
GROUP = 40
"""About how many captions go through a decoder together on a CPU, or more: fewer would not use it well."""


class Decoder(nn.Module, ABC):
    """What training, search and export know of a decoder.

    `memory` belongs to the picture: search never copies or reorders it. Every tensor of a `state` has rows on axis 1.
    A decoder without attention returns attention to no regions. In training mode it drops out; search puts
    it into evaluation mode.
    """

    vocabulary: Vocabulary
    checkpointing: bool = False
    """Recompute in the backward pass what would otherwise be stored for it."""

    @abstractmethod
    def start(self, grid: Tensor, pooled: Tensor) -> tuple[Tensors, Tensors]:
        """Grid (B,R,C) and pooled (B,P) to the memory of a picture and a state with one row each (B,1,…)."""

    @abstractmethod
    def step(self, memory: Tensors, state: Tensors, tokens: Tensor) -> tuple[Tensor, Tensor, Tensors]:
        """One token a row (B,N) to log-probabilities (B,N,V) in fp32, attention (B,N,R), and the next state."""

    def begin(self, grid: Tensor, pooled: Tensor) -> tuple[Tensors, Tensors]:
        """The memory of a picture, and what its `sentences` begin from (B,1,…): a step's state, or something else."""
        return self.start(grid, pooled)

    @abstractmethod
    def sentences(self, memory: Tensors, first: Tensors, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Whole sentences (B,N,T) to outputs (B,N,T,H), which `vocabulary` scores words by, and attention."""

    def outputs(self, grid: Tensor, pooled: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`sentences` of features; padding has outputs that mean nothing.

        More than half of a batch of captions is padding, and on a CPU that is half the time. So captions of about one
        length go together, each group only as far as its longest.
        """
        memory, first = self.begin(grid, pooled)
        captions = tokens.flatten(0, 1)
        if tokens.device.type != "cpu" or len(captions) < 2 * GROUP:
            return self.sentences(memory, first, tokens)
        lengths = _lengths(captions)
        order = lengths.argsort(descending=True)
        found = []
        for rows in order.chunk(len(order) // GROUP):
            pictures, longest = rows // tokens.shape[1], int(lengths[rows[0]])
            theirs, begun = (tuple(part.index_select(0, pictures) for part in whole) for whole in (memory, first))
            parts = self.sentences(theirs, begun, captions[rows, None, :longest])
            found.append([F.pad(part, (0, 0, 0, tokens.shape[2] - longest)) for part in parts])
        outputs, attention = (torch.cat(parts)[order.argsort()].view(*tokens.shape, -1) for parts in zip(*found))
        return outputs, attention

    def forward(self, grid: Tensor, pooled: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Whole sentences (B,N,T), from the begin token on, to scores of the next words (B,N,T,V), and attention."""
        outputs, attention = self.outputs(grid, pooled, tokens)
        return self.vocabulary.logits(outputs), attention

    def load_vectors(self, matrix: np.ndarray[Any, Any], known: np.ndarray[Any, Any]) -> None:
        """Begin from given word vectors (V,E), where `known` (V,)."""
        self.vocabulary.load_vectors(matrix, known)


def build_decoder(config: DecoderConfig, *, words: int, channels: int, pooled_channels: int, regions: int) -> Decoder:
    """The decoder of a config, for a vocabulary of so many words and features of these sizes."""
    from cutline.models.recurrent import RecurrentDecoder
    from cutline.models.transformer import TransformerDecoder

    kind = TransformerDecoder if config.kind == "transformer" else RecurrentDecoder
    return kind(config, words=words, channels=channels, pooled_channels=pooled_channels, regions=regions)


def _lengths(captions: Tensor) -> Tensor:
    """Of captions (M,T), up to the last token that is not padding, and 1 at least."""
    places = torch.arange(1, captions.shape[-1] + 1)
    return ((captions != PAD) * places).amax(-1).clamp(min=1)
