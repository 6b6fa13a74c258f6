"""The encoder of one run given to another: name and weights, to learn on or to stay, and only where it fits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from cutline import config as configuration
from cutline.cli import work
from cutline.cli.train import FLAGS, resolve, settle
from cutline.config import Config
from cutline.engine import folder, run, taught, trained
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.loop import Stopped, train
from cutline.engine.ranks import ALONE
from cutline.engine.trainer import Trainer
from cutline.errors import ConfigError, CutlineError, ModelError
from cutline.features.build import key_of

SETTINGS: dict[str, Any] = {
    "task": "classes",
    "threads": 1,
    "device": "cpu",
    "pictures": {"size": 24},
    "encoder": {"name": "cnn:width=16,stages=2"},
    "decoder": {"hidden": 16},
    "training": {"epochs": 1, "batch": 32, "rate": 3e-3, "warmup": 0, "validate_limit": 20},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def classes(scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    tables = {**SETTINGS, "output": str(tmp_path_factory.mktemp("runs")), "data": {"path": str(scenes_folder)}}
    return configuration.from_dict(tables)


@pytest.fixture(scope="module")
def teacher(classes: Config) -> Path:
    """The run of a classifier that has learned for a few steps."""
    prepared = run.prepare(classes, quiet=True)
    place = run.create(prepared)
    train(run.trainer(prepared, place), quiet=True)
    return place


def pupil(classes: Config, teacher: Path, **encoder: str) -> Config:
    """A captioner that is to begin with the classifier's encoder."""
    tables = {"task": "captions", "encoder": {"weights": str(teacher), **encoder}}
    return configuration.from_dict(tables, classes)


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.encoder.state_dict())


@pytest.mark.parametrize("part", ["nothing", "all", "auto"])
def test_a_captioner_begins_with_the_encoder_of_a_classifier(classes: Config, teacher: Path, part: str) -> None:
    prepared = run.prepare(pupil(classes, teacher, train=part), quiet=True)
    given, learned = tensors(prepared.model), tensors(trained.load_classifier(teacher)[0])
    assert given.keys() == learned.keys()
    assert all(torch.equal(given[name], learned[name]) for name in given)
    fresh = tensors(run.prepare(configuration.from_dict({"task": "captions"}, classes), quiet=True).model)
    assert not any(torch.equal(given[name], fresh[name]) for name in given if name.endswith("conv1.weight"))
    assert {p.requires_grad for p in prepared.model.encoder.parameters()} == {part == "all"}
    assert prepared.model.encoder.still  # its batch norms keep what they have learned


def test_a_classifier_begins_with_the_encoder_of_a_captioner(classes: Config, teacher: Path, tmp_path: Path) -> None:
    prepared = run.prepare(pupil(classes, teacher, train="all"), quiet=True)
    place = run.create(prepared, _made(tmp_path / "captioner"))
    train(run.trainer(prepared, place), quiet=True)
    learned = tensors(trained.load_captioner(place)[0])
    assert not same(learned, tensors(trained.load_classifier(teacher)[0]))
    back = configuration.from_dict({"encoder": {"weights": str(place), "train": "nothing"}}, classes)
    given = tensors(run.prepare(back, quiet=True).model)
    assert same(given, learned)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_the_pupil_has_learned_needs_no_teacher(classes: Config, teacher: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(teacher, tmp_path / "teacher")
    config = pupil(classes, copy, train="nothing")
    prepared = run.prepare(config, quiet=True)
    place = run.create(prepared, _made(tmp_path / "pupil"))
    train(run.trainer(prepared, place), quiet=True)
    shutil.rmtree(copy)
    given, learned = tensors(trained.load_captioner(place)[0]), tensors(trained.load_classifier(teacher)[0])
    assert all(torch.equal(given[name], learned[name]) for name in given)


def test_a_link_that_the_run_itself_would_move_is_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "latest").symlink_to("teacher")
    with pytest.raises(ConfigError, match="latest is a link, which the run that begins may move") as refused:
        settle(SimpleNamespace(preset="", config=None, gpus="", weights=str(tmp_path / "latest")))
    assert refused.value.fix.endswith("teacher")


