"""The captioner that comes with Cutline: small, trained on Flickr8k, in four languages. Its model card is in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cutline.errors import ModelError

FILE = Path(__file__).with_name("starter.cutline")
SHA256 = "623f23e3c0491b5d9f79710d92d972110fbb367892292ca792df5e2730a16ffa"


def starter() -> Path:
    """Its bundle, after a look whether it is still the one that was shipped."""
    try:
        found = hashlib.sha256(FILE.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"the captioner in the box is not there: {FILE}: {error.strerror}", fix=_FIX) from None
    if found != SHA256:
        raise ModelError(f"{FILE} is not the captioner that was shipped: its hash is {found}", fix=_FIX)
    return FILE


_FIX = "pip install --force-reinstall cutline, or --model with another"
