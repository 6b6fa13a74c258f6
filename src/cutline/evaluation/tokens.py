"""Captions as the words that scores compare: what pycocoevalcap's Java tokenizer makes of them, without Java.

That is the Stanford tokenizer's lower-case Penn Treebank form with its punctuation taken out, oddities included:
contractions are split ("do n't", "man 's"), hyphenated words are not, brackets stay as "-lrb-" and "-rrb-", and
so does "!!".

Measured against it, captions with the same words in the same order: Flickr8k's 35,000 in English 100 %, COCO
val2017's 25,014 99.98 %; Flickr8k in German 99.6 %, French 99.7 %, Czech 100 %. The rest is mostly its own slips
("rot/wei ßer", "s 'em brassent"). On purpose unlike it: scripts written without spaces are split into characters,
so that a Chinese caption is more than one word, and the punctuation of all scripts is taken out, not only of Latin, and
so is what is not seen, such as marks of which way a text runs.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import chain

from cutline.data.words import UNSEEN

# Marks are part of a word in Hebrew, Arabic and most scripts of South Asia, and so is, there and in Persian, what joins
# letters or keeps them apart without being seen; but `\w` leaves them out.
_MARKS = "\u200c\u200d" + "".join(
    letter
    for letter in map(chr, chain(range(0x300, 0x2000), range(0xA660, 0xAC00)))
    if unicodedata.category(letter).startswith("M")
)
_W = rf"[\w{_MARKS}]"
_L = r"[^\W\d_]"

# What keeps its full stop; not what also ends a sentence, in English ("sun.") or elsewhere ("est.", "mar.").
_ABBREVIATIONS = r"""
    mr|mrs|ms|messrs|dr|drs|prof|rev|gov|lt|sgt|capt|cmdr|jr|sr|esq|st|ave|blvd|rd|mt|ft|dept|bldg|univ|inc|ltd|co|corp|bros
    |jan|feb|apr|aug|oct|nov|thurs|fri|vs|etc|ph\.d|ariz|calif|colo|conn|ky|md|mich|minn|okla|penn|tenn|vt|wis|wyo
"""

_TOKEN = re.compile(
    rf"""
      <[a-z/!?][^<>]*>                                  # a tag
    | (?:https?://|www\.)[^\s"<>]*[\w/]                 # an address of a page
    | [\w.+-]+@\w+(?:[.-]\w+)*                          # an address for mail
    | [\#@][a-z_]\w+                                    # a hashtag or a user
    | [:;=]-?[()] | -[lr][rsc]b-                        # a smile, a bracket's name
    | '(?:s|m|d|ll|re|ve)(?!{_W})                       # it|'s
    | {_L}+(?=n't(?!{_W})) | n't(?!{_W})                # do|n't
    | 'n' | '(?:n|em|til|cause)(?!{_W})                 # rock|'n'|roll
    | [yj]'(?={_L})                                     # y'|all
    | '\d\ds?(?!{_W})                                   # '60s
    | (?:[doln]'|{_L}*[aeiou]'(?=[aeiou])){_W}+(?:-{_W}+)*    # o'clock, ma'am
    | (?:{_L}\.)+(?!{_W}) | (?:{_ABBREVIATIONS})\.(?!{_W})    # u.s., mrs.
    | \d+(?:[:.]\d+)+(?=[ap]m(?!{_W}))                  # 10:30|pm
    | [-+]?\.?\d+(?:[.,:/-]\d+)*(?!-?{_W})              # 10,000
    | {_W}+(?:[.!?]{_L}{_W}*)*(?:[-/]{_W}+)*            # white, black/white, t-shirt
    | [!?]+ | \.\.\.+ | --+
    | \S
    """,
    re.VERBOSE,
)

# Han, Japanese, Thai, Lao, Burmese and Khmer letters, each with its marks.
_UNSPACED = re.compile(
    rf"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    rf"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff][{_MARKS}]*"
)
_ALIKE = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛‹›", "'"),
        **dict.fromkeys("“”„‟«»「」『』《》", '"'),
        **dict.fromkeys("–—―", "--"),
        **dict.fromkeys("。．।॥۔", "."),
        **dict.fromkeys("，、､،", ","),
        **dict(zip("！？；：؟؛", "!?;:?;")),
        **dict(zip("（）［］", "()[]")),
        **dict.fromkeys("¿¡·・"),
        **dict.fromkeys(UNSEEN),
        "…": "...",
        "\u200b": " ",
    }
)

_SPLIT = {
    "cannot": ["can", "not"],
    "gonna": ["gon", "na"],
    "wanna": ["wan", "na"],
    "gotta": ["got", "ta"],
    "lemme": ["lem", "me"],
    "gimme": ["gim", "me"],
}
_BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
)
_PUNCTUATES = frozenset(["Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Cf"])
_PUNCTUATION = frozenset(["'", "`", '"', ".", "?", "!", ",", ":", ";", "-", "--", "..."])


def tokenize(text: str) -> list[str]:
    """The lower-case words of a caption, without its punctuation."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_ALIKE)
        text = _UNSPACED.sub(r" \g<0> ", text)
    return list(chain.from_iterable(map(_tokens, text.lower().split())))


def _is_other_punctuation(token: str) -> bool:
    """Whether it is what other scripts than Latin punctuate with, as far as it is not written as Latin's above; or what
    joins the parts of a picture sign.
    """
    return all(letter >= "\u0300" and unicodedata.category(letter) in _PUNCTUATES for letter in token)


@lru_cache(maxsize=1 << 16)
def _tokens(chunk: str) -> tuple[str, ...]:
    """The words of a stretch between spaces. Few of them are new, so most are looked up."""
    tokens: list[str] = []
    for token in _TOKEN.findall(chunk):
        # Longer runs of dots and dashes are written as the shortest.
        if token not in _PUNCTUATION and token.strip("-") and token.strip(".") and not _is_other_punctuation(token):
            tokens += _SPLIT.get(token) or [token.translate(_BRACKETS)]
    return tuple(tokens)
