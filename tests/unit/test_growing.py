"""Pictures that are small at first, while classes are learned of them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from tests.coloured import SMALL_CNN, changed, trainer_of

from cutline import config as configuration
from cutline.config import Config
from cutline.engine import run
from cutline.engine.batches import Batch
from cutline.engine.estimate import Needs, dry_run
from cutline.engine.loop import train
from cutline.engine.schedule import grown
from cutline.engine.sources import FeatureSource
from cutline.engine.trainer import Trainer
from cutline.errors import ConfigError


def sides_seen(trainer: Trainer) -> list[int]:
    """Those of the pictures that the encoder sees in a run, one after another."""
    seen: list[int] = []
    trainer.task.model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    train(trainer, quiet=True)
    return seen


def test_pictures_grow_while_they_are_learned_from_and_are_judged_whole(config: Config) -> None:
    training = {"epochs": 4, "validate_every": 3}
    config = changed(config, encoder=SMALL_CNN, pictures={"grow": 0.4}, training=training)
    seen = sides_seen(trainer_of(config))
    judged = [24]  # once after three epochs of five steps, and in the end
    assert seen == [8] * 7 + [16] * 8 + judged + [24] * 5 + judged


@pytest.mark.parametrize("encoder", ["dnn:hidden=8", "vit_tiny_patch16_224"])
def test_an_encoder_of_one_size_sees_pictures_that_do_not_grow(
    config: Config, encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    size = {"dnn:hidden=8": 24, "vit_tiny_patch16_224": 32}[encoder]
    config = changed(
        config,
        pictures={"grow": 0.4, "size": size},
        encoder={"name": encoder, "weights": "none"},
        training={"epochs": 1},
    )
    prepared = run.prepare(config)
    assert "pictures do not grow" in capsys.readouterr().err
    assert prepared.config.pictures.grow == 1.0
    assert set(sides_seen(run.trainer(prepared, run.create(prepared)))) == {size}


def test_pictures_that_grow_are_not_stored_as_features(config: Config) -> None:
    encoder = SMALL_CNN | {"train": "nothing"}
    config = changed(config, pictures={"grow": 0.4}, encoder=encoder, training={"epochs": 1})
    assert sides_seen(trainer_of(config))[0] == 8


def test_pictures_that_do_not_grow_after_all_may_be_stored(config: Config) -> None:
    encoder = {"name": "dnn:hidden=8", "train": "nothing"}
    prepared = run.prepare(changed(config, pictures={"grow": 0.4}, encoder=encoder), quiet=True)
    assert isinstance(prepared.batches.source, FeatureSource)


def test_all_sizes_must_be_seen_for_pictures_to_grow(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = run.prepare(changed(config, pictures={"grow": 0.4}, encoder={"name": "small"}))
    assert "pictures do not grow: the encoder 'small' cannot see 8 x 8 pixels" in capsys.readouterr().err
    assert prepared.batches.pictures.grow == 1.0


def test_captions_are_not_learned_from_pictures_that_grow(config: Config) -> None:
    with pytest.raises(ConfigError, match="looks at a grid of one size"):
        configuration.from_dict({"task": "captions"}, changed(config, pictures={"grow": 0.5}))


def test_what_is_kept_of_each_so_many_steps_takes_its_room(config: Config) -> None:
    plain, kept = (
        Needs.of(run.prepare(changed(config, training={"epochs": 100, "keep_every": every}), quiet=True))
        for every in (0, 50)
    )
    assert kept.memory == plain.memory
    assert kept.disk > 2.5 * plain.disk  # of 500 steps eleven more than five


def test_what_a_run_will_take_counts_small_pictures_as_quick(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take as long as their pictures have pixels, of pictures that grow and of those that do not."""

    def step(self: Trainer, batches: list[Batch], stop: bool) -> dict[str, float]:
        side = grown(24, self.batches.pictures.grow, self.share)
        time.sleep(side**2 / 24**2 / 4)
        return {}

    monkeypatch.setattr(Trainer, "_step", step)
    training = {"epochs": 100, "minutes": 0.1}
    config = changed(config, encoder=SMALL_CNN, training=training, pictures={"grow": 0.3})
    growing = dry_run(config, quiet=True)
    whole = dry_run(changed(config, pictures={"grow": 1.0}), quiet=True)
    paces = [grown(24, 0.3, share) ** 2 / 24**2 for share in (0.125, 0.375, 0.625, 0.875)]
    assert growing.steps / whole.steps == pytest.approx(np.mean(1 / np.array(paces)), rel=0.3)
    longer = {"training": {"minutes": 10}}
    growing, whole = (
        dry_run(configuration.from_dict(longer, changed(config, pictures={"grow": grow})), quiet=True)
        for grow in (0.3, 1.0)
    )
    assert growing.steps == whole.steps == 500
    assert growing.seconds / whole.seconds == pytest.approx(np.mean(paces), rel=0.2)
