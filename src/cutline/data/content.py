"""Words of content, which a caption should say once: "a man with a man" is the commonest fault of small captioners.

The usual scores hardly notice it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

LANGUAGES = {"en", "de", "fr", "cs", "es"}
"""Those whose function words are known."""
# Articles, prepositions, pronouns, conjunctions and auxiliaries: what a good caption may say twice. One list for all
# languages, as a score does not know which one it is of.
_WORDS = """
a an the and or but of to in into on onto at by for from with without while as is are was were be been being it its
his her their he she they him them who whom which that this these those there one two three some another other others
each both up down out over under off around through near next behind front across along between against has have
having do does doing not no all several many very

der die das den dem des ein eine einen einem einer eines und oder aber von vom zu zum zur im in ins an am ans auf aus
bei mit ohne für über unter vor hinter neben zwischen durch um gegen während als ist sind war waren wird werden wurde
hat haben hält er sie es ihr ihre ihren ihrem ihrer sein seine seinen seinem seiner sich wer was welche welcher dieser
diese dieses zwei drei mehrere andere anderen anderer nicht kein keine sehr

le la les l' un une des du de d' et ou mais à au aux en dans sur sous par pour avec sans vers chez est sont était qui
que qu' dont il elle ils elles son sa ses leur leurs ce cet cette ces se s' y ne n' pas plus deux trois plusieurs
autre autres tandis pendant devant derrière entre près

a i v ve na nad pod po za ze z s se si do k ke ku o od ode u při před přes mezi je jsou byl byla bylo byli který která
které kteří jeho její jejich svůj svou své svém dva dvě tři jiný jiná jiné další ten ta to ti ty tento tato toto ale
nebo že jak zatímco

el la los las un una unos unas y o pero de del a al en con sin por para sobre bajo entre hacia desde es son está están
que quien cuyo su sus él ella ellos ellas se dos tres otro otra otros otras mientras
"""
_FUNCTION = frozenset(_WORDS.split())
_SIGNS = (
    {"the", "of", "with"},
    {"der", "und", "mit"},
    {"dans", "avec", "une"},
    {"na", "se", "ve"},
    {"con", "una", "los"},
)
"""Of each of the languages, what no other one has together."""
COMMON = 300


def known(language: str, words: Iterable[str]) -> bool:
    """Whether its function words are; one without a name shows in its words, of which the common ones come first."""
    if language != "und":
        return language.partition("-")[0] in LANGUAGES
    there = {word.lower() for word in islice(words, COMMON)}
    return any(signs <= there for signs in _SIGNS)


def is_content(word: str) -> bool:
    """Whether a word, in lower case, stands for something, rather than for how things stand to each other."""
    return word not in _FUNCTION and any(map(str.isalpha, word))


def repeats(words: Sequence[str]) -> bool:
    """Whether a caption says a word of content twice."""
    content = [word for word in words if is_content(word)]
    return len(set(content)) < len(content)
