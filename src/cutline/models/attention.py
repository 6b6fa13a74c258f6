"""Looking at the picture: regions to keys and values, scores to weights, and how evenly a caption looks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Regions(nn.Module):
    """A picture's grid (B,R,C) as keys and values (B,R,H), made once and shared by all of its rows.

    Captions name places, so each region has a learned mark of where it is, whatever the encoder. Encoders differ a
    hundredfold in the size of what they give, so a region is first brought to unit scale.
    """

    def __init__(self, channels: int, hidden: int, regions: int) -> None:
        super().__init__()
        self.keys = nn.Linear(channels, hidden)
        self.values = nn.Linear(channels, hidden)
        self.key_places = nn.Parameter(torch.randn(regions, hidden) * 0.1)
        self.value_places = nn.Parameter(torch.randn(regions, hidden) * 0.1)

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        grid = normalise(grid)
        return self.keys(grid) + self.key_places, self.values(grid) + self.value_places


def normalise(features: Tensor) -> Tensor:
    """Zero mean and unit variance over channels."""
    return F.layer_norm(features, features.shape[-1:])


class Bahdanau(nn.Module):
    """Additive attention: how much a query (B,N,H) wants each key (B,R,H) is v . tanh(key + W query)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.energy = nn.Parameter(torch.randn(hidden) * hidden**-0.5)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Weights (B,N,R)."""
        energies = torch.tanh(keys.unsqueeze(1) + self.query(query).unsqueeze(2))
        return (energies @ self.energy).softmax(-1)


class Luong(nn.Module):
    """Multiplicative attention ("general"): a query (B,N,H) against keys (B,R,H) that carry the bilinear form."""

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Weights (B,N,R)."""
        return (query @ keys.mT * keys.shape[-1] ** -0.5).softmax(-1)


def uneven(attention: Tensor, tokens: Tensor) -> Tensor:
    """How unevenly captions look: attention (B,N,T,R), tokens (B,N,T) whose padding does not count.

    Zero where each region got the same share over a caption, however long it is (a doubly stochastic attention);
    one would be a caption that looked at two equal regions' worth too much and too little throughout.
    """
    there = (tokens != 0).to(attention.dtype)
    looks = torch.einsum("bntr,bnt->bnr", attention, there)
    share = looks * attention.shape[-1] / there.sum(-1, keepdim=True).clamp(min=1)
    return (share - 1).square().mean()
