"""The consensus: equal to its definition written plainly, right about pictures it has not seen, and safe to read."""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter

import numpy as np
import pytest

from cutline import consensus
from cutline.consensus import Consensus, fit
from cutline.errors import DataError, ModelError

TOPICS = [(10, 11, 12), (20, 21, 22), (30, 31, 32)]
"""What is said of pictures of three kinds; 5 and 6 are said of all."""


def pictures(count: int, seed: int) -> tuple[np.ndarray, list[int], list[list[tuple[int, ...]]]]:
    """Vectors that tell the topic from noise, the topics, and three captions each that do so too."""
    draw = np.random.default_rng(seed)
    topics = draw.integers(0, 3, count)
    seen = draw.standard_normal((count, 8)).astype(np.float32)
    seen[np.arange(count), topics] += 4
    captions = [[(5, *draw.permutation(TOPICS[topic])[:2].tolist(), 6) for _ in range(3)] for topic in topics]
    return seen, topics.tolist(), captions


def plain_vector(caption: tuple[int, ...], order: int, groups: list[list[tuple[int, ...]]]) -> dict[tuple, float]:
    """As CIDEr has it: counts of runs by the logarithm of pictures to pictures that have them, of length 1."""

    def grams(words):
        return [words[i : i + order] for i in range(len(words) - order + 1)]

    have = Counter(run for group in groups for run in {run for caption in group for run in grams(caption)})
    counts = Counter(grams(caption))
    known = {run for run, count in have.items() if count >= consensus.LEAST}
    weights = {run: n * math.log(len(groups) / (have[run] if run in known else 1)) for run, n in counts.items()}
    length = math.sqrt(sum(weight**2 for weight in weights.values()))
    return {run: weight / length for run, weight in weights.items() if run in known} if length else {}


def test_it_is_a_ridge_regression_on_the_mean_of_the_captions_vectors() -> None:
    seen, _, captions = pictures(200, seed=0)
    new, _, _ = pictures(5, seed=1)
    asked = [(5, 10, 11, 6), (5, 20, 6), (11, 11, 99), (7,), ()]
    found = fit(seen, {"en": captions}).opinions()["en"](new, [asked] * 5)
    expected = np.zeros((5, len(asked)))
    inputs = (seen - seen.mean(0)) / seen.std(0)
    others = (new - seen.mean(0)) / seen.std(0)
    ridge = inputs.T @ inputs + consensus.RIDGE * np.eye(8)
    for order in (1, 2):
        vectors = [[plain_vector(caption, order, captions) for caption in group] for group in captions]
        for run in {run for group in vectors for vector in group for run in vector}:
            wanted = np.array([np.mean([vector.get(run, 0.0) for vector in group]) for group in vectors])
            guess = others @ np.linalg.solve(ridge, inputs.T @ (wanted - wanted.mean()))
            for place, caption in enumerate(asked):
                expected[:, place] += 5 * guess * plain_vector(caption, order, captions).get(run, 0.0)
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_of_captions_as_good_the_one_of_rarer_words_is_better() -> None:
    """By as much as its words are rarer than what every 55th picture has; what nobody can guess brings nothing."""
    seen, _, captions = pictures(2000, seed=0)
    for place in range(8):
        captions[place] = [(*caption, 40) for caption in captions[place]]
    captions[8] = [(*caption, 41) for caption in captions[8]]
    opinion = fit(seen, {"en": captions}).opinions()["en"]
    alike = seen.mean(0, keepdims=True)  # of which nothing is guessed
    found = opinion(alike, [[(5, 10), (5, 40), (40,), (5, 41), (5, 10, 6, 40)]])
    rarer = math.log(2000 / 8) - consensus.COMMON
    np.testing.assert_allclose(found, [[0, rarer / 2, rarer, 0, rarer / 4]], atol=2e-3)


