"""A run on disk and in memory: from a configuration to a trainer."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import cutline
from cutline import config as configuration
from cutline import durable, search
from cutline.config import Config
from cutline.console import say
from cutline.data import mirror
from cutline.data.corpus import Corpus, Sample
from cutline.data.labels import balance, count_labels, evenly
from cutline.data.sources import read
from cutline.engine import folder, taught, weights
from cutline.engine.augment import augments
from cutline.engine.batches import Batches, Captions, Labels
from cutline.engine.checkpoint import Checkpoints, seal
from cutline.engine.classes import BothTask, ClassTask, evening, numbered
from cutline.engine.known import Known
from cutline.engine.muon import suits
from cutline.engine.ranks import ALONE, Ranks
from cutline.engine.runtime import Device, choose_device, choose_precision, use_threads
from cutline.engine.schedule import GRAIN, grown
from cutline.engine.sources import FeatureSource, PictureSource, Source
from cutline.engine.task import CaptioningTask, Critic, Task
from cutline.engine.trained import build
from cutline.engine.trainer import Trainer
from cutline.engine.weights import Model
from cutline.errors import ConfigError, DataError
from cutline.features import open_or_build
from cutline.models.both import TwoHeaded
from cutline.models.classifier import Classifier
from cutline.models.encoders import Encoder, begins_learned, takes

LONG, MEASURED = 0.05, 10_000
"""Share of captions above a limit that is worth telling, and how many captions are looked at to know it."""


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, before a run folder is there."""

    config: Config
    """Of all stages."""
    corpus: Corpus
    known: Known
    model: Model
    task: Task
    batches: Batches
    device: Device
    ranks: Ranks


Sources = Callable[[Config, Model, list[Sample], list[Sample], bool], tuple[Source, Source]]


def prepare(
    config: Config,
    *,
    known: Known | None = None,
    stage: int = 0,
    start: Mapping[str, Tensor] | None = None,
    sources: Sources | None = None,
    ranks: Ranks = ALONE,
    quiet: bool = False,
) -> Prepared:
    """Read the data, build the model, and bring the two together.

    `known` is what a run that goes on knows already: then all weights come from that run's folder, and the files that
    it began with need not be there any more. `start` are weights to begin from, by name, in place of a stage's own
    beginning; `sources` says where pictures come from.
    """
    if config.task != "classes":
        search.check(config.search)  # or else the first validation would find out
    begun = known is not None
    if not begun and not stage:
        weights.check_stages(taught.without(config))
    use_threads(config.threads, ranks.here)
    device = choose_device(config.device, ranks.local)
    if device.torch.type == "cuda":
        torch.cuda.set_device(device.torch)  # for all that speaks of the GPU without a number
    say(f"device: {device}", quiet=quiet)
    if config.training.precision == "auto":
        precision, why = choose_precision(device.torch)
        say(f"precision: {precision} ({why})", quiet=quiet)
        config = configuration.from_dict({"training": {"precision": precision}}, config)
    corpus = read(config, quiet=quiet)
    asked = dict.fromkeys(lang.strip().lower() for lang in config.data.languages)  # as readers take them, each once
    languages = tuple(asked) or corpus.languages if config.task != "classes" else ()
    learn, judge = _pictures(config, corpus, languages)
    texts = {lang: [text for s in learn for text in s.captions.get(lang, ())] for lang in languages}
    known = known or Known.learn(config, texts, learn)
    whole, begin = (config, _nothing) if begun else _with_vectors(config, known, quiet)
    config = whole.stage(stage)
    say(f"data: {corpus.source}: {len(learn)} pictures to learn from, {len(judge)} to validate on", quiet=quiet)
    _tell(config, known, texts, learn, judge, quiet)
    torch.manual_seed(config.seed)
    model = build(config, known, bare=begun)
    if begun and weights.is_frozen(model.encoder) and not start:  # an encoder that the run has not kept
        model = build(config, known)
    begin(model)
    weights.put(model, start or {})
    say(_describe(model), quiet=quiet)
    if not begun and weights.is_frozen(model.encoder) and not begins_learned(config.encoder):
        say("the encoder's weights are random, and it does not learn them (--train-encoder all)", quiet=quiet)
    model = model.to(device.torch)
    if config.training.optimizer == "muon" and not any(
        suits(p) and p.requires_grad for p in model.encoder.parameters()
    ):
        say("the encoder has no convolutions that learn, and so all of it learns as by adamw", quiet=quiet)
    if config.encoder.decay < 1 and not weights.is_frozen(model.encoder) and len(model.encoder.stages()) == 1:
        say("encoder.decay changes nothing: of this encoder no stages are known", quiet=quiet)
    if config.pictures.grow < 1:
        config = _grown(config, model.encoder, quiet)
        whole = whole if whole.stages else config
    learn_from, judge_from = (sources or stored_or_pictures)(config, model, learn, judge, quiet)
    batches = _batches(config, known, languages, learn, learn_from, ranks)
    task = _task(config, model, known, learn, languages, judge, judge_from)
    return Prepared(whole, corpus, known, model, task, batches, device, ranks)


