"""From a model that knows the next word to whole captions: greedy, beam, diverse beam and sampling.

Plain numpy and written once: training's validation, evaluation and the exported bundle all search here, so they cannot
disagree. All pictures and all their beams take each step together.

Four methods, one machine. A picture's beams stand in groups, and each group keeps its best: *beam* has one group,
*greedy* one group of one beam, *diverse* several groups that avoid one another's words, *sample* one group of one
beam for each caption, which draws its word instead of taking the best.

Axes: B pictures, N rows of each (its beams), V words, R regions, C candidates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cutline.config import SearchConfig
from cutline.errors import ConfigError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BLOCK = 256
NUCLEUS = 256
"""Words sorted in search of a nucleus before all are; nearly always they hold it."""


class StepModel(Protocol):
    """All that search knows of a model. `State` is the model's own and passes through untouched."""

    def start(self, pictures: Any) -> Any:
        """The state before the first word; one row a picture."""

    def seen(self, state: Any) -> Floats:
        """The encoder's one vector of each picture (B,P), for a second opinion; `state` is the first one."""

    def step(self, state: Any, tokens: Ints) -> tuple[Floats, Floats, Any]:
        """tokens (B,N) -> log-probabilities (B,N,V), attention (B,N,R) (R may be 0), the next state."""

    def reorder(self, state: Any, rows: Ints) -> Any:
        """The state whose row i of picture b continues old row rows[b, i]; rows is (B,N')."""


class Opinion(Protocol):
    """Looks at whole captions, which the model has only seen word by word."""

    def __call__(self, seen: Floats, captions: Sequence[Sequence[tuple[int, ...]]]) -> list[list[float]]:
        """How good each of the captions of each picture is; `seen` (B,P) is the encoder's vector of each picture."""


@dataclass(frozen=True)
class Hypothesis:
    """A caption as tokens, without begin and end."""

    tokens: tuple[int, ...]
    score: float
    """Log-probability over length (both with the end token), the length to the power of the length penalty; and the
    second opinion, times `settings.consensus`."""
    attention: Floats | None = field(default=None, compare=False, repr=False)
    """(T,R): what each token looked at; None for a model without attention."""
    opinion: float = 0.0
    """The second opinion alone."""


def search(
    model: StepModel,
    pictures: Any,
    begin: int,
    end: int,
    forbidden: Sequence[int],
    settings: SearchConfig,
    content: Sequence[int] = (),
    opinion: Opinion | None = None,
) -> list[list[Hypothesis]]:
    """`settings.num` captions of each picture, best first; fewer where the model can write no more, or groups of beams
    have written the same, but never none.

    `pictures` is whatever the model understands: an array with a row for each, or a tuple of such arrays. A picture's
    captions do not depend on those beside it. `content` are the tokens that `settings.say_once` is about. With a
    second `opinion` and `settings.consensus`, as many captions are finished as there are beams, and the best of those
    by both scores are returned. What the model can neither end nor continue stops where it stands.
    """
    check(settings)
    count = len(pictures[0] if isinstance(pictures, tuple) else pictures)
    if count == 0:
        return []
    asking = opinion is not None and settings.consensus > 0 and settings.method in ("beam", "diverse")
    beams = _Beams(count, end, forbidden, replace(settings, num=settings.beam) if asking else settings, content)
    tokens = np.full((count, 1), begin, np.int64)
    first = state = model.start(pictures)
    while True:
        logp, attention, state = model.step(state, tokens)
        rows, tokens = beams.advance(logp, attention)
        if not beams.running:
            break
        state = model.reorder(state, rows)
    found = beams.captions()
    if opinion is None or not asking:
        return found
    opinions = opinion(model.seen(first), [[caption.tokens for caption in group] for group in found])
    return [_chosen(group, each, settings) for group, each in zip(found, opinions, strict=True)]


def _chosen(captions: Sequence[Hypothesis], opinions: Sequence[float], settings: SearchConfig) -> list[Hypothesis]:
    """A picture's captions with the opinions in their scores, the best `settings.num` of them, best first."""
    weight = settings.consensus
    both = [replace(c, score=c.score + weight * each, opinion=each) for c, each in zip(captions, opinions, strict=True)]
    return sorted(both, key=lambda caption: -caption.score)[: settings.num]


