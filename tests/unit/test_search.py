"""Search against an exhaustive one, against a slow plain one, and against models that misbehave."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.config import SearchConfig
from cutline.errors import ConfigError
from cutline.search import Hypothesis, _top, check, search

PAD, END, UNK, BEGIN = 0, 1, 2, 3
FORBIDDEN = (PAD, UNK, BEGIN)
FIRST = 4


class Toy:
    """Log-probabilities of the next word, a function of the picture (a seed) and all words so far.

    State is the words written, (B,N,T); so a search that reorders wrongly gets wrong probabilities. Attention is
    (picture, number of words so far, last word), so that what comes back can be checked.
    """

    def __init__(self, words: int, regions: int = 3) -> None:
        self.words, self.regions, self.steps = words, regions, 0

    def logits(self, picture: int, written: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([int(picture), *written]).standard_normal(self.words) * 2

    def logp(self, picture: int, written: tuple[int, ...]) -> np.ndarray:
        logits = self.logits(picture, written)
        with np.errstate(invalid="ignore"):
            top = logits.max()
            return logits - top - np.log(np.exp(logits - top).sum())

    def start(self, pictures):
        return np.asarray(pictures), np.zeros((len(pictures), 1, 0), int)

    def step(self, state, tokens):
        pictures, written = state
        self.steps += 1
        assert tokens.shape == written.shape[:2]
        written = np.concatenate([written, tokens[:, :, None]], axis=2)
        logp = np.array([[self.logp(p, tuple(row)) for row in rows] for p, rows in zip(pictures, written)])
        looks = [[(p, len(row) - 1, row[-1]) for row in rows] for p, rows in zip(pictures, written)]
        return logp, np.array(looks, float)[:, :, : self.regions], (pictures, written)

    def reorder(self, state, rows):
        pictures, written = state
        return pictures, np.take_along_axis(written, rows[:, :, None], axis=1)


CONTENT = (FIRST, FIRST + 2)
"""What may be said once, where that is asked for."""


def says_twice(words: tuple[int, ...]) -> bool:
    return any(words.count(word) > 1 for word in CONTENT)


def run(model, pictures, **given) -> list[list[Hypothesis]]:
    return search(model, pictures, BEGIN, END, FORBIDDEN, SearchConfig(**given))


def exhaustive(model: Toy, picture: int, s: SearchConfig) -> list[tuple[float, tuple[int, ...]]]:
    """Every caption there is, with its score, best first."""
    found = []
    for length in range(s.min_length, s.max_length + 1):
        for words in itertools.product(range(FIRST, model.words), repeat=length):
            grams = [words[i : i + s.no_repeat] for i in range(length - s.no_repeat + 1)] if s.no_repeat else []
            if len(grams) == len(set(grams)) and not (s.say_once and says_twice(words)):
                whole = (*words, END)
                total = sum(model.logp(picture, (BEGIN, *words[:i]))[w] for i, w in enumerate(whole))
                found.append((total / len(whole) ** s.length_penalty, words))
    return sorted(found, reverse=True)


def plain_beam(model: Toy, picture: int, s: SearchConfig) -> list[tuple[float, tuple[int, ...]]]:
    """Beam search as one would first write it: lists, sorting, no early exit."""
    running, finished = [(0.0, ())], []
    for step in range(s.max_length + 1):
        candidates = []
        for total, words in running:
            logp = model.logp(picture, (BEGIN, *words))
            for word in range(model.words):
                grams = [(*words, word)[i : i + s.no_repeat] for i in range(step + 2 - s.no_repeat)]
                repeats = s.no_repeat and word != END and len(grams) > len(set(grams))
                repeats |= s.say_once and says_twice((*words, word))
                early = word == END and step < s.min_length
                late = word != END and step == s.max_length
                if word not in FORBIDDEN and not repeats and not early and not late:
                    candidates.append((total + logp[word], (*words, word)))
        candidates.sort(reverse=True)
        for total, words in candidates[: s.beam]:
            if words[-1] == END:
                finished.append((total / len(words) ** s.length_penalty, words[:-1]))
        running = [c for c in candidates if c[1][-1] != END][: s.beam]
    return sorted(finished, reverse=True)[: s.num]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize(("no_repeat", "say_once"), [(0, False), (1, False), (2, False), (0, True), (2, True)])
def test_a_wide_beam_finds_what_exhaustive_search_finds(penalty: float, no_repeat: int, say_once: bool) -> None:
    s = SearchConfig(beam=120, num=5, max_length=4, length_penalty=penalty, no_repeat=no_repeat, say_once=say_once)
    model = Toy(words=7)
    for picture, captions in enumerate(search(model, range(4), BEGIN, END, FORBIDDEN, s, CONTENT)):
        best = exhaustive(model, picture, s)[:5]
        assert [c.tokens for c in captions] == [words for _, words in best]
        assert [c.score for c in captions] == pytest.approx([score for score, _ in best])


@settings(max_examples=60, deadline=None)
@given(
    beam=st.integers(2, 5),
    num=st.integers(1, 2),
    words=st.integers(6, 12),
    lengths=st.tuples(st.integers(0, 3), st.integers(3, 7)),
    penalty=st.sampled_from([0.0, 0.5, 0.7, 1.0, 1.5]),
    no_repeat=st.integers(0, 3),
    say_once=st.booleans(),
    pictures=st.lists(st.integers(0, 10_000), min_size=1, max_size=3),
)
def test_beam_search_equals_a_plain_one(beam, num, words, lengths, penalty, no_repeat, say_once, pictures) -> None:
    s = SearchConfig(
        beam=beam,
        num=num,
        min_length=lengths[0],
        max_length=lengths[1],
        length_penalty=penalty,
        no_repeat=no_repeat,
        say_once=say_once,
    )
    model = Toy(words)
    for picture, captions in zip(pictures, search(model, pictures, BEGIN, END, FORBIDDEN, s, CONTENT)):
        expected = plain_beam(model, picture, s)
        if expected:
            assert [c.tokens for c in captions] == [words for _, words in expected]
            assert [c.score for c in captions] == pytest.approx([score for score, _ in expected])
        else:  # few words and no repeats: nothing can end, and still there is a caption
            assert len(captions) >= 1


def test_greedy_takes_the_likeliest_word_and_is_a_beam_of_one() -> None:
    model = Toy(words=20)
    for picture, (caption,) in enumerate(run(model, range(20), method="greedy", max_length=12)):
        words: tuple[int, ...] = ()
        while len(words) < 12:
            logp = model.logp(picture, (BEGIN, *words))
            logp[list(FORBIDDEN)] = -np.inf
            if not words:
                logp[END] = -np.inf
            if logp.argmax() == END:
                break
            words = (*words, int(logp.argmax()))
        assert caption.tokens == words
    greedy = run(model, range(20), method="greedy", max_length=12)
    assert greedy == run(model, range(20), method="beam", beam=1, max_length=12)


METHODS = [
    {"method": "greedy"},
    {"method": "beam", "beam": 4, "num": 3},
    {"method": "diverse", "beam": 4, "groups": 2, "num": 3},
    {"method": "sample", "num": 3, "seed": 5},
]


@pytest.mark.parametrize("given", METHODS, ids=lambda given: given["method"])
def test_captions_do_not_depend_on_the_pictures_beside_them(given: dict) -> None:
    pictures = list(range(9))
    together = run(Toy(15), pictures, max_length=10, **given)
    alone = [run(Toy(15), [picture], max_length=10, **given)[0] for picture in pictures]
    assert together == alone
    assert run(Toy(15), pictures[::-1], max_length=10, **given) == alone[::-1]


@pytest.mark.parametrize("given", METHODS, ids=lambda given: given["method"])
def test_rules_hold_for_every_method(given: dict) -> None:
    for captions in run(Toy(8), range(12), min_length=3, max_length=6, no_repeat=2, **given):
        assert 1 <= len(captions) <= given.get("num", 1)
        assert captions == sorted(captions, key=lambda c: -c.score)
        for c in captions:
            assert 3 <= len(c.tokens) <= 6
            assert not {*FORBIDDEN, END} & set(c.tokens)
            pairs = list(itertools.pairwise(c.tokens))
            assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize("given", METHODS, ids=lambda given: given["method"])
def test_attention_comes_back_with_its_word(given: dict) -> None:
    for picture, captions in enumerate(run(Toy(15), range(5), max_length=8, **given)):
        for c in captions:
            looks = [(picture, place, word) for place, word in enumerate((BEGIN, *c.tokens[:-1]))]
            assert c.attention is not None
            assert c.attention.tolist() == [list(map(float, look)) for look in looks]
    assert run(Toy(15, regions=0), [1], **given)[0][0].attention is None


def test_scores_are_those_of_the_model() -> None:
    model = Toy(15)
    for method in METHODS:
        for picture, captions in enumerate(run(model, range(5), max_length=8, length_penalty=1.0, **method)):
            for c in captions:
                whole = (*c.tokens, END)
                total = sum(model.logp(picture, (BEGIN, *whole[:i]))[w] for i, w in enumerate(whole))
                assert c.score == pytest.approx(total / len(whole))


class Table(Toy):
    """The same given log-probabilities at every step, whatever was written."""

    def __init__(self, *logp: float, regions: int = 0) -> None:
        super().__init__(len(logp), regions)
        self.table = np.array(logp)

    def logp(self, picture: int, written: tuple[int, ...]) -> np.ndarray:
        return self.table


NO = -math.inf


@pytest.mark.parametrize("given", METHODS, ids=lambda given: given["method"])
@pytest.mark.parametrize(
    ("name", "logp", "lengths"),
    [
        ("never ends", (NO, NO, NO, NO, -0.7, -0.7), {8}),
        ("hardly ever ends", (-50, -50, -50, -50, -0.7, -0.7), {8}),
        ("ends at once", (NO, 0.0, NO, NO, NO, NO), {0, 1}),
        ("all mass on what is forbidden", (-1.1, NO, -1.1, -1.1, NO, NO), {0}),
        ("nothing at all", (NO,) * 6, {0}),
        ("not a number", (math.nan,) * 6, {0}),
        ("in part not a number", (math.nan, -1.0, math.nan, -1.0, -1.0, math.nan), set(range(1, 9))),
        ("infinite", (math.inf, -1.0, -1.0, -1.0, math.inf, -1.0), set(range(1, 9))),
    ],
)
def test_a_model_that_misbehaves_still_gives_a_caption(given: dict, name: str, logp, lengths) -> None:
    for captions in run(Table(*logp), range(3), max_length=8, **given):
        assert captions, name
        for c in captions:
            assert len(c.tokens) in lengths
            assert not {*FORBIDDEN, END} & set(c.tokens)
            assert not math.isnan(c.score)


def test_a_caption_may_be_empty_only_when_told() -> None:
    ends = Table(NO, -0.01, NO, NO, -5.0)
    assert run(ends, [0], min_length=0)[0][0].tokens == ()
    assert run(ends, [0], min_length=2)[0][0].tokens == (4, 4)


def test_a_picture_that_breaks_leaves_the_others_alone() -> None:
    class Broken(Toy):
        def logits(self, picture, written):
            return np.full(self.words, np.nan) if picture == 1 else super().logits(picture, written)

    for method in METHODS:
        healthy = run(Toy(12), [0, 2], max_length=8, **method)
        captions = run(Broken(12), [0, 1, 2], max_length=8, **method)
        assert [captions[0], captions[2]] == healthy
        assert captions[1][0].tokens == ()


def test_search_stops_when_nothing_better_can_come() -> None:
    certain = Table(NO, -0.01, NO, NO, -4.7)
    assert run(certain, range(3), beam=3, max_length=200)[0][0].tokens == (4,)
    certain.steps = 0
    run(certain, range(3), beam=3, max_length=200, length_penalty=0.0)
    assert certain.steps <= 4
    certain.steps = 0
    run(certain, range(3), method="greedy", max_length=200)
    assert certain.steps == 2


def test_search_goes_on_while_a_longer_caption_may_win() -> None:
    class Long(Toy):
        """A short caption that ends at once, or, less likely, one that is certain of its words until the last."""

        def logp(self, picture: int, written: tuple[int, ...]) -> np.ndarray:
            chances = {4: 0.7, 5: 0.3}
            if len(written) > 1:
                chances = {END: 0.9, 4: 0.1} if written[-1] == 4 else {END if len(written) == 7 else 5: 1.0}
            with np.errstate(divide="ignore"):
                return np.log([chances.get(word, 0.0) for word in range(self.words)])

    (best, second), *_ = run(Long(6), [0], beam=2, num=2, max_length=6, length_penalty=1.0)
    assert (best.tokens, second.tokens) == ((5,) * 6, (4,))
    assert best.score == pytest.approx(math.log(0.3) / 7)
    assert run(Long(6), [0], beam=2, max_length=6, length_penalty=1.0)[0][0] == best


def test_diverse_groups_avoid_one_another() -> None:
    model = Toy(30)

    def firsts(diversity: float) -> list[int]:
        found = run(model, range(10), method="diverse", beam=3, groups=3, num=3, diversity=diversity, max_length=6)
        return [len({c.tokens[0] for c in captions}) for captions in found]

    assert set(firsts(100.0)) == {3}
    assert set(firsts(0.0)) == {1}
    # Without the penalty every group is the same plain beam search.
    plain = run(model, range(10), beam=2, num=2, max_length=6)
    same = run(model, range(10), method="diverse", beam=6, groups=3, num=2, diversity=0.0, max_length=6)
    assert same == plain


def test_samples_follow_the_model() -> None:
    p = np.array([0.5, 0.3, 0.15, 0.05])
    model = Table(NO, -0.2, NO, NO, *np.log(p))
    draws = [c.tokens[0] for c in run(model, [0], method="sample", num=4000, top_p=1.0, max_length=1)[0]]
    counts = Counter(draws)
    assert [counts[FIRST + i] / 4000 for i in range(4)] == pytest.approx(p, abs=0.03)
    # A temperature of 0.5 squares the probabilities: the first has 0.25 of 0.365, more than 0.65.
    draws = [
        c.tokens[0] for c in run(model, [0], method="sample", num=4000, top_p=0.65, temperature=0.5, max_length=1)[0]
    ]
    counts = Counter(draws)
    assert set(counts) == {FIRST}
    draws = [c.tokens[0] for c in run(model, [0], method="sample", num=4000, top_p=0.75, max_length=1)[0]]
    counts = Counter(draws)
    assert set(counts) == {FIRST, FIRST + 1}
    assert counts[FIRST] / 4000 == pytest.approx(0.5 / 0.8, abs=0.03)


def test_a_nucleus_wider_than_the_first_look_is_still_whole() -> None:
    model = Table(NO, NO, NO, NO, *[-math.log(2000)] * 2000)
    draws = {c.tokens[0] for c in run(model, [0], method="sample", num=3000, top_p=1.0, max_length=1, min_length=1)[0]}
    assert len(draws) > 1300  # 2000 (1 - 1/e^1.5) = 1554 expected


def test_the_seed_decides_the_draws() -> None:
    one, again, other = (run(Toy(30), range(6), method="sample", num=4, seed=seed, max_length=6) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(("size", "count"), [(3, 3), (9000, 1), (9000, 6), (27_013, 10), (5 * 1024, 5)])
def test_top_finds_the_largest(size: int, count: int) -> None:
    values = np.random.default_rng(size).standard_normal((4, size)).astype(np.float32)
    values[1] = -np.inf
    values[2, -1] = 9
    places = _top(values, count)
    expected = -np.sort(-values, axis=1)[:, :count]
    np.testing.assert_array_equal(np.take_along_axis(values, places, axis=1), expected)
    assert all(len(set(row)) == count for row in places[[0, 2, 3]].tolist())


def test_no_pictures_no_captions() -> None:
    assert run(Toy(9), []) == []
    assert run(Toy(9), (np.zeros((0, 4)), np.zeros((0, 2)))) == []


def test_pictures_may_come_in_parts() -> None:
    class Parts(Toy):
        def start(self, pictures):
            return super().start(pictures[0][:, 0])

    grid, pooled = np.arange(5)[:, None], np.zeros((5, 2))
    assert run(Parts(9), (grid, pooled)) == run(Toy(9), range(5))


@pytest.mark.parametrize(
    "given",
    [
        {"beam": 0},
        {"num": 0},
        {"num": 4},
        {"max_length": 0},
        {"min_length": -1},
        {"min_length": 9, "max_length": 8},
        {"no_repeat": -1},
        {"length_penalty": -0.1},
        {"length_penalty": math.nan},
        {"method": "greedy", "num": 2},
        {"method": "diverse", "beam": 4, "groups": 3},
        {"method": "sample", "temperature": 0.0},
        {"method": "sample", "top_p": 0.0},
        {"method": "sample", "top_p": 1.1},
        {"seed": -1},
    ],
)
def test_settings_without_meaning_are_refused(given: dict) -> None:
    with pytest.raises(ConfigError):
        check(dataclasses.replace(SearchConfig(), **given))


class Asked(Toy):
    def seen(self, state):
        pictures, written = state
        assert written.shape[2] == 0, "asked about the state before the first word"
        return pictures[:, None].astype(float)


def liking(seen, captions):
    """An opinion of its own of each picture's captions: a function of the picture and the words."""
    return [
        [float(np.random.default_rng([int(picture), *words]).uniform(0, 10)) for words in group]
        for (picture,), group in zip(seen, captions, strict=True)
    ]


