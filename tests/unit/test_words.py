"""Words: what counts as one in which script, ids and back, and vocabularies on disk."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cutline.config import WordsConfig
from cutline.data.words import UNK, Words
from cutline.errors import ConfigError, CutlineError, DataError, ModelError

CAPTIONS = {
    "en": ["a dog runs", "two dogs run on the beach", "a dog's tail", "a café by the sea, with 3.5 m waves"],
    "de": ["ein Hund läuft über die Straße", "zwei Hunde", "ein großer Hund"],
    "ja": ["三人の男がラーメンを食べている", "犬が走る"],
}
PIECES = Words.learn(CAPTIONS, WordsConfig(kind="bpe", max_size=400))
CASED = Words.learn(CAPTIONS, WordsConfig(kind="bpe", max_size=400, lowercase=False))


def words_of(text: str, lang: str = "en", *, lowercase: bool = True) -> list[str]:
    words = Words.learn({lang: [text, "x"]}, WordsConfig(min_count=1, lowercase=lowercase))
    return [words.pieces[i] for i in words.encode(text)]


def again(text: str, lang: str) -> str:
    words = Words.learn({lang: [text]}, WordsConfig(min_count=1))
    return words.decode(words.encode(text))


@pytest.mark.parametrize(
    ("lang", "text", "expected"),
    [
        ("en", "A dog's T-shirt; don’t know it’s 'quoted'.", "a dog's t-shirt don't know it's quoted"),
        ("en", "O'Neill, rock'n'roll at 3 o'clock", "o'neill rock'n'roll at 3 o'clock"),
        ("en", "3.5 m, 1,000 at 10:30 - a dog.The end--here", "3.5 m 1,000 at 10:30 a dog the end here"),
        ("en", "a U.S. flag, e.g. 2 of 3", "a u.s flag e.g 2 of 3"),
        ("en", "#1 & $5 👩‍🍳 ½", "1 5 ½"),
        ("de", "GROẞE Straße, Zu\u00adcker", "große straße zucker"),
        ("fr", "L’étoile d'un homme, quelqu'un jusqu'à l'Eau", "l' étoile d' un homme quelqu' un jusqu' à l' eau"),
        ("it", "dell'uomo", "dell' uomo"),
        ("tr", "İstanbul IŞIK", "istanbul ışık"),
        ("en", "İstanbul", "istanbul"),
        ("el", "ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("uk", "п’ять п'ять пʼять", "п'ять п'ять п'ять"),
        ("ca", "una col·lecció · de llibres", "una col·lecció de llibres"),
        ("he", "חייל צה״ל וג׳ירפה", "חייל צה״ל וג׳ירפה"),
        ("he", "\u200fכל\u200eב\u202c", "כלב"),
        ("fa", "می‌خواهم کتاب", "می‌خواهم کتاب"),
        ("hi", "हिन्दी में।", "हिन्दी में"),
        ("ko", "한국어 문장", "한국어 문장"),
        ("zh", "3个穿T恤的人。", "3 个 穿 t 恤 的 人"),
        ("ja", "ラーメン、ｶﾞ 人々", "ラ ー メ ン ｶﾞ 人 々"),
        ("th", "น้ำก็ 2", "น้ำ ก็ 2"),
        ("bo", "བོད་སྐད་ཡིན།", "བོད་ སྐད་ ཡིན"),
    ],
)
def test_words(lang: str, text: str, expected: str) -> None:
    assert words_of(text, lang) == expected.split()
    assert words_of(unicodedata.normalize("NFD", text), lang) == [
        unicodedata.normalize("NFC", word) for word in expected.split()
    ]


def test_no_mark_of_a_burmese_word_is_lost() -> None:
    words = Words.learn({"my": ["ခွေးတစ်ကောင် သား ဆရာ"]}, WordsConfig(min_count=1))
    assert words.decode(words.encode("ခွေးတစ်ကောင်")) == "ခွေးတစ်ကောင်"


@pytest.mark.parametrize(
    ("lang", "text", "read"),
    [
        ("en", "Two dogs' tails .", "two dogs tails"),
        ("fr", "l'étoile d'un homme", "l'étoile d'un homme"),
        ("zh", "3个穿T恤的人。", "3个穿t恤的人"),
        ("ja", "三人の男がラーメンを食べている", "三人の男がラーメンを食べている"),
        ("th", "เด็กผู้ชายกำลังเล่นน้ำ", "เด็กผู้ชายกำลังเล่นน้ำ"),
        ("bo", "བོད་སྐད་", "བོད་སྐད་"),
    ],
)
def test_spaces_stand_where_the_script_has_them(lang: str, text: str, read: str) -> None:
    assert again(text, lang) == read


def test_case_is_kept_on_request() -> None:
    assert words_of("Ein Hund", "de", lowercase=False) == ["Ein", "Hund"]
    assert CASED.decode(CASED.encode("Ein Großer HUND")) == "Ein Großer HUND"


@given(st.text(max_size=60))
@example("dog.the l'l'eau 'a' --")
@settings(max_examples=150, deadline=None)
def test_reading_back_changes_nothing_the_second_time(text: str) -> None:
    words = Words.learn({"en": [text, "x"]}, WordsConfig(min_count=1))
    ids = words.encode(text)
    assert UNK not in ids
    assert words.encode(text) == ids
    assert [word for word, _ in words.split(ids)] == [words.pieces[i] for i in ids]
    assert "  " not in words.decode(ids)


# Vocabularies


def test_ids_are_special_tokens_then_languages_then_words_by_count() -> None:
    words = Words.learn({"en": ["a b a c", "a b"], "de": ["b"]}, WordsConfig(min_count=2))
    assert words.pieces == ("<pad>", "<end>", "<unk>", "<en>", "<de>", "a", "b")
    assert (words.begin("en"), words.begin("de"), words.end) == (3, 4, 1)
    assert words.forbidden == (0, 2, 3, 4)
    assert words.encode("a z b") == [5, UNK, 6]
    assert words.decode([3, 5, 6, 1, 0]) == "a b"
    assert words.unknown_share(["a z", "b z z"]) == pytest.approx(0.6)
    assert words.unknown_share([]) == 0
    turkish = Words.learn({"tr": ["IRAK"], "en": ["iris"]}, WordsConfig(min_count=1))
    assert [turkish.unknown_share(["IRAK"], lang) for lang in ("tr", "en")] == [0, 1]


def test_size_counts_the_special_tokens_and_ties_go_by_spelling() -> None:
    words = Words.learn({"en": ["d c b a d"]}, WordsConfig(min_count=1, max_size=6))
    assert words.pieces[4:] == ("d", "a")
    assert len(PIECES.pieces) <= 400


@pytest.mark.parametrize(
    ("captions", "config", "error", "text"),
    [
        ({}, WordsConfig(), DataError, "no captions"),
        ({"en": [" ", ""]}, WordsConfig(kind="bpe"), DataError, "no captions"),
        ({"en": ["a dog"]}, WordsConfig(min_count=9), DataError, "no word is seen 9 times in the 1 captions"),
        ({"en": ["a"]}, WordsConfig(max_size=4), ConfigError, "room for one word beside 4 special"),
        ({"en": ["a"]}, WordsConfig(kind="bpe", max_size=259), ConfigError, "room for 256 pieces"),
        ({"end": ["a"]}, WordsConfig(min_count=1), ConfigError, "called pad, end or unk"),
    ],
)
def test_what_cannot_be_learned(captions: dict[str, list[str]], config: WordsConfig, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        Words.learn(captions, config)


def test_a_language_that_is_not_there() -> None:
    with pytest.raises(CutlineError, match="does not write 'fr'"):
        PIECES.begin("fr")


def test_learning_gives_the_same_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from cutline.config import WordsConfig; from cutline.data.words import Words\n"
        "texts = [f'the {a}{b} {b}{c} of {c}' for a in 'abcde' for b in 'fghij' for c in 'klmno']\n"
        "Words.learn({'en': texts}, WordsConfig(kind='bpe', max_size=320)).save(Path(sys.argv[1]))"
    )
    files = [tmp_path / name for name in ("one", "other")]
    for number, file in enumerate(files):
        environment = {"PYTHONHASHSEED": str(number), "RAYON_NUM_THREADS": str(number + 1)}
        subprocess.run([sys.executable, "-c", program, file], check=True, env=environment)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(Words.load(files[0]).pieces) == 320


# Byte-pair pieces

TEXTS = st.text(max_size=40) | st.text(alphabet="ab é日本👩‍🍳ǆߘ 'Ġ<>en", max_size=40)


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_pieces_spell_any_text(text: str) -> None:
    ids = CASED.encode(text)
    assert UNK not in ids
    assert CASED.decode(ids) == " ".join(unicodedata.normalize("NFC", text).split())


@given(st.lists(st.integers(0, len(PIECES.pieces) - 1), max_size=20))
@settings(max_examples=200, deadline=None)
def test_reading_equals_tokenizers_own_decoder(ids: list[int]) -> None:
    pieces = [PIECES.pieces[i] for i in ids if i not in (*PIECES.forbidden, PIECES.end)]
    assert PIECES.decode(ids) == tokenizers.decoders.ByteLevel().decode(pieces).strip()


@given(st.lists(st.integers(0, len(PIECES.pieces) - 1), max_size=20))
@example(PIECES.encode("三人の男 a dog"))
@settings(max_examples=200, deadline=None)
def test_parts_are_the_text_cut_at_tokens(ids: list[int]) -> None:
    parts = PIECES.split(ids)
    assert "".join("".join(word for word, _ in parts).split()) == "".join(PIECES.decode(ids).split())
    places = [place for _, place in parts]
    assert places == sorted(set(places))
    assert all(word.strip() for word, _ in parts)


def test_words_of_pieces_and_where_they_begin() -> None:
    words = Words.parse(vocabulary("bpe"))  # bytes alone, so that every character is a piece or more
    assert words.split(words.encode("a dog's é, x")) == [("a", 0), ("dog's", 2), ("é,", 8), ("x", 12)]
    assert words.split(words.encode("犬が、猫 a")) == [("犬", 0), ("が、", 4), ("猫", 10), ("a", 13)]
    assert words.split([3, *words.encode("a"), 1]) == [("a", 1)]


# On disk


def vocabulary(kind: str = "word", **changes: object) -> bytes:
    pieces = ["<pad>", "<end>", "<unk>", "<en>"]
    pieces += ["a", "dog"] if kind == "word" else sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    facts = {
        "format": "cutline words 1", "kind": kind, "languages": ["en"], "lowercase": True,
        "pieces": pieces, "merges": [],
    }  # fmt: skip
    return json.dumps(facts | changes).encode()


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_saving_and_loading(kind: str, tmp_path: Path) -> None:
    words = Words.learn(CAPTIONS, WordsConfig(kind=kind, min_count=1, max_size=400))  # type: ignore[arg-type]
    words.save(tmp_path / "words.json")
    there = Words.load(tmp_path / "words.json")
    assert there == words
    assert there.encode("ein Hund läuft 犬") == words.encode("ein Hund läuft 犬")


HEAD = ["<pad>", "<end>", "<unk>", "<en>"]
BYTES = [*HEAD, *tokenizers.pre_tokenizers.ByteLevel.alphabet()]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"3",
        b"[" * 100_000,
        b'{"model": {"type": "BPE", "vocab": {}}}',
        vocabulary()[:-9],
        vocabulary(format="cutline words 2"),
        vocabulary(kind="unigram"),
        vocabulary(kind=["word"]),
        vocabulary(lowercase="yes"),
        vocabulary(languages="en"),
        vocabulary(languages=["de"]),
        vocabulary(languages=[], pieces=["<pad>", "<end>", "<unk>", "a"]),
        vocabulary(languages=None),
        vocabulary(pieces=[*HEAD, "a", "a"]),
        vocabulary(pieces=[*HEAD, ""]),
        vocabulary(pieces=[*HEAD, "a b"]),
        vocabulary(pieces=[*HEAD, "a\n"]),
        vocabulary(pieces=[*HEAD, "\x1b"]),
        vocabulary(pieces=[*HEAD, "\ud800"]),
        vocabulary(pieces=[*HEAD, 7]),
        vocabulary(pieces=HEAD[1:]),
        vocabulary("bpe", pieces=BYTES[:-1]),
        vocabulary("bpe", pieces=[*BYTES, "犬"]),
        vocabulary("bpe", pieces=[*BYTES, ""]),
        vocabulary("bpe", merges=[["a", "b"]]),
        vocabulary("bpe", merges=[["a"]]),
        vocabulary("bpe", merges=["a b"]),
    ],
)
def test_damaged_and_foreign_vocabularies_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "words.json").write_bytes(data)
    with pytest.raises(ModelError, match=r"words\.json: "):
        Words.load(tmp_path / "words.json")


def test_a_vocabulary_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no words in .*absent"):
        Words.load(tmp_path / "absent")
    with pytest.raises(ModelError, match="no words in"):
        Words.load(tmp_path)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_reading_captions_needs_the_standard_library_alone(kind: str, tmp_path: Path) -> None:
    words = Words.learn(CAPTIONS, WordsConfig(kind=kind, min_count=1, max_size=400))  # type: ignore[arg-type]
    words.save(tmp_path / "words.json")
    ids = words.encode("ein großer hund 三人")
    program = (
        "import sys\n"
        "for name in ('regex', 'tokenizers', 'torch', 'numpy'): sys.modules[name] = None\n"
        "from pathlib import Path; from cutline.data.words import Words; from cutline.errors import CutlineError\n"
        f"words = Words.load(Path(sys.argv[1])); words.split({ids}); words.begin('de'); words.forbidden\n"
        f"sys.stdout.buffer.write(words.decode({ids}).encode())\n"
        "try: words.encode('ein hund')\n"
        "except CutlineError as error: assert \"pip install 'cutline[train]'\" in str(error)\n"
        "else: raise SystemExit('encoded without a library')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "words.json"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == words.decode(ids)


@pytest.mark.parametrize(
    ("lang", "text", "known"),
    [
        ("nl", "een man met een hond in het water", False),  # not every "een" but the first is one too many
        ("ja", "男の人と犬の写真", False),
        ("und", "een man met een hond op het strand van de zee", False),
        ("und", "a man in a hat and the dog on the grass with two of them is", True),
        ("und", "un home amb una gorra i el gos de la platja en un banc a la nit", False),
        ("en-gb", "a man with a dog", True),
    ],
)
def test_nothing_is_said_once_in_a_language_whose_articles_are_not_known(lang: str, text: str, known: bool) -> None:
    words = Words.learn({lang: [text]}, WordsConfig(min_count=1))
    assert bool(words.content(lang)) == known


def test_a_language_whose_articles_are_not_known_takes_nothing_from_the_others() -> None:
    texts = {"en": ["a man with a dog"], "nl": ["een man met een hond"]}
    words = Words.learn(texts, WordsConfig(min_count=1))
    assert {words.pieces[i] for i in words.content("en")} >= {"man", "dog"}
    assert words.content("nl") == ()
    assert [words.language(words.begin(lang)) for lang in texts] == list(texts)


def test_words_of_content_are_told_from_those_that_hold_a_sentence_together() -> None:
    texts = {"en": ["A dog and a cat in the snow , 2 of them"], "de": ["Ein Hund und eine Katze im Schnee"]}
    words = Words.learn(texts, WordsConfig(min_count=1))
    assert {words.pieces[i] for i in words.content("de")} == {"dog", "cat", "snow", "hund", "katze", "schnee"}
