"""A captioner: an encoder and a decoder that learn together; and the same as search sees it."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from cutline.config import Config
from cutline.errors import ModelError
from cutline.models.decoder import Decoder, Tensors, build_decoder
from cutline.models.encoders import Encoder, Features, build_encoder
from cutline.models.vocabulary import PAD

Array = np.ndarray[Any, Any]


class Captioner(nn.Module):
    """Reads pictures, `inputs` = (uint8 (B,3,H,W),), or what an encoder made of them, (grid (B,R,C), pooled (B,P))."""

    encoder: Encoder
    decoder: Decoder

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def features(self, inputs: Tensors) -> Features:
        if len(inputs) == 1:
            return self.encoder(inputs[0])
        return Features(*(part.float() for part in inputs))

    def forward(
        self,
        inputs: Tensors,
        tokens: Tensor,
        *,
        sampling: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B,N,T), from the begin token on, to scores of the next ones (B,N,T,V) and attention (B,N,T,R)."""
        features = self.features(inputs)
        tokens = self._given(features, tokens, sampling, generator)
        return self.decoder(features.grid, features.pooled, tokens)

    def cross_entropy(
        self,
        inputs: Tensors,
        captions: Tensor,
        *,
        smoothing: float = 0.0,
        sampling: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed cross entropy in nats of captions (B,N,T+1), begin token to end token, and attention (B,N,T,R).

        The same as from `forward`, but the scores of all words are never held at once, and padding costs nothing.
        """
        features = self.features(inputs)
        tokens = self._given(features, captions[..., :-1], sampling, generator)
        outputs, attention = self.decoder.outputs(features.grid, features.pooled, tokens)
        return self.decoder.vocabulary.cross_entropy(outputs, captions[..., 1:], smoothing), attention

    def _given(self, features: Features, tokens: Tensor, sampling: float, generator: torch.Generator | None) -> Tensor:
        """Scheduled sampling in two parallel passes: guess every word from the given ones, then learn from a mixture.

        Guessing word by word would undo all that the decoders gain from seeing the whole sentence at once.
        """
        if not sampling:
            return tokens
        with torch.no_grad():
            logits, _ = self.decoder(features.grid, features.pooled, tokens[..., :-1])
        old = tokens[..., 1:]
        chosen = torch.rand(old.shape, generator=generator).to(old.device) < sampling
        mixed = torch.where(chosen & (old != PAD), logits.argmax(-1), old)
        return torch.cat([tokens[..., :1], mixed], -1)

    def checkpoint(self, on: bool = True) -> None:
        """Recompute in the backward pass rather than store: the same gradients for less memory and more time."""
        self.encoder.checkpointing = self.decoder.checkpointing = on

    def parameter_groups(self, encoder_rate: float, rate: float) -> list[dict[str, Any]]:
        """What learns, for an optimizer: each part at its own rate, and no weight decay on biases, norms and places."""
        groups: list[dict[str, Any]] = []
        for part, lr in ((self.encoder, encoder_rate), (self.decoder, rate)):
            learning = [p for p in cast(nn.Module, part).parameters() if p.requires_grad]
            matrices, vectors = ([p for p in learning if (p.ndim > 1) == wide] for wide in (True, False))
            groups += [{"params": matrices, "lr": lr}, {"params": vectors, "lr": lr, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def learned_state(self) -> dict[str, Tensor]:
        """All weights but those of an encoder that stays as the hub or a file gave it."""
        state: dict[str, Tensor] = self.state_dict()
        return {
            name: tensor for name, tensor in state.items() if not (self._given_encoder and name.startswith("encoder."))
        }

    def load_learned_state(self, state: dict[str, Tensor]) -> None:
        wanted = self.learned_state()
        if wrong := sorted(wanted.keys() ^ state.keys()):
            raise ModelError(
                f"the weights are of another model: {', '.join(wrong[:3])} …", fix="use the run's own config"
            )
        for name, tensor in wanted.items():
            if tensor.shape != state[name].shape:
                shapes = f"{tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
                raise ModelError(
                    f"the weights are of another model: {name} is {shapes}", fix="use the run's own config"
                )
        self.load_state_dict(state, strict=False)

    @property
    def _given_encoder(self) -> bool:
        return self.encoder.given and not any(p.requires_grad for p in cast(nn.Module, self.encoder).parameters())


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
    captioner = Captioner(encoder, decoder)
    captioner.checkpoint(config.training.checkpointing)
    return captioner


class StepState(NamedTuple):
    memory: Tensors
    state: Tensors


class TorchStep:
    """A captioner as search knows a model: NumPy in, NumPy out, its own state in between.

    Puts the captioner in evaluation mode. In bf16 it works on a copy of the decoder: casting the weights once beats
    autocast, which would do it again for every word.
    """

    def __init__(self, captioner: Captioner, *, precision: str = "fp32") -> None:
        self.captioner = captioner.eval()
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        decoder = cast(nn.Module, captioner.decoder)
        self.device = next(decoder.parameters()).device
        self.decoder = captioner.decoder
        if self.dtype == torch.bfloat16:
            self.decoder = cast(Decoder, copy.deepcopy(decoder).to(self.dtype))

    @torch.inference_mode()
    def start(self, inputs: Tensors | Array) -> StepState:
        """As a captioner reads them; or pictures as they are outside torch, uint8 (B,H,W,3)."""
        if isinstance(inputs, np.ndarray):
            inputs = (torch.from_numpy(inputs).permute(0, 3, 1, 2),)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            grid, pooled = self.captioner.features(tuple(part.to(self.device) for part in inputs))
        return StepState(*self.decoder.start(grid.to(self.dtype), pooled.to(self.dtype)))

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