def _pictures(config: Config, corpus: Corpus, languages: Sequence[str]) -> tuple[list[Sample], list[Sample]]:
    """Those to learn from and those to validate on, of all that have something for the task."""

    def captioned(sample: Sample) -> bool:
        return any(sample.captions.get(lang) for lang in languages)

    def labelled(sample: Sample) -> bool:
        return sample.label is not None

    wanted = {"captioned": captioned} if config.task != "classes" else {}
    wanted |= {"labelled": labelled} if config.task != "captions" else {}
    learn, judge = (
        [s for s in corpus.split(name) if any(has(s) for has in wanted.values())] for name in ("train", "val")
    )
    if most := config.training.validate_limit:
        judge = judge[:most] if config.task == "captions" else list(evenly(judge, most))
    for what, has in wanted.items():
        to_learn, to_judge = (sum(map(has, some)) for some in (learn, judge))
        if not to_learn or not to_judge:
            raise DataError(
                f"{corpus.source} has {to_learn} {what} pictures to learn from and {to_judge} to validate on",
                expected="at least one of each",
                fix="cutline data inspect shows what is there; --divide anew ignores the splits that the data gives",
            )
    return learn, judge


def _tell(
    config: Config,
    known: Known,
    texts: Mapping[str, Sequence[str]],
    learn: list[Sample],
    judge: list[Sample],
    quiet: bool,
) -> None:
    """What of the data a person may want to know before it is learned."""
    if known.words:
        unknown = ", ".join(f"{known.words.unknown_share(each, lang):.1%} in {lang}" for lang, each in texts.items())
        say(f"words: {len(known.words.pieces)}; not among them: {unknown}", quiet=quiet)
        some = {lang: each[:: len(each) // MEASURED + 1] for lang, each in texts.items()}
        lengths = {lang: [len(known.words.encode(text, lang)) for text in each] for lang, each in some.items()}
        for setting, most in (("words", config.words.max_length), ("search", config.search.max_length)):
            longer = {lang: sum(length > most for length in each) / len(each) for lang, each in lengths.items() if each}
            if told := ", ".join(f"{share:.0%} in {lang}" for lang, share in longer.items() if share >= LONG):
                what = "cut" if setting == "words" else "longer than any that is written"
                say(
                    f"captions of more than {most} words or pieces are {what} ({setting}.max_length): {told}",
                    quiet=quiet,
                )
    if unjudged := [lang for lang in texts if not any(sample.captions.get(lang) for sample in judge)]:
        say(f"no captions in {', '.join(unjudged)} to validate on: the score is of the other languages", quiet=quiet)
    if config.pictures.augment_flip and (odd := [lang for lang in texts if not mirror.can_mirror(lang)]):
        say(
            f"pictures shown with captions in {', '.join(odd)} are not mirrored: left and right are not known",
            quiet=quiet,
        )
    if known.classes and (spread := balance(count_labels(learn))):
        sizes = (
            f"{spread.least} to {spread.most} pictures each" if spread.most > spread.least else f"{spread.most} each"
        )
        say(f"classes: {len(known.classes)}, {sizes}; balance: {config.classes.balance}", quiet=quiet)


def _grown(config: Config, encoder: Encoder, quiet: bool) -> Config:
    """Without pictures that grow, where the encoder does not take all of their sizes."""
    whole = encoder.transform.size
    sides = range(grown(whole, config.pictures.grow, 0), whole, GRAIN)
    odd = next((side for side in sides if not takes(encoder, side)), None)
    if odd is None:
        return config
    say(f"pictures do not grow: the encoder '{encoder.name}' cannot see {odd} x {odd} pixels", quiet=quiet)
    return replace(config, pictures=replace(config.pictures, grow=1.0))


def _batches(
    config: Config, known: Known, languages: Sequence[str], learn: list[Sample], source: Source, ranks: Ranks
) -> Batches:
    captions = labels = None
    if known.words:
        longest, flip = config.words.max_length, config.pictures.augment_flip
        captions = Captions(learn, known.words, languages, longest=longest, mirror_too=flip)
    if known.classes:
        sampled = config.classes.balance == "sampling"
        labels = Labels(numbered(learn, known.classes), len(known.classes), evenly=sampled)
    return Batches(
        source, captions, config.pictures, names=[s.id for s in learn], seed=config.seed, batch=config.training.batch,
        rows=config.training.captions, labels=labels, rank=ranks.rank, world=ranks.world,
    )  # fmt: skip


def _task(
    config: Config,
    model: Model,
    known: Known,
    learn: list[Sample],
    languages: Sequence[str],
    judge: list[Sample],
    source: Source,
) -> Task:
    if isinstance(model, Classifier):
        return _class_task(config, model, known, learn, judge, source)
    assert known.words
    critic = None
    if config.training.objective == "self_critical":
        critic = Critic(learn, languages, known.words, config.training.reward_bleu)
    captions = CaptioningTask(config, model, known.words, judge, source, critic)
    if not isinstance(model, TwoHeaded):
        return captions
    return BothTask(model, captions, _class_task(config, model.classifier, known, learn, judge, source))


def _class_task(
    config: Config, model: Classifier, known: Known, learn: list[Sample], judge: list[Sample], source: Source
) -> ClassTask:
    weighs = config.classes.balance == "weights"
    counts_for = evening(numbered(learn, known.classes), len(known.classes)) if weighs else None
    return ClassTask(config, model, known.classes, judge, source, counts_for)


def _nothing(model: Any) -> None:
    pass


def _with_vectors(config: Config, known: Known, quiet: bool) -> tuple[Config, Callable[[Any], None]]:
    """The configuration with word vectors as wide as the given ones, and what puts those into a model."""
    if not config.words.embeddings or not known.words:
        return config, _nothing
    from cutline.data.vectors import load_vectors

    matrix, given, coverage = load_vectors(Path(config.words.embeddings), known.words.pieces)
    say(f"embeddings: {coverage}", quiet=quiet)
    width = matrix.shape[1]
    if config.decoder.embed not in (0, width):
        raise ConfigError(
            f"the vectors in {config.words.embeddings} have {width} numbers, decoder.embed is {config.decoder.embed}",
            fix=f"decoder.embed = {width}, or 0 to take the vectors' own width",
        )
    wide = replace(config, decoder=replace(config.decoder, embed=width))
    return wide, lambda model: model.decoder.load_vectors(matrix, given)


def _describe(model: Model) -> str:
    total = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"model: {total / 1e6:.1f} M parameters, {learned / 1e6:.1f} M of them learn"


def stored_or_pictures(
    config: Config, model: Model, learn: list[Sample], judge: list[Sample], quiet: bool
) -> tuple[Source, Source]:
    """Stored features when the encoder stays as it is, else pictures."""
    if not uses_features(config, model):
        transform = model.encoder.transform
        return PictureSource(learn, transform, config.pictures), PictureSource(judge, transform, config.pictures)
    store = open_or_build([*learn, *judge], model.encoder, config, quiet=quiet)
    for samples in (learn, judge):  # pictures that could not be read have no features
        samples[:] = [sample for sample in samples if sample.id in store]
    grid = config.task != "classes"
    return FeatureSource(store, learn, grid=grid), FeatureSource(store, judge, grid=grid)


def uses_features(config: Config, model: Model) -> bool:
    changes = augments(config.pictures) or config.pictures.grow < 1
    return weights.is_frozen(model.encoder) and config.training.features and not changes


def fingerprint(corpus: Corpus, *, labels: bool) -> str:
    """A hash of which pictures, captions and perhaps labels there are, in order: what a resumed run must find again."""
    digest = hashlib.sha256()
    for sample in corpus.samples:
        label = (sample.label,) if labels else ()
        digest.update(repr((sample.id, sample.split, sorted(sample.captions.items()), *label)).encode())
    return digest.hexdigest()[:32]


def create(prepared: Prepared, path: Path | None = None) -> Path:
    """A run folder with all that does not change during the run: a new one, or this one that `folder.make` made."""
    path = path or folder.make(prepared.config)
    keep_encoder(prepared, path, 0)
    prepared.known.save(path)
    durable.write(path / "config.toml", configuration.to_toml(prepared.config).encode())
    folder.point_to(path)
    return path


def as_begun(config: Config, path: Path) -> Config:
    """With what was found when the run began: on another machine the precision might be another, and the word vectors
    whose width the decoder has may be gone."""
    begun = folder.settings(path)
    found: dict[str, Any] = {}
    if config.training.precision == "auto":
        found["training"] = {"precision": begun.training.precision}
    if config.words.embeddings and not config.decoder.embed:
        found["decoder"] = {"embed": begun.decoder.embed}
    return configuration.from_dict(found, config)


def keep_encoder(prepared: Prepared, path: Path, stage: int) -> None:
    """What does not change in a stage is not in its checkpoints; kept here, the run needs no other file."""
    if weights.is_frozen(prepared.model.encoder):
        tensors = {name: value.contiguous() for name, value in prepared.model.encoder.state_dict().items()}
        data = safetensors.torch.save(tensors)
        seal(path / f"encoder-{stage}.safetensors", data)


def trainer(prepared: Prepared, run: Path) -> Trainer:
    config = prepared.task.config
    return Trainer(
        prepared.task, prepared.batches, Checkpoints(run, folder.identity(run)), config.training, config.seed,
        prepared.device.torch, prepared.ranks, _facts(prepared),
    )  # fmt: skip


def _facts(prepared: Prepared) -> dict[str, Any]:
    """What a run learns from and by what, for a resume to compare."""
    learn, judge = prepared.batches.count, len(prepared.task.samples)
    hashed = fingerprint(prepared.corpus, labels=bool(prepared.known.classes))
    return {
        "config": configuration.to_dict(prepared.config),
        "data": {"hash": hashed, "train": learn, "val": judge},
        **prepared.known.facts,
        "versions": {
            "cutline": cutline.__version__, "torch": torch.__version__, "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }  # fmt: skip
