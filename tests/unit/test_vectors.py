"""Word vectors, in every form that they come in, and every way to be damaged."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from cutline.data.vectors import load_vectors
from cutline.errors import DataError

PIECES = ("<pad>", "<end>", "dog", "Cat", "étoile", "unseen")
WORDS = {"dog": (1.0, -0.5, 0.25), "cat": (2.0, 0.0, 1e-4), "étoile": (3.0, 3.5, -4.0), "other": (9.0, 9.0, 9.0)}


def text(words: dict[str, tuple[float, ...]], header: bool = False) -> bytes:
    lines = [f"{word} {' '.join(map(str, vector))}" for word, vector in words.items()]
    first = [f"{len(words)} {len(next(iter(words.values())))}"] if header else []
    return "".join(f"{line}\n" for line in [*first, *lines]).encode()


def binary(words: dict[str, tuple[float, ...]], between: bytes = b"\n") -> bytes:
    width = len(next(iter(words.values())))
    rows = (word.encode() + b" " + struct.pack(f"<{width}f", *vector) + between for word, vector in words.items())
    return f"{len(words)} {width}\n".encode() + b"".join(rows)


FORMS = {
    "glove": text(WORDS),
    "word2vec text": text(WORDS, header=True),
    "word2vec text, spaces at the ends": text(WORDS, header=True).replace(b"\n", b" \r\n"),
    "word2vec binary": binary(WORDS),
    "word2vec binary, no line ends": binary(WORDS, b""),
    "glove, gzipped": gzip.compress(text(WORDS)),
    "word2vec binary, gzipped": gzip.compress(binary(WORDS)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_vectors(tmp_path: Path, form: str) -> None:
    file = tmp_path / "vectors"
    file.write_bytes(FORMS[form])
    matrix, found, coverage = load_vectors(file, PIECES, [50, 50, 6, 1, 1, 2])
    assert matrix.dtype == np.float32
    assert matrix.shape == (6, 3)
    assert found.tolist() == [False, False, True, True, True, False]
    np.testing.assert_array_equal(matrix[2:5], np.float32([WORDS["dog"], WORDS["cat"], WORDS["étoile"]]))
    assert not matrix[~found].any()
    assert (coverage.found, coverage.words, coverage.tokens) == (3, 4, 0.8)
    assert str(coverage) == "vectors for 3 of 4 words (75.0%), 80.0% of all words in the captions"
    assert str(load_vectors(file, PIECES).coverage) == "vectors for 3 of 4 words (75.0%)"


def test_a_word_in_its_own_case_comes_before_its_lower_case(tmp_path: Path) -> None:
    file = tmp_path / "vectors"
    file.write_bytes(text({"turkey": (1.0, 1.0), "Turkey": (2.0, 2.0), "turkey ": (5.0, 5.0)}))
    matrix, found, _ = load_vectors(file, ["Turkey", "turkey", "TURKEY"])
    assert found.all()
    assert matrix[:, 0].tolist() == [2.0, 1.0, 1.0]


def test_words_with_spaces_and_without_letters_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "vectors"
    file.write_bytes(
        text({",": (1.0, 1.0), ". . .": (2.0, 2.0), "at 5": (3.0, 3.0), "\u00a0": (4.0, 4.0)}) + b"a 5 6\n"
    )
    assert load_vectors(file, ["a"]).matrix.tolist() == [[5.0, 6.0]]


def test_a_long_binary_file_is_read_over_the_edges_of_its_blocks(tmp_path: Path) -> None:
    words = {f"word{i}": tuple(float(i) for _ in range(300)) for i in range(3000)}
    file = tmp_path / "vectors.bin"
    file.write_bytes(binary(words))
    matrix, found, _ = load_vectors(file, list(words))
    assert found.all()
    np.testing.assert_array_equal(matrix[:, 299], np.arange(3000))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "vectors:1: not word vectors"),
        (b"\n", "vectors:1: not word vectors"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "vectors:1: not word vectors"),
        (b'{"a": 1}\n', "vectors:1: not word vectors"),
        (text(WORDS) + b"cut 1.0 2.0\n", "vectors:5: a word and 2 numbers"),
        (text(WORDS) + b"\n" + text(WORDS), "vectors:5: a word and 0 numbers"),
        (b"x 1 2\nseen 1 2\nunseen one 2\n", "vectors:3: could not convert"),
        (b"x 1 2\nunseen nan 2\n", "vectors:2: not all its numbers are finite"),
        (b"3 2\nx 1 2\ny 1 2\n", "2 words where its first line says 3"),
        (b"3 0\nx\n", "vectors:1: vectors of 0 dimensions"),
        (binary(WORDS)[:-6], "word 4 of 4 is not there whole"),
        (binary({"unseen": (float("inf"), 0.0, 1.0)}), "word 1: not all its numbers are finite"),
        (gzip.compress(text(WORDS) * 50)[:-20], "cannot read word vectors"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "vectors"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_vectors(file, PIECES)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_vectors(tmp_path / "none", PIECES)
    with pytest.raises(DataError, match="Is a directory"):
        load_vectors(tmp_path, PIECES)


@pytest.mark.data
def test_published_glove() -> None:
    file = Path(os.environ.get("CUTLINE_DATA", "../shared/data")) / "glove/glove.6B.50d.subset.txt"
    if not file.exists():
        pytest.skip(f"no {file}")
    matrix, found, coverage = load_vectors(file, ["the", "Dog", "cat", "qqzzyx"], [1, 1, 1, 1])
    assert matrix.shape == (4, 50)
    assert found.tolist() == [True, True, True, False]
    assert coverage.tokens == 0.75
    np.testing.assert_allclose(matrix[0, :3], [0.418, 0.24968, -0.41242])
    cosine = matrix[1] @ matrix[2] / np.linalg.norm(matrix[1]) / np.linalg.norm(matrix[2])
    assert cosine > 0.9
