"""A captioner from a bundle: what the core installation runs, with numpy, Pillow and ONNX Runtime, without torch.

>>> captioner = load("bundle")
>>> captioner.caption("photo.jpg")[0].text
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

import numpy as np

from cutline import bundle, config
from cutline.bundle import Array, Backend, Bundle, Graph, Picture, Precision, answer_all, open_bundle, positive
from cutline.config import SearchConfig
from cutline.consensus import Consensus, Opinion
from cutline.data.images import Transform
from cutline.data.words import Words
from cutline.errors import ConfigError, CutlineError, ModelError, nearest
from cutline.search import Hypothesis, check, search


@dataclass(frozen=True)
class Caption:
    text: str
    score: float
    """Higher is likelier; comparable between captions of one picture."""
    lang: str
    words: tuple[str, ...]
    attention: Array | None = dataclasses.field(default=None, compare=False, repr=False)
    """(words, side, side): what each word looked at, rows from the top; where asked for and the model has attention."""
    alternatives: tuple[Caption, ...] = ()
    """The other captions asked for with `num`, best first."""


class Captioned(NamedTuple):
    """A picture of many: its caption, or why there is none."""

    path: Path
    """`-` for a picture given as bytes."""
    caption: Caption | None
    error: CutlineError | None


class Options(TypedDict, total=False):
    """How to caption; what is absent or None is as the bundle says."""

    lang: str | None
    num: int | None
    """Captions of each picture; the second and further ones are the first one's `alternatives`."""
    beam: int | None
    method: str | None
    """greedy, beam, diverse or sample."""
    seed: int | None
    attention: bool
    """Also say what each word looked at."""


class _Plan(NamedTuple):
    lang: str
    settings: SearchConfig
    attention: bool


def load(path: str | Path, *, backend: Backend = "auto", precision: Precision = "fp32", threads: int = 0) -> Captioner:
    """The captioner in a bundle (a folder or one file), or in a run's."""
    return Captioner(open_bundle(path, backend, precision, threads, kind="captions"))


