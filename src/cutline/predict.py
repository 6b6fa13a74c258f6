"""A captioner from a bundle: what the core installation runs, with numpy, Pillow and ONNX Runtime, without torch.

    >>> captioner = load("bundle")
    >>> captioner.caption("photo.jpg")[0].text

Why ONNX Runtime unless told otherwise: in fp32 OpenVINO runs these graphs no faster, and it takes a quarter of a second
more to import and twice as long for its first picture. In bf16, on a CPU that has it, OpenVINO is two to five times
faster; that is what `precision="bf16"` takes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline import config
from cutline.config import SearchConfig
from cutline.data.images import Transform
from cutline.data.words import Words
from cutline.errors import ConfigError, CutlineError, DataError, ModelError, choose, nearest, require
from cutline.search import Hypothesis, check, search

FORMAT = 1
MANIFEST = "bundle.json"
PARTS = ("encoder.onnx", "decoder.onnx", "words.json")
"""What is verified; the model card, README.md, is anyone's to edit."""

Array = NDArray[Any]
Picture = str | Path | bytes | Image.Image | Array
Graph = Callable[[Sequence[Array]], list[Array]]
"""A loaded ONNX graph: its inputs to its outputs, both in the graph's order."""


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


def load(
    path: str | Path,
    *,
    backend: Literal["auto", "onnxruntime", "openvino"] = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    threads: int = 0,
) -> Captioner:
    """The captioner in a bundle (a folder or one file), or in a run's; refused unless every file is as it was written.

    `threads` 0 takes all cores.
    """
    path = Path(path)
    if (path / "bundle" / MANIFEST).is_file():  # a run folder
        path = path / "bundle"
    choose(backend, ("auto", "onnxruntime", "openvino"), "backend")
    choose(precision, ("fp32", "bf16"), "precision")
    if precision == "bf16" and backend == "onnxruntime":
        raise ConfigError("ONNX Runtime has no bf16 on a CPU", fix="backend openvino, or precision fp32")
    fast = backend == "openvino" or precision == "bf16"
    with ThreadPoolExecutor(1) as aside:
        # Reading and hashing take no time: they are done while the library is imported.
        reading = aside.submit(read_bundle, path)
        open_graph = _openvino(threads, precision) if fast else _onnxruntime(threads)
        facts, files = reading.result()
    return Captioner(path, facts, files, open_graph)


