"""A Transformer decoder: looks back at its own words and at the picture, both by dot product.

Axes as in `decoder`: B pictures, N rows, T tokens, R regions, H hidden; and A heads, D = H / A.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutline.config import DecoderConfig
from cutline.errors import ConfigError
from cutline.models.attention import Regions, normalise
from cutline.models.decoder import Decoder, Tensors
from cutline.models.dropout import Dropout, computed_again
from cutline.models.vocabulary import Vocabulary


class TransformerDecoder(Decoder):
    """Pre-norm layers over a sentence that begins with the picture's pooled vector.

    The state of a layer is the keys and values of all positions so far, each (B,N,t,H). Since the pooled vector is the
    first position, a state is never empty.
    """

    def __init__(self, config: DecoderConfig, *, words: int, channels: int, pooled_channels: int, regions: int) -> None:
        super().__init__()
        hidden, embed = config.hidden, config.embed or config.hidden
        if hidden % (2 * config.heads):
            raise ConfigError(
                f"decoder.hidden is {hidden}, which {config.heads} heads cannot share",
                expected="a multiple of twice decoder.heads",
            )
        self.vocabulary = Vocabulary(words, hidden, embed, tie=config.tie)
        self.widen = nn.Linear(embed, hidden, bias=False) if embed != hidden else nn.Identity()
        self.first = nn.Linear(pooled_channels, hidden)
        self.values = Regions(channels, hidden, regions)
        self.drop = Dropout(config.dropout)
        self.layers: Iterable[Layer] = nn.ModuleList(  # type: ignore[assignment]
            Layer(hidden, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(hidden)

    def start(self, grid: Tensor, pooled: Tensor) -> tuple[Tensors, Tensors]:
        memory = self._memory(grid)
        _, _, state = self._layers(memory, (), self._prefix(pooled))
        return memory, state

    def step(self, memory: Tensors, state: Tensors, tokens: Tensor) -> tuple[Tensor, Tensor, Tensors]:
        place = state[0].shape[2]
        words = self._place(self._embed(tokens.unsqueeze(2)), place)
        output, attention, state = self._layers(memory, state, words)
        logits = self.vocabulary.logits(output.squeeze(2))
        return F.log_softmax(logits, -1, dtype=torch.float32), attention.squeeze(2), state

    def begin(self, grid: Tensor, pooled: Tensor) -> tuple[Tensors, Tensors]:
        return self._memory(grid), (self._prefix(pooled),)

    def sentences(self, memory: Tensors, first: Tensors, tokens: Tensor) -> tuple[Tensor, Tensor]:
        prefix = first[0].expand(-1, tokens.shape[1], -1, -1)
        words = self.drop(torch.cat([prefix, self._place(self._embed(tokens), 1)], 2))
        outputs, attention, _ = self._layers(memory, (), words)
        return outputs[:, :, 1:], attention[:, :, 1:]

    def _memory(self, grid: Tensor) -> Tensors:
        """Each layer's keys and values of the regions (B,R,H)."""
        regions = self.values(normalise(grid))
        return tuple(part for layer in self.layers for part in layer.look_at(regions))

    def _prefix(self, pooled: Tensor) -> Tensor:
        """(B,1,1,H)."""
        return self._place(self.first(normalise(pooled))[:, None, None], 0)

    def _embed(self, tokens: Tensor) -> Tensor:
        words: Tensor = self.widen(self.vocabulary.embed(tokens))
        return words

    def _place(self, words: Tensor, first: int) -> Tensor:
        """Words (…,T,H) with waves that tell their places, from `first` on. No caption is too long for a formula."""
        count, hidden = words.shape[-2:]
        rates = torch.exp(torch.arange(0, hidden, 2, device=words.device) * (-math.log(10_000) / hidden))
        places = torch.arange(first, first + count, device=words.device)
        angles = places.to(rates.dtype).unsqueeze(1) * rates
        return words + torch.cat([angles.sin(), angles.cos()], 1).to(words.dtype)

    def _layers(self, memory: Tensors, state: Tensors, words: Tensor) -> tuple[Tensor, Tensor, Tensors]:
        """Positions (B,N,T,H) after those of `state`: outputs, the last layer's attention (B,N,T,R), the next state."""
        after: list[Tensor] = []
        attention = words
        for index, layer in enumerate(self.layers):
            here = slice(2 * index, 2 * index + 2)
            given = (words, memory[here], state[here])
            if self.checkpointing and torch.is_grad_enabled():
                words, attention, pair = computed_again(layer, layer, *given)
            else:
                words, attention, pair = layer(*given)
            after += pair
        return self.norm(words), attention, tuple(after)


class Layer(nn.Module):
    """Look back at the words, look at the picture, think."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (hidden // heads) ** -0.5
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.back = nn.Linear(hidden, 3 * hidden)
        self.back_out = nn.Linear(hidden, hidden)
        self.query = nn.Linear(hidden, hidden)
        self.regions = nn.Linear(hidden, 2 * hidden)
        self.look_out = nn.Linear(hidden, hidden)
        self.think = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))
        self.drop = Dropout(dropout)

    def look_at(self, regions: Tensor) -> Tensors:
        """Keys and values (B,R,H) of the regions, for `forward`."""
        keys, values = self.regions(regions).chunk(2, -1)
        return keys, values

    def forward(self, words: Tensor, memory: Tensors, state: Tensors) -> tuple[Tensor, Tensor, Tensors]:
        seen, state = self._back(self.norms[0](words), state)
        words = words + self.drop(self.back_out(seen))
        seen, attention = self._look(self.norms[1](words), memory)
        words = words + self.drop(self.look_out(seen))
        return words + self.drop(self.think(self.norms[2](words))), attention, state

    def _back(self, words: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """What the positions (B,N,T,H) find in themselves and those before them, and the state with them in it."""
        query, key, value = self.back(words).chunk(3, -1)
        if state:
            key, value = torch.cat([state[0], key], 2), torch.cat([state[1], value], 2)
        # One new position may look at all there are; a whole sentence must not look ahead.
        heads = [self._split(part.flatten(0, 1)) for part in (query, key, value)]
        seen = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=not state)
        return seen.transpose(1, 2).reshape(words.shape), (key, value)

    def _look(self, words: Tensor, memory: Tensors) -> tuple[Tensor, Tensor]:
        """What the positions (B,N,T,H) find in the picture, and their attention (B,N,T,R), the mean over heads.

        All rows of a picture ask its one set of keys, as if they were one long sentence.
        """
        query = self._split(self.query(words).flatten(1, 2))
        key, value = map(self._split, memory)
        weights = (query @ key.mT * self.scale).softmax(-1)
        seen = (weights @ value).transpose(1, 2).reshape(words.shape)
        return seen, weights.mean(1).view(*words.shape[:3], -1)

    def _split(self, x: Tensor) -> Tensor:
        """(…,T,H) to (…,A,T,D)."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(-2, -3)
