"""The two ends of a decoder: words to vectors, and outputs to words."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAD = 0


class Vocabulary(nn.Module):
    """Word vectors at the way in, scores of all words at the way out; one table for both when tied."""

    def __init__(self, words: int, hidden: int, embed: int, *, tie: bool) -> None:
        super().__init__()
        self.scale = embed**0.5
        self.table = nn.Embedding(words, embed, padding_idx=PAD)
        self.narrow = nn.Linear(hidden, embed, bias=False) if tie and embed != hidden else nn.Identity()
        self.weight = self.table.weight if tie else nn.Parameter(torch.empty(words, hidden))
        self.bias = nn.Parameter(torch.zeros(words))
        # A tied row serves as an input (wanted near 1, hence the scale) and as a classifier's weights (near 1/sqrt).
        for weight in (self.table.weight, self.weight):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        with torch.no_grad():
            self.table.weight[PAD] = 0

    def embed(self, tokens: Tensor) -> Tensor:
        return self.table(tokens) * self.scale

    def logits(self, outputs: Tensor) -> Tensor:
        """Outputs (…, H) to scores (…, V)."""
        return F.linear(self.narrow(outputs), self.weight, self.bias)

    def load_vectors(self, matrix: np.ndarray[Any, Any], known: np.ndarray[Any, Any]) -> None:
        """Begin from given word vectors (V, E), where `known` (V,); brought to the table's own scale."""
        rows = torch.from_numpy(np.flatnonzero(known))
        if len(rows) == 0:
            return
        given = torch.as_tensor(matrix, dtype=self.table.weight.dtype)[rows]
        with torch.no_grad():
            given = (given - given.mean(0)) / (given.std() * self.scale)
            self.table.weight[rows] = given.to(self.table.weight.device)


def word_loss(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy over the words that are there: logits (…, V), targets (…) with padding left out."""
    return F.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), ignore_index=PAD, label_smoothing=smoothing
    )