def read_bundle(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What `bundle.json` says, and the contents of every file that it names, verified."""
    try:
        raw = _read_files(path, (MANIFEST,))[MANIFEST]
        facts = json.loads(raw)
        version = facts["format"]
        if version > FORMAT:
            raise ModelError(
                f"{path} is of format {version}, which a newer Cutline wrote",
                expected=f"format {FORMAT} or older",
                fix="pip install --upgrade cutline",
            )
        seal = facts.pop("seal")
        listed = facts["files"]
        if seal != seal_of(facts) or set(listed) != set(PARTS):
            raise _damaged(path, f"{MANIFEST} does not match its seal")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{path}: {MANIFEST} is not a bundle's", expected="a folder or file from cutline export"
        ) from None
    files = _read_files(path, PARTS)
    for name, data in files.items():
        if len(data) != listed[name]["bytes"]:
            raise _damaged(path, f"{name} has {len(data)} bytes of {listed[name]['bytes']}")
        if hashlib.sha256(data).hexdigest() != listed[name]["sha256"]:
            raise _damaged(path, f"{name} does not match its hash")
    return facts, files


def seal_of(facts: dict[str, Any]) -> str:
    """A hash of all that `bundle.json` says."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Captioner:
    """Captions pictures. Made by `load`."""

    def __init__(
        self, path: Path, facts: dict[str, Any], files: dict[str, bytes], open_graph: Callable[[bytes], Graph]
    ) -> None:
        self.path, self.facts = path, facts
        try:
            self.transform = Transform.from_dict(facts["transform"])
            settings = config.from_dict({"search": facts["search"]}).search
            self.words = Words.parse(files["words.json"])
            self._model = _Steps(open_graph(files["encoder.onnx"]), open_graph(files["decoder.onnx"]), facts["memory"])
        except CutlineError as error:
            raise ModelError(f"{path}: {error.what}", expected=error.expected, fix="export the run again") from None
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
        for first in range(0, len(pictures), _positive(batch)):
            pixels = np.stack([self.pixels(picture) for picture in pictures[first : first + batch]])
            captions += self._write(pixels, plan)
        return captions

    def caption_all(
        self, files: Iterable[str | Path | bytes], *, batch: int = 32, **options: Unpack[Options]
    ) -> Iterator[Captioned]:
        """Caption any number of files, in order, in bounded memory; one that cannot be read gives its error.

        Two threads decode the next pictures while the model works on these.
        """
        return self._stream(iter(files), _positive(batch), self._plan(options))

    def pixels(self, picture: Picture) -> Array:
        """What the model sees of a picture: uint8 (size, size, 3)."""
        if isinstance(picture, str | Path | bytes):
            return self.transform.from_file(picture)
        if isinstance(picture, np.ndarray):
            if (
                picture.dtype != np.uint8
                or picture.ndim not in (2, 3)
                or picture.shape[2:] not in ((), (1,), (3,), (4,))
            ):
                raise DataError(
                    f"a picture is an array of {picture.dtype} {picture.shape}", expected="uint8 (H,W) or (H,W,3)"
                )
            if not picture.size:
                raise DataError(f"an empty picture: {picture.shape}")
            picture = Image.fromarray(picture[:, :, 0] if picture.shape[2:] == (1,) else picture)
        if not isinstance(picture, Image.Image):
            raise DataError(
                f"not a picture: {type(picture).__name__}", expected="a path, bytes, a PIL picture or an array"
            )
        return self.transform(picture)

    def _stream(self, files: Iterator[str | Path | bytes], batch: int, plan: _Plan) -> Iterator[Captioned]:
        waiting: deque[tuple[Path, Future[Array]]] = deque()
        pool = ThreadPoolExecutor(2, thread_name_prefix="decode")

        def refill() -> None:
            for file in itertools.islice(files, 2 * batch - len(waiting)):
                path = Path("-") if isinstance(file, bytes) else Path(file)
                waiting.append((path, pool.submit(self.transform.from_file, file)))

        try:
            refill()
            while waiting:
                group = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
                refill()
                yield from self._settle(group, plan)
        finally:
            pool.shutdown(cancel_futures=True)

    def _settle(self, group: list[tuple[Path, Future[Array]]], plan: _Plan) -> Iterator[Captioned]:
        errors: dict[int, CutlineError] = {}
        pixels = []
        for place, (_, future) in enumerate(group):
            try:
                pixels.append(future.result())
            except CutlineError as error:
                errors[place] = error
        captions = iter(self._write(np.stack(pixels), plan) if pixels else ())
        for place, (path, _) in enumerate(group):
            refusal = errors.get(place)
            yield Captioned(path, None if refusal else next(captions), refusal)

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
        settings = config.from_dict({"search": given}, config.Config(search=self.settings)).search
        if "beam" not in given and settings.num > settings.beam:
            share = settings.groups if settings.method == "diverse" else 1
            settings = dataclasses.replace(settings, beam=math.ceil(settings.num / share) * share)
        check(settings)
        return _Plan(lang, settings, options.get("attention", False))

    def _write(self, pixels: Array, plan: _Plan) -> list[Caption]:
        words, captions = self.words, []
        begin = words.begin(plan.lang)
        found = search(self._model, pixels, begin, words.end, words.forbidden, plan.settings, words.content)
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


class _Steps:
    """The two graphs of a bundle, as search knows a model."""

    def __init__(self, encoder: Graph, decoder: Graph, memory: int) -> None:
        self.encoder, self.decoder, self.memory = encoder, decoder, memory

    def start(self, pictures: Array) -> tuple[list[Array], list[Array]]:
        outputs = self.encoder([pictures])
        return outputs[: self.memory], outputs[self.memory :]

    def step(self, state: tuple[list[Array], list[Array]], tokens: Array) -> tuple[Array, Array, Any]:
        memory, before = state
        logp, attention, *after = self.decoder([*memory, *before, tokens])
        return logp, attention, (memory, after)

    def reorder(self, state: tuple[list[Array], list[Array]], rows: Array) -> Any:
        memory, before = state
        pictures = np.arange(len(rows))[:, None]
        return memory, [part[pictures, rows] for part in before]


def _onnxruntime(threads: int) -> Callable[[bytes], Graph]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that wait by spinning take the cores from those that decode the next pictures, for no gain here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def open_graph(model: bytes) -> Graph:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        return lambda arrays: session.run(None, dict(zip(names, arrays)))

    return open_graph


def _openvino(threads: int, precision: str) -> Callable[[bytes], Graph]:
    openvino = require("openvino", "openvino", "this backend")
    core = openvino.Core()
    # Left to itself, OpenVINO takes bf16 wherever the CPU has it, and captions change.
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads

    def open_graph(model: bytes) -> Graph:
        request = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", settings).create_infer_request()
        return lambda arrays: list(request.infer(list(arrays), share_inputs=True).values())

    return open_graph


def _read_files(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Those files of a bundle, from its folder or from its archive."""
    if path.is_dir():
        if MANIFEST in names and not (path / MANIFEST).is_file():
            raise ModelError(
                f"{path} is not a bundle: it has no {MANIFEST}", fix="cutline export RUN makes one of a run"
            )
        try:
            return {name: (path / name).read_bytes() for name in names}
        except FileNotFoundError as error:
            raise _damaged(path, f"{Path(error.filename).name} is missing") from None
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    if not path.exists():
        raise ModelError(f"there is no bundle {path}", fix="cutline demo makes one, cutline export RUN another")
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in names}
    except KeyError as error:
        raise _damaged(path, f"{error.args[0]}") from None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"{path} is not a bundle: {error}", expected="a folder or a file from cutline export"
        ) from None


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is damaged: {why}", fix="export the run again, or copy the bundle again")


def _positive(batch: int) -> int:
    if batch < 1:
        raise ConfigError(f"a batch of {batch} pictures", expected="1 or more")
    return batch
