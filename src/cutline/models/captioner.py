"""A captioner: an encoder and a decoder that learn together; and the same as search sees it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cutline.config import Config
from cutline.models.decoder import Decoder, Tensors, build_decoder
from cutline.models.dropout import dropping
from cutline.models.encoders import Encoder, Features, build_encoder, see
from cutline.models.vocabulary import PAD

Array = np.ndarray[Any, Any]


class Captioner(nn.Module):
    """Reads pictures, `inputs` = (uint8 (B,3,H,W),), or what an encoder made of them, (grid (B,R,C), pooled (B,P))."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def features(self, inputs: Tensors) -> Features:
        if len(inputs) == 1:
            return see(self.encoder, inputs[0])
        return Features(*(part.float() for part in inputs))

    def forward(self, inputs: Tensors, tokens: Tensor, *, sampling: float = 0.0) -> tuple[Tensor, Tensor]:
        """Tokens (B,N,T), from the begin token on, to scores of the next ones (B,N,T,V) and attention (B,N,T,R)."""
        features = self.features(inputs)
        tokens = self._given(features, tokens, sampling)
        logits, attention = self.decoder(features.grid, features.pooled, tokens)
        return logits, attention

    def cross_entropy(
        self,
        inputs: Tensors,
        captions: Tensor,
        *,
        smoothing: float = 0.0,
        sampling: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Summed cross entropy in nats of captions (B,N,T+1), begin token to end token, and attention (B,N,T,R).

        The same as from `forward`, but the scores of all words are never held at once, and padding costs nothing.
        """
        features = self.features(inputs)
        tokens = self._given(features, captions[..., :-1], sampling)
        outputs, attention = self.decoder.outputs(features.grid, features.pooled, tokens)
        return self.decoder.vocabulary.cross_entropy(outputs, captions[..., 1:], smoothing), attention

    def reinforce(
        self,
        inputs: Tensors,
        draw: Callable[[Features], Tensor],
        advantage: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """What to descend on so that better captions become likelier: the summed nats of captions (B,N,T+1) that `draw`
        writes for each picture, weighted by the `advantage` (B,N) that each has over the others.

        They are judged in another thread while the decoder goes over them again, this time for gradients, and without
        dropout, as they were drawn.
        """
        features = self.features(inputs)
        with torch.no_grad():
            tokens = draw(Features(*(part.detach() for part in features)))
        torch.clear_autocast_cache()  # older PyTorch keeps what was cast without gradients, and there would be none
        self.train()
        with ThreadPoolExecutor(1) as thread, dropping(self.decoder, repeat(0.0)):
            judged = thread.submit(advantage, tokens)
            tokens = tokens.to(features.grid.device)
            outputs, _ = self.decoder.outputs(features.grid, features.pooled, tokens[..., :-1])
            weights = judged.result().to(outputs.device)[..., None].expand_as(tokens[..., 1:])
        return self.decoder.vocabulary.cross_entropy(outputs, tokens[..., 1:], weights=weights)

    def _given(self, features: Features, tokens: Tensor, sampling: float) -> Tensor:
        """Scheduled sampling in two parallel passes: guess every word from the given ones, then learn from a mixture.

        Guessing word by word would undo all that the decoders gain from seeing the whole sentence at once.
        """
        if not sampling or tokens.shape[-1] < 2:  # a begin token alone has nothing to guess
            return tokens
        with torch.no_grad():
            logits, _ = self.decoder(features.grid, features.pooled, tokens[..., :-1])
        torch.clear_autocast_cache()  # as above
        old = tokens[..., 1:]
        chosen = torch.rand(old.shape).to(old.device) < sampling
        guesses = logits[..., PAD + 1 :].argmax(-1) + PAD + 1  # padding is no word
        mixed = torch.where(chosen & (old != PAD), guesses, old)
        return torch.cat([tokens[..., :1], mixed], -1)


def build_captioner(config: Config, words: int) -> Captioner:
    """A captioner for a vocabulary of so many words."""
    encoder = build_encoder(config.encoder, config.pictures)
    decoder = build_decoder(
        config.decoder,
        words=words,
        channels=encoder.channels,
        pooled_channels=encoder.pooled_channels,
        regions=encoder.grid_side**2,
    )
    encoder.checkpoint(config.training.checkpointing)
    decoder.checkpointing = config.training.checkpointing
    return Captioner(encoder, decoder)


class StepState(NamedTuple):
    memory: Tensors
    state: Tensors
    pooled: Tensor


class TorchStep:
    """A captioner as search knows a model: NumPy in, NumPy out, its own state in between.

    Puts the captioner in evaluation mode. In bf16 it works on a copy of the decoder: casting the weights once beats
    autocast, which would do it again for every word.
    """

    def __init__(self, captioner: Captioner, *, precision: str = "fp32") -> None:
        self.captioner = captioner.eval()
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.decoder = captioner.decoder
        if self.dtype == torch.bfloat16:
            self.decoder = copy.deepcopy(self.decoder).to(self.dtype)
        self.device = next(self.decoder.parameters()).device

    @torch.inference_mode()
    def start(self, inputs: Tensors | Array) -> StepState:
        """As a captioner reads them; or pictures as they are outside torch, uint8 (B,H,W,3)."""
        if isinstance(inputs, np.ndarray):
            inputs = (torch.from_numpy(inputs).permute(0, 3, 1, 2),)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            grid, pooled = self.captioner.features(tuple(part.to(self.device) for part in inputs))
        return StepState(*self.decoder.start(grid.to(self.dtype), pooled.to(self.dtype)), pooled)

    def seen(self, state: StepState) -> Array:
        return state.pooled.float().cpu().numpy()

    @torch.inference_mode()
    def step(self, state: StepState, tokens: Array) -> tuple[Array, Array, StepState]:
        given = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.device)
        logp, attention, after = self.decoder.step(state.memory, state.state, given)
        return logp.cpu().numpy(), attention.float().cpu().numpy(), state._replace(state=after)

    @torch.inference_mode()
    def reorder(self, state: StepState, rows: Array) -> StepState:
        chosen = torch.from_numpy(np.ascontiguousarray(rows)).to(self.device)
        pictures = torch.arange(len(chosen), device=self.device)[:, None]
        return state._replace(state=tuple(part[pictures, chosen] for part in state.state))