@pytest.mark.parametrize(("ranks", "smaller"), [(256, False), (2, False), (256, True)])
def test_it_knows_what_is_said_of_pictures_it_has_not_seen(
    ranks: int, smaller: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, _, captions = pictures(300, seed=0)
    monkeypatch.setattr(consensus, "RANKS", ranks)
    monkeypatch.setattr(consensus, "FEWER", 2)  # of which three topics need no more
    learned = fit(seen, {"en": captions})
    if smaller:
        learned = learned.smaller()
    assert learned.projection.shape == (9, 2 if smaller else min(ranks, 8))
    new, topics, _ = pictures(200, seed=2)
    found = np.array(learned.opinions()["en"](new, [[(5, *topic[:2], 6) for topic in TOPICS]] * 200))
    right = found.argmax(1) == topics
    assert right.mean() > 0.95
    assert found[right].max(1).mean() > 0.3 > 0 > np.sort(found[right])[:, 1].mean()


def test_languages_may_lack_pictures_and_one_with_too_few_is_left_out() -> None:
    seen, _, captions = pictures(300, seed=0)
    half = [group if place % 2 else [] for place, group in enumerate(captions)]
    rare = [group if place < 4 else [] for place, group in enumerate(captions)]
    found = fit(seen, {"en": captions, "de": half, "fr": rare})
    assert set(found.opinions()) == {"en", "de"}
    new, topics, _ = pictures(100, seed=2)
    for opinion in found.opinions().values():
        guesses = np.array(opinion(new, [TOPICS] * 100))
        assert (guesses.argmax(1) == topics).mean() > 0.95
    with pytest.raises(DataError, match="no consensus to learn"):
        fit(seen, {"fr": rare})


def test_a_language_counts_by_its_captions_of_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one person has said of each picture is told the better, but it is what three agree on that is kept."""
    draw = np.random.default_rng(0)
    seen = draw.standard_normal((400, 8)).astype(np.float32)
    one, other = seen[:, 0] > 0, seen[:, 1] > 0
    seen[:, 1] += 4 * other
    captions = {
        "en": [[TOPICS[int(topic)]] * 3 for topic in one],
        "de": [[TOPICS[int(topic)]] for topic in other],
    }
    monkeypatch.setattr(consensus, "RANKS", 1)
    opinions = fit(seen, captions).opinions()
    right = {
        lang: (np.array(opinions[lang](seen, [TOPICS[:2]] * 400)).argmax(1) == topics).mean()
        for lang, topics in (("en", one), ("de", other))
    }
    assert right["en"] > 0.9
    assert right["de"] < 0.7


@pytest.mark.parametrize("ranks", [8, 2, 1])
@pytest.mark.parametrize("smaller", [False, True])
def test_nothing_is_guessed_for_the_mean_of_a_languages_own_pictures(
    ranks: int, smaller: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a language that only some pictures have, unlike the others, and whatever of the map is left out."""
    seen, topics, captions = pictures(300, seed=0)
    monkeypatch.setattr(consensus, "FEWER" if smaller else "RANKS", ranks)
    own = [place for place, topic in enumerate(topics) if topic != 2 and seen[place, 5] > 0]
    some = [group if place in own else [] for place, group in enumerate(captions)]
    learned = fit(seen, {"en": captions, "de": some})
    opinion = (learned.smaller() if smaller else learned).opinions()["de"]
    asked = [[(5, 10, 11, 6), (20, 21), (5,)]]
    assert np.abs(opinion(seen[own], asked * len(own))).max() > 0.3
    np.testing.assert_allclose(opinion(seen[own].mean(0, keepdims=True), asked), [[0, 0, 0]], atol=1e-3)


def test_it_comes_back_from_its_bytes() -> None:
    seen, _, captions = pictures(300, seed=0)
    found = fit(seen, {"en": captions, "de": captions})
    again = Consensus.parse(found.to_bytes())
    new, _, asked = pictures(50, seed=3)
    before, after = (np.array(each.opinions()["de"](new, asked)) for each in (found, again))
    assert np.abs(before).max() > 0.5
    np.testing.assert_allclose(after, before, atol=0.02)  # a byte for each weight


def test_what_is_no_consensus_is_refused() -> None:
    seen, _, captions = pictures(50, seed=0)
    whole = fit(seen, {"en": captions}).to_bytes()
    with np.load(io.BytesIO(whole)) as file:
        arrays = dict(file)

    def written(**changes: object) -> bytes:
        file = io.BytesIO()
        np.savez(file, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
        return file.getvalue()

    assert Consensus.parse(written()).opinions()
    wrong = [
        b"", b"no archive", whole[: len(whole) // 2],
        written(**{"en.table.whole": None}), written(**{"en.table.whole": arrays["en.table.whole"][:, 1:]}),
        written(**{"en.runs": arrays["en.runs"][1:]}), written(**{"projection.constant": np.zeros(3)}),
        written(**{"en.rarity": np.array(["x"])}), written(format=np.array("cutline consensus 99")),
    ]  # fmt: skip
    for data in wrong:
        with pytest.raises(ModelError, match="consensus"):
            Consensus.parse(data)
    for place in range(0, len(whole), len(whole) // 300):  # a byte that makes no difference is none that is missed
        with contextlib.suppress(ModelError):
            Consensus.parse(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
