"""One encoder with two heads: what it has seen becomes captions as well as classes."""

from __future__ import annotations

from torch import nn

from cutline.config import Config
from cutline.models.captioner import Captioner, build_captioner
from cutline.models.classifier import Classifier, build_head
from cutline.models.decoder import Decoder
from cutline.models.encoders import Encoder


class TwoHeaded(Captioner):
    """A captioner that is a classifier as well."""

    def __init__(self, encoder: Encoder, decoder: Decoder, head: nn.Module) -> None:
        super().__init__(encoder, decoder)
        self.head = head

    @property
    def classifier(self) -> Classifier:
        """The encoder and its other head: the same weights, not a copy."""
        return Classifier(self.encoder, self.head)


def build_both(config: Config, words: int, classes: int) -> TwoHeaded:
    """For a vocabulary of so many words, and so many classes."""
    captioner = build_captioner(config, words)
    head = build_head(config.classes, captioner.encoder.pooled_channels, classes)
    return TwoHeaded(captioner.encoder, captioner.decoder, head)