def check(settings: SearchConfig) -> None:
    """Refuse settings that have no meaning, or contradict each other."""
    s = settings
    whole = {"beam": 1, "num": 1, "groups": 1, "max_length": 1, "min_length": 0, "no_repeat": 0, "seed": 0}
    for name, least in whole.items():
        if getattr(s, name) < least:
            raise ConfigError(f"search.{name} is {getattr(s, name)}", expected=f"{least} or more")
    for name in ("length_penalty", "diversity", "consensus"):
        if not 0 <= getattr(s, name) < math.inf:
            raise ConfigError(f"search.{name} is {getattr(s, name)}", expected="0 or more")
    if not 0 < s.temperature < math.inf:
        raise ConfigError(f"search.temperature is {s.temperature}", expected="more than 0")
    if not 0 < s.top_p <= 1:
        raise ConfigError(f"search.top_p is {s.top_p}", expected="more than 0, at most 1")
    if s.min_length > s.max_length:
        raise ConfigError(f"search.min_length {s.min_length} is more than search.max_length {s.max_length}")
    if s.method == "greedy" and s.num > 1:
        raise ConfigError(f"greedy search has one caption, not {s.num}", fix="use beam, diverse or sample")
    if s.method in ("beam", "diverse") and s.num > s.beam:
        raise ConfigError(f"{s.beam} beams cannot give {s.num} captions", fix=f"a beam of {s.num} or more")
    if s.method == "diverse" and s.beam % s.groups:
        even = math.ceil(s.beam / s.groups) * s.groups
        what = f"{s.beam} beams cannot be shared out among {s.groups} groups evenly"
        raise ConfigError(what, fix=f"a beam of {even}, or other search.groups")


