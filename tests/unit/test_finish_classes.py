"""What comes of a run of classes: on what it is judged, how sure it is, and which bundle is left."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.coloured import SMALL_CNN, changed, trainer_of

from cutline import config as configuration
from cutline.bundle import load
from cutline.cli import evaluate, export, finish_classes
from cutline.cli.pictures import find_model
from cutline.config import Config
from cutline.data.sources import read
from cutline.engine import folder, run, tidy, trained
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.estimate import dry_run
from cutline.engine.loop import train
from cutline.engine.runs import Run
from cutline.errors import DataError, ModelError
from cutline.evaluation.classes import softmax
from cutline.export import Agreement, unchecked


def test_a_run_is_judged_on_what_it_has_not_learned_from_wherever_its_data_are_named(
    config: Config, coloured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(config, data={"split_seed": 3, "val_share": 0.3})
    place = folder.make(config)
    (place / "config.toml").write_text(configuration.to_toml(config))
    (place / "bundle").mkdir()
    own = {sample.id for sample in evaluate._corpus(evaluate.Evaluate(place)).split("val")}
    assert len(own) > 8
    for model in (place, place / "bundle"):
        found = evaluate._corpus(evaluate.Evaluate(model, data=str(coloured)))
        assert {sample.id for sample in found.split("val")} == own
    assert "may be among them" not in capsys.readouterr().err
    elsewhere = evaluate._corpus(evaluate.Evaluate(place.parent / "bundle", data=str(coloured)))
    assert {sample.id for sample in elsewhere.split("val")} != own
    assert "what this model has learned from may be among them" in capsys.readouterr().err


def test_a_temperature_is_of_the_weights_that_it_was_fitted_to(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(changed(config, training={"epochs": 2, "keep": 9}))
    assert finish_classes._temperature(trainer.run, None) == 1.0
    train(trainer, quiet=True)
    best = Checkpoints(trainer.run, folder.identity(trainer.run)).best()
    other = 5 if best.step == 10 else 10
    told = {"temperature": 1.7, "split": "val", "of": best.path.name}
    (trainer.run / finish_classes.CALIBRATION).write_text(json.dumps(told))
    assert finish_classes._temperature(trainer.run, None) == 1.7
    assert finish_classes._temperature(trainer.run, best.step) == 1.7
    assert not capsys.readouterr().err
    assert finish_classes._temperature(trainer.run, other) == 1.0
    assert "probabilities are not calibrated" in capsys.readouterr().err


def test_a_bundle_that_is_made_later_is_calibrated_too(config: Config, tmp_path: Path) -> None:
    config = changed(config, encoder=SMALL_CNN, training={"epochs": 1, "label_smoothing": 0.3})
    trainer = trainer_of(config)
    train(trainer, quiet=True)
    finish_classes.export(trainer.run, tmp_path / "later")
    calibrated = load(tmp_path / "later").temperature
    assert calibrated != 1.0
    finish_classes.finish(trainer.run, run.read(config, quiet=True), quiet=True)
    assert load(trainer.run / "bundle").temperature == pytest.approx(calibrated)


def test_a_bundle_that_does_not_do_as_pytorch_does_takes_no_place(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before it stays, and is the one that is used."""
    config = changed(replace(config, output=str(tmp_path / "runs")), encoder=SMALL_CNN, training={"epochs": 1})
    trainer = trainer_of(config)
    train(trainer, quiet=True)
    corpus = run.read(config, quiet=True)
    finish_classes.finish(trainer.run, corpus, quiet=True)
    bundle = trainer.run / "bundle"
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert before["README.md"].startswith(b"# bundle\n")
    monkeypatch.setattr("cutline.export.check_classifier", lambda *_: Agreement(0, 4, "classes"))
    with pytest.raises(ModelError, match="does not classify as PyTorch does"):
        finish_classes.finish(trainer.run, corpus, quiet=True)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert unchecked(bundle).is_dir()
    with pytest.raises(ModelError, match="does not do as PyTorch does"):
        export.main([str(trainer.run), "--out", str(bundle), "--force"])
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    monkeypatch.chdir(tmp_path)
    found = find_model("classes", "CUTLINE_NO_SUCH")
    assert found
    assert found.resolve() == bundle