@pytest.mark.parametrize("part", ["nothing", "all"])
@pytest.mark.parametrize("begun_with", ["teacher", "files"])
def test_what_it_began_with_may_be_gone_when_it_goes_on(
    begun_with: str, part: str, classes: Config, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to the same end, to the bit, as one that lost nothing."""
    tables = {"training": {"epochs": 2}, "encoder": {"weights": str(tmp_path / "given"), "train": part}}
    if begun_with == "teacher":
        shutil.copytree(teacher, tmp_path / "given")
    else:
        learned = {name: value.contiguous() for name, value in tensors(trained.load_classifier(teacher)[0]).items()}
        safetensors.torch.save_file(learned, tmp_path / "given.safetensors")
        (tmp_path / "given.txt").write_text("red 1 2 3 4\nblue 2 3 4 1\n")
        tables["encoder"] |= {"weights": str(tmp_path / "given.safetensors")}
        tables |= {"task": "captions", "words": {"embeddings": str(tmp_path / "given.txt")}}
    config = configuration.from_dict({**tables, "output": str(tmp_path / "runs")}, classes)
    whole, parts = folder.make(config), folder.make(config)
    given = SimpleNamespace(resume=None, allow_changes=False, quiet=True, tensorboard=False, no_bundle=True)
    work._train(given, config, ALONE, whole)
    with monkeypatch.context() as patch:
        learn = Trainer.step
        patch.setattr(Trainer, "step", lambda self, b, *, stop=False: learn(self, b, stop=stop or self.at.step == 3))
        with pytest.raises(Stopped):
            work._train(given, config, ALONE, parts)
    for path in tmp_path.glob("given*"):
        path.rename(path.with_name(f"moved-{path.name}"))
    work._train(given, config, ALONE, parts)
    one, other = (Checkpoints(place, folder.identity(place)).latest() for place in (whole, parts))
    for name in one.files:
        if name.endswith(".safetensors"):
            assert one.read(name) == other.read(name), name
    assert one.state["progress"] == other.state["progress"]
    assert (whole / "events.jsonl").read_bytes() == (parts / "events.jsonl").read_bytes()


def _made(path: Path) -> Path:
    path.mkdir()
    (path / "run.json").write_text('{"id": "pupil"}')
    return path


def test_stored_features_are_named_by_the_weights_and_not_by_the_folder(
    classes: Config, teacher: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(teacher, tmp_path / "elsewhere")
    keys = [key_of(run.prepare(pupil(classes, place), quiet=True).model.encoder) for place in (teacher, copy)]
    random = configuration.from_dict({"encoder": {"train": "nothing"}}, classes)
    assert keys[0] == keys[1] != key_of(run.prepare(random, quiet=True).model.encoder)


def resolved(**given: Any) -> Config:
    nothing = dict.fromkeys([*FLAGS, "resume", "preset", "config", "gpus"])
    return resolve(SimpleNamespace(**nothing | given))


def test_the_name_and_the_size_come_from_the_run(teacher: Path, tmp_path: Path) -> None:
    config = resolved(weights=str(teacher))
    assert (config.encoder.name, config.pictures.size) == ("cnn:width=16,stages=2", 24)
    assert (config.task, config.encoder.train) == ("captions", "nothing")  # the rest is as it was
    file = tmp_path / "own.toml"
    file.write_text("[pictures]\nsize = 48\n[encoder]\nname = 'cnn'")
    own = resolved(weights=str(teacher), config=file)
    assert (own.encoder.name, own.pictures.size) == ("cnn", 48)
    assert resolved(weights=str(teacher), encoder="small").encoder.name == "small"


def test_the_size_is_that_of_the_stage_with_the_best_weights(teacher: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(teacher, tmp_path / "staged")
    stages = ({"pictures": {"size": 40}}, {"pictures": {"size": 56}})  # its checkpoints are of the first
    staged = configuration.from_dict({"stages": stages}, configuration.load(teacher / "config.toml"))
    (copy / "config.toml").write_text(configuration.to_toml(staged))
    assert resolved(weights=str(copy)).pictures.size == 40


def test_another_encoder_is_refused_by_name(classes: Config, teacher: Path) -> None:
    with pytest.raises(ModelError, match="has taught is 'cnn:width=16,stages=2', not 'small'") as refused:
        run.prepare(pupil(classes, teacher, name="small"), quiet=True)
    assert "leave out --encoder" in refused.value.fix


def test_a_plain_network_is_of_one_size(classes: Config, tmp_path: Path) -> None:
    plain = configuration.from_dict({"encoder": {"name": "dnn:hidden=8,layers=1"}}, classes)
    prepared = run.prepare(plain, quiet=True)
    place = run.create(prepared, _made(tmp_path / "plain"))
    train(run.trainer(prepared, place), quiet=True)
    larger = replace(
        plain, encoder=replace(plain.encoder, weights=str(place)), pictures=replace(plain.pictures, size=32)
    )
    with pytest.raises(ModelError, match="in another shape layers") as refused:
        run.prepare(larger, quiet=True)
    assert "the same pictures.size" in refused.value.expected


def test_a_run_without_a_checkpoint_has_no_encoder_to_give(classes: Config, teacher: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(teacher, tmp_path / "teacher")
    for file in (copy / "checkpoints").glob("*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match="no valid checkpoint") as refused:
        run.prepare(pupil(classes, copy), quiet=True)
    assert "cutline runs verify" in refused.value.fix


def test_a_folder_that_is_no_run_is_refused(classes: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder and no run"):
        taught.by(pupil(classes, tmp_path).encoder)
    with pytest.raises(CutlineError, match="no weights file") as refused:
        run.prepare(pupil(classes, tmp_path / "missing"), quiet=True)
    assert "a run folder" in refused.value.expected
