"""Recurrent decoders: LSTM and GRU, with no attention, Bahdanau's or Luong's. Axes as in `decoder`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutline.config import DecoderConfig
from cutline.models.attention import Bahdanau, Luong, Regions, normalise
from cutline.models.decoder import Decoder, Tensors
from cutline.models.dropout import Dropout, computed_again
from cutline.models.linear import linear
from cutline.models.vocabulary import Vocabulary


class RecurrentDecoder(Decoder):
    """An LSTM or GRU that looks at the picture not at all, before each word (Bahdanau), or after it (Luong).

    Luong's attention reads the outputs of the network, so the whole sentence goes through it in one fused call.
    Bahdanau's feeds what it saw to the next word, so the sentence is a loop, of as little as possible.
    """

    def __init__(self, config: DecoderConfig, *, words: int, channels: int, pooled_channels: int, regions: int) -> None:
        super().__init__()
        hidden, embed = config.hidden, config.embed or config.hidden
        self.hidden, self.embed, self.layers = hidden, embed, config.layers
        self.is_lstm = config.kind == "lstm"
        self.vocabulary = Vocabulary(words, hidden, embed, tie=config.tie)
        self.drop = Dropout(config.dropout)
        self.first = nn.Linear(pooled_channels, config.layers * hidden * (2 if self.is_lstm else 1))
        looks = config.attention != "none"
        self.values = Regions(channels, hidden, regions) if looks else None
        self.keys = Regions(channels, hidden, regions) if config.attention == "bahdanau" else None
        self.before = Bahdanau(hidden) if config.attention == "bahdanau" else None
        self.after = Luong(hidden) if config.attention == "luong" else None
        self.combine = nn.Linear(hidden, hidden, bias=False) if config.attention == "luong" else None
        self.rnn = (nn.LSTM if self.is_lstm else nn.GRU)(
            embed + (hidden if self.before else 0),
            hidden,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )

    def start(self, grid: Tensor, pooled: Tensor) -> tuple[Tensors, Tensors]:
        grid = normalise(grid) if self.values is not None else grid
        memory = tuple(part(grid) for part in (self.keys, self.values) if part is not None)
        first = self.first(normalise(pooled)).tanh().unflatten(-1, (1, -1, self.layers, self.hidden))
        return memory, tuple(first.unbind(2))

    def step(self, memory: Tensors, state: Tensors, tokens: Tensor) -> tuple[Tensor, Tensor, Tensors]:
        gates = self._word_gates(self.vocabulary.embed(tokens))
        output, attention, state = self._advance(memory, state, gates, self._seen(gates))
        if self.after is not None:
            output, attention = self._look_back(memory, output)
        return F.log_softmax(self.vocabulary.logits(output), -1, dtype=torch.float32), attention, state

    def sentences(self, memory: Tensors, first: Tensors, tokens: Tensor) -> tuple[Tensor, Tensor]:
        state = tuple(part.expand(-1, tokens.shape[1], -1, -1) for part in first)
        words = self.drop(self.vocabulary.embed(tokens))
        if self.before is not None:
            outputs, attention = self._word_by_word(memory, state, words)
        else:
            outputs = self._whole_sentence(state, words)
            attention = outputs.new_zeros(*tokens.shape, 0)
        if self.after is not None:
            outputs, attention = self._look_back(memory, outputs)
        return self.drop(outputs), attention

    def _whole_sentence(self, state: Tensors, words: Tensor) -> Tensor:
        """Words (B,N,T,E) to outputs (B,N,T,H), in one call."""
        first = tuple(part.flatten(0, 1).transpose(0, 1).contiguous() for part in state)
        given = words.flatten(0, 1)
        kind = words.device.type
        # No CPU has a fused network in fp16; and on a GPU, autocast takes fp16 for it whatever it was told.
        unfit = torch.bfloat16 if kind == "cuda" else torch.float16
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is unfit:
            with torch.autocast(kind, enabled=False):
                given, first = given.float(), tuple(part.float() for part in first)
                outputs: Tensor = self.rnn(given, first if self.is_lstm else first[0])[0]
        else:
            outputs = self.rnn(given, first if self.is_lstm else first[0])[0]
        return outputs.view(*words.shape[:3], -1)

    def _word_by_word(self, memory: Tensors, state: Tensors, words: Tensor) -> tuple[Tensor, Tensor]:
        """The same where each word needs what was seen before it. The words' share of the gates comes all at once."""
        outputs, attention = [], []
        all_gates = self._word_gates(words)
        seen = self._seen(all_gates)
        for gates in all_gates.unbind(2):
            if self.checkpointing and torch.is_grad_enabled():
                output, weights, state = computed_again(self, self._advance, memory, state, gates, seen)
            else:
                output, weights, state = self._advance(memory, state, gates, seen)
            outputs.append(output)
            attention.append(weights)
        return torch.stack(outputs, 2), torch.stack(attention, 2)

    def _look_back(self, memory: Tensors, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Luong's attention of all tokens at once: outputs (B,N[,T],H) to themselves and what they looked at."""
        assert self.after is not None
        assert self.combine is not None
        (values,) = memory
        attention = self.after(outputs.flatten(1, -2), values)
        outputs = torch.tanh(linear(outputs, self.combine.weight) + (attention @ values).view_as(outputs))
        return outputs, attention.unflatten(1, outputs.shape[1:-1])

    def _word_gates(self, words: Tensor) -> Tensor:
        """The words' share (…,E) of the first layer's gates."""
        return linear(words, self._weight("weight_ih", 0)[:, : self.embed], self._weight("bias_ih", 0))

    def _seen(self, gates: Tensor) -> Tensor:
        """The weights by which what was seen has its share of the first layer's gates. Once a sentence: a part of a
        parameter is cast each time that it is used, and its gradient is as large as the whole."""
        return self._weight("weight_ih", 0)[:, self.embed :].to(gates.dtype)

    def _advance(self, memory: Tensors, state: Tensors, gates: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensors]:
        """One word on: output (B,N,H), attention (B,N,R) and the next state; the formulas of nn.LSTM and nn.GRU."""
        attention = gates.new_zeros(*gates.shape[:2], 0)
        if self.before is not None:
            keys, values = memory
            attention = self.before(state[0][:, :, -1], keys)
            gates = gates + F.linear(attention @ values, seen)
        after = []
        output = gates
        for layer in range(self.layers):
            if layer:
                output = self.drop(output)
                gates = F.linear(output, self._weight("weight_ih", layer), self._weight("bias_ih", layer))
            before = tuple(part[:, :, layer] for part in state)
            recurrent = F.linear(before[0], self._weight("weight_hh", layer), self._weight("bias_hh", layer))
            after.append(lstm(gates, recurrent, before[1]) if self.is_lstm else gru(gates, recurrent, before[0]))
            output = after[-1][0]
        return output, attention, tuple(torch.stack(part, 2) for part in zip(*after))

    def _weight(self, name: str, layer: int) -> Tensor:
        weight: Tensor = getattr(self.rnn, f"{name}_l{layer}")
        return weight


def lstm(inputs: Tensor, recurrent: Tensor, cell: Tensor) -> Tensors:
    """Both halves of the gates (…,4H) and the cell (…,H) to the next output and cell."""
    i, f, g, o = (inputs + recurrent).chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def gru(inputs: Tensor, recurrent: Tensor, hidden: Tensor) -> Tensors:
    """Both halves of the gates (…,3H) and the last output (…,H) to the next output."""
    (r, z, n), (hr, hz, hn) = inputs.chunk(3, -1), recurrent.chunk(3, -1)
    update = (z + hz).sigmoid()
    return ((1 - update) * (n + (r + hr).sigmoid() * hn).tanh() + update * hidden,)