def test_an_encoder_that_has_changed_on_the_disk_is_refused_and_named(config: Config) -> None:
    config = changed(config, encoder=SMALL_CNN | {"train": "nothing"}, training={"epochs": 1})
    trainer = trainer_of(config)
    train(trainer, quiet=True)
    file = trainer.run / "encoder-0.safetensors"
    trained.load_classifier(trainer.run)
    assert {each.what: each.state for each in tidy.verify(Run(trainer.run))}[file.name] == "ok"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match=r"encoder-0\.safetensors is damaged: .* does not match its hash"):
        trained.load_classifier(trainer.run)
    assert {each.what: each.state for each in tidy.verify(Run(trainer.run))}[file.name] == "damaged"


def test_the_page_tells_what_the_classifier_costs_and_the_card_what_was_not_calibrated(config: Config) -> None:
    trainer = trainer_of(changed(config, encoder=SMALL_CNN))
    train(trainer, quiet=True)
    finish_classes.finish(trainer.run, read(config, quiet=True), memory=1_230_000_000, quiet=True)
    page = " ".join(re.sub("<[^>]*>", " ", (trainer.run / "report.html").read_text()).split())
    assert re.search(r"parameters 0\.\d\d M multiply-adds \d+ M for a picture", page)
    assert re.search(r"time [\d.]+ ms \([\d.]+ to [\d.]+\) for a picture by itself", page)
    assert "memory 1.23 GB at the most while learning" in page
    assert re.search(
        r"all of the encoder learns, 2 epochs, adamw at 0\.003 \(constant\), weight decay 0\.\d+, \w+", page
    )
    card = (trainer.run / "bundle" / "README.md").read_text()
    assert "ece before calibration" in card
    assert "nats before calibration" in card


def test_evaluate_says_what_the_bundle_makes_of_each_picture(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(changed(config, encoder=SMALL_CNN))
    train(trainer, quiet=True)
    finish_classes.finish(trainer.run, read(config, quiet=True), quiet=True)
    (trainer.run / "config.toml").write_text(configuration.to_toml(config))
    found = load(trainer.run / "bundle")
    judged = read(config, quiet=True).split("val")
    for seen in (1, 2):
        capsys.readouterr()
        file = tmp_path / f"said-{seen}.jsonl"
        assert evaluate.main([str(trainer.run), "--views", str(seen), "--format", "json", "--out", str(file)]) == 0
        told = json.loads(capsys.readouterr().out)["classes"]
        rows = {row["path"]: row for row in map(json.loads, file.read_text().splitlines())}
        assert rows.keys() == {sample.id for sample in judged}
        right = 0
        for sample in judged:
            pixels = found.pixels(sample.image)[None]
            both = [found.logits(view) for view in (pixels, pixels[:, :, ::-1])[:seen]]
            chances = softmax(np.mean(both, axis=0), found.temperature)[0]
            guesses = {each["label"]: each["probability"] for each in rows[sample.id]["guesses"]}
            assert guesses == pytest.approx(dict(zip(found.classes, chances.tolist(), strict=True)), abs=1e-5)
            assert rows[sample.id]["label"] == sample.label
            right += next(iter(guesses)) == sample.label
        assert told["accuracy"] == pytest.approx(100 * right / len(judged), abs=0.01)


def test_evaluate_names_classes_that_the_model_does_not_know(
    config: Config, coloured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(changed(config, encoder=SMALL_CNN, training={"epochs": 1}))
    train(trainer, quiet=True)
    finish_classes.export(trainer.run, tmp_path / "bundle")
    other = shutil.copytree(coloured, tmp_path / "other")
    (other / "red").rename(other / "Red")
    assert evaluate.main([str(tmp_path / "bundle"), "--data", str(other), "--quiet"]) == 0
    assert "classes that the model does not know, so always wrong: Red (1)\n" in capsys.readouterr().err


def test_a_trial_leaves_out_what_the_run_leaves_out(config: Config, coloured: Path, tmp_path: Path) -> None:
    shutil.copytree(coloured, tmp_path / "data")
    (tmp_path / "data" / "blue" / "0.png").write_bytes(b"no picture")
    data = {"path": str(tmp_path / "data"), "val_share": 0.2, "test_share": 0.0}
    for seed in range(20):  # until it is one to learn from
        frozen = changed(config, encoder={"name": "small", "train": "nothing"}, data={**data, "split_seed": seed})
        if any(sample.id == "blue/0.png" for sample in read(frozen, quiet=True).split("train")):
            break
    with pytest.raises(DataError, match=r"0\.png"):
        dry_run(frozen, quiet=True)
    assert dry_run(changed(frozen, data={"skip_bad": True}), quiet=True).steps > 0
