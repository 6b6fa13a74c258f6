"""The captioner in the box: small, whole, and used when no other is named."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path

import pytest

import cutline
from cutline import starter as box
from cutline.errors import ModelError
from cutline.predict import Captioner, load
from cutline.starter import starter


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return load(starter())


def test_it_is_small_and_writes_four_languages(captioner: Captioner) -> None:
    assert box.FILE.stat().st_size <= 16_000_000
    assert captioner.languages[0] == "en"
    assert set(captioner.languages) == {"en", "de", "fr", "cs"}


def test_it_is_loaded_where_none_is_named(captioner: Captioner) -> None:
    found = cutline.load()
    assert isinstance(found, Captioner)
    assert found.path == captioner.path


def test_it_has_a_name_where_nothing_else_has_it(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("starter").path == captioner.path
    (tmp_path / "starter").mkdir()
    with pytest.raises(ModelError, match="starter"):
        load("starter")


def test_it_captions_a_photograph_in_each_language(captioner: Captioner) -> None:
    with as_file(files("sklearn.datasets.images") / "flower.jpg") as picture:
        said = {lang: captioner.caption(picture, lang=lang)[0].text for lang in captioner.languages}
    assert all(3 <= len(text.split()) <= 24 for text in said.values()), said
    assert len(set(said.values())) == 4
    for lang, words in {
        "en": "a|an|the",
        "de": "ein|eine|einen|einem",
        "fr": "un|une|le|la",
        "cs": "na|v|je|se",
    }.items():
        assert re.search(rf"\b({words})\b", said[lang]), f"{lang}: {said[lang]}"


def test_it_takes_as_many_beams_as_are_asked_for(captioner: Captioner) -> None:
    """However many groups it searches in by itself."""
    with as_file(files("sklearn.datasets.images") / "flower.jpg") as picture:
        five = captioner.caption(picture, beam=5)[0]
        assert five == captioner.caption(picture, beam=5, method="beam")[0]
        alone = captioner.caption(picture, beam=1)[0]
        assert alone.text == captioner.caption(picture, method="greedy")[0].text


def test_its_card_names_its_sources_and_their_terms() -> None:
    import zipfile

    with zipfile.ZipFile(starter()) as archive:
        card = archive.read("README.md").decode()
    for said in ("Flickr8k", "Multi30k", "non-commercial", "cutline train --preset flickr8k", "CIDEr-D", "Limits"):
        assert said in card, said


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:5000] + b"!" + data[5001:], None])
def test_another_file_in_its_place_is_refused(change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "starter.cutline"
    if change:
        file.write_bytes(change(box.FILE.read_bytes()))
    monkeypatch.setattr(box, "FILE", file)
    with pytest.raises(ModelError, match="in the box is not there" if change is None else "not the captioner that was"):
        starter()


def test_caption_takes_it_where_there_is_no_other_and_says_so_once(tmp_path: Path) -> None:
    with as_file(files("sklearn.datasets.images") / "flower.jpg") as picture:
        done = subprocess.run(
            [sys.executable, "-m", "cutline", "caption", str(picture), str(picture)],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the one that comes with Cutline") == 1
    assert len(done.stdout.splitlines()) == 2
