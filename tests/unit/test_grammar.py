"""Captions of scenes are right in every language: checked sentence by sentence, and by what must never occur."""

from __future__ import annotations

import itertools
import re

import pytest

from cutline.data.grammar import (
    COLOUR_NAMES,
    COLOURS,
    LANGUAGES,
    PLACES,
    SHAPE_NAMES,
    SHAPES,
    SIZES,
    TURNED,
    Composition,
    Form,
    Group,
    say,
)
from cutline.errors import ConfigError

STAR = Group(1, "small", "orange", "star")
HEART = Group(1, "large", "purple", "heart")
DIAMONDS = Group(3, "large", "brown", "diamond")
SQUARES = Group(2, "small", "green", "square")

SINGLE = Composition(STAR, "left")
SEVERAL = Composition(DIAMONDS, "middle")
STACKED = Composition(HEART, "above", STAR)
LEVEL = Composition(STAR, "left of", HEART)
BLUE = Composition(Group(2, "large", "blue", "heart"), "top")
BESIDE = Composition(SQUARES, "left of", DIAMONDS)

SENTENCES = [
    ("en", SINGLE, Form("plain"), "a small orange star on the left"),
    ("en", SINGLE, Form("short"), "an orange star on the left"),
    ("en", SINGLE, Form("front"), "on the left there is a small orange star"),
    ("en", SEVERAL, Form("definite"), "the three brown diamonds are in the middle"),
    ("en", STACKED, Form("there", turned=True), "there is a small orange star below a large purple heart"),
    ("en", STACKED, Form("short"), "a purple heart above an orange star"),
    ("en", BESIDE, Form("front"), "to the left of three large brown diamonds there are two small green squares"),
    ("de", SINGLE, Form("plain"), "ein kleiner orangefarbener Stern links"),
    ("de", SINGLE, Form("there"), "es gibt einen kleinen orangefarbenen Stern links"),
    ("de", SINGLE, Form("picture"), "ein Bild von einem kleinen orangefarbenen Stern"),
    ("de", SEVERAL, Form("definite"), "die drei braunen Rauten sind in der Mitte"),
    ("de", STACKED, Form("plain"), "ein großes violettes Herz über einem kleinen orangefarbenen Stern"),
    ("de", STACKED, Form("front"), "über einem kleinen orangefarbenen Stern ist ein großes violettes Herz"),
    ("de", STACKED, Form("definite", turned=True), "der orangefarbene Stern ist unter dem violetten Herzen"),
    ("de", BESIDE, Form("plain"), "zwei kleine grüne Quadrate links von drei großen braunen Rauten"),
    ("de", BESIDE, Form("definite", turned=True), "die drei braunen Rauten sind rechts von den zwei grünen Quadraten"),
    ("de", LEVEL, Form("definite"), "der orangefarbene Stern ist links vom violetten Herzen"),
    ("fr", SINGLE, Form("plain"), "une petite étoile orange à gauche"),
    ("fr", SINGLE, Form("definite"), "l'étoile orange est à gauche"),
    ("fr", SINGLE, Form("picture"), "une image d'une petite étoile orange"),
    ("fr", SEVERAL, Form("plain"), "trois grands losanges marron au centre"),
    ("fr", STACKED, Form("plain"), "un grand cœur violet au-dessus d'une petite étoile orange"),
    ("fr", STACKED, Form("definite"), "le cœur violet est au-dessus de l'étoile orange"),
    ("fr", STACKED, Form("definite", turned=True), "l'étoile orange est au-dessous du cœur violet"),
    ("fr", BESIDE, Form("there"), "il y a deux petits carrés verts à gauche de trois grands losanges marron"),
    ("fr", BESIDE, Form("definite"), "les deux carrés verts sont à gauche des trois losanges marron"),
    ("es", SINGLE, Form("plain"), "una estrella naranja pequeña a la izquierda"),
    ("es", SEVERAL, Form("there"), "hay tres rombos marrones grandes en el centro"),
    ("es", STACKED, Form("front"), "encima de una estrella naranja pequeña hay un corazón morado grande"),
    ("es", STACKED, Form("definite", turned=True), "la estrella naranja está debajo del corazón morado"),
    ("es", BLUE, Form("picture"), "una imagen de dos corazones azules grandes"),
    ("es", BESIDE, Form("definite"), "los dos cuadrados verdes están a la izquierda de los tres rombos marrones"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "scene", "form", "sentence"), SENTENCES)
