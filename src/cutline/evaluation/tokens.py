"""Captions as the words that scores compare."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+(?:[-'.]\w+)*|[^\w\s]")
_PUNCTUATION = frozenset(".,;:!?'`-\"")


def tokenize(text: str) -> list[str]:
    """The lower-case words of a caption, without its punctuation."""
    return [word for word in _WORD.findall(text.lower()) if word not in _PUNCTUATION]
