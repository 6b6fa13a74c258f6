"""From a captioner in torch to a bundle that needs none.

Two graphs: pictures to the decoder's first state, and one step of the decoder. The search between the steps stays
outside, in numpy: a graph of the whole loop could not stop early, and misbehaves when its shapes change.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

import cutline.classify
from cutline import __version__, durable
from cutline.bundle import FORMAT, MANIFEST, OPTIONAL, PARTS, Picture, seal_of
from cutline.config import SearchConfig
from cutline.consensus import Consensus
from cutline.data.images import Transform
from cutline.data.words import Words
from cutline.errors import ConfigError
from cutline.models.captioner import Captioner, TorchStep
from cutline.models.classifier import Classifier
from cutline.models.compact import Weights, compact
from cutline.models.onnx import export_module
from cutline.predict import load
from cutline.search import search

CARD = "README.md"
LEAST = 0.99
"""Share of a bundle's answers that must be the same: a few beams lie so close that the last bit of a sum decides."""


@dataclass(frozen=True)
class Agreement:
    """How many answers of a bundle are those of the model in torch, word for word."""

    same: int
    answers: int
    what: str

    @property
    def reached(self) -> bool:
        return self.same >= LEAST * self.answers

    def __str__(self) -> str:
        return f"{self.same} of {self.answers} {self.what} are the same as in PyTorch"


def export_bundle(
    captioner: Captioner,
    words: Words,
    transform: Transform,
    settings: SearchConfig,
    out: Path,
    card: dict[str, Any],
    *,
    consensus: Consensus | None = None,
    weights: Weights = "fp32",
    one_file: bool = False,
    force: bool = False,
) -> Path:
    """Write a bundle to `out`, a folder or, with `one_file`, an archive; it appears whole or not at all.

    `card` is what the model card says beside what is known here: titles to a text, or to a table of names and values.
    `weights` says how they are stored; it is fp32 that computes.
    """

    def fill(draft: Path) -> dict[str, Any]:
        memory = _write_graphs(captioner, draft, pooled=consensus is not None)
        words.save(draft / "words.json")
        if consensus:
            kept = consensus.smaller() if weights == "int8" else consensus
            (draft / "consensus.npz").write_bytes(kept.to_bytes())
        return {"languages": list(words.languages), "memory": memory, "search": asdict(settings)}

    if not consensus:  # then a card does not speak of it
        settings = replace(settings, consensus=0.0)
    about = _about(f"Describes pictures in {', '.join(words.languages)}.", "cutline caption photo.jpg", _CAPTIONS)
    size = {"pictures": f"{transform.size} x {transform.size}"}
    tables = {**card, "How it captions": {**size, **asdict(settings)}}
    _write_bundle(out, "captions", fill, transform, about, tables, weights, one_file, force)
    return out


def export_classifier(
    classifier: Classifier,
    names: Sequence[str],
    temperature: float,
    out: Path,
    card: dict[str, Any],
    *,
    weights: Weights = "fp32",
    one_file: bool = False,
    force: bool = False,
) -> Path:
    """Write a classifier's bundle, as `export_bundle` does a captioner's; `temperature` is what calibrates it."""
    transform = classifier.encoder.transform

    def fill(draft: Path) -> dict[str, Any]:
        pictures = torch.zeros(2, transform.size, transform.size, 3, dtype=torch.uint8)
        export_module(
            _Classes(classifier), (pictures,), draft / "classifier.onnx", ["pictures"], ["logits"],
            ({0: Dim("B")},),
        )  # fmt: skip
        (draft / "classes.json").write_text(json.dumps(list(names), ensure_ascii=False), encoding="utf-8")
        return {"temperature": temperature}

    about = _about(f"Puts pictures into {len(names)} classes.", "cutline classify photo.jpg", _CLASSES)
    size = f"{transform.size} x {transform.size}"
    tables = {**card, "How it classifies": {"pictures": size, "temperature": temperature, "classes": ", ".join(names)}}
    _write_bundle(out, "classes", fill, transform, about, tables, weights, one_file, force)
    return out


