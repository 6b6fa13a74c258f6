"""The two ends of a decoder: words to vectors, and outputs to words."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutline.models.linear import PICTURES, linear

PAD = 0
BLOCK = 2**24
"""Scores held at a time while the loss is taken: 64 MB in fp32."""


class Vocabulary(nn.Module):
    """Word vectors at the way in, scores of all words at the way out; one table for both when tied."""

    def __init__(self, words: int, hidden: int, embed: int, *, tie: bool) -> None:
        super().__init__()
        self.scale = embed**0.5
        self.table = nn.Embedding(words, embed, padding_idx=PAD)
        self.narrow = nn.Linear(hidden, embed, bias=False) if tie and embed != hidden else nn.Identity()
        self.weight = self.table.weight if tie else nn.Parameter(torch.empty(words, hidden))
        self.bias = nn.Parameter(torch.zeros(words))
        # A tied row is a word's input, wanted near unit size (hence the scale), and its weights as a class: smaller.
        for weight in (self.table.weight, self.weight):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        with torch.no_grad():
            self.table.weight[PAD] = 0

    def embed(self, tokens: Tensor) -> Tensor:
        vectors: Tensor = self.table(tokens) * self.scale
        return vectors

    def logits(self, outputs: Tensor) -> Tensor:
        """Outputs (…,H) to the scores of all words (…,V)."""
        return linear(self.narrow(outputs), self.weight, self.bias)

    def cross_entropy(
        self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
    ) -> Tensor:
        """Summed cross entropy in nats of outputs (…,H) against targets (…). Padding costs nothing, in both senses.

        With `weights` (…) some targets count more than others, or less than nothing.
        """
        there = targets != PAD
        rows = self.narrow(outputs[there])
        chosen = None if weights is None else weights[there]
        loss: Tensor = _CrossEntropy.apply(rows, self.weight, self.bias, targets[there], smoothing, chosen)
        return loss

    def load_vectors(self, matrix: np.ndarray[Any, Any], known: np.ndarray[Any, Any]) -> None:
        """Begin from given word vectors (V,E), where `known` (V,); brought to the table's own scale."""
        rows = torch.from_numpy(np.flatnonzero(known)).to(self.table.weight.device)
        given = torch.as_tensor(matrix).to(self.table.weight)[rows]
        with torch.no_grad():
            if given.numel():
                self.table.weight[rows] = given / (given.square().mean().sqrt().clamp(min=1e-12) * self.scale)


class _CrossEntropy(torch.autograd.Function):
    """Outputs (M,H) and targets (M,) to the summed cross entropy, some rows at a time.

    The scores of all words for all tokens would be by far the largest tensor of a training step, and its softmax and
    its gradient two more. Here a block of rows goes all the way from scores to gradients before the next one begins;
    what is kept for the backward pass is only the result, of the size of the inputs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        outputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        smoothing: float,
        counts: Tensor | None,
    ) -> Tensor:
        learning = any(ctx.needs_input_grad)
        device, exact = outputs.device.type, torch.promote_types(weight.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=device)
        # What autocast would do, but once, rather than for every block.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        weight, bias = (p.detach().to(dtype).requires_grad_(learning) for p in (weight, bias))
        d_outputs: list[Tensor] = []
        d_head: list[Tensor] = []
        size = max(1, BLOCK // len(weight) // PICTURES) * PICTURES
        shares = torch.split(counts[:, None].to(exact), size) if counts is not None else itertools.repeat(None)
        for rows, wanted, share in zip(torch.split(outputs, size), torch.split(targets[:, None], size), shares):
            rows = rows.detach().to(dtype).requires_grad_(learning)
            with torch.autocast(device, enabled=False), torch.set_grad_enabled(learning):
                scores = linear(rows, weight, bias)
            chances = F.softmax(scores.detach(), -1, dtype=exact)
            right = chances.gather(1, wanted).clamp(min=torch.finfo(exact).tiny).log()
            total -= right.sum() if share is None else (right * share).sum()
            if smoothing:  # the mean of all words' log-probabilities, by way of the right one's
                mean = scores.detach().mean(-1, True, dtype=exact) - scores.detach().gather(1, wanted) + right
                total -= smoothing * ((mean - right).sum() if share is None else ((mean - right) * share).sum())
            if learning:
                d_scores = chances.sub_(smoothing / len(weight)) if smoothing else chances
                d_scores.scatter_add_(1, wanted, torch.full_like(wanted, smoothing - 1, dtype=exact))
                if share is not None:
                    d_scores *= share
                d_rows, *d_both = torch.autograd.grad(scores, (rows, weight, bias), d_scores.to(dtype))
                d_outputs.append(d_rows.to(outputs.dtype))
                if d_head:
                    for place, grad in zip(d_head, d_both):
                        place += grad
                else:
                    d_head = [grad.to(exact) for grad in d_both]
        if learning:
            ctx.save_for_backward(torch.cat(d_outputs), *d_head)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # In place: these are large, and nobody else's.
        d_outputs, d_weight, d_bias = (grad.mul_(scale) for grad in ctx.saved_tensors)
        return d_outputs, d_weight, d_bias, None, None, None
