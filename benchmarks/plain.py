"""The plain per-word decoders that tutorials show: what the fast ones must equal, and are measured against.

Each word by itself: the picture's keys are projected again, a cell takes one step, the vocabulary is projected. They
hold no weights of their own, only those of the decoder that they repeat, so that gradients can be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutline.models.attention import Regions
from cutline.models.recurrent import RecurrentDecoder


class PlainRecurrent(nn.Module):
    """LSTM or GRU with Bahdanau's, Luong's or no attention. Captions (B,T) of as many pictures; no dropout."""

    def __init__(self, decoder: RecurrentDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        rnn = decoder.rnn
        Cell = nn.LSTMCell if isinstance(rnn, nn.LSTM) else nn.GRUCell  # noqa: N806
        self.cells = nn.ModuleList()
        for layer in range(rnn.num_layers):
            width = rnn.input_size if layer == 0 else rnn.hidden_size
            with torch.device("meta"):
                cell = Cell(width, rnn.hidden_size)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                setattr(cell, name, getattr(rnn, f"{name}_l{layer}"))
            self.cells.append(cell)

    def forward(self, grid: Tensor, pooled: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        decoder = self.decoder
        grid = F.layer_norm(grid, grid.shape[-1:])
        pooled = F.layer_norm(pooled, pooled.shape[-1:])
        first = torch.tanh(decoder.first(pooled)).chunk(2 if self.is_lstm else 1, dim=1)
        hidden = [list(part.chunk(len(self.cells), dim=1)) for part in first]
        all_logits, all_weights = [], []
        for t in range(tokens.shape[1]):
            output, weights = self.word(grid, tokens[:, t], hidden)
            logits = F.linear(decoder.vocabulary.narrow(output), decoder.vocabulary.weight, decoder.vocabulary.bias)
            all_logits.append(logits)
            all_weights.append(weights)
        return torch.stack(all_logits, dim=1), torch.stack(all_weights, dim=1)

    @property
    def is_lstm(self) -> bool:
        return isinstance(self.decoder.rnn, nn.LSTM)

    @staticmethod
    def regions(part: Regions, grid: Tensor) -> Tensor:
        """Projected as tutorials do, by the layer itself and not by the faster product of `models.linear`."""
        return part.project(grid) + part.places

    def word(self, grid: Tensor, token: Tensor, hidden: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
        """Output and attention for one token (B,); `hidden` is brought up to date in place."""
        decoder = self.decoder
        x = F.embedding(token, decoder.vocabulary.table.weight, padding_idx=0) * decoder.vocabulary.scale
        weights = grid.new_zeros(len(grid), 0)
        if decoder.before is not None:
            query = decoder.before.query(hidden[0][-1])
            keys = self.regions(decoder.keys, grid)
            weights = torch.softmax(torch.tanh(keys + query.unsqueeze(1)) @ decoder.before.energy, dim=1)
            # The context of raw regions, projected: what the fast form has the other way round.
            seen = torch.bmm(weights.unsqueeze(1), grid).squeeze(1)
            context = decoder.values.project(seen) + weights @ decoder.values.places
            x = torch.cat([x, context], dim=1)
        for layer, cell in enumerate(self.cells):
            if self.is_lstm:
                x, hidden[1][layer] = cell(x, (hidden[0][layer], hidden[1][layer]))
            else:
                x = cell(x, hidden[0][layer])
            hidden[0][layer] = x
        if decoder.after is not None:
            regions = self.regions(decoder.values, grid)
            scores = torch.bmm(regions, decoder.after.query(x).unsqueeze(2)).squeeze(2) / x.shape[1] ** 0.5
            weights = torch.softmax(scores, dim=1)
            x = torch.tanh(decoder.combine(x) + torch.bmm(weights.unsqueeze(1), regions).squeeze(1))
        return x, weights
