"""What a captioner and a classifier share outside torch: bundles, the graphs in them, and pictures on their way in.

Why ONNX Runtime unless told otherwise: in fp32 OpenVINO runs these graphs no faster, and it takes a quarter of a second
more to import and twice as long for its first picture. In bf16, on a CPU that has it, OpenVINO is two to five times
faster; that is what `precision="bf16"` takes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cutline import cpus
from cutline.data.images import Transform
from cutline.errors import ConfigError, CutlineError, DataError, ModelError, choose, require

FORMAT = 1
MANIFEST = "bundle.json"
PARTS = {
    "captions": ("encoder.onnx", "decoder.onnx", "words.json"),
    "classes": ("classifier.onnx", "classes.json"),
}
"""What is verified, by kind; the model card, README.md, is anyone's to edit."""
OPTIONAL = {"captions": ("consensus.npz",), "classes": ()}
"""What may be there beside it, verified just the same."""
STARTER = "starter"
"""What the captioner in the box is called, where nothing else has that name."""
IN_RUN = ("bundle", "bundle-classes")
"""Where a run folder has its bundle; the second is for classes, of a run that has learned captions as well."""

Array = NDArray[Any]
Picture = str | Path | bytes | Image.Image | Array
Graph = Callable[[Sequence[Array]], list[Array]]
"""A loaded ONNX graph: its inputs to its outputs, both in the graph's order."""
Backend = Literal["auto", "onnxruntime", "openvino"]
Precision = Literal["fp32", "bf16"]
Said = TypeVar("Said")


@dataclass(frozen=True)
class Bundle:
    """An open bundle: all of it read and verified."""

    path: Path
    facts: dict[str, Any]
    files: dict[str, bytes]
    open_graph: Callable[[bytes], Graph]

    @property
    def kind(self) -> str:
        """ "captions" or "classes"."""
        return str(self.facts.get("kind", "captions"))


class Answered(NamedTuple, Generic[Said]):
    """A picture of many: what was said of it, or why nothing was."""

    path: Path
    """`-` for a picture given as bytes."""
    said: Said | None
    error: CutlineError | None


def load(
    path: str | Path | None = None, *, backend: Backend = "auto", precision: Precision = "fp32", threads: int = 0
) -> Any:
    """The captioner or the classifier in a bundle (a folder or one file), or in a run's; or else the one in the box."""
    if path is None:
        from cutline.starter import starter

        path = starter()
    bundle = open_bundle(path, backend, precision, threads)
    if bundle.kind == "classes":
        from cutline.classify import Classifier

        return Classifier(bundle)
    from cutline.predict import Captioner

    return Captioner(bundle)


def open_bundle(
    path: str | Path, backend: Backend = "auto", precision: Precision = "fp32", threads: int = 0, *, kind: str = ""
) -> Bundle:
    """Refused unless every file is as it was written. `threads` 0 takes all cores.

    Of a run that has several, it is the one of this kind.
    """
    if str(path) == STARTER and not os.path.lexists(path):
        from cutline.starter import starter

        path = starter()
    path = Path(path)
    if inside := [path / name for name in IN_RUN if (path / name / MANIFEST).is_file()]:  # a run folder
        path = next((each for each in inside if kind_of(each) == kind), inside[0]) if len(inside) > 1 else inside[0]
    choose(backend, ("auto", "onnxruntime", "openvino"), "backend")
    choose(precision, ("fp32", "bf16"), "precision")
    if threads < 0:
        raise ConfigError(f"{threads} threads", expected="1 or more, or 0 for all cores")
    if precision == "bf16" and backend == "onnxruntime":
        raise ConfigError("ONNX Runtime has no bf16 on a CPU", fix="backend openvino, or precision fp32")
    fast = backend == "openvino" or precision == "bf16"
    with ThreadPoolExecutor(1) as aside:
        # Reading and hashing take no time: they are done while the library is imported.
        reading = aside.submit(read_bundle, path)
        open_graph = _openvino(threads, precision) if fast else _onnxruntime(threads)
        facts, files = reading.result()
    return Bundle(path, facts, files, open_graph)


