"""What can be said about a scene, in English, German, French and Spanish.

A scene is one group of equal shapes at a place, or two groups of which one is above, or to the left of, the other. It
is said in a few forms ("plain", "there", "front", "short", "definite", "picture"), starting from either group. The
forms are the same in every language; what differs is how a group is called (gender, number, case, where the adjectives
stand) and what the words do to their neighbours ("de le" -> "du", "von dem" -> "vom").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from cutline.errors import choose

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
SIZES = ("small", "large")
PLACES = ("top", "bottom", "left", "right", "middle")
TURNED = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}

Role = Literal["subject", "object", "after"]
"""How a group stands in the sentence: the last is after a preposition. Only German cares."""


@dataclass(frozen=True)
class Group:
    count: int
    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Composition:
    """All that a caption can say of a scene."""

    first: Group
    where: str
    """A place, or, when there is a second group, "above" or "left of" it."""
    second: Group | None = None


@dataclass(frozen=True)
class Form:
    """One way to say it; `turned` starts from the second group."""

    name: Literal["plain", "there", "front", "short", "definite", "picture"]
    turned: bool = False


def say(language: str, scene: Composition, form: Form) -> str:
    """One caption, without capital at the start (but German nouns) and full stop, as captions commonly come."""
    speech = _LANGUAGES[choose(language, _LANGUAGES, "language")]
    group, where, other = scene.first, scene.where, scene.second
    if other is not None and form.turned:
        group, where, other = other, TURNED[where], group
    sized = form.name not in ("short", "definite")
    definite = form.name == "definite"

    def call(group: Group, role: Role) -> str:
        return speech.call(group, role, sized, definite)

    if other is None:
        place = speech.places[where]
    else:
        place = f"{speech.relations[where]} {call(other, 'after')}"
    number = group.count > 1
    match form.name:
        case "plain" | "short":
            text = f"{call(group, 'subject')} {place}"
        case "there":
            text = f"{speech.there[number]} {call(group, 'object')} {place}"
        case "front":
            text = f"{place} {speech.front[number]} {call(group, 'subject')}"
        case "definite":
            text = f"{call(group, 'subject')} {speech.be[number]} {place}"
        case "picture":
            text = f"{speech.picture} {call(group, 'after')}"
    for apart, together in speech.contractions.items():
        text = text.replace(apart, together)
    return text


# English

_EN_NUMBERS = ("", "a", "two", "three", "four")


def _english(group: Group, role: Role, sized: bool, definite: bool) -> str:
    size = [group.size] if sized else []
    noun = group.shape if group.count == 1 else f"{group.shape}s"
    number = _EN_NUMBERS[group.count]
    if definite:
        number = "the" if group.count == 1 else f"the {number}"
    elif group.count == 1 and (size or [group.colour])[0][0] in "aeiou":
        number = "an"
    return " ".join([number, *size, group.colour, noun])


# German

_DE_NUMBERS = ("", "", "zwei", "drei", "vier")
_DE_SIZES = {"small": "klein", "large": "groß"}
_DE_COLOURS = {
    "red": "rot", "orange": "orangefarben", "yellow": "gelb", "green": "grün",
    "blue": "blau", "purple": "violett", "brown": "braun", "black": "schwarz",
}  # fmt: skip
_DE_NOUNS = {
    # gender, nominative and accusative, dative, plural, dative plural
    "circle": ("m", "Kreis", "Kreis", "Kreise", "Kreisen"),
    "square": ("n", "Quadrat", "Quadrat", "Quadrate", "Quadraten"),
    "triangle": ("n", "Dreieck", "Dreieck", "Dreiecke", "Dreiecken"),
    "star": ("m", "Stern", "Stern", "Sterne", "Sternen"),
    "heart": ("n", "Herz", "Herzen", "Herzen", "Herzen"),
    "diamond": ("f", "Raute", "Raute", "Rauten", "Rauten"),
}
_DE_INDEFINITE = {
    # by role and gender: the article and the ending that it leaves to the adjectives
    "subject": {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")},
    "object": {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")},
    "after": {"m": ("einem", "en"), "f": ("einer", "en"), "n": ("einem", "en")},
}
_DE_DEFINITE = {
    "subject": {"m": ("der", "e"), "f": ("die", "e"), "n": ("das", "e")},
    "object": {"m": ("den", "en"), "f": ("die", "e"), "n": ("das", "e")},
    "after": {"m": ("dem", "en"), "f": ("der", "en"), "n": ("dem", "en")},
}


def _german(group: Group, role: Role, sized: bool, definite: bool) -> str:
    gender, nominative, dative, plural, dative_plural = _DE_NOUNS[group.shape]
    after = role == "after"
    if group.count == 1:
        article, ending = (_DE_DEFINITE if definite else _DE_INDEFINITE)[role][gender]
        noun = dative if after else nominative
    else:
        article = _DE_NUMBERS[group.count]
        if definite:
            article = f"{'den' if after else 'die'} {article}"
        ending = "en" if definite or after else "e"
        noun = dative_plural if after else plural
    size = [_DE_SIZES[group.size] + ending] if sized else []
    return " ".join([article, *size, _DE_COLOURS[group.colour] + ending, noun])


# French: the size before the noun, the colour after it

_FR_NUMBERS = ("", "", "deux", "trois", "quatre")
_FR_SIZES = {"small": "petit", "large": "grand"}
_FR_COLOURS = {
    # masculine and feminine; "orange" and "marron" are nouns, and never change
    "red": ("rouge", "rouge"), "orange": ("orange", "orange"), "yellow": ("jaune", "jaune"),
    "green": ("vert", "verte"), "blue": ("bleu", "bleue"), "purple": ("violet", "violette"),
    "brown": ("marron", "marron"), "black": ("noir", "noire"),
}  # fmt: skip
_FR_NOUNS = {
    "circle": ("m", "cercle"), "square": ("m", "carré"), "triangle": ("m", "triangle"),
    "star": ("f", "étoile"), "heart": ("m", "cœur"), "diamond": ("m", "losange"),
}  # fmt: skip


def _french(group: Group, role: Role, sized: bool, definite: bool) -> str:
    gender, noun = _FR_NOUNS[group.shape]
    feminine, several = gender == "f", group.count > 1
    plural = "s" if several else ""
    if several:
        number = ("les " if definite else "") + _FR_NUMBERS[group.count]
    elif definite:
        number = "la" if feminine else "le"
    else:
        number = "une" if feminine else "un"
    size = [_FR_SIZES[group.size] + ("e" if feminine else "") + plural] if sized else []
    colour = _FR_COLOURS[group.colour][feminine]
    if group.colour not in ("orange", "brown"):
        colour += plural
    return " ".join([number, *size, noun + plural, colour])


# Spanish: noun, colour, size

_ES_NUMBERS = ("", "", "dos", "tres", "cuatro")
_ES_SIZES = {"small": ("pequeño", "pequeña"), "large": ("grande", "grande")}
_ES_COLOURS = {
    "red": ("rojo", "roja"), "orange": ("naranja", "naranja"), "yellow": ("amarillo", "amarilla"),
    "green": ("verde", "verde"), "blue": ("azul", "azul"), "purple": ("morado", "morada"),
    "brown": ("marrón", "marrón"), "black": ("negro", "negra"),
}  # fmt: skip
_ES_NOUNS = {
    "circle": ("m", "círculo"), "square": ("m", "cuadrado"), "triangle": ("m", "triángulo"),
    "star": ("f", "estrella"), "heart": ("m", "corazón"), "diamond": ("m", "rombo"),
}  # fmt: skip


def _spanish(group: Group, role: Role, sized: bool, definite: bool) -> str:
    gender, noun = _ES_NOUNS[group.shape]
    feminine, several = gender == "f", group.count > 1
    if several:
        article = ("las " if feminine else "los ") if definite else ""
        number = article + _ES_NUMBERS[group.count]
    elif definite:
        number = "la" if feminine else "el"
    else:
        number = "una" if feminine else "un"
    words = [noun, _ES_COLOURS[group.colour][feminine]]
    if sized:
        words.append(_ES_SIZES[group.size][feminine])
    return " ".join([number, *(map(_spanish_plural, words) if several else words)])


def _spanish_plural(word: str) -> str:
    if word[-1] in "aeo":
        return f"{word}s"
    # The stress moves off the last syllable, and its accent with it: corazón -> corazones.
    return word[:-2] + word[-2:].replace("ó", "o") + "es"


@dataclass(frozen=True)
class _Language:
    call: Callable[[Group, Role, bool, bool], str]
    """What a group is called: (group, role, with its size?, definite?)."""
    places: Mapping[str, str]
    relations: Mapping[str, str]
    there: tuple[str, str]
    """"There is", "there are": at the start of a sentence."""
    front: tuple[str, str]
    """The same after a place."""
    be: tuple[str, str]
    picture: str
    contractions: Mapping[str, str]


_LANGUAGES = {
    "en": _Language(
        _english,
        {
            "top": "at the top",
            "bottom": "at the bottom",
            "left": "on the left",
            "right": "on the right",
            "middle": "in the middle",
        },
        {"above": "above", "below": "below", "left of": "to the left of", "right of": "to the right of"},
        ("there is", "there are"),
        ("there is", "there are"),
        ("is", "are"),
        "a picture of",
        {},
    ),
    "de": _Language(
        _german,
        {"top": "oben", "bottom": "unten", "left": "links", "right": "rechts", "middle": "in der Mitte"},
        {"above": "über", "below": "unter", "left of": "links von", "right of": "rechts von"},
        ("es gibt", "es gibt"),
        ("ist", "sind"),
        ("ist", "sind"),
        "ein Bild von",
        {" von dem ": " vom "},
    ),
    "fr": _Language(
        _french,
        {"top": "en haut", "bottom": "en bas", "left": "à gauche", "right": "à droite", "middle": "au centre"},
        {
            "above": "au-dessus de",
            "below": "au-dessous de",
            "left of": "à gauche de",
            "right of": "à droite de",
        },
        ("il y a", "il y a"),
        ("il y a", "il y a"),
        ("est", "sont"),
        "une image de",
        {"la é": "l'é", " de le ": " du ", " de les ": " des ", " de un": " d'un"},
    ),
    "es": _Language(
        _spanish,
        {
            "top": "arriba",
            "bottom": "abajo",
            "left": "a la izquierda",
            "right": "a la derecha",
            "middle": "en el centro",
        },
        {
            "above": "encima de",
            "below": "debajo de",
            "left of": "a la izquierda de",
            "right of": "a la derecha de",
        },
        ("hay", "hay"),
        ("hay", "hay"),
        ("está", "están"),
        "una imagen de",
        {" de el ": " del "},
    ),
}
LANGUAGES = tuple(_LANGUAGES)


def _names() -> tuple[dict[str, str], dict[str, str]]:
    """Every inflected word that names a shape, and every one that names a colour, lower-case, in all languages."""
    shapes: dict[str, str] = {}
    colours: dict[str, str] = {}
    for shape in SHAPES:
        for colour in COLOURS:
            for count in (1, 2):
                group = Group(count, "small", colour, shape)
                for role in ("subject", "object", "after"):
                    _, *en = _english(group, role, False, False).split()
                    _, *de = _german(group, role, False, False).split()
                    _, *fr = _french(group, role, False, False).split()
                    _, *es = _spanish(group, role, False, False).split()
                    for hue, noun in (en, de, fr[::-1], es[::-1]):
                        shapes[noun.lower()], colours[hue.lower()] = shape, colour
                    colours[_german(group, role, False, True).split()[-2].lower()] = colour
    return shapes, colours


SHAPE_NAMES, COLOUR_NAMES = _names()
