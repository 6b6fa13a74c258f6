"""Words: captions to numbers and back, in any language, as whole words or as byte-pair pieces.

Reading captions back needs the standard library alone; learning a vocabulary and encoding need `regex` and, for pieces,
`tokenizers` (both in the extra "train").

Whole words leave punctuation out: captions hardly need it, metrics ignore it, and a final full stop would be a word to
learn for nothing. Byte-pair pieces keep every character.
"""

from __future__ import annotations

import codecs
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cutline.config import WordsConfig
from cutline.data.content import is_content, known
from cutline.errors import ConfigError, DataError, ModelError, require

FORMAT = "cutline words 1"
PAD, END, UNK = 0, 1, 2
_SPECIAL = ("<pad>", "<end>", "<unk>")

# Scripts written without spaces: each of their characters is a word of its own, and no space stands beside it.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan: its words are syllables, which end in a mark of their own
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # 々 and its like
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # narrow kana
    (0x20000, 0x3FFFF),
)
_TSHEG = "\u0f0b"
_ALONE = "".join(rf"\U{low:08x}-\U{high:08x}" for low, high in _UNSPACED if low != 0x0F00)
_LETTER = rf"[\p{{L}}\p{{N}}--[{_ALONE}]][\p{{M}}\u200c\u200d]*"
_WORD = "|".join(
    (
        rf"(?=[[{_ALONE}]&&[\p{{L}}\p{{N}}]])\X\p{{M}}*",
        # What French and Italian elide is a word of its own ("l'", "dell'"), so that "l'eau" is no other water.
        r"\p{Latin}+'(?=(?i:[aeiouyhàâäæéèêëîïíìôöœóòûüúù]))",
        r"\p{L}(?:\.\p{L})+(?![\p{L}\p{M}])",  # abbreviations
        # Inside a word may be the dot of Catalan ("col·lecció") and the marks of Hebrew as well ("צה״ל").
        rf"(?:{_LETTER})+(?:(?:['\-·\u05f3\u05f4]|(?<=\p{{N}})[.,:](?=\p{{N}}))(?:{_LETTER})+)*{_TSHEG}?",
    )
)
UNSEEN = "\u00ad\u2060\ufeff\ufe0e\ufe0f\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""No part of any word: where a line may break or not, how a sign is drawn, and which way a text runs."""
# Other ways to write apostrophes and hyphens, and what is not seen at all.
_SAME = str.maketrans({"’": "'", "ʼ": "'", "＇": "'", "‐": "-", "‑": "-"} | dict.fromkeys(UNSEEN))
_TURKIC = str.maketrans({"I": "ı", "İ": "i"})


