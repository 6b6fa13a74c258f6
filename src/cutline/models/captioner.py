"""A captioner: an encoder (or the features that one stored) and a decoder; and the same as search sees it."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cutline.config import Config
from cutline.models.attention import uneven
from cutline.models.decoder import Decoder, Tensors, build_decoder
from cutline.models.encoders import Encoder, Features, build_encoder
from cutline.models.vocabulary import PAD, word_loss

Array = np.ndarray[Any, Any]


class Losses(NamedTuple):
    """What a batch of captions costs: `total` is what learns; the others, detached, are its parts."""

    total: Tensor
    words: Tensor
    attention: Tensor


class Captioner(nn.Module):
    encoder: Encoder
    decoder: Decoder

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def features(self, pictures: Tensor | Features) -> Features:
        """Pictures uint8 (B,3,H,W) through the encoder; stored features as they are."""
        return pictures if isinstance(pictures, Features) else self.encoder(pictures)

    def forward(
        self,
        pictures: Tensor | Features,
        tokens: Tensor,
        *,
        sampling: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B,N,T), from the begin token on, to scores of the next ones (B,N,T,V) and attention (B,N,T,R)."""
        features = self.features(pictures)
        if sampling > 0:
            tokens = self._mix_guesses(features, tokens, sampling, generator)
        logits, attention = self.decoder(features.grid, features.pooled, tokens)
        return logits, attention

    def losses(
        self,
        pictures: Tensor | Features,
        captions: Tensor,
        *,
        smoothing: float = 0.0,
        attention_weight: float = 0.0,
        sampling: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Captions (B,N,T+1), begin token to end token, padded with 0."""
        given, wanted = captions[..., :-1], captions[..., 1:]
        logits, attention = self(pictures, given, sampling=sampling, generator=generator)
        words = word_loss(logits, wanted, smoothing=smoothing)
        evenness = (
            uneven(attention.float(), wanted) if attention_weight and attention.shape[-1] else words.new_zeros(())
        )
        return Losses(words + attention_weight * evenness, words.detach(), evenness.detach())

    @torch.no_grad()
    def _mix_guesses(
        self, features: Features, tokens: Tensor, share: float, generator: torch.Generator | None
    ) -> Tensor:
        """Scheduled sampling in two parallel passes: guess every word from the given ones, then learn from a mixture.

        Guessing word by word would undo all that the decoders gain from seeing the whole sentence at once.
        """
        logits, _ = self.decoder(features.grid, features.pooled, tokens[..., :-1])
        chosen = torch.rand(logits.shape[:-1], generator=generator).to(tokens.device) < share
        old = tokens[..., 1:]
        mixed = torch.where(chosen & (old != PAD), logits.argmax(-1), old)
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
    return Captioner(encoder, decoder)


class StepState(NamedTuple):
    memory: Tensors
    state: Tensors


class TorchStep:
    """A captioner as search knows a model: NumPy in, NumPy out, its own state in between."""

    def __init__(self, captioner: Captioner, *, precision: str = "fp32") -> None:
        self.captioner = captioner.eval()
        self.bf16 = precision == "bf16"
        # Casting the weights once beats autocast, which would do it again for every word.
        self.decoder: Any = copy.deepcopy(captioner.decoder).bfloat16() if self.bf16 else captioner.decoder
        self.device = next(iter(captioner.decoder.parameters())).device

    @torch.inference_mode()
    def start(self, pictures: Array | Tensor | Features) -> StepState:
        """Pictures uint8, (B,H,W,3) from NumPy or (B,3,H,W) from torch, or their features."""
        if isinstance(pictures, np.ndarray):
            pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if isinstance(pictures, Features):
                features = Features(*(part.to(self.device) for part in pictures))
            else:
                features = self.captioner.features(pictures.to(self.device))
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        return StepState(*self.decoder.start(features.grid.to(dtype), features.pooled.to(dtype)))

    @torch.inference_mode()
    def step(self, state: StepState, tokens: Array) -> tuple[Array, Array, StepState]:
        given = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.device)
        logp, attention, after = self.decoder.step(state.memory, state.state, given)
        return logp.cpu().numpy(), attention.float().cpu().numpy(), StepState(state.memory, after)

    @torch.inference_mode()
    def reorder(self, state: StepState, rows: Array) -> StepState:
        chosen = torch.from_numpy(np.ascontiguousarray(rows)).to(self.device)
        pictures = torch.arange(len(chosen), device=self.device)[:, None]
        return StepState(state.memory, tuple(part[pictures, chosen] for part in state.state))
