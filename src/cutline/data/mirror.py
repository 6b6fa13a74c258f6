"""What becomes of a caption when its picture is mirrored: left and right change places."""

from __future__ import annotations

import re
import unicodedata

_PAIRS: dict[str, list[tuple[str, str]]] = {
    "en": [("left" + ending, "right" + ending) for ending in ("", "most", "hand", "ward", "wards")],
    "de": [("links", "rechts"), ("linkshändig", "rechtshändig")]
    + [("linke" + ending, "rechte" + ending) for ending in ("", "n", "r", "s", "m")],
    "fr": [("gauche", "droite"), ("gauches", "droites"), ("gauche", "droit"), ("gauches", "droits")],
    "es": [("izquierda", "derecha"), ("izquierdas", "derechas"), ("izquierdo", "derecho"), ("izquierdos", "derechos")],
    "cs": [("vlevo", "vpravo"), ("nalevo", "napravo"), ("doleva", "doprava"), ("zleva", "zprava")]
    + [("lev" + ending, "prav" + ending) for ending in ("á", "é", "ý", "ou", "ém", "ého", "ému", "ým", "ých", "ými")],
}


def _table(pairs: list[tuple[str, str]]) -> dict[str, str]:
    table: dict[str, str] = {}
    for left, right in pairs:
        table.setdefault(left, right)  # the first pair decides where a word has two partners
        table[right] = left
    return table


_SWAPS = {lang: _table(pairs) for lang, pairs in _PAIRS.items()}
_WORD = re.compile(r"\w+")
"""Parts of compounds are words of their own: "top-left", "left-hand"."""


def can_mirror(lang: str) -> bool:
    return lang in _SWAPS


def mirrored(text: str, lang: str) -> str:
    """The caption of the mirrored picture."""
    swaps = _SWAPS[lang]

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        other = swaps.get(word.lower())
        if other is None:
            return word
        return other.capitalize() if word[:1].isupper() else other

    return _WORD.sub(swap, unicodedata.normalize("NFC", text))  # or an accent would be no part of its word
