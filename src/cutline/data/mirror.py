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
_NO_SIDES = {
    "en": r"\b(?:has|have|had|having|just) left\b"
    r"|\b(?!(?:the|his|her|its|their|my|your|our|to|on|from|far|top|bottom|upper|lower)\b)\w+ (?:left|right) "
    r"(?:behind|beside|alongside|next|after|before|above|below|outside|where|away|now|alone|by|up|through|towards?)\b",
    "fr": r"\b(?:tout|toute|bien|debout|assise?|tient|tiennent|tenant) droite?s?\b",
    "es": r"\b(?:todo|muy|bien|camina|sigue) derech[oa]s?\b",
}
"""Where the words mean something else: "left behind", "right next to", "tout droit"."""
_WORD = re.compile(r"\w+")
"""Parts of compounds are words of their own: "top-left", "left-hand"."""


def can_mirror(lang: str) -> bool:
    return lang in _SWAPS


def mirrored(text: str, lang: str) -> str:
    """The caption of the mirrored picture."""
    swaps, text = _SWAPS[lang], unicodedata.normalize("NFC", text)  # or an accent would be no part of its word
    no_sides = [found.span() for found in re.finditer(_NO_SIDES.get(lang, r"(?!)"), text, re.IGNORECASE)]

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        other = swaps.get(word.lower())
        if other is None or any(start <= match.start() < end for start, end in no_sides):
            return word
        return other.capitalize() if word[:1].isupper() else other

    return _WORD.sub(swap, text)
