"""HEIC, as telephones write it: with `pillow-heif`, and what is said without it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutline.data.images import open_picture


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Red above blue, stored on its side with a note of that."""
    heif = pytest.importorskip("pillow_heif")
    picture = Image.new("RGB", (64, 96), "blue")
    picture.paste("red", (0, 0, 64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    heif.from_pillow(picture.transpose(Image.Transpose.ROTATE_90)).save(tmp_path / "1.heic", exif=exif.tobytes())
    return tmp_path / "1.heic"


def test_a_telephones_picture_is_upright_and_of_its_colours(photo: Path) -> None:
    picture = open_picture(photo)
    assert picture.size == (64, 96)
    top, bottom = np.asarray(picture)[8, 32], np.asarray(picture)[88, 32]
    assert top[0] > 200 > 60 > top[2]
    assert bottom[2] > 200 > 60 > bottom[0]
    assert open_picture(io.BytesIO(photo.read_bytes())).size == (64, 96)


def test_what_is_missing_is_named(photo: Path) -> None:
    code = f"""
import sys
sys.modules["pillow_heif"] = None
from cutline.data.images import open_picture
from cutline.errors import DataError
try:
    open_picture({str(photo)!r})
except DataError as error:
    print(error.what, "|", error.fix)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{photo}: HEIC pictures need 'pillow-heif' | pip install pillow-heif\n"
