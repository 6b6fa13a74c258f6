"""What follows the learning of classes: calibration, the bundle, its scores, and the page that shows them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutline.console import progress, say
from cutline.errors import CutlineError, DataError, ModelError

if TYPE_CHECKING:
    from cutline.config import Config
    from cutline.data.corpus import Corpus, Sample
    from cutline.evaluation.classes import ClassScores
    from cutline.models.classifier import Classifier
    from cutline.models.compact import Weights
    from cutline.report.classes import Classified

CALIBRATION = "calibration.json"
CHECKED = 200
PLACES = {"classes": ("bundle", "report.html"), "both": ("bundle-classes", "report-classes.html")}
"""Where the bundle and the page of classes are in a run folder; beside captions, those have the usual names."""


def export(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    weights: Weights = "fp32",
    about: str = "",
    one_file: bool = False,
    force: bool = False,
) -> Classifier:
    """The run's best classifier as a bundle at `out`; returns the classifier in torch that it must equal."""
    from cutline.engine.trained import load_classifier
    from cutline.export import export_classifier

    classifier, names, config = load_classifier(run, step=step)
    temperature = None if step is not None or _is_calibrated(run) else _calibrate_later(run, classifier, names, config)
    export_classifier(
        classifier, names, temperature or _temperature(run, step), out, card(run, config, about, step),
        weights=weights, one_file=one_file, force=force,
    )  # fmt: skip
    return classifier


def card(run: Path, config: Config, about: str = "", step: int | None = None) -> dict[str, Any]:
    """What a model card says of how the model came about and how good it was on validation, after `about`.

    It is of the weights of this `step`, or of the best.
    """
    from cutline.engine.classes import FIGURES
    from cutline.engine.events import best_validation

    facts: dict[str, Any] = {"About": about} if about else {}
    facts["Made from"] = {"run": run.resolve().name, "data": Path(config.data.path).name} | _of_model(config)
    if best := best_validation(run / "events.jsonl", step):
        raw = {"ece": "ece before calibration", "nll": "nats before calibration"}
        facts["Validation scores (0 to 100, but for nats)"] = {raw.get(k, k): best[k] for k in FIGURES if k in best}
    facts["Limits"] = (
        "It knows the classes that it was shown and no others: of anything else it names the one that is most like it, "
        "and its probabilities hold only for pictures like those it was judged on. Let a person look at what matters."
    )
    return facts


@dataclass(frozen=True)
class Guessed:
    """Pictures with a label that could be read, and what a classifier made of them."""

    samples: Sequence[Sample]
    labels: np.ndarray
    logits: np.ndarray


def finish(run: Path, corpus: Corpus, *, memory: int | None = None, quiet: bool = False) -> ClassScores:
    """Calibrate, export, check, score validation with the calibrated probabilities, and write the report.

    `memory` is what learning has held at the most.
    """
    from cutline.data.labels import evenly
    from cutline.engine.trained import load_classifier
    from cutline.export import accept, check_classifier, unchecked
    from cutline.report.classes import Classified

    classifier, names, config = load_classifier(run)
    judged = _guess(classifier, names, config, corpus, quiet)
    temperature = _calibrate(run, judged)
    say(f"exporting the bundle (temperature {temperature:.2f})", quiet=quiet)
    bundle = run / PLACES[config.task][0]
    export(run, unchecked(bundle), force=True)
    agreement = check_classifier(
        classifier, unchecked(bundle), [sample.image for sample in evenly(judged.samples, CHECKED)]
    )
    say(f"the bundle against PyTorch: {agreement}", quiet=quiet)
    if not agreement.reached:
        raise ModelError(f"the bundle {unchecked(bundle)} does not classify as PyTorch does: {agreement}")
    accept(bundle)
    pictures = [sample.image for sample in judged.samples]
    found = Classified(pictures, judged.labels, judged.logits, names, temperature)
    write_page(run, config, classifier, found, memory)
    return found.scores()


def _guess(classifier: Classifier, names: Sequence[str], config: Config, corpus: Corpus, quiet: bool) -> Guessed:
    """Classify the labelled validation pictures, as training and validation see them."""
    from cutline.engine.classes import ClassTask, numbered
    from cutline.engine.runtime import choose_device
    from cutline.engine.sources import PictureSource

    there = [sample for sample in corpus.split("val") if sample.label is not None]
    source = PictureSource(there, classifier.encoder.transform, config.pictures)
    device = choose_device(config.device).torch
    task, unreadable = ClassTask(config, classifier.to(device), names, there, source), dict[str, str]()
    chosen, logits = [], []
    with progress("classifying val", len(there), "pictures", quiet=quiet) as advance:
        everything = np.arange(len(there))
        for indices, found in task.guess(everything, config.training.batch, device, unreadable):
            chosen.append(indices)
            logits.append(found)
            advance(len(indices))
    classifier.cpu()
    if unreadable:
        say(f"in no score, since they cannot be read: {len(unreadable)} of the split val")
    if not chosen:
        raise DataError("no picture of the split val with a label can be read", expected="at least one")
    samples = [there[index] for index in np.concatenate(chosen)]
    return Guessed(samples, numbered(samples, names), np.concatenate(logits))


