"""Cutline teaches a small, fast model to describe pictures, and runs it anywhere.

    >>> import cutline
    >>> captioner = cutline.load()  # the one in the box, or that in a bundle, by its path
    >>> captioner.caption("photo.jpg")[0].text

Names are imported when they are first used, so `import cutline` costs nothing and never brings torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "load": "cutline.bundle",
    "Captioner": "cutline.predict",
    "Classifier": "cutline.classify",
    "Caption": "cutline.predict",
    "Corpus": "cutline.data.corpus",
    "Sample": "cutline.data.corpus",
    "read_corpus": "cutline.data.readers",
    "Config": "cutline.config",
    "CutlineError": "cutline.errors",
}
__all__ = [
    "Caption",
    "Captioner",
    "Classifier",
    "Config",
    "Corpus",
    "CutlineError",
    "Sample",
    "__version__",
    "load",
    "read_corpus",
]

if TYPE_CHECKING:
    from cutline.bundle import load
    from cutline.classify import Classifier
    from cutline.config import Config
    from cutline.data.corpus import Corpus, Sample
    from cutline.data.readers import read_corpus
    from cutline.errors import CutlineError
    from cutline.predict import Caption, Captioner


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cutline' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
