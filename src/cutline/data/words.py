"""Words: captions to numbers and back, in any language, as whole words or as byte-pair pieces.

Reading captions back needs the standard library alone; learning a vocabulary and encoding need `regex` and, for pieces,
`tokenizers` (both in the extra "train").
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cutline.config import WordsConfig
from cutline.errors import ConfigError, DataError, ModelError, require

FORMAT = "cutline words 1"
PAD, END, UNK = 0, 1, 2
_SPECIAL = ("<pad>", "<end>", "<unk>")

# Scripts written without spaces: each of their characters is a word of its own, and no space stands between two.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = (
    rf"[{_UNSPACED}]\p{{M}}*"
    rf"|(?:(?![{_UNSPACED}])[\p{{L}}\p{{N}}]\p{{M}}*)+(?:['’\-.](?:(?![{_UNSPACED}])[\p{{L}}\p{{N}}]\p{{M}}*)+)*"
)


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
        if not languages:
            raise DataError("there are no captions to learn words from")
        special = [*_SPECIAL, *(f"<{lang}>" for lang in languages)]
        texts = [_clean(text, config.lowercase) for lang in languages for text in captions[lang]]
        room = config.max_size - len(special)
        if room < (256 if config.kind == "bpe" else 1):
            raise ConfigError(f"words.max_size is {config.max_size}", expected="room for at least 260 pieces or one word")
        if config.kind == "bpe":
            pieces, merges = _learn_pieces(texts, room)
        else:
            counts = Counter(word for text in texts for word in _words(text))
            often = sorted((word for word, n in counts.items() if n >= config.min_count), key=lambda w: (-counts[w], w))
            pieces, merges = often[:room], []
        if not pieces:
            raise DataError(
                f"no word is seen {config.min_count} times in the {len(texts)} captions", fix="a smaller words.min_count"
            )
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

    def decode(self, ids: Sequence[int]) -> str:
        if self.kind == "bpe":
            return self._bytes(ids).decode("utf-8", errors="replace").strip()
        text = ""
        for word in (self.pieces[i] for i in ids if i >= self._first or i == UNK):
            text += word if not text or (_unspaced(word) and _unspaced(text[-1])) else f" {word}"
        return text

    def split(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """The words of a caption, each with the place of the token that it begins with."""
        if self.kind == "word":
            return [(self.pieces[i], place) for place, i in enumerate(ids) if i >= self._first or i == UNK]
        parts: list[tuple[list[int], int]] = []
        for place, i in enumerate(ids):
            if not parts or self.pieces[i].startswith("Ġ") or self.pieces[parts[-1][0][-1]] == "Ġ":
                parts.append(([], place))
            parts[-1][0].append(i)
        return [(self.decode(part), place) for part, place in parts]

    def _bytes(self, ids: Sequence[int]) -> bytes:
        alphabet = _byte_alphabet()
        return bytes(alphabet[character] for i in ids if i >= self._first for character in self.pieces[i])

    @property
    def _first(self) -> int:
        return len(_SPECIAL) + len(self.languages)

    # Text to numbers

    def encode(self, text: str) -> list[int]:
        """A caption's ids, with neither begin nor end."""
        clean = _clean(text, self.lowercase)
        if self.kind == "word":
            return [self._ids.get(word, UNK) for word in _words(clean)]
        return [self._ids[piece] for piece in self._splitter.encode(clean).tokens]

    def unknown_share(self, captions: Iterable[str]) -> float:
        """The share of tokens that this vocabulary has no word for."""
        ids = [i for text in captions for i in self.encode(text)]
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
        facts = {
            "format": FORMAT, "kind": self.kind, "languages": self.languages, "lowercase": self.lowercase,
            "pieces": self.pieces, "merges": self.merges,
        }  # fmt: skip
        path.write_text(json.dumps(facts, ensure_ascii=False, indent=0), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Words:
        try:
            return cls.parse(path.read_bytes())
        except FileNotFoundError:
            raise ModelError(f"no words in {path}") from None
        except ModelError as error:
            raise ModelError(f"{path}: {error.what}", expected=error.expected) from None

    @classmethod
    def parse(cls, data: bytes) -> Words:
        """From the bytes of a saved vocabulary."""
        try:
            facts = json.loads(data)
            if facts["format"] != FORMAT:
                raise ModelError(f"words of the form '{facts['format']}'", expected=FORMAT)
            pieces, languages = tuple(map(str, facts["pieces"])), tuple(map(str, facts["languages"]))
            merges = tuple((str(left), str(right)) for left, right in facts["merges"])
            kind, lowercase = str(facts["kind"]), bool(facts["lowercase"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"not a vocabulary: {error!r}", expected=f"JSON with the format '{FORMAT}'") from None
        special = (*_SPECIAL, *(f"<{lang}>" for lang in languages))
        if kind not in ("word", "bpe") or pieces[: len(special)] != special or len(set(pieces)) != len(pieces):
            raise ModelError("not a vocabulary: its tokens are not in order", expected=", ".join(special))
        return cls(kind, languages, lowercase, pieces, merges)


def _clean(text: str, lowercase: bool) -> str:
    """One way to write each character, and one space between words."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return unicodedata.normalize("NFC", text.lower()) if lowercase else text


def _words(text: str) -> list[str]:
    """Words, numbers, and characters of scripts without spaces. Punctuation is left out: captions hardly need it,
    metrics ignore it, and a final full stop would be a word to learn for nothing."""
    found: list[str] = require("regex", "train", "finding words").findall(_WORD, text)
    return found


def _unspaced(text: str) -> bool:
    """Whether the text begins with a character of a script that is written without spaces."""
    code = ord(text[0])
    return any(low <= code <= high for low, high in _UNSPACED_RANGES)


_UNSPACED_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # 々 and its like
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level pieces: itself where it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in set(seen)]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(unseen)}


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