@dataclass(frozen=True)
class Words:
    """A vocabulary. Its first ids are padding, the end, the unknown, and one begin token for each language."""

    kind: str
    languages: tuple[str, ...]
    lowercase: bool
    pieces: tuple[str, ...]
    """What each id stands for; byte-pair pieces are written in tokenizers' byte alphabet."""
    merges: tuple[tuple[str, str], ...] = ()
    """Which pieces are joined, in order (kind "bpe")."""

    end = END

    @classmethod
    def learn(cls, captions: Mapping[str, Iterable[str]], config: WordsConfig) -> Words:
        """A vocabulary of the captions, by language; the same captions always give the same one."""
        languages = tuple(captions)
        special = _specials(languages)
        if len(set(special)) < len(special):
            raise ConfigError("a language is called pad, end or unk", expected="a code, such as en or de")
        fold = config.lowercase
        texts = [clean for lang in languages for text in captions[lang] if (clean := _clean(text, fold, lang))]
        room = config.max_size - len(special)
        if room < (256 if config.kind == "bpe" else 1):
            least = "256 pieces" if config.kind == "bpe" else "one word"
            raise ConfigError(
                f"words.max_size is {config.max_size}",
                expected=f"room for {least} beside {len(special)} special tokens",
            )
        if not texts:
            raise DataError("there are no captions to learn words from")
        if config.kind == "bpe":
            pieces, merges = _learn_pieces(texts, room)
        else:
            counts = Counter(word for text in texts for word in _words(text))
            often = sorted((word for word, n in counts.items() if n >= config.min_count), key=lambda w: (-counts[w], w))
            pieces, merges = often[:room], []
        if not pieces:
            what = f"no word is seen {config.min_count} times in the {len(texts)} captions"
            raise DataError(what, fix="a smaller words.min_count in the config file")
        return cls(config.kind, languages, config.lowercase, (*special, *pieces), tuple(merges))

    # Numbers to text: the standard library alone

    def begin(self, lang: str) -> int:
        """The token that a caption in `lang` begins with."""
        if lang not in self.languages:
            raise ConfigError(f"the model does not write '{lang}'", expected=", ".join(self.languages))
        return len(_SPECIAL) + self.languages.index(lang)

    @property
    def forbidden(self) -> tuple[int, ...]:
        """What is never written: padding, the unknown, and every begin token."""
        return (PAD, UNK, *range(len(_SPECIAL), self._first))

    def language(self, begin: int) -> str:
        """Whose begin token it is."""
        return self.languages[begin - len(_SPECIAL)]

    def content(self, lang: str) -> tuple[int, ...]:
        """What a caption in `lang` should say once: words of content, as far as they are single pieces.

        Nothing, where the words of a language that a caption may well say twice are not known.
        """
        return self._content if known(lang, self._whole.values()) else ()

    @cached_property
    def _whole(self) -> dict[int, str]:
        return whole_words(self.pieces)

    @cached_property
    def _content(self) -> tuple[int, ...]:
        return tuple(i for i, word in self._whole.items() if is_content(word.lower()))

    def decode(self, ids: Sequence[int]) -> str:
        if self.kind == "bpe":
            return self._bytes(ids).decode("utf-8", errors="replace").strip()
        text, before = "", ""
        for word in (self.pieces[i] for i in ids if i >= self._first or i == UNK):
            apart = text and not (_unspaced(word[0]) or _unspaced(before[0]) or before.endswith("'"))
            text += f" {word}" if apart else word
            before = word
        return text

    def split(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """The words of a caption, each with the place of the token that it begins with."""
        if self.kind == "word":
            return [(self.pieces[i], place) for place, i in enumerate(ids) if i >= self._first or i == UNK]
        words: list[tuple[str, int]] = []
        before = " "
        for text, place in self._characters(ids):
            letter = unicodedata.category(text[0])[0] in "LN"
            begins = text[0].isspace() or before[-1].isspace()
            begins |= letter and (_unspaced(before[-1]) or _unspaced(text[0]))
            if not words or (begins and words[-1][0].strip() and place > words[-1][1]):
                words.append(("", place))
            words[-1] = (words[-1][0] + text, words[-1][1])
            before = text
        return [(word.strip(), place) for word, place in words if word.strip()]

    def _characters(self, ids: Sequence[int]) -> Iterator[tuple[str, int]]:
        """The text of byte-pair pieces, and where each begins; pieces that share a character are not told apart."""
        decoder, first = codecs.getincrementaldecoder("utf-8")(errors="replace"), 0
        for place, i in enumerate(ids):
            if i < self._first:
                continue
            if not decoder.getstate()[0]:
                first = place
            if text := decoder.decode(self._bytes([i])):
                yield text, first
                first = place
        if text := decoder.decode(b"", final=True):
            yield text, first

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(_BYTES[character] for i in ids if i >= self._first for character in self.pieces[i])

    @property
    def _first(self) -> int:
        return len(_SPECIAL) + len(self.languages)

    # Text to numbers

    def encode(self, text: str, lang: str | None = None) -> list[int]:
        """A caption's ids, with neither begin nor end. The language matters where it has its own lower case."""
        if lang is None and len(self.languages) == 1:
            lang = self.languages[0]
        clean = _clean(text, self.lowercase, lang)
        if self.kind == "word":
            return [self._ids.get(word, UNK) for word in _words(clean)]
        return [self._ids[piece] for piece in self._splitter.encode(clean).tokens]

    def unknown_share(self, captions: Iterable[str], lang: str | None = None) -> float:
        """The share of tokens that this vocabulary has no word for."""
        ids = [i for text in captions for i in self.encode(text, lang)]
        return ids.count(UNK) / max(len(ids), 1)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    @cached_property
    def _splitter(self) -> Any:
        tokenizers = require("tokenizers", "train", "encoding captions as pieces")
        vocabulary = {piece: i for i, piece in enumerate(self.pieces[self._first :])}
        splitter = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, list(self.merges)))
        splitter.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        return splitter

    # On disk

    def save(self, path: Path) -> None:
        path.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """What `save` writes and `parse` reads."""
        facts = {
            "format": FORMAT, "kind": self.kind, "languages": self.languages, "lowercase": self.lowercase,
            "pieces": self.pieces, "merges": self.merges,
        }  # fmt: skip
        return json.dumps(facts, ensure_ascii=False, indent=0).encode()

    @classmethod
    def load(cls, path: Path) -> Words:
        try:
            return cls.parse(path.read_bytes())
        except OSError as error:
            raise ModelError(f"no words in {path}: {error.strerror}") from None
        except ModelError as error:
            raise ModelError(f"{path}: {error.what}", expected=error.expected) from None

    @classmethod
    def parse(cls, data: bytes) -> Words:
        """From the bytes of a saved vocabulary."""
        try:
            facts = json.loads(data)
            if facts["format"] != FORMAT:
                raise ModelError(f"words of the form {facts['format']!r}", expected=FORMAT)
            kind, lowercase = facts["kind"], facts["lowercase"]
            languages, pieces = tuple(facts["languages"]), tuple(facts["pieces"])
            merges = tuple((left, right) for left, right in facts["merges"])
            wrong = _wrong(kind, languages, lowercase, pieces, merges)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(f"not a vocabulary: {error!r}", expected=f"JSON with the format '{FORMAT}'") from None
        if wrong:
            raise ModelError(f"a damaged vocabulary: {wrong}", expected="words.json as Cutline wrote it")
        return cls(kind, languages, lowercase, pieces, merges)


