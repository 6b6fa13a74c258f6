"""Learning classes: what a loss is, how guesses are scored, and that trainer and loop are those of captions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.coloured import COLOURS, SMALL_CNN, changed, trainer_of
from torch import nn
from torch.nn.functional import cross_entropy

from cutline import config as configuration
from cutline.config import Config
from cutline.data.corpus import Sample
from cutline.engine import folder, run, trained, weights
from cutline.engine.batches import Batch
from cutline.engine.classes import BothTask, ClassTask
from cutline.engine.known import Known
from cutline.engine.loop import Stopped, train
from cutline.engine.resume import resume
from cutline.engine.trainer import Trainer
from cutline.errors import ConfigError, DataError, ModelError
from cutline.models.both import TwoHeaded
from cutline.models.captioner import Captioner
from cutline.models.classifier import Classifier

# The loss -----------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Gives these logits, whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs: object) -> torch.Tensor:
        return self.logits


def loss_of(labels: torch.Tensor, *, smoothing: float = 0.0, counts: torch.Tensor | None = None) -> tuple[float, float]:
    settings = configuration.from_dict({"task": "classes", "training": {"label_smoothing": smoothing}})
    task = ClassTask(settings, Fixed(LOGITS), "abc", [], None, counts)  # type: ignore[arg-type]
    numbers = torch.arange(len(labels))
    batch = Batch(
        (), torch.zeros(len(labels), 0, 2), numbers, torch.zeros(len(labels), dtype=torch.bool), labels=labels
    )
    loss, told = task.loss(batch, 1.0, len(labels), 0.0)
    return float(loss.detach()), told


LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.3, 0.1], [1.0, -2.0, 3.0]])
HARD = torch.tensor([0, 2, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_cross_entropy(smoothing: float) -> None:
    expected = float(cross_entropy(LOGITS, HARD, label_smoothing=smoothing))
    assert loss_of(torch.eye(3)[HARD], smoothing=smoothing) == pytest.approx((expected, 3 * expected))
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5], [0.0, 0.1, 0.9]])
    assert loss_of(mixed, smoothing=smoothing)[0] == pytest.approx(
        float(cross_entropy(LOGITS, mixed, label_smoothing=smoothing))
    )


def test_rare_classes_count_for_more() -> None:
    counts = torch.tensor([0.5, 1.0, 4.0])
    each = cross_entropy(LOGITS, HARD, reduction="none")
    assert loss_of(torch.eye(3)[HARD], counts=counts)[0] == pytest.approx(float((each * counts[HARD]).mean()))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_each_part_of_a_mixed_picture_counts_as_its_class_does(smoothing: float) -> None:
    counts, parts = torch.tensor([0.5, 1.0, 4.0]), torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5], [0.0, 0.1, 0.9]])
    whole = torch.stack([
        counts[k] * cross_entropy(LOGITS, torch.full((3,), k), label_smoothing=smoothing, reduction="none")
        for k in range(3)
    ])  # fmt: skip
    expected = float((parts * whole.T).sum(1).mean())
    assert loss_of(parts, smoothing=smoothing, counts=counts)[0] == pytest.approx(expected)


def test_a_picture_of_no_class_adds_nothing() -> None:
    labels = torch.eye(3)[HARD]
    labels[1] = 0
    each = cross_entropy(LOGITS, HARD, reduction="none")
    assert loss_of(labels)[0] == pytest.approx(float(each[[0, 2]].sum() / 3))


def test_parts_and_accumulated_batches_are_one_large_batch(config: Config) -> None:
    """Batch norm sees only its own batch, whatever is accumulated; so the encoder stays as it is here."""
    still = changed(config, encoder={"train": "nothing"}, training={"features": False}, classes={"balance": "weights"})

    def gradients(batch: int, batches: int, split: int) -> list[torch.Tensor]:
        trainer = trainer_of(changed(still, training={"batch": batch, "accumulate": batches, "clip": 0.0}))
        trainer.at.split = split
        group = [each for _, each in zip(range(batches), trainer.batches.iterate(0, 0, 0), strict=False)]
        trainer.step(group)
        return [p.grad.clone() for p in trainer.parameters if p.grad is not None]

    large = gradients(16, 1, 1)
    assert len(large) == 2
    for other in (gradients(4, 4, 1), gradients(16, 1, 4)):
        for one, same in zip(large, other, strict=True):
            torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-6)


# Validation ---------------------------------------------------------------------------------------------------------


def test_a_class_that_was_never_learned_is_scored_as_wrong(config: Config) -> None:
    prepared = run.prepare(config, quiet=True)
    task = prepared.task
    whole = task.validate(5, torch.device("cpu"), lambda count: None)
    assert whole is not None
    odd = [*task.samples[1:], Sample("odd", task.samples[0].image, label="purple")]
    other = ClassTask(task.config, prepared.model, prepared.known.classes, odd, _Same(odd, task))  # type: ignore[arg-type]
    found = other.validate(5, torch.device("cpu"), lambda count: None)
    assert found is not None
    assert found.to_dict()["count"] == whole.to_dict()["count"]
    assert found.scores.unknown == 1
    assert found.scores.accuracy <= 100 * (1 - 1 / len(odd))


class _Same:
    """Pictures of some samples, whatever they are called."""

    def __init__(self, samples: list[Sample], task: object) -> None:
        from cutline.config import PicturesConfig
        from cutline.engine.sources import PictureSource

        transform = task.source.transform  # type: ignore[attr-defined]
        self.load = PictureSource(samples, transform, PicturesConfig()).load


def test_it_learns_what_is_easy_and_keeps_the_best(config: Config) -> None:
    trainer = trainer_of(changed(config, training={"epochs": 6, "ema": 0.5, "patience": 3, "schedule": "plateau"}))
    at = train(trainer, quiet=True)
    events = [json.loads(line) for line in (trainer.run / "events.jsonl").read_text().splitlines()]
    validations = [event for event in events if event["kind"] == "validation"]
    assert at.best == max(event["accuracy"] for event in validations) > 80
    classifier, names, _ = trained.load_classifier(trainer.run)
    assert names == ("blue", "green", "red")
    assert isinstance(classifier, Classifier)
    task = ClassTask(trainer.task.config, classifier, names, trainer.task.samples, trainer.task.source)  # type: ignore[attr-defined]
    again = task.validate(8, torch.device("cpu"), lambda count: None)
    assert again is not None
    assert again.scores.accuracy == pytest.approx(at.best)
    with pytest.raises(ModelError, match="has learned classes and no captions"):
        trained.load_captioner(trainer.run)


def test_stored_features_hold_no_regions_that_nobody_reads(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepared = run.prepare(changed(config, encoder={"train": "nothing"}, device="cpu"), quiet=True)  # type: ignore[arg-type]
    grid, pooled = prepared.batches[0].inputs
    assert grid.shape[:2] == (8, 0)
    assert pooled.shape == (8, 192)
    train(run.trainer(prepared, run.create(prepared)), quiet=True)


# As for captions ----------------------------------------------------------------------------------------------------

ALL_CHANGES = {
    "augment_crop": 0.6, "augment_flip": True, "augment_colour": 0.2, "augment_rand": 9, "augment_erase": 0.3,
    "augment_mixup": 0.2, "augment_cutmix": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_a_run_stopped_anywhere_ends_the_same(config: Config, balance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, training = ALL_CHANGES | {"grow": 0.3}, {"ema": 0.9, "epochs": 3}
    config = changed(config, encoder=SMALL_CNN, pictures=pictures, training=training, classes={"balance": balance})
    whole = trainer_of(config)
    train(whole, quiet=True)
    parts = trainer_of(config)
    learn = Trainer.step
    for steps in (1, 6, 11):  # in epochs of 5 steps

        def step(self: Trainer, batches: list[Batch], *, stop: bool = False, last: int = steps) -> dict[str, float]:
            return learn(self, batches, stop=stop or self.at.step == last)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", step)
            with pytest.raises(Stopped):
                train(parts, quiet=True)
        known = Known.load(parts.run, "classes")
        parts = run.trainer(run.prepare(config, known=known, quiet=True), parts.run)
        resume(parts, quiet=True)
    train(parts, quiet=True)
    assert (parts.run / "events.jsonl").read_bytes() == (whole.run / "events.jsonl").read_bytes()
    for name, value in weights.learned(whole.task.model).items():
        assert torch.equal(value, weights.learned(parts.task.model)[name]), name


def test_a_run_takes_the_threads_that_it_is_given(config: Config) -> None:
    before = torch.get_num_threads()
    try:
        run.prepare(replace(config, threads=3), quiet=True)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_warm_up_without_an_end_is_told(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    train(trainer_of(changed(config, training={"epochs": 1, "warmup": 50})))
    assert "note: training.warmup is 50 steps, the stage 5" in capsys.readouterr().err


def test_other_labels_are_another_run(config: Config, coloured: Path, tmp_path: Path) -> None:
    trainer = trainer_of(changed(config, training={"epochs": 1}))
    train(trainer, quiet=True)
    moved = tmp_path / "moved"
    for name in COLOURS:
        (moved / name.replace("red", "rot")).mkdir(parents=True)
        for file in (coloured / name).iterdir():
            (moved / name.replace("red", "rot") / file.name).write_bytes(file.read_bytes())
    other = replace(trainer.task.config, data=replace(config.data, path=str(moved)))
    with pytest.raises(ConfigError, match="the classes are others"):
        resume(run.trainer(run.prepare(other, quiet=True), trainer.run), quiet=True)


def test_a_picture_that_can_be_read_again_makes_another_run(
    config: Config, coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one more to learn from, the order of all of them is another."""
    monkeypatch.setenv("CUTLINE_CACHE", str(tmp_path / "cache"))
    mine = shutil.copytree(coloured, tmp_path / "mine")
    config = replace(config, data=replace(config.data, path=str(mine), skip_bad=True))
    config = changed(config, encoder={"train": "nothing"}, training={"epochs": 1})
    learned_from = run.prepare(config, quiet=True).batches.names
    picture = mine / learned_from[0]
    good = picture.read_bytes()
    picture.write_bytes(good[:60])
    trainer = trainer_of(config)
    assert trainer.batches.count == len(learned_from) - 1
    train(trainer, quiet=True)
    resume(run.trainer(run.prepare(config, quiet=True), trainer.run), quiet=True)
    picture.write_bytes(good)
    with pytest.raises(ConfigError, match=r"others \(they were 33 to learn from.* now 34"):
        resume(run.trainer(run.prepare(config, quiet=True), trainer.run), quiet=True)