def test_sentences(language: str, scene: Composition, form: Form, sentence: str) -> None:
    assert say(language, scene, form) == sentence


NAMES = ("plain", "there", "front", "short", "definite", "picture")
GROUPS = [Group(*parts) for parts in itertools.product((1, 2, 4), SIZES, COLOURS, SHAPES)]


def everything(language: str) -> list[str]:
    """Every group in every form at a place, and in both seats of both relations."""
    partner = Group(1, "large", "yellow", "star")
    alone = [say(language, Composition(g, p), Form(n)) for g in GROUPS for p in PLACES for n in NAMES]  # type: ignore[arg-type]
    pairs = [
        say(language, Composition(*seats, other), Form(name, turned))  # type: ignore[arg-type]
        for group in GROUPS
        for where in ("above", "left of")
        for *seats, other in ((group, where, partner), (partner, where, group))
        for name in NAMES[:-1]
        for turned in (False, True)
    ]
    return alone + pairs


NEVER = {
    "en": r"\ba [aeiou]|\ban [^aeiou]|\ban? (\w+ )?\w+ (circle|square|triangle|star|heart|diamond)s",
    "de": r"\bvon dem\b|\b(ein|der|das|dem|einem) (zwei|vier)|\b(über|unter|von) (ein|eine|einen|die|das)\b",
    "fr": r"\bde (le|les|une?)\b|\b(la|le|de) é|\b(marron|orange)s|\b(une|la) \w+ (cercle|carré|triangle|cœur|losange)",
    "es": r"\bde el\b|ó\w*es\b|\b(un|el|los) \w*estrella|\b(una|la|las) (círculo|cuadrado|triángulo|corazón|rombo)",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_sentence_breaks_a_rule(language: str) -> None:
    sentences = everything(language)
    assert len(sentences) > 10_000
    for sentence in sentences:
        assert sentence == " ".join(sentence.split())
        assert not re.search(NEVER[language], sentence.replace("a la é", "").lower() if language == "fr" else sentence)


@pytest.mark.parametrize("group", [group for group in GROUPS if group.colour in ("green", "black")])
def test_adjectives_agree(group: Group) -> None:
    """Beside the one feminine noun, the star, stand feminine adjectives; beside several, plural ones."""
    plural = "s" if group.count > 1 else ""
    feminine = group.shape == "star"
    _, size, _, colour, *_ = say("fr", Composition(group, "top"), Form("plain")).split()
    assert size == {"small": "petit", "large": "grand"}[group.size] + "e" * feminine + plural
    assert colour == {"green": "vert", "black": "noir"}[group.colour] + "e" * feminine + plural
    _, _, colour, size, *_ = say("es", Composition(group, "top"), Form("plain")).split()
    assert size == {"small": "pequeñ" + "oa"[feminine], "large": "grande"}[group.size] + plural
    assert colour == {"green": "verde", "black": "negr" + "oa"[feminine]}[group.colour] + plural


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_name_in_a_caption_is_known(language: str) -> None:
    for group in GROUPS:
        for form in (Form("plain"), Form("there"), Form("definite"), Form("picture")):
            words = re.findall(r"\w+", say(language, Composition(group, "top"), form).lower())
            assert [SHAPE_NAMES[word] for word in words if word in SHAPE_NAMES] == [group.shape]
            assert [COLOUR_NAMES[word] for word in words if word in COLOUR_NAMES] == [group.colour]


def test_turning_round_twice_is_no_change() -> None:
    assert all(TURNED[TURNED[where]] == where for where in TURNED)


def test_unknown_language() -> None:
    with pytest.raises(ConfigError, match="unknown language 'it'"):
        say("it", SINGLE, Form("plain"))
