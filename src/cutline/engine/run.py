"""A run on disk and in memory: from a configuration to a trainer, and from a run folder back to its captioner."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch

from cutline import config as configuration
from cutline.config import Config
from cutline.console import say
from cutline.data import mirror
from cutline.data.corpus import Corpus, Sample
from cutline.data.sources import read
from cutline.data.words import Words
from cutline.engine import checkpoint, weights
from cutline.engine.batches import Batches, Captions, FeatureSource, PictureSource, Source, augments
from cutline.engine.loop import Trainer
from cutline.engine.runtime import Device, choose_device
from cutline.engine.task import CaptioningTask
from cutline.errors import ConfigError, DataError, ModelError
from cutline.features import open_or_build
from cutline.models.captioner import Captioner, build_captioner


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, before a run folder is there."""

    config: Config
    corpus: Corpus
    words: Words
    model: Captioner
    task: CaptioningTask
    batches: Batches
    device: Device


Sources = Callable[[Config, Captioner, list[Sample], list[Sample], bool], tuple[Source, Source]]


def prepare(
    config: Config, *, words: Words | None = None, sources: Sources | None = None, quiet: bool = False
) -> Prepared:
    """Read the data, build the model, and bring the two together; `sources` says where pictures come from."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    say(f"device: {device}", quiet=quiet)
    corpus = read(config, quiet=quiet)
    languages = config.data.languages or corpus.languages
    learn = [s for s in corpus.split("train") if any(s.captions.get(lang) for lang in languages)]
    judge = [s for s in corpus.split("val") if any(s.captions.get(lang) for lang in languages)]
    if config.training.validate_limit:
        judge = judge[: config.training.validate_limit]
    if not learn or not judge:
        raise DataError(
            f"{corpus.source} has {len(learn)} captioned pictures to learn from and {len(judge)} to validate on",
            expected="at least one of each",
            fix="cutline data inspect shows what is there; --val-share divides data that has no splits",
        )
    texts = {lang: [text for s in learn for text in s.captions.get(lang, ())] for lang in languages}
    if words is None:
        words = Words.learn(texts, config.words)
    say(f"data: {corpus.source}: {len(learn)} pictures to learn from, {len(judge)} to validate on", quiet=quiet)
    unknown = ", ".join(f"{words.unknown_share(texts[lang]):.1%} in {lang}" for lang in languages)
    say(f"words: {len(words.pieces)}; not among them: {unknown}", quiet=quiet)
    if config.pictures.augment_flip and (odd := [lang for lang in languages if not mirror.can_mirror(lang)]):
        say(
            f"pictures with captions in {', '.join(odd)} are not mirrored: left and right are not known",
            quiet=quiet,
        )
    config, begin = _with_vectors(config, words, quiet)
    torch.manual_seed(config.seed)
    model = build_captioner(config, len(words.pieces))
    begin(model)
    say(_describe(model), quiet=quiet)
    model = model.to(device.torch)
    learn_from, judge_from = (sources or stored_or_pictures)(config, model, learn, judge, quiet)
    captions = Captions(
        learn, words, languages, longest=config.words.max_length, mirror_too=config.pictures.augment_flip
    )
    training = config.training
    batches = Batches(
        learn_from, captions, config.pictures, seed=config.seed, batch=training.batch, rows=training.captions
    )
    task = CaptioningTask(config, model, words, judge, judge_from)
    return Prepared(config, corpus, words, model, task, batches, device)


def _with_vectors(config: Config, words: Words, quiet: bool) -> tuple[Config, Callable[[Captioner], None]]:
    """The configuration with word vectors as wide as the given ones, and what puts those into a model."""
    if not config.words.embeddings:
        return config, lambda model: None
    from cutline.data.vectors import load_vectors

    matrix, known, coverage = load_vectors(Path(config.words.embeddings), words.pieces)
    say(f"embeddings: {coverage}", quiet=quiet)
    width = matrix.shape[1]
    if config.decoder.embed not in (0, width):
        raise ConfigError(
            f"the vectors in {config.words.embeddings} have {width} numbers, decoder.embed is {config.decoder.embed}",
            fix=f"decoder.embed = {width}, or 0 to take the vectors' own width",
        )
    wide = replace(config, decoder=replace(config.decoder, embed=width))
    return wide, lambda model: model.decoder.load_vectors(matrix, known)


def _describe(model: Captioner) -> str:
    total = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"model: {total / 1e6:.1f} M parameters, {learned / 1e6:.1f} M of them learn"


def stored_or_pictures(
    config: Config, model: Captioner, learn: list[Sample], judge: list[Sample], quiet: bool
) -> tuple[Source, Source]:
    """Stored features when the encoder stays as it is, else pictures."""
    if not uses_features(config, model):
        transform = model.encoder.transform
        return PictureSource(learn, transform, config.pictures), PictureSource(judge, transform, config.pictures)
    store = open_or_build([*learn, *judge], model.encoder, config, quiet=quiet)
    for samples in (learn, judge):  # pictures that could not be read have no features
        samples[:] = [sample for sample in samples if sample.id in store]
    return FeatureSource(store, learn), FeatureSource(store, judge)


def uses_features(config: Config, model: Captioner) -> bool:
    return weights.is_frozen(model.encoder) and config.training.features and not augments(config.pictures)


def fingerprint(corpus: Corpus) -> str:
    """A hash of which pictures and captions there are, in order: what a resumed run must find again."""
    digest = hashlib.sha256()
    for sample in corpus.samples:
        digest.update(repr((sample.id, sample.split, sorted(sample.captions.items()))).encode())
    return digest.hexdigest()[:32]


def create(prepared: Prepared) -> Path:
    """A new run folder, never one that is there, with all that does not change during the run."""
    config = prepared.config
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = Path(config.output) / f"{stamp}-{re.sub(r'[^A-Za-z0-9._-]+', '-', config.name)}"
    path = base
    for attempt in range(2, 1000):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            path = base.with_name(f"{base.name}-{attempt}")
    _point(path.parent / "latest", path)
    (path / "config.toml").write_text(configuration.to_toml(config), encoding="utf-8")
    (path / "data.txt").write_text(f"{fingerprint(prepared.corpus)}\n{prepared.corpus.source}\n", encoding="utf-8")
    prepared.words.save(path / "words.json")
    if weights.is_frozen(prepared.model.encoder):
        # What never changes is not in the checkpoints; kept here, the run needs no other file.
        tensors = {name: value.contiguous() for name, value in prepared.model.encoder.state_dict().items()}
        safetensors.torch.save_file(tensors, path / "encoder.safetensors")
    return path


def _point(link: Path, run: Path) -> None:
    """Let `latest` name the newest run, where the file system has links and the name is not something else's."""
    draft = link.with_name(f".{run.name}.link")
    with contextlib.suppress(OSError):
        if link.is_symlink() or not link.exists():
            draft.symlink_to(run.name, target_is_directory=True)
            draft.replace(link)