def _calibrate(run: Path, judged: Guessed) -> float:
    """Fit the temperature of the run's best weights, and note it there."""
    from cutline import durable
    from cutline.evaluation.classes import fit_temperature

    temperature = fit_temperature(judged.logits, judged.labels)
    told = {"temperature": temperature, "split": "val", "of": _checkpoint(run)}
    with contextlib.suppress(OSError):  # in a folder that is another's it is fitted again the next time
        durable.put(run / CALIBRATION, json.dumps(told).encode())
    return temperature


def _calibrate_later(run: Path, classifier: Classifier, names: Sequence[str], config: Config) -> float | None:
    """For a run that has ended with its weights, or has learned on since; none where its pictures are gone."""
    from cutline.data.sources import read

    here = replace(config, device="auto")  # which may be another machine than the one that taught it
    try:
        return _calibrate(run, _guess(classifier, names, here, read(config, quiet=True), quiet=True))
    except (CutlineError, OSError) as error:
        say(f"probabilities are not calibrated, which takes the validation pictures: {error}")
        return None


def _calibration(run: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((run / CALIBRATION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return told


def _is_calibrated(run: Path) -> bool:
    """Whether its best weights are, and not some from before them."""
    told = _calibration(run)
    return bool(told) and told.get("of", "") in ("", _checkpoint(run))


def _temperature(run: Path, step: int | None) -> float:
    """What calibrates the probabilities of a run; 1, which changes nothing, where it was fitted to none or others."""
    told = _calibration(run)
    if not told:
        return 1.0
    exported = _checkpoint(run, step)
    if told.get("of", exported) != exported:
        say(f"probabilities are not calibrated: that was done for {told['of']}, and not for {exported}")
        return 1.0
    return float(told["temperature"])


def _checkpoint(run: Path, step: int | None = None) -> str:
    """The name of the one of this step, or of the best."""
    from cutline.engine import folder
    from cutline.engine.checkpoint import Checkpoints

    checkpoints = Checkpoints(run, folder.identity(run))
    found = checkpoints.best() if step is None else checkpoints.of_step(step)
    return found.path.name if found else ""


def write_page(run: Path, config: Config, classifier: Classifier, found: Classified, memory: int | None) -> Path:
    import torch

    from cutline.engine.events import read
    from cutline.evaluation import cost
    from cutline.report.classes import write_class_report
    from cutline.report.inside import Inside

    transform = classifier.encoder.transform
    facts = {"data": f"{config.data.path}, split val"} | _of_model(config)
    facts["parameters"] = f"{cost.parameters(classifier) / 1e6:.2f} M"
    picture = torch.zeros(1, 3, transform.size, transform.size, dtype=torch.uint8)
    facts["multiply-adds"] = f"{cost.multiply_adds(classifier, (picture,)) / 1e6:,.0f} M for a picture"
    with torch.inference_mode():
        time = cost.time_per_picture(lambda: classifier.eval()((picture,)), seconds=0.2)
    facts["time"] = f"{time} for a picture by itself, decoded and resized, in PyTorch on this machine's CPU"
    if memory:
        facts["memory"] = f"{memory / 1e9:.2f} GB at the most while learning"
    return write_class_report(
        run / PLACES[config.task][1],
        title=run.resolve().name,
        facts=facts,
        found=found,
        events=read(run / "events.jsonl"),
        transform=transform,
        inside=Inside(classifier, transform),
    )


def _of_model(config: Config) -> dict[str, str]:
    """What the model is and how it learned, in words: each stage by itself, and the random changes of the last."""
    from dataclasses import asdict

    from cutline.cli.telling import learning

    last = config.all_stages[-1]
    head, training = config.classes, last.training
    changes = {name.removeprefix("augment_"): value for name, value in asdict(last.pictures).items() if value}
    shares = {name for name in ("crop", "grow") if changes[name] == 1}
    told = ", ".join(
        name if value is True else f"{name} {value:g}"
        for name, value in changes.items()
        if name not in {"size", "fit", *shares}
    )
    stages = {f"stage {number}": _of_stage(stage) for number, stage in enumerate(config.all_stages, 1)}
    layers = "one layer" if head.head == "linear" else f"two layers, {head.hidden} wide"
    return {
        "encoder": config.encoder.name,
        "head": f"{layers}, dropout {head.dropout:g}",
        "balance": head.balance,
        "training": learning(config),
        **(stages if config.stages else {"rates": stages["stage 1"]}),
        "smoothing and averaging": f"label smoothing {training.label_smoothing:g}, average {training.ema:g}",
        "changed at random": told or "nothing",
    }


def _of_stage(config: Config) -> str:
    """`all of the encoder learns, 12 epochs, adamw at 0.001 (cosine), weight decay 0.05, bf16`"""
    from cutline.models.encoders import begins_learned

    training, encoder = config.training, config.encoder
    learns = {"all": "all of the encoder learns", "nothing": "the encoder stays as it is"}
    learns["auto"] = learns["nothing" if begins_learned(encoder) else "all"]
    of_encoder = f", {encoder.rate:g} in the encoder" if encoder.rate else ""
    nearer = f", of each of its stages {encoder.decay:g} of the next one's" if encoder.decay < 1 else ""
    return (
        f"{learns.get(encoder.train, f'the encoder learns from {encoder.train} on')}, {training.epochs} epochs, "
        f"{training.optimizer} at {training.rate:g}{of_encoder}{nearer} ({training.schedule}), "
        f"weight decay {training.weight_decay:g}, {training.precision}"
    )