def kind_of(path: Path) -> str:
    """What kind of bundle this is, by its own word: none of it is verified."""
    try:
        return str(json.loads(_read_files(path, (MANIFEST,))[MANIFEST]).get("kind", "captions"))
    except (ValueError, AttributeError, RecursionError):
        raise _no_manifest(path) from None


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
        kind = facts.get("kind", "captions")
        if seal != seal_of(facts) or kind not in PARTS or set(listed) - set(OPTIONAL[kind]) != set(PARTS[kind]):
            raise _damaged(path, f"{MANIFEST} does not match its seal")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _no_manifest(path) from None
    files = _read_files(path, sorted(listed))
    for name, data in files.items():
        if len(data) != listed[name]["bytes"]:
            raise _damaged(path, f"{name} has {len(data)} bytes of {listed[name]['bytes']}")
        if hashlib.sha256(data).hexdigest() != listed[name]["sha256"]:
            raise _damaged(path, f"{name} does not match its hash")
    return facts, files


def seal_of(facts: dict[str, Any]) -> str:
    """A hash of all that `bundle.json` says."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def pixels(transform: Transform, picture: Picture) -> Array:
    """What the model sees of a picture: uint8 (size, size, 3)."""
    if isinstance(picture, str | Path | bytes):
        return transform.from_file(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (1,), (3,), (4,)):
            raise DataError(
                f"a picture is an array of {picture.dtype} {picture.shape}", expected="uint8 (H,W) or (H,W,3)"
            )
        if not picture.size:
            raise DataError(f"an empty picture: {picture.shape}")
        picture = Image.fromarray(picture[:, :, 0] if picture.shape[2:] == (1,) else picture)
    if not isinstance(picture, Image.Image):
        raise DataError(f"not a picture: {type(picture).__name__}", expected="a path, bytes, a PIL picture or an array")
    if 0 in picture.size:
        raise DataError(f"an empty picture: {picture.width} x {picture.height}")
    try:
        return transform(ImageOps.exif_transpose(picture))  # as a file of it would be turned
    except Exception as error:  # Pillow may have read no more than its header, and decoders raise anything
        raise DataError(f"a damaged picture: {error}") from error


def answer_all(
    files: Iterable[str | Path | bytes], batch: int, transform: Transform, answer: Callable[[Array], Sequence[Said]]
) -> Iterator[Answered[Said]]:
    """What `answer` says of any number of pictures, in order, in bounded memory; one that cannot be read has its error.

    Two threads decode the next pictures while the model works on these.
    """
    files = iter([files] if isinstance(files, str | bytes | Path) else files)  # a text is many texts as well
    waiting: deque[tuple[Path, Future[Array]]] = deque()
    pool = ThreadPoolExecutor(2, thread_name_prefix="decode")

    def refill() -> None:
        for file in itertools.islice(files, 2 * batch - len(waiting)):
            path = Path("-") if isinstance(file, bytes) else Path(file)
            waiting.append((path, pool.submit(transform.from_file, file)))

    try:
        refill()
        while waiting:
            group = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
            refill()
            yield from _settle(group, answer)
    finally:
        pool.shutdown(cancel_futures=True)


def _settle(
    group: list[tuple[Path, Future[Array]]], answer: Callable[[Array], Sequence[Said]]
) -> Iterator[Answered[Said]]:
    errors: dict[int, CutlineError] = {}
    pictures = []
    for place, (_, future) in enumerate(group):
        try:
            pictures.append(future.result())
        except CutlineError as error:
            errors[place] = error
    said = iter(answer(np.stack(pictures)) if pictures else ())
    for place, (path, _) in enumerate(group):
        refusal = errors.get(place)
        yield Answered(path, None if refusal else next(said), refusal)


def _onnxruntime(threads: int) -> Callable[[bytes], Graph]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpus.threads(threads)
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
    if threads := cpus.threads(threads):
        settings["INFERENCE_NUM_THREADS"] = threads

    def open_graph(model: bytes) -> Graph:
        request = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", settings).create_infer_request()
        one_at_a_time = threading.Lock()

        def run(arrays: Sequence[Array]) -> list[Array]:
            with one_at_a_time:  # several threads would get one another's answers
                return list(request.infer(list(arrays), share_inputs=True).values())

        return run

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
    import lzma
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in names}
    except KeyError as error:
        raise _damaged(path, f"{error.args[0]}") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError) as error:
        raise ModelError(
            f"{path} is not a bundle: {error}", expected="a folder or a file from cutline export"
        ) from None


def _no_manifest(path: Path) -> ModelError:
    return ModelError(f"{path}: {MANIFEST} is not a bundle's", expected="a folder or file from cutline export")


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is damaged: {why}", fix="export the run again, or copy the bundle again")


def positive(number: int, what: str = "pictures in a batch") -> int:
    if number < 1:
        raise ConfigError(f"{number} {what}", expected="1 or more")
    return number