def test_random_weights_that_are_not_learned_are_told(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    for part, told in (("nothing", True), ("all", False)):
        run.prepare(replace(config, encoder=replace(config.encoder, train=part)))
        assert ("weights are random, and it does not learn" in capsys.readouterr().err) == told


def test_a_part_that_the_encoder_does_not_have_is_refused_before_an_earlier_stage_has_learned(config: Config) -> None:
    stages = ({"encoder": {"train": "nothing"}}, {"encoder": {"train": "stage30"}})
    with pytest.raises(ConfigError, match="'stage30'"):
        run.prepare(replace(config, encoder=replace(config.encoder, **SMALL_CNN), stages=stages), quiet=True)


@pytest.mark.parametrize("name", ["dnn:hidden=8,layers=1", "vit_tiny_patch16_224"])
def test_a_size_at_which_the_encoder_has_other_weights_is_refused_before_anything_is_learned(
    config: Config, name: str
) -> None:
    own = replace(config, encoder=replace(config.encoder, name=name, weights="none", train="all"))
    same, larger = {"pictures": {"size": 32}}, {"pictures": {"size": 48}}
    run.prepare(replace(own, stages=(same, same)), quiet=True)
    with pytest.raises(ConfigError, match="other weights for pictures of 48 pixels"):
        run.prepare(replace(own, stages=(same, larger)), quiet=True)
    own = replace(own, encoder=replace(own.encoder, name="small"))
    run.prepare(replace(own, stages=(same, larger)), quiet=True)


def test_each_stage_of_the_encoder_has_its_rate(config: Config) -> None:
    own = changed(config, encoder={"rate": 1e-4, "decay": 0.5}, training={"rate": 1e-2})
    prepared = run.prepare(own, quiet=True)
    groups = weights.parameter_groups(prepared.model, own)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    stages = prepared.model.encoder.stages()
    for distance, stage in enumerate(reversed(stages)):
        assert {rates[id(p)] for p in stage} == {1e-4 * 0.5**distance}
    assert {rates[id(p)] for p in prepared.model.head.parameters()} == {1e-2}  # type: ignore[union-attr]
    assert groups[-1]["lr"] == 1e-2
    assert len(rates) == len(list(prepared.model.parameters()))


# What cannot be learned ---------------------------------------------------------------------------------------------


def test_one_class_alone_is_refused(config: Config, coloured: Path, tmp_path: Path) -> None:
    (tmp_path / "one" / "red").mkdir(parents=True)
    for file in (coloured / "red").iterdir():
        (tmp_path / "one" / "red" / file.name).write_bytes(file.read_bytes())
    alone = replace(config, data=replace(config.data, path=str(tmp_path / "one")))
    with pytest.raises(DataError, match="only one class to learn, 'red'"):
        run.prepare(alone, quiet=True)


def test_pictures_without_labels_are_refused(config: Config, tmp_path: Path) -> None:
    Image.new("RGB", (24, 24)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a picture")
    bare = replace(config, data=replace(config.data, path=str(tmp_path), format="folder"))
    with pytest.raises(DataError, match="0 labelled pictures to learn from"):
        run.prepare(bare, quiet=True)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"training": {"metric": "cider"}}, "the metric is 'cider', the task 'classes'"),
        ({"task": "captions", "training": {"metric": "accuracy"}}, "the metric is 'accuracy', the task 'captions'"),
        ({"task": "both", "pictures": {"augment_mixup": 0.2}}, "no caption for that"),
        ({"task": "classes", "encoder": {"decay": 0.0}}, "'encoder.decay' is 0.0"),
        ({"classes": {"head": "mpl"}}, "did you mean 'mlp'?"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tables: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration.from_dict({"task": "classes", **tables})
    assert says in str(caught.value)


# Both at once -------------------------------------------------------------------------------------------------------


@pytest.fixture
def both(scenes_folder: Path, tmp_path: Path) -> Config:
    settings = {
        "task": "both", "threads": 1, "output": str(tmp_path), "words": {"min_count": 1}, "pictures": {"size": 48},
        "data": {"path": str(scenes_folder), "languages": ["en"]}, "decoder": {"hidden": 16, "dropout": 0.0},
        "classes": {"weight": 0.7},
        "training": {"epochs": 1, "batch": 16, "captions": 2, "warmup": 0, "schedule": "constant"},
        "search": {"beam": 1, "max_length": 10},
    }  # fmt: skip
    return configuration.from_dict(settings)


def test_two_heads_learn_as_each_would_alone(both: Config) -> None:
    prepared = run.prepare(both, quiet=True)
    task, batch = prepared.task, prepared.batches[0]
    assert isinstance(task, BothTask)
    assert isinstance(prepared.model, TwoHeaded)
    prepared.model.encoder.eval()  # so that its batch norms give the same twice
    said, nats = task.captions.loss(batch, 1.0, batch.amount, 0.0)
    guessed, told = task.classes.loss(batch, 1.0, batch.amount, 0.0)
    loss, together = task.loss(batch, 1.0, batch.amount, 0.0)
    assert float(loss.detach()) == pytest.approx(float((said + 0.7 * guessed).detach()), rel=1e-5)
    assert together == pytest.approx(nats + 0.7 * told, rel=1e-5)
    assert together / batch.amount == pytest.approx(float(loss.detach()), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(p.grad.any()) for p in prepared.model.head.parameters())


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("lost", ["captions", "labels"])
def test_both_need_captions_and_labels_to_learn_from_and_to_validate_on(
    lost: str, split: str, both: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.read(both, quiet=True)
    nothing = {"captions": {}} if lost == "captions" else {"label": None}
    bare = replace(whole, samples=tuple(replace(s, **nothing) if s.split == split else s for s in whole.samples))  # type: ignore[arg-type]
    monkeypatch.setattr(run, "read", lambda config, quiet: bare)
    what = "captioned" if lost == "captions" else "labelled"
    with pytest.raises(DataError, match=f"{0 if split == 'train' else 96} {what} pictures to learn from and"):
        run.prepare(both, quiet=True)


def test_a_run_of_both_is_a_captioner_and_a_classifier(both: Config) -> None:
    trainer = trainer_of(both)
    at = train(trainer, quiet=True)
    events = [json.loads(line) for line in (trainer.run / "events.jsonl").read_text().splitlines()]
    found = next(event for event in events if event["kind"] == "validation")
    assert found["en_cider"] == pytest.approx(at.best, abs=1e-3)
    assert 0 <= found["accuracy"] <= 100
    captioner, words, _ = trained.load_captioner(trainer.run)
    classifier, names, _ = trained.load_classifier(trainer.run)
    assert isinstance(captioner, Captioner)
    assert len(names) > 2
    assert words.languages == ("en",)
    for name, value in classifier.encoder.state_dict().items():
        assert torch.equal(value, captioner.encoder.state_dict()[name])
    assert folder.settings(trainer.run).task == "both"


def test_with_both_a_picture_may_have_only_one_of_the_two(both: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run.read(both, quiet=True)
    learn = whole.split("train")
    bare = [replace(sample, captions={}) for sample in learn[:16]] + [replace(s, label=None) for s in learn[16:32]]
    corpus = replace(whole, samples=(*bare, *whole.split("val")))
    monkeypatch.setattr(run, "read", lambda config, quiet: corpus)
    trainer = trainer_of(both)
    steps = [trainer.step([batch]) for _ in range(2) for batch in trainer.batches.iterate(0, 0, 0)]
    assert trainer.batches.count == 32
    assert all(step["loss"] > 0 and step["norm"] > 0 for step in steps)
    silent = Batch(*_of(trainer, [number for number in range(32) if number < 16]))
    assert silent.amount == 0
    assert 0 < trainer.step([silent])["loss"] < 0.7 * 5


def _of(trainer: Trainer, numbers: list[int]) -> tuple[object, ...]:
    """A batch of these pictures."""
    indices = np.array(numbers)
    flips = np.zeros(len(indices), bool)
    tokens = trainer.batches._tokens(indices, flips)
    assert trainer.batches.labels is not None
    labels = trainer.batches.labels.targets(indices)
    pictures = trainer.batches.source.load(indices, None)
    return pictures, tokens, torch.from_numpy(indices), torch.from_numpy(flips), {}, labels
