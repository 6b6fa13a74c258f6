"""Looking at the picture: its regions, how much a query wants each of them, and how evenly a caption looks.

Axes: B pictures, N rows of each, T tokens, R regions, C channels, H hidden.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutline.models.linear import linear


def normalise(features: Tensor) -> Tensor:
    """Zero mean and unit variance over channels: encoders differ a hundredfold in the size of what they give."""
    return F.layer_norm(features, features.shape[-1:])


class Regions(nn.Module):
    """A picture's grid (B,R,C) as vectors (B,R,H), made once and shared by all of its rows.

    Captions name places, so each region has a learned mark of where it is, whatever the encoder.
    """

    def __init__(self, channels: int, hidden: int, regions: int) -> None:
        super().__init__()
        self.project = nn.Linear(channels, hidden, bias=False)  # the places hold its bias
        self.places = nn.Parameter(torch.randn(regions, hidden) * 0.1)

    def forward(self, grid: Tensor) -> Tensor:
        return linear(grid, self.project.weight) + self.places


def spread(places: Tensor, regions: int) -> Tensor:
    """The marks of a square grid's places (R,H) for a grid of more or fewer regions over the same picture."""
    if len(places) == regions:
        return places
    before, after = math.isqrt(len(places)), math.isqrt(regions)
    grid = places.T.reshape(1, -1, before, before)
    return F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)[0].flatten(1).T


class Bahdanau(nn.Module):
    """Additive attention: how much a query (B,N,H) wants each key (B,R,H) is v . tanh(key + W query)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.energy = nn.Parameter(torch.randn(hidden) * hidden**-0.5)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Weights (B,N,R)."""
        energies = torch.tanh(keys.unsqueeze(1) + self.query(query).unsqueeze(2))
        scores: Tensor = energies @ self.energy
        return scores.softmax(-1)


class Luong(nn.Module):
    """Multiplicative attention ("general"): how much a query (B,N,H) wants each key (B,R,H) is key . W query."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden, bias=False)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Weights (B,N,R)."""
        scores: Tensor = linear(query, self.query.weight) @ keys.mT * keys.shape[-1] ** -0.5
        return scores.softmax(-1)


def coverage_penalty(attention: Tensor, there: Tensor) -> Tensor:
    """How unevenly captions look: attention (B,N,T,R) at the tokens that are `there` (B,N,T), not padding.

    A region's share of a caption's looks is 1 when it is looked at as much as any other over the caption, whatever the
    caption's length; the penalty is the mean squared distance from that (attention that is doubly stochastic), over
    a picture's captions and then over pictures: that of a batch is the mean of its parts', each by its pictures.
    """
    there = there.to(attention.dtype)
    looks = torch.einsum("bntr,bnt->bnr", attention, there)
    length = there.sum(-1)
    share = looks * attention.shape[-1] / length.clamp(min=1).unsqueeze(-1)
    uneven = (share - 1).square().mean(-1)
    captions = (length > 0).to(attention.dtype)
    return ((uneven * captions).sum(1) / captions.sum(1).clamp(min=1)).mean()
