"""Word vectors, in every form that they come in, and every way to be damaged."""

from __future__ import annotations

import codecs
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from cutline.config import WordsConfig
from cutline.data.vectors import Coverage, load_vectors
from cutline.data.words import UNK, Words
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
    "glove, after a mark of its encoding": codecs.BOM_UTF8 + text(WORDS),
    "word2vec text, after a mark of its encoding": codecs.BOM_UTF8 + text(WORDS, header=True),
    "glove, gzipped, after a mark of its encoding": gzip.compress(codecs.BOM_UTF8 + text(WORDS), mtime=0),
    "glove, gzipped": gzip.compress(text(WORDS), mtime=0),
    "word2vec binary, gzipped": gzip.compress(binary(WORDS), mtime=0),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_vectors(tmp_path: Path, form: str) -> None:
    file = tmp_path / "vectors"
    file.write_bytes(FORMS[form])
    matrix, found, coverage = load_vectors(file, PIECES)
    assert matrix.dtype == np.float32
    assert matrix.shape == (6, 3)
    assert found.tolist() == [False, False, True, True, True, False]
    np.testing.assert_array_equal(matrix[2:5], np.float32([WORDS["dog"], WORDS["cat"], WORDS["étoile"]]))
    assert not matrix[~found].any()
    assert (coverage.found, coverage.words) == (3, 4)
    assert str(coverage) == "3 of 4 words (75 %)"
    assert str(Coverage(8700, 9000)) == "8,700 of 9,000 words (97 %)"


def test_byte_pair_pieces_that_are_words_have_their_vectors(tmp_path: Path) -> None:
    file = tmp_path / "vectors"
    file.write_bytes(text({"dog": (1.0,), "étoile": (2.0,), ",": (3.0,), "s": (4.0,), "犬": (5.0,), "�": (6.0,)}))
    captions = ["a dog, a étoile", "dogs, 犬", "a dog, étoile 犬犬"] * 3
    words = Words.learn({"en": captions}, WordsConfig(kind="bpe", max_size=300))
    matrix, known, coverage = load_vectors(file, words.pieces)
    assert {words.decode([int(i)]): matrix[i, 0] for i in np.flatnonzero(known)} == {
        "dog": 1.0, "étoile": 2.0, ",": 3.0, "犬": 5.0,
    }  # fmt: skip
    assert known[words.encode("dog")].all()
    assert not known[words.encode("dogs")].all()
    assert coverage.found < coverage.words < len(words.pieces)


def test_a_word_in_its_own_case_comes_before_its_lower_case(tmp_path: Path) -> None:
    file = tmp_path / "vectors"
    file.write_bytes(text({"turkey": (1.0, 1.0), "Turkey": (2.0, 2.0)}) + b"turkey 5 5\n" + b"Turkey 7 7\n")
    matrix, found, _ = load_vectors(file, ["Turkey", "turkey", "TURKEY"])
    assert found.all()
    assert matrix[:, 0].tolist() == [2.0, 1.0, 1.0]


def test_words_with_spaces_and_without_letters_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "vectors"
    file.write_bytes(
        text({",": (1.0, 1.0), ". . .": (2.0, 2.0), "at 5": (3.0, 3.0), "\u00a0": (4.0, 4.0)}) + b"a 5 6\n"
    )
    assert load_vectors(file, ["a"])[0].tolist() == [[5.0, 6.0]]


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
        (b"x 1\ny " + b" 1" * 2**23, "vectors:2: the line has no end"),
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
        (gzip.compress(text(WORDS) * 50, mtime=0)[:-20], "cannot read word vectors"),
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
def test_published_glove(real_data: Path) -> None:
    file = real_data / "glove/glove.6B.50d.subset.txt"
    matrix, found, coverage = load_vectors(file, ["the", "Dog", "cat", "qqzzyx"])
    assert matrix.shape == (4, 50)
    assert found.tolist() == [True, True, True, False]
    assert str(coverage) == "3 of 4 words (75 %)"
    np.testing.assert_allclose(matrix[0, :3], [0.418, 0.24968, -0.41242])
    cosine = matrix[1] @ matrix[2] / np.linalg.norm(matrix[1]) / np.linalg.norm(matrix[2])
    assert cosine > 0.9


@pytest.mark.data
def test_published_glove_covers_real_captions(real_data: Path) -> None:
    lines = (real_data / "flickr8k/Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    captions = [line.split("\t", 1)[1] for line in lines]
    words = Words.learn({"en": captions}, WordsConfig(min_count=5))
    _, known, coverage = load_vectors(real_data / "glove/glove.6B.50d.subset.txt", words.pieces)
    assert coverage.found > 0.75 * coverage.words
    assert known[[i for text in captions for i in words.encode(text) if i != UNK]].mean() > 0.95