def whole_words(pieces: Sequence[str]) -> dict[int, str]:
    """Which ids are words that a dictionary may hold, and how they are spelt.

    Special tokens are none, and neither are byte-pair pieces that only go on with a word or hold half a character.
    """
    words = {i: piece for i, piece in enumerate(pieces) if not (piece.startswith("<") and piece.endswith(">"))}
    if not _BYTES.keys() <= set(pieces):
        return words
    spelt = {i: bytes(map(_BYTES.__getitem__, piece)).decode("utf-8", "replace") for i, piece in words.items()}
    return {
        i: text.strip()
        for i, text in spelt.items()
        if text.strip() and "�" not in text and (not text[0].isalnum() or _unspaced(text[0]))
    }


def _specials(languages: Sequence[str]) -> tuple[str, ...]:
    return (*_SPECIAL, *(f"<{lang}>" for lang in languages))


def _wrong(kind: Any, languages: Any, lowercase: Any, pieces: Any, merges: Any) -> str:
    """What keeps these facts from being a vocabulary that can be read and written with, or nothing."""
    texts = (*languages, *pieces, *(piece for pair in merges for piece in pair))
    if kind not in ("word", "bpe") or not isinstance(lowercase, bool) or not all(isinstance(x, str) for x in texts):
        return "its values are of the wrong kind"
    special = _specials(languages)
    if not languages or pieces[: len(special)] != special:
        return "its tokens are not in order"
    known, own = set(pieces), pieces[len(special) :]
    if len(known) < len(pieces):
        return "some of its words are there twice"
    if kind == "word":
        whole = " ".join(own).split() == list(own) and not any(map(_is_control, set("".join(own))))
        return "" if whole else "some of its words are not words"
    if not set("".join(own)) <= _BYTES.keys() <= known or "" in known:
        return "some of its pieces are missing, or not made of bytes"
    if not all(left in known and right in known and left + right in known for left, right in merges):
        return "it joins pieces that it does not have"
    return ""


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")


def _clean(text: str, lowercase: bool, lang: str | None) -> str:
    """One way to write each character, and one space between words."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if not lowercase:
        return text
    if lang in ("tr", "az"):
        text = text.translate(_TURKIC)
    # Elsewhere the dot of a Turkish capital would stay behind as a mark of its own, on an i that has one already.
    return unicodedata.normalize("NFC", text.lower().replace("i\u0307", "i"))


def _words(text: str) -> list[str]:
    regex = require("regex", "train", "finding words")
    found: list[str] = regex.findall(_WORD, text.translate(_SAME), regex.V1)
    return found


def _unspaced(character: str) -> bool:
    """Whether this is a character of a script that is written without spaces."""
    code = ord(character)
    return any(low <= code <= high for low, high in _UNSPACED)


def _byte_alphabet() -> dict[str, int]:
    """What stands for each byte in byte-level pieces: itself where it can be seen, else a character from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in set(seen)]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(unseen)}


_BYTES = _byte_alphabet()


def _learn_pieces(texts: Sequence[str], room: int) -> tuple[list[str], list[tuple[str, str]]]:
    tokenizers = require("tokenizers", "train", "learning pieces")
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=room, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    return pieces, [(left, right) for left, right in model["merges"]]
