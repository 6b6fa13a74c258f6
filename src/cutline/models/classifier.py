"""A classifier: an encoder, and a head that makes classes of what it has seen."""

from __future__ import annotations

from torch import Tensor, nn

from cutline.config import ClassesConfig, Config
from cutline.models.decoder import Tensors
from cutline.models.encoders import Encoder, Features, build_encoder, see


class Classifier(nn.Module):
    """Reads pictures, `inputs` = (uint8 (B,3,H,W),), or what an encoder made of them, (grid (B,R,C), pooled (B,P))."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def features(self, inputs: Tensors) -> Features:
        if len(inputs) == 1:
            return see(self.encoder, inputs[0])
        return Features(*(part.float() for part in inputs))

    def forward(self, inputs: Tensors) -> Tensor:
        """Logits (B,K)."""
        logits: Tensor = self.head(self.features(inputs).pooled)
        return logits


def build_head(config: ClassesConfig, channels: int, classes: int) -> nn.Sequential:
    """From pooled features (B,P) to logits (B,K)."""
    if config.head == "linear":
        return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(channels, classes))
    return nn.Sequential(
        nn.Dropout(config.dropout),
        nn.Linear(channels, config.hidden),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.hidden, classes),
    )


def build_classifier(config: Config, classes: int) -> Classifier:
    """A classifier for so many classes."""
    encoder = build_encoder(config.encoder, config.pictures)
    encoder.checkpoint(config.training.checkpointing)
    return Classifier(encoder, build_head(config.classes, encoder.pooled_channels, classes))