class _Beams:
    """The running beams of all pictures, the captions they have finished, and how they came about."""

    def __init__(
        self, count: int, end: int, forbidden: Sequence[int], settings: SearchConfig, content: Sequence[int]
    ) -> None:
        self.end, self.settings = end, settings
        self.once = np.asarray(sorted(set(content)) if settings.say_once else [], np.int64)
        self.forbidden = np.asarray(sorted(set(forbidden)), np.int64)
        shapes = {
            "greedy": (1, 1),
            "beam": (1, settings.beam),
            "diverse": (settings.groups, settings.beam // settings.groups),
            "sample": (settings.num, 1),
        }
        self.groups, self.width = shapes[settings.method]
        self.wanted = min(settings.num, self.width)
        self.draw = np.random.default_rng(settings.seed) if settings.method == "sample" else None
        # A beam with a score of -inf is dead: its continuations are too, so nothing need be said of it again.
        self.scores: Floats = np.zeros((count, 1))
        self.finished: list[list[list[_End]]] = [[[] for _ in range(self.groups)] for _ in range(count)]
        self.threshold = np.full((count, self.groups), -np.inf)
        self.trail: list[_Step] = []
        self.written = np.zeros((count, 1, 0), np.int64)
        self.buffer: Floats = np.empty(0)

    @property
    def running(self) -> bool:
        return bool(np.isfinite(self.scores).any())

    def advance(self, logp: Floats, attention: Floats) -> tuple[Ints, Ints]:
        """One word further: the rows that go on and the tokens they go on with, both (B, beams)."""
        totals = self._totals(logp)
        draws = self.draw.random(self.groups) if self.draw else None
        crowded = np.zeros((len(totals), totals.shape[2]), totals.dtype) if self.groups > 1 and not self.draw else None
        parts = []
        for group in range(self.groups):
            first = 0 if totals.shape[1] == 1 else group * self.width
            mine = totals[:, first : first + self.width]
            if draws is not None:
                found = _sample(mine[:, 0], draws[group], self.settings)
            elif crowded is not None:
                found = _best(mine - self.settings.diversity * crowded[:, None], 2 * self.width)
            else:
                found = _best(mine, 2 * self.width)
            part = self._settle(group, first, mine, *found)
            if crowded is not None:
                pictures, beams = np.nonzero(np.isfinite(part[0]))
                np.add.at(crowded, (pictures, part[2][pictures, beams]), 1)
            parts.append(part)
        self.scores, rows, tokens = (np.concatenate(part, axis=1) for part in zip(*parts))
        self.trail.append(_Step(tokens, rows, attention))
        if self.settings.no_repeat or len(self.once):
            kept = np.take_along_axis(self.written, rows[:, :, None], axis=1)
            self.written = np.concatenate([kept, tokens[:, :, None]], axis=2)
        return rows, tokens

    def captions(self) -> list[list[Hypothesis]]:
        return [self._captions(picture) for picture in range(len(self.finished))]

    def _totals(self, logp: Floats) -> Floats:
        """Scores of all continuations (B,N,V); -inf for those that the rules or the model do not allow."""
        if self.buffer.shape != logp.shape or self.buffer.dtype != logp.dtype:
            self.buffer = np.empty_like(logp)
        totals, step = self.buffer, len(self.trail)
        with np.errstate(invalid="ignore"):
            np.add(logp, self.scores.astype(logp.dtype)[:, :, None], out=totals)
        if not totals.max() < np.inf:  # a broken row (NaN or +inf) has nothing to say
            totals[~(totals < np.inf)] = -np.inf
        totals[:, :, self.forbidden] = -np.inf
        if step < self.settings.min_length:
            totals[:, :, self.end] = -np.inf
        if step == self.settings.max_length:
            ends = totals[:, :, self.end].copy()
            totals.fill(-np.inf)
            totals[:, :, self.end] = ends
        elif 0 < self.settings.no_repeat <= step:
            self._forbid_repeats(totals)
        if len(self.once):
            pictures, rows, places = np.nonzero(np.isin(self.written, self.once))
            totals[pictures, rows, self.written[pictures, rows, places]] = -np.inf
        return totals

    def _forbid_repeats(self, totals: Floats) -> None:
        size = self.settings.no_repeat
        runs = np.lib.stride_tricks.sliding_window_view(self.written, size, axis=2)
        latest = self.written[:, :, None, self.written.shape[2] - size + 1 :]
        pictures, rows, places = np.nonzero((runs[..., :-1] == latest).all(axis=-1))
        totals[pictures, rows, runs[pictures, rows, places, -1]] = -np.inf

    def _settle(self, group: int, first: int, totals: Floats, rows: Ints, tokens: Ints) -> tuple[Floats, Ints, Ints]:
        """Set aside the candidates that end; the best of the others run on: scores, rows and tokens (B,width)."""
        step = len(self.trail)
        scores = totals[np.arange(len(totals))[:, None], rows, tokens]
        ends = tokens == self.end
        # An end counts when it is among the best `width` candidates; further down, running on is the better idea.
        for picture, place in np.argwhere(ends[:, : self.width] & np.isfinite(scores[:, : self.width])):
            score = float(scores[picture, place]) / (step + 1) ** self.settings.length_penalty
            self._finish(picture, group, _End(score, step, first + int(rows[picture, place])))
        order = np.argsort(ends, axis=1, kind="stable")[:, : self.width]
        scores, rows, tokens, ends = (np.take_along_axis(a, order, axis=1) for a in (scores, rows, tokens, ends))
        scores = np.where(ends, -np.inf, scores)
        short = self.width - scores.shape[1]
        if short > 0:
            scores = np.pad(scores, ((0, 0), (0, short)), constant_values=-np.inf)
            rows, tokens = (np.pad(a, ((0, 0), (0, short)), mode="edge") for a in (rows, tokens))
        self._give_up(group, first, scores)
        scores[self._beaten(group, scores)] = -np.inf
        return scores, rows + first, tokens

    def _finish(self, picture: int, group: int, end: _End) -> None:
        finished = self.finished[picture][group]
        finished.append(end)
        finished.sort(key=lambda end: -end.score)
        if len(finished) >= self.wanted:
            self.threshold[picture, group] = finished[self.wanted - 1].score

    def _beaten(self, group: int, scores: Floats) -> Bools:
        """(B,): whether no running beam can still beat the finished captions; one beam alone has ended with its first.

        Words only ever take log-probability away. So the best that a beam can still reach is its present one over the
        longest length that a caption may get (or over the shortest, for a model that gives more than it should).
        """
        threshold = self.threshold[:, group]
        if self.width == 1:
            return np.asarray(threshold > -np.inf)
        best, power = scores.max(axis=1), self.settings.length_penalty
        longest, shortest = self.settings.max_length + 1, len(self.trail) + 2
        return np.asarray(threshold >= np.maximum(best / longest**power, best / shortest**power))

    def _give_up(self, group: int, first: int, scores: Floats) -> None:
        """Where all beams of a group die and none has ended, keep the best of them as it stood."""
        before = self.scores[:, first : first + self.width]
        stuck = np.isfinite(before).any(axis=1) & ~np.isfinite(scores).any(axis=1)
        step = len(self.trail)
        for picture in np.nonzero(stuck)[0]:
            if not self.finished[picture][group]:
                row = int(before[picture].argmax())
                length = max(step, 1) ** self.settings.length_penalty
                score = float(before[picture, row]) / length if step else -math.inf
                self.finished[picture][group].append(_End(score, step, first + row))

    def _captions(self, picture: int) -> list[Hypothesis]:
        """The groups' best, then their second best, and so on, until there are enough; then best first."""
        found: dict[tuple[int, ...] | int, Hypothesis] = {}
        for rank in itertools.zip_longest(*self.finished[picture]):
            for end in filter(None, rank):
                if len(found) < self.settings.num:
                    caption = self._trace(picture, end)
                    # Two groups may write the same caption, once; two draws may as well, and are two draws.
                    found.setdefault(len(found) if self.draw else caption.tokens, caption)
        return sorted(found.values(), key=lambda caption: -caption.score)

    def _trace(self, picture: int, end: _End) -> Hypothesis:
        tokens, looks, row = [], [], end.row
        for step in reversed(self.trail[: end.step]):
            tokens.append(int(step.tokens[picture, row]))
            row = int(step.rows[picture, row])
            looks.append(step.attention[picture, row])
        regions = self.trail[0].attention.shape[-1]
        attention = np.array(looks[::-1]).reshape(len(looks), regions) if regions else None
        return Hypothesis(tuple(tokens[::-1]), end.score, attention)


@dataclass(frozen=True, slots=True)
class _End:
    """A caption whose last word is that of row `row` before step `step`."""

    score: float
    step: int
    row: int


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of all beams: the tokens written, the rows they continued, and what those rows looked at."""

    tokens: Ints
    rows: Ints
    attention: Floats


def _best(totals: Floats, count: int) -> tuple[Ints, Ints]:
    """Rows and tokens of the `count` best of totals (B,N,V), best first, each (B,C)."""
    flat = totals.reshape(len(totals), -1)
    places = _top(flat, min(count, flat.shape[1]))
    return places // totals.shape[2], places % totals.shape[2]


def _top(values: Floats, count: int) -> Ints:
    """Places of the `count` largest of values (B,M), largest first.

    The largest lie in the blocks with the largest maxima. Maxima are cheap; only those few blocks are partitioned.
    """
    size = values.shape[1]
    if size > 4 * count * BLOCK:
        maxima = np.maximum.reduceat(values, np.arange(0, size, BLOCK), axis=1)
        blocks = np.argpartition(maxima, -count, axis=1)[:, -count:]
        places = (blocks[:, :, None] * BLOCK + np.arange(BLOCK)).reshape(len(values), -1)
        inside = places < size  # the last block may be shorter
        places = np.minimum(places, size - 1)
        values = np.where(inside, np.take_along_axis(values, places, axis=1), -np.inf)
    else:
        places = np.broadcast_to(np.arange(size), values.shape)
    if count < values.shape[1]:
        top = np.argpartition(values, -count, axis=1)[:, -count:]
        values, places = np.take_along_axis(values, top, axis=1), np.take_along_axis(places, top, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


def _sample(totals: Floats, draw: float, settings: SearchConfig) -> tuple[Ints, Ints]:
    """Row 0 and one token drawn for each picture (B,1) from the nucleus of totals (B,V).

    All pictures share the draw (a number in [0, 1)), which makes a picture's captions independent of its neighbours'.
    """
    top = totals.max(axis=1, keepdims=True)
    scaled = np.where(np.isfinite(top), totals - np.where(np.isfinite(top), top, 0), -np.inf)
    weights = np.exp(scaled.astype(np.float64) / settings.temperature)
    mass = settings.top_p * weights.sum(axis=1)
    for count in (min(NUCLEUS, weights.shape[1]), weights.shape[1]):
        places = _top(weights, count)
        sums = np.take_along_axis(weights, places, axis=1).cumsum(axis=1)
        if (sums[:, -1] >= mass).all():
            break
    # The nucleus is the shortest run of the likeliest whose sum reaches the mass.
    last = np.minimum((sums < mass[:, None]).sum(axis=1), sums.shape[1] - 1)
    goal = draw * sums[np.arange(len(sums)), last]
    chosen = np.minimum((sums <= goal[:, None]).sum(axis=1), last)
    tokens = np.take_along_axis(places, chosen[:, None], axis=1)
    return np.zeros_like(tokens), tokens
