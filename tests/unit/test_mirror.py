"""A mirrored picture's caption names the other side."""

import unicodedata

import pytest

from cutline.data.mirror import can_mirror, mirrored


@pytest.mark.parametrize(
    ("lang", "text", "turned"),
    [
        ("en", "a dog left of a cat, Right side", "a dog right of a cat, Left side"),
        ("de", "links ein Hund, auf der rechten Seite", "rechts ein Hund, auf der linken Seite"),
        ("es", "a la izquierda un perro derecho", "a la derecha un perro izquierdo"),
        ("cs", unicodedata.normalize("NFD", "levá ruka"), "pravá ruka"),
        ("cs", "pes vlevo od pravého kola", "pes vpravo od levého kola"),
        ("en", "a bright leftover", "a bright leftover"),
        ("en", "a left-facing dog, top-left", "a right-facing dog, top-right"),
        ("cs", "nalevo dva psi v levých botách", "napravo dva psi v pravých botách"),
    ],
)
def test_sides_change_places(lang: str, text: str, turned: str) -> None:
    assert mirrored(text, lang) == turned
    assert mirrored(turned, lang) == unicodedata.normalize("NFC", text)


def test_french_right_as_a_direction_or_of_a_thing() -> None:
    assert mirrored("à gauche", "fr") == "à droite"
    assert mirrored("à droite", "fr") == "à gauche"
    assert mirrored("le côté droit", "fr") == "le côté gauche"


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        ("en", "a dog runs right behind another"),
        ("en", "a man sitting Right next to a dog left alone"),
        ("en", "a trail of water left by a boat that has left a mark"),
        ("fr", "un homme qui se tient droit regarde tout droit"),
        ("fr", "une fille assise droite"),
        ("es", "un hombre camina derecho"),
    ],
)
def test_what_is_no_side_stays(lang: str, text: str) -> None:
    assert mirrored(text, lang) == text


def test_sides_beside_what_is_none() -> None:
    turned = mirrored("the dog on the left behind the one that is right beside a man to his right", "en")
    assert turned == "the dog on the right behind the one that is right beside a man to his left"


def test_unknown_languages_are_known_to_be_unknown() -> None:
    assert can_mirror("de")
    assert not can_mirror("ja")
