"""A run on disk and in memory: from a configuration to a trainer, and from a run folder back to its captioner."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import Tensor

import cutline
from cutline import config as configuration
from cutline import durable
from cutline.config import Config
from cutline.console import say
from cutline.data import mirror
from cutline.data.corpus import Corpus, Sample
from cutline.data.sources import read
from cutline.data.words import Words
from cutline.engine import choose, folder, snapshot, weights
from cutline.engine.augment import augments
from cutline.engine.batches import Batches, Captions
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.ranks import ALONE, Ranks
from cutline.engine.runtime import Device, choose_device
from cutline.engine.sources import FeatureSource, PictureSource, Source
from cutline.engine.task import CaptioningTask, Critic
from cutline.engine.trainer import Trainer
from cutline.errors import ConfigError, DataError, ModelError
from cutline.features import open_or_build
from cutline.models.captioner import Captioner, build_captioner


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, before a run folder is there."""

    config: Config
    """Of all stages."""
    corpus: Corpus
    words: Words
    model: Captioner
    task: CaptioningTask
    batches: Batches
    device: Device
    ranks: Ranks


Sources = Callable[[Config, Captioner, list[Sample], list[Sample], bool], tuple[Source, Source]]


def prepare(
    config: Config,
    *,
    words: Words | None = None,
    stage: int = 0,
    start: Mapping[str, Tensor] | None = None,
    sources: Sources | None = None,
    ranks: Ranks = ALONE,
    quiet: bool = False,
) -> Prepared:
    """Read the data, build the model, and bring the two together.

    `start` are weights to begin from, by name, in place of a stage's own beginning; `sources` says where pictures come
    from.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    elif ranks.here > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.here))
    device = choose_device(config.device, ranks.local)
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
    whole, begin = _with_vectors(config, words, quiet)
    config = whole.stage(stage)
    say(f"data: {corpus.source}: {len(learn)} pictures to learn from, {len(judge)} to validate on", quiet=quiet)
    unknown = ", ".join(f"{words.unknown_share(texts[lang]):.1%} in {lang}" for lang in languages)
    say(f"words: {len(words.pieces)}; not among them: {unknown}", quiet=quiet)
    if config.pictures.augment_flip and (odd := [lang for lang in languages if not mirror.can_mirror(lang)]):
        say(
            f"pictures with captions in {', '.join(odd)} are not mirrored: left and right are not known",
            quiet=quiet,
        )
    torch.manual_seed(config.seed)
    model = build_captioner(config, len(words.pieces))
    begin(model)
    weights.put(model, start or {})
    say(_describe(model), quiet=quiet)
    model = model.to(device.torch)
    learn_from, judge_from = (sources or stored_or_pictures)(config, model, learn, judge, quiet)
    captions = Captions(
        learn, words, languages, longest=config.words.max_length, mirror_too=config.pictures.augment_flip
    )
    training = config.training
    batches = Batches(
        learn_from, captions, config.pictures, names=[s.id for s in learn], seed=config.seed, batch=training.batch,
        rows=training.captions, rank=ranks.rank, world=ranks.world,
    )  # fmt: skip
    critic = None
    if training.objective == "self_critical":
        critic = Critic(learn, languages, words, training.reward_bleu)
    task = CaptioningTask(config, model, words, judge, judge_from, critic)
    return Prepared(whole, corpus, words, model, task, batches, device, ranks)


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


def create(prepared: Prepared, path: Path | None = None) -> Path:
    """A run folder with all that does not change during the run: a new one, or this one that `folder.make` made."""
    path = path or folder.make(prepared.config)
    keep_encoder(prepared, path, 0)
    durable.write(path / "words.json", prepared.words.to_bytes())
    durable.write(path / "config.toml", configuration.to_toml(prepared.config).encode())
    folder.point_to(path)
    return path


def keep_encoder(prepared: Prepared, path: Path, stage: int) -> None:
    """What does not change in a stage is not in its checkpoints; kept here, the run needs no other file."""
    if weights.is_frozen(prepared.model.encoder):
        tensors = {name: value.contiguous() for name, value in prepared.model.encoder.state_dict().items()}
        durable.write(path / f"encoder-{stage}.safetensors", safetensors.torch.save(tensors))


def kept_encoder(path: Path, stage: int) -> dict[str, Tensor]:
    """The encoder that a stage leaves as it is, as tensors of the whole model; nothing where the encoder learns."""
    file = path / f"encoder-{stage}.safetensors"
    return {f"encoder.{name}": value for name, value in load_file(file).items()} if file.exists() else {}


def trainer(prepared: Prepared, run: Path) -> Trainer:
    config = prepared.task.config
    return Trainer(
        prepared.task, prepared.batches, Checkpoints(run, folder.identity(run)), config.training, config.seed,
        prepared.device.torch, prepared.ranks, _facts(prepared),
    )  # fmt: skip


def _facts(prepared: Prepared) -> dict[str, Any]:
    """What a run learns from and by what, for a resume to compare."""
    learn, judge, words = prepared.batches.count, len(prepared.task.samples), prepared.words
    return {
        "config": configuration.to_dict(prepared.config),
        "data": {"hash": fingerprint(prepared.corpus), "train": learn, "val": judge},
        "words": {"hash": hashlib.sha256(words.to_bytes()).hexdigest()[:32], "count": len(words.pieces)},
        "versions": {
            "cutline": cutline.__version__, "torch": torch.__version__, "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }  # fmt: skip


def load_captioner(run: Path, *, step: int | None = None) -> tuple[Captioner, Words, Config]:
    """The captioner of a run with its best weights (or those of `step`), on the CPU, ready to caption."""
    config = folder.settings(run)
    words = Words.load(folder.file_of(run, "words.json"))
    checkpoints = Checkpoints(run, folder.identity(run))
    newest = checkpoints.latest()
    wanted = newest.state["progress"]["best_step"] if step is None else step
    chosen = next((each for each in checkpoints.verified() if each.step == wanted), None)
    if chosen is None and step is not None:
        raise ModelError(f"{run} has no valid checkpoint of step {wanted}", fix=f"use step {newest.step}")
    if chosen is None and wanted >= 0:
        say(f"{run}: the best weights, of step {wanted}, are not there; those of step {newest.step} are taken")
    chosen = chosen or newest
    bare = replace(config, encoder=replace(config.encoder, weights="none"))  # they come from the run folder
    model = build_captioner(bare, len(words.pieces))
    kept = kept_encoder(run, chosen.state["progress"]["stage"])
    model.encoder.requires_grad_(not kept)
    weights.put(model, kept)
    state = snapshot.tensors(chosen, "model")
    if snapshot.has(chosen, "average"):
        state |= snapshot.tensors(chosen, "average")
    weights.load(model, state)
    return model.eval(), words, replace(config, search=choose.chosen(run, config.search))