def _write_bundle(
    out: Path,
    kind: str,
    fill: Callable[[Path], dict[str, Any]],
    transform: Transform,
    about: str,
    tables: dict[str, Any],
    weights: Weights,
    one_file: bool,
    force: bool,
) -> None:
    """A bundle of the parts that `fill` writes into a folder, and of the facts that it tells of them."""
    if out.exists() and not force:
        raise ConfigError(f"{out} is already there", fix="name another place, or --force to replace it")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise ConfigError(f"{out} holds something other than a bundle", fix="name another place")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=out.parent) as temporary:
        draft = Path(temporary) / "bundle"
        draft.mkdir()
        facts = {"format": FORMAT, "kind": kind, "cutline": __version__, "transform": transform.to_dict()}
        facts |= fill(draft)
        for graph in draft.glob("*.onnx"):
            compact(graph, weights)
        (draft / CARD).write_text(_model_card(_title(out), about, tables), encoding="utf-8")
        there = [*PARTS[kind], *(name for name in OPTIONAL[kind] if (draft / name).exists())]
        facts["files"] = {name: _listing(draft / name) for name in there}
        facts["seal"] = seal_of(facts)
        (draft / MANIFEST).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        if one_file:
            draft = _pack(draft)
        _sync(draft)
        _put(draft, out)


def check_bundle(captioner: Captioner, bundle: Path, pictures: Sequence[Picture], *, batch: int = 32) -> Agreement:
    """Caption `pictures` with the bundle and in torch, in each of its languages."""
    ours, step = load(bundle), TorchStep(captioner)
    words, same, total = ours.words, 0, 0
    for lang in ours.languages:
        for first in range(0, len(pictures), batch):
            part = pictures[first : first + batch]
            pixels = torch.from_numpy(np.stack([ours.pixels(picture) for picture in part]))
            expected = search(
                step, (pixels.permute(0, 3, 1, 2),), words.begin(lang), words.end, words.forbidden, ours.settings,
                words.content(lang), ours.opinion(lang),
            )  # fmt: skip
            captions = ours.caption(part, batch=batch, lang=lang)
            same += sum(words.decode(best[0].tokens) == found.text for best, found in zip(expected, captions))
            total += len(part)
    return Agreement(same, total, "captions")


@torch.no_grad()
def check_classifier(
    classifier: Classifier, bundle: Path, pictures: Sequence[Picture], *, batch: int = 32
) -> Agreement:
    """Put `pictures` into classes with the bundle and in torch."""
    ours, same = cutline.classify.load(bundle), 0
    for first in range(0, len(pictures), batch):
        pixels = np.stack([ours.pixels(picture) for picture in pictures[first : first + batch]])
        logits = classifier.eval()((torch.from_numpy(pixels).permute(0, 3, 1, 2),))
        same += int((ours.logits(pixels).argmax(1) == logits.numpy().argmax(1)).sum())
    return Agreement(same, len(pictures), "classes")


_UNCHECKED = "-unchecked"


def unchecked(bundle: Path) -> Path:
    """Where a bundle waits for its check, hidden from whoever looks for one to use."""
    return bundle.with_name(f".{bundle.name}{_UNCHECKED}")


def accept(bundle: Path) -> None:
    """Let the one that waits take its place, also where another is."""
    with tempfile.TemporaryDirectory(prefix=".", dir=bundle.parent) as temporary:
        _put(unchecked(bundle).rename(Path(temporary) / "draft"), bundle)


class _Classes(nn.Module):
    """Pictures uint8 (B,H,W,3) to logits."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.classifier((pictures.permute(0, 3, 1, 2),))
        return logits


class _Start(nn.Module):
    """Pictures uint8 (B,H,W,3) to the memory and first state of the decoder, and perhaps the encoder's one vector."""

    def __init__(self, captioner: Captioner, pooled: bool) -> None:
        super().__init__()
        self.captioner, self.pooled = captioner, pooled

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        features = self.captioner.encoder(pictures.permute(0, 3, 1, 2))
        memory, state = self.captioner.decoder.start(features.grid, features.pooled)
        return (*memory, *state, *([features.pooled] if self.pooled else []))


