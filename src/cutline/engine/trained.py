"""From a run folder back to its model, and the encoder of one run for another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from cutline.config import Config, EncoderConfig
from cutline.console import say
from cutline.data.words import Words
from cutline.engine import choose, folder, snapshot, taught, weights
from cutline.engine.checkpoint import Checkpoints, unsealed
from cutline.engine.known import Known
from cutline.engine.weights import Model
from cutline.errors import ModelError
from cutline.models.both import TwoHeaded, build_both
from cutline.models.captioner import Captioner, build_captioner
from cutline.models.classifier import Classifier, build_classifier
from cutline.models.encoders import Encoder, begins_learned, settle
from cutline.models.weights import fit_weights


def load_captioner(run: Path, *, step: int | None = None) -> tuple[Captioner, Words, Config]:
    """The captioner of a run with its best weights (or those of `step`), on the CPU, ready to caption."""
    model, known, config = load_model(run, step=step)
    if not isinstance(model, Captioner) or not known.words:
        raise ModelError(f"{run} has learned classes and no captions", expected='a run of task "captions" or "both"')
    return model, known.words, replace(config, search=choose.chosen(run, config.search))


def load_classifier(run: Path, *, step: int | None = None) -> tuple[Classifier, tuple[str, ...], Config]:
    """The classifier of a run with its best weights (or those of `step`), on the CPU, and the names of its classes."""
    model, known, config = load_model(run, step=step)
    if isinstance(model, TwoHeaded):
        model = model.classifier
    if not isinstance(model, Classifier):
        raise ModelError(f"{run} has learned captions and no classes", expected='a run of task "classes" or "both"')
    return model, known.classes, config


def load_model(run: Path, *, step: int | None = None) -> tuple[Model, Known, Config]:
    """What a run has taught, whatever that is, with its best weights (or those of `step`), on the CPU."""
    config = folder.settings(run)
    known = Known.load(run, config.task)
    checkpoints = Checkpoints(run, folder.identity(run))
    chosen = checkpoints.best() if step is None else checkpoints.of_step(step)
    if chosen is None:
        latest = checkpoints.latest().step
        raise ModelError(f"{run} has no valid checkpoint of step {step}", fix=f"use step {latest}")
    wanted = chosen.state["progress"]["best_step"]
    if step is None and chosen.step != wanted >= 0:
        say(f"{run}: the best weights, of step {wanted}, are not there; those of step {chosen.step} are taken")
    stage = chosen.stage
    model = build(replace(config, pictures=config.stage(stage).pictures), known, bare=True)
    kept = kept_encoder(run, stage)
    model.encoder.requires_grad_(not kept)
    weights.put(model, kept)
    state = snapshot.tensors(chosen, "model")
    if snapshot.has(chosen, "average"):
        state |= snapshot.tensors(chosen, "average")
    weights.load(model, state)
    return model.eval(), known, config


def kept_encoder(path: Path, stage: int) -> dict[str, Tensor]:
    """The encoder that a stage leaves as it is, as tensors of the whole model; nothing where the encoder learns."""
    file = path / f"encoder-{stage}.safetensors"
    if not file.exists():
        return {}
    if why := unsealed(file):
        raise ModelError(
            f"{file} is damaged: {why}",
            expected="the encoder as it was when the run began, which its checkpoints go with",
            fix="put a copy of it there",
        )
    return {f"encoder.{name}": value for name, value in load_file(file).items()}


def build(config: Config, known: Known, *, bare: bool = False) -> Model:
    """The model of a run, for what it knows; `bare` is without the weights that it would begin with from elsewhere."""
    if bare:
        model = _shaped(replace(config, encoder=replace(config.encoder, weights="none")), known)
        settle(model.encoder, config.encoder.train, learned=begins_learned(config.encoder))
        return model
    model = _shaped(taught.without(config), known)
    if teacher := taught.by(config.encoder):
        take_encoder(model.encoder, teacher, config.encoder)
    return model


def take_encoder(encoder: Encoder, teacher: Path, config: EncoderConfig) -> None:
    """Let an encoder begin as the one that another run has taught, which must be of the same name."""
    learned = load_model(teacher)[0].encoder
    if learned.name != config.name:
        raise ModelError(
            f"the encoder that {teacher} has taught is '{learned.name}', not '{config.name}'",
            expected=f'encoder.name = "{learned.name}"',
            fix="leave out --encoder, and the run's own is taken; or name other weights (--weights)",
        )
    fit_weights(encoder, learned.state_dict(), teacher)
    settle(encoder, config.train, learned=True)


def _shaped(config: Config, known: Known) -> Model:
    if not known.words:
        return build_classifier(config, len(known.classes))
    if not known.classes:
        return build_captioner(config, len(known.words.pieces))
    return build_both(config, len(known.words.pieces), len(known.classes))