class Captioner:
    """Captions pictures. Made by `load`."""

    def __init__(self, opened: Bundle) -> None:
        self.path, self.facts = opened.path, opened.facts
        if opened.kind != "captions":
            what = f"{self.path} puts pictures into classes, and writes no captions"
            raise ModelError(what, fix=f"cutline classify --model {self.path}")
        files, open_graph, memory = opened.files, opened.open_graph, self.facts["memory"]
        try:
            self.transform = Transform.from_dict(self.facts["transform"])
            settings = config.from_dict({"search": self.facts["search"]}).search
            self.words = Words.parse(files["words.json"])
            agreed = files.get("consensus.npz")
            self._opinions = Consensus.parse(agreed).opinions() if agreed else {}
            encoder, decoder = open_graph(files["encoder.onnx"]), open_graph(files["decoder.onnx"])
            self._model = _Steps(encoder, decoder, memory, pooled=agreed is not None)
        except CutlineError as error:
            what = f"{self.path}: {error.what}"
            raise ModelError(what, expected=error.expected, fix="export the run again") from None
        self.settings: SearchConfig = settings

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.words.languages)

    def caption(
        self, images: Picture | Sequence[Picture], *, batch: int = 32, **options: Unpack[Options]
    ) -> list[Caption]:
        """A caption of each picture: a path, bytes of a file, a PIL picture, an array (H,W) or (H,W,3), or a list.

        What is not given is as the bundle says: its first language, its search settings.
        """
        plan = self._plan(options)
        pictures = images if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
        captions = []
        for first in range(0, len(pictures), positive(batch)):
            pixels = np.stack([self.pixels(picture) for picture in pictures[first : first + batch]])
            captions += self._write(pixels, plan)
        return captions

    def caption_all(
        self, files: Iterable[str | Path | bytes], *, batch: int = 32, **options: Unpack[Options]
    ) -> Iterator[Captioned]:
        """Caption any number of files, in order, in bounded memory; one that cannot be read gives its error.

        Two threads decode the next pictures while the model works on these.
        """
        plan = self._plan(options)
        answers = answer_all(files, positive(batch), self.transform, lambda pictures: self._write(pictures, plan))
        return (Captioned(*answer) for answer in answers)

    def pixels(self, picture: Picture) -> Array:
        """What the model sees of a picture: uint8 (size, size, 3)."""
        return bundle.pixels(self.transform, picture)

    def opinion(self, lang: str) -> Opinion | None:
        """What search asks beside the model, where the bundle has it."""
        return self._opinions.get(lang)

    def _plan(self, options: Options) -> _Plan:
        if unknown := set(options) - set(Options.__annotations__):
            name = min(unknown)
            raise ConfigError(
                f"unknown option '{name}'{nearest(name, Options.__annotations__)}",
                expected=", ".join(Options.__annotations__),
            )
        lang = options.get("lang") or self.languages[0]
        if lang not in self.languages:
            raise ConfigError(
                f"{self.path} does not write '{lang}'{nearest(lang, self.languages)}",
                expected=", ".join(self.languages),
            )
        names = ("num", "beam", "method", "seed")
        given = {name: value for name in names if (value := options.get(name)) is not None}
        if "beam" in given:
            given.setdefault("method", "beam")  # so many, and not in groups that the bundle may ask for
        settings = config.from_dict({"search": given}, config.Config(search=self.settings)).search
        for name, methods in {"beam": ("beam", "diverse"), "seed": ("sample",)}.items():
            if name in given and settings.method not in methods:
                raise ConfigError(f"method {settings.method} has no {name}", expected=f"method {' or '.join(methods)}")
        if "beam" not in given:
            share = settings.groups if settings.method == "diverse" else 1
            settings = dataclasses.replace(settings, beam=math.ceil(max(settings.num, settings.beam) / share) * share)
        check(settings)
        return _Plan(lang, settings, options.get("attention", False))

    def _write(self, pixels: Array, plan: _Plan) -> list[Caption]:
        words, captions = self.words, []
        begin = words.begin(plan.lang)
        found = search(
            self._model, pixels, begin, words.end, words.forbidden, plan.settings,
            words.content(plan.lang), self.opinion(plan.lang),
        )  # fmt: skip
        for hypotheses in found:
            best, *others = (self._read(hypothesis, plan) for hypothesis in hypotheses)
            captions.append(dataclasses.replace(best, alternatives=tuple(others)))
        return captions

    def _read(self, hypothesis: Hypothesis, plan: _Plan) -> Caption:
        parts = self.words.split(hypothesis.tokens)
        looks = None
        if plan.attention and hypothesis.attention is not None and parts:
            side = math.isqrt(hypothesis.attention.shape[1])
            sums = np.add.reduceat(hypothesis.attention, [first for _, first in parts], axis=0)
            looks = (sums / sums.sum(axis=1, keepdims=True)).reshape(len(parts), side, side)
        spoken = tuple(word for word, _ in parts)
        return Caption(self.words.decode(hypothesis.tokens), hypothesis.score, plan.lang, spoken, looks)


class _State(NamedTuple):
    memory: list[Array]
    state: list[Array]
    pooled: Array


class _Steps:
    """The two graphs of a bundle, as search knows a model."""

    def __init__(self, encoder: Graph, decoder: Graph, memory: int, *, pooled: bool) -> None:
        self.encoder, self.decoder, self.memory, self.pooled = encoder, decoder, memory, pooled

    def start(self, pictures: Array) -> _State:
        outputs = self.encoder([pictures])
        pooled = outputs.pop() if self.pooled else np.empty(0)
        return _State(outputs[: self.memory], outputs[self.memory :], pooled)

    def seen(self, state: _State) -> Array:
        return state.pooled

    def step(self, state: _State, tokens: Array) -> tuple[Array, Array, _State]:
        logp, attention, *after = self.decoder([*state.memory, *state.state, tokens])
        return logp, attention, state._replace(state=after)

    def reorder(self, state: _State, rows: Array) -> _State:
        pictures = np.arange(len(rows))[:, None]
        return state._replace(state=[part[pictures, rows] for part in state.state])