class _Step(nn.Module):
    """One step of the decoder; the first `memory` of the parts are memory, the others state."""

    def __init__(self, captioner: Captioner, memory: int) -> None:
        super().__init__()
        self.decoder, self.memory = captioner.decoder, memory

    def forward(self, parts: tuple[Tensor, ...], tokens: Tensor) -> tuple[Tensor, ...]:
        logp, attention, after = self.decoder.step(parts[: self.memory], parts[self.memory :], tokens)
        return (logp, attention, *after)


@torch.no_grad()
def _write_graphs(captioner: Captioner, folder: Path, *, pooled: bool) -> int:
    """Both graphs; returns how many of the first one's outputs are memory."""
    training = captioner.training
    captioner.eval()
    size = captioner.encoder.transform.size
    # No size of an example may be 0 or 1, or equal to another: the exporter would take it for a constant.
    pictures = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    features = captioner.encoder(pictures.permute(0, 3, 1, 2))
    memory, first = captioner.decoder.start(features.grid, features.pooled)
    tokens = torch.full((2, 3), 3)
    states = [tuple(part.expand(-1, 3, *part.shape[2:]) for part in first)]
    for _ in range(3):
        states.append(captioner.decoder.step(memory, states[-1], tokens)[2])
    # What changes its size from step to step grows with the sentence: a Transformer's keys and values.
    batch, rows, grows = Dim("B"), Dim("N"), Dim("T")
    moving = tuple(
        {0: batch, 1: rows} | {axis: grows for axis in range(2, old.ndim) if old.shape[axis] != new.shape[axis]}
        for old, new in zip(*states[-2:])
    )
    memory_names = [f"memory_{i}" for i in range(len(memory))]
    state_names = [f"state_{i}" for i in range(len(first))]
    export_module(
        _Start(captioner, pooled),
        (pictures,),
        folder / "encoder.onnx",
        ["pictures"],
        [*memory_names, *state_names, *(["pooled"] if pooled else [])],
        ({0: batch},),
    )
    example: Any = ((*memory, *(part.contiguous() for part in states[-1])), tokens)
    dynamic: Any = ((*({0: batch} for _ in memory), *moving), {0: batch, 1: rows})
    export_module(
        _Step(captioner, len(memory)),
        example,
        folder / "decoder.onnx",
        [*memory_names, *state_names, "tokens"],
        ["logp", "attention", *(f"{name}_next" for name in state_names)],
        dynamic,
    )
    captioner.train(training)
    return len(memory)


def _listing(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


_CAPTIONS = 'cutline.load("PATH").caption("photo.jpg")[0].text'
_CLASSES = 'cutline.load("PATH").classify("photo.jpg")[0][0].label'


def _about(purpose: str, command: str, code: str) -> str:
    """The first lines of a model card: what it is for, and how to use it."""
    lines = [f"{purpose} Made by Cutline {__version__}; holds no code.", "", f"    {command} --model PATH", ""]
    return "\n".join([*lines, "    >>> import cutline", f"    >>> {code}"])


def _title(out: Path) -> str:
    """What a bundle is called; while it waits for its check, what it will be called."""
    waits = out.name.endswith(_UNCHECKED)
    return Path(out.name[1 : -len(_UNCHECKED)] if waits else out.name).stem


def _model_card(name: str, about: str, tables: dict[str, Any]) -> str:
    lines = [f"# {name}", "", about]
    for title, content in tables.items():
        lines += ["", f"## {title}", ""]
        if isinstance(content, dict):
            lines += ["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in content.items())]
        else:
            lines.append(str(content))
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _pack(draft: Path) -> Path:
    """The folder as one archive, uncompressed: weights do not shrink, and reading stays as fast."""
    import zipfile

    packed = draft.with_suffix(".cutline")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(draft.iterdir()):
            archive.write(file, file.name)
    return packed


def _sync(path: Path) -> None:
    """Onto the disk before it gets its name, so that a power loss leaves the old bundle or the new one."""
    for each in [*path.iterdir(), path] if path.is_dir() else [path]:
        durable.sync(each)


def _put(draft: Path, out: Path) -> None:
    """Rename to the final place; what was there goes only once the new one stands, with the folder of the draft."""
    old = draft.with_name("old")
    if out.exists():
        out.rename(old)
    try:
        draft.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    durable.sync(out.parent)