@pytest.mark.parametrize("weight", [0.3, 5.0])
@pytest.mark.parametrize("given", [{"method": "beam"}, {"method": "diverse", "groups": 2}], ids=lambda g: g["method"])
def test_a_second_opinion_chooses_among_all_that_the_beams_have_finished(weight: float, given: dict) -> None:
    s = SearchConfig(beam=6, num=2, max_length=6, consensus=weight, **given)
    pictures = list(range(12))
    without = search(Asked(9), pictures, BEGIN, END, FORBIDDEN, dataclasses.replace(s, consensus=0, num=6))
    changed = 0
    for picture, found, plain in zip(
        pictures, search(Asked(9), pictures, BEGIN, END, FORBIDDEN, s, opinion=liking), without, strict=True
    ):
        (opinions,) = liking([[picture]], [[caption.tokens for caption in plain]])
        scores = [caption.score + weight * each for caption, each in zip(plain, opinions)]
        best = sorted(range(len(plain)), key=lambda place: -scores[place])[:2]
        assert [caption.tokens for caption in found] == [plain[place].tokens for place in best]
        assert [caption.score for caption in found] == pytest.approx([scores[place] for place in best])
        assert [caption.opinion for caption in found] == pytest.approx([opinions[place] for place in best])
        changed += best[0] != 0
    assert changed > 2


@pytest.mark.parametrize("given", METHODS, ids=lambda given: given["method"])
def test_an_opinion_that_does_not_count_is_not_asked_for(given: dict) -> None:
    def loud(seen, captions):
        raise AssertionError("asked")

    pictures = list(range(5))
    s = SearchConfig(max_length=6, **given)
    found = search(Toy(9), pictures, BEGIN, END, FORBIDDEN, s, opinion=loud)
    assert found == search(Toy(9), pictures, BEGIN, END, FORBIDDEN, s)
    if given["method"] in ("greedy", "sample"):  # a single beam leaves nothing to choose from
        s = dataclasses.replace(s, consensus=3.0)
        assert found == search(Toy(9), pictures, BEGIN, END, FORBIDDEN, s, opinion=loud)
    s = dataclasses.replace(s, consensus=3.0)
    assert found == search(Toy(9), pictures, BEGIN, END, FORBIDDEN, s)  # nobody to ask