def trainer(prepared: Prepared, run: Path) -> Trainer:
    config = prepared.config
    return Trainer(prepared.task, prepared.batches, run, config.training, config.seed, prepared.device.torch)


def resume(run: Path, *, quiet: bool = False) -> tuple[Trainer, Corpus]:
    """A run as its newest valid checkpoint left it."""
    config = configuration.load(_file(run, "config.toml"))
    prepared = prepare(config, words=Words.load(_file(run, "words.json")), quiet=quiet)
    before = _file(run, "data.txt").read_text(encoding="utf-8").splitlines()
    if before[0] != fingerprint(prepared.corpus):
        raise DataError(
            f"the pictures or captions are not those that {run} learned from",
            expected=before[1],
            fix="put the data back as it was, or start a new run",
        )
    found = trainer(prepared, run)
    saved = checkpoint.latest(run / "checkpoints")
    found.restore(saved)
    say(f"resuming {run} at step {saved.step}", quiet=quiet)
    return found, prepared.corpus


def load_captioner(run: Path, *, step: int | None = None) -> tuple[Captioner, Words, Config]:
    """The captioner of a run with its best weights (or those of `step`), on the CPU, ready to caption."""
    config = configuration.load(_file(run, "config.toml"))
    words = Words.load(_file(run, "words.json"))
    newest = checkpoint.latest(run / "checkpoints")
    wanted = newest.state["progress"]["best_step"] if step is None else step
    chosen = next((c for c in checkpoint.verified(run / "checkpoints") if c.step == wanted), None)
    if chosen is None and (step is not None or wanted >= 0):
        raise ModelError(f"{run} has no valid checkpoint of step {wanted}", fix=f"use step {newest.step}")
    chosen = chosen or newest
    bare = replace(config, encoder=replace(config.encoder, weights="none"))  # they come from the run folder
    model = build_captioner(bare, len(words.pieces))
    stored = run / "encoder.safetensors"
    model.encoder.requires_grad_(not stored.exists())
    if stored.exists():
        model.encoder.load_state_dict(safetensors.torch.load_file(stored))
    state = chosen.tensors("model")
    if chosen.has("average"):
        state |= chosen.tensors("average")
    weights.load(model, state)
    return model.eval(), words, config


def _file(run: Path, name: str) -> Path:
    if not (run / name).is_file():
        raise ConfigError(f"{run} is not a run folder: it has no {name}", expected="a folder that cutline train made")
    return run / name
