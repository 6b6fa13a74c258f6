"""The loop: what a step is, when it stops, and what it keeps."""

from __future__ import annotations

import json
import math
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cutline import config as configuration
from cutline import console
from cutline.config import Config
from cutline.engine import choose, journal, run, trained, weights
from cutline.engine.batches import Batch
from cutline.engine.estimate import dry_run
from cutline.engine.loop import Loop, train
from cutline.engine.sources import PictureSource
from cutline.engine.task import Validation
from cutline.engine.trainer import Meter, Progress, Trainer
from cutline.errors import ConfigError, DataError, ModelError
from cutline.models.attention import coverage_penalty

SETTINGS = {
    "threads": 1,
    "data": {"languages": ["en"]},
    "words": {"min_count": 1},
    "pictures": {"size": 48},
    "decoder": {"hidden": 16, "dropout": 0.0},
    "training": {"epochs": 2, "batch": 8, "captions": 2, "rate": 3e-3, "warmup": 0, "schedule": "constant"},
    "search": {"beam": 1, "max_length": 10},
}


@pytest.fixture
def config(scenes_folder: Path, tmp_path: Path) -> Config:
    base = configuration.from_dict(SETTINGS)
    return replace(base, data=replace(base.data, path=str(scenes_folder)), output=str(tmp_path))


def trainer_of(config: Config, **training: object) -> Trainer:
    config = replace(config, training=replace(config.training, **training))  # type: ignore[arg-type]
    prepared = run.prepare(config, quiet=True)
    return run.trainer(prepared, run.create(prepared))


def gradients(trainer: Trainer, batches: int) -> list[torch.Tensor]:
    group = [batch for _, batch in zip(range(batches), trainer.batches.iterate(0, 0, 0), strict=False)]
    trainer.step(group)
    return [p.grad.clone() for p in trainer.parameters if p.grad is not None]


def test_nothing_of_a_part_that_did_not_fit_is_held_when_smaller_ones_are_tried(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(config)
    whole, plain = trainer.batches[0], trainer.task.loss
    held: list[weakref.ref[torch.Tensor]] = []

    def loss(batch: Batch, *rest: Any) -> tuple[torch.Tensor, float]:
        assert not [ref for ref in held if ref() is not None]
        found, told = plain(batch, *rest)
        held.append(weakref.ref(found))
        if len(batch) == len(whole):
            found.register_hook(out_of_memory)
        return found, told

    def out_of_memory(_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.task, "loss", loss)
    trainer.step([whole])
    assert trainer.at.split == 2
    assert len(held) == 3


def test_validation_takes_no_more_at_once_than_fits_into_a_step(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(config, batch=8)
    seen: list[int] = []
    monkeypatch.setattr(trainer.task, "validate", lambda batch, *rest: seen.append(batch))
    for trainer.at.split in (1, 4, 16):
        trainer.validate(lambda count: None)
    assert seen == [8, 2, 1]


@pytest.mark.parametrize("attention_weight", [0.0, 0.5])
def test_accumulated_batches_are_one_large_batch(config: Config, attention_weight: float) -> None:
    # Batch norm sees only its own batch, whatever is accumulated; so the encoder stays as it is here.
    frozen = replace(config, encoder=replace(config.encoder, train="nothing"))
    frozen = replace(frozen, training=replace(frozen.training, attention_weight=attention_weight, features=False))
    large = gradients(trainer_of(frozen, batch=16), 1)
    small = gradients(trainer_of(frozen, batch=4, accumulate=4), 4)
    assert len(large) == len(small) > 5
    for one, other in zip(large, small, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("encoder", ["small", "resnet10t"])  # ours, and one whose own library computes it again
def test_what_is_computed_again_is_noted_once(config: Config, encoder: str) -> None:
    config = replace(config, encoder=replace(config.encoder, name=encoder, weights="none"))
    stored, again = (trainer_of(config, checkpointing=on) for on in (False, True))
    before = [value.clone() for value in again.statistics]
    for one, other in zip(gradients(stored, 2), gradients(again, 2), strict=True):
        torch.testing.assert_close(one, other)
    assert any(not torch.equal(value, old) for value, old in zip(again.statistics, before, strict=True))
    for one, other in zip(stored.statistics, again.statistics, strict=True):
        assert torch.equal(one, other)


def test_a_language_that_is_not_validated_is_named(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, data=replace(config.data, languages=("en", "de")))
    whole = run.read(config, quiet=True)
    run.prepare(config)
    assert "to validate on:" not in capsys.readouterr().err
    english = [replace(s, captions={"en": s.captions["en"]}) if s.split == "val" else s for s in whole.samples]
    monkeypatch.setattr(run, "read", lambda config, quiet: replace(whole, samples=tuple(english)))
    run.prepare(config)
    told = capsys.readouterr().err
    assert told.count("no captions in de to validate on: the score is of the other languages") == 1


def test_languages_are_asked_for_as_readers_take_them(config: Config) -> None:
    prepared = run.prepare(replace(config, data=replace(config.data, languages=(" EN", "de", "en"))), quiet=True)
    assert prepared.known.words
    assert prepared.known.words.languages == ("en", "de")
    assert len(prepared.batches.captions.rows[0]) == sum(map(len, prepared.corpus.split("train")[0].captions.values()))


def test_gradients_are_clipped(config: Config) -> None:
    total = torch.stack([g.square().sum() for g in gradients(trainer_of(config, clip=0.01), 1)]).sum().sqrt()
    assert total == pytest.approx(0.01, rel=0.01)


def test_training_stops_when_it_gets_no_better(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(config, epochs=9, patience=2, schedule="plateau", drop=0.5)
    scores = iter([10.0, 30.0, 20.0, 29.0, 99.0])
    monkeypatch.setattr(Validation, "metric", lambda self, name: next(scores))
    at = train(trainer, quiet=True)
    steps = trainer.steps_per_epoch
    assert (at.epoch, at.best, at.best_step, at.bad, at.drops) == (4, 30.0, 2 * steps, 2, 2)
    log = [json.loads(line) for line in (trainer.run / "events.jsonl").read_text().splitlines()]
    rates = [event["rate"] for event in log if event["kind"] == "step"]
    assert rates[-1] == pytest.approx(3e-3 * 0.5)  # the second plateau would show in the epoch that did not come
    kept = [each.step for each in trainer.checkpoints.verified()]
    assert kept == [4 * steps, 3 * steps, 2 * steps]  # the two newest and the best


def test_what_is_not_known_yet_is_not_told(config: Config) -> None:
    """Neither in the journal nor to Prometheus, which would take the lowest of numbers for a score."""
    trainer = trainer_of(config)
    loop = Loop(trainer, lambda *words: None, quiet=True)
    unknown = {"loss", "best_score", "checkpoint_step"}
    before = loop.figures()
    assert not unknown & set(before)
    loop.train()
    after = loop.figures()
    assert set(after) == {*before, *unknown}
    assert after["checkpoint_step"] == after["step"] == trainer.total_steps
    assert after["best_score"] == trainer.at.best


def test_the_best_weights_are_loaded_not_the_last(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(config, epochs=3, ema=0.5)
    scores = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr(Validation, "metric", lambda self, name: next(scores))
    train(trainer, quiet=True)
    best = trained.load_captioner(trainer.run)[0]
    chosen = trained.load_captioner(trainer.run, step=2 * trainer.steps_per_epoch)[0]
    last = trained.load_captioner(trainer.run, step=3 * trainer.steps_per_epoch)[0]
    for name, value in weights.learned(best).items():
        assert torch.equal(value, weights.learned(chosen)[name])
    assert any(not torch.equal(v, weights.learned(last)[name]) for name, v in weights.learned(best).items())
    with pytest.raises(ModelError, match="no valid checkpoint of step 5"):
        trained.load_captioner(trainer.run, step=5)


def test_of_a_search_that_was_half_written_nothing_is_taken(config: Config) -> None:
    trainer = trainer_of(config, epochs=1)
    train(trainer, quiet=True)
    note = trainer.run / choose.FILE
    whole = json.dumps({"chosen": {"beam": 7, "length_penalty": 0.4}})
    for text, beam in ((whole, 7), (whole[:20], 1), ("", 1), ("{}", 1), ("[]", 1), ('{"chosen": {"bean": 7}}', 1)):
        note.write_text(text)
        assert trained.load_captioner(trainer.run)[2].search.beam == beam, text


@pytest.mark.parametrize("num", [1, 3])
def test_the_search_that_is_chosen_writes_as_many_captions_as_are_asked_for(config: Config, num: int) -> None:
    config = replace(config, search=replace(config.search, num=num, beam=3))
    trainer = trainer_of(config, epochs=1)
    train(trainer, quiet=True)
    judge = list(trainer.task.samples)[:4]
    model, words = trainer.task.model, run.Known.load(trainer.run, "captions").words
    found = choose.choose_search(trainer.run, model, words, config, judge, quiet=True)
    assert found.num == num <= found.beam
    assert choose.chosen(trainer.run, config.search) == found
    tried = json.loads((trainer.run / choose.FILE).read_text())["tried"]
    assert {each["beam"] for each in tried} == {beam for beam in choose.BEAMS if beam >= num}


def test_who_is_stopped_while_choosing_a_search_goes_on_with_the_next(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(config, epochs=1)
    train(trainer, quiet=True)
    judge = list(trainer.task.samples)[:6]
    model, words = trainer.task.model, run.Known.load(trainer.run, "captions").words
    plain, left, searched = choose._find, [3], list[tuple[int, float]]()

    def find(model: Any, words: Any, config: Config, *rest: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        searched.append((config.search.beam, config.search.length_penalty))
        return plain(model, words, config, *rest)

    monkeypatch.setattr(choose, "_find", find)
    with pytest.raises(KeyboardInterrupt):
        choose.choose_search(trainer.run, model, words, config, judge, quiet=True)
    assert choose.chosen(trainer.run, config.search) == config.search  # nothing is chosen yet
    left[0] = 1000
    stopped = choose.choose_search(trainer.run, model, words, config, judge, quiet=True)
    told = (trainer.run / choose.FILE).read_bytes()
    assert len(searched) == len(set(searched)) == len(choose.BEAMS) + len(choose.PENALTIES) - 1

    searched.clear()
    (trainer.run / choose.FILE).unlink()
    assert choose.choose_search(trainer.run, model, words, config, judge, quiet=True) == stopped
    assert (trainer.run / choose.FILE).read_bytes() == told
    count = len(searched)
    choose.choose_search(trainer.run, model, words, config, judge[1:], quiet=True)  # what other pictures say is new
    assert len(searched) == 2 * count


def test_seeing_the_pictures_before_a_search_is_no_standstill(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(config)
    samples = trainer.task.samples
    seen = list[None]()
    monkeypatch.setattr(console, "gone_on", [lambda: seen.append(None)])
    choose.Encoded.of(trainer.task.model, samples, config, quiet=True)
    assert len(seen) == -(-len(samples) // config.training.batch) > 1


def test_a_dry_run_counts_the_choice_of_a_search(config: Config) -> None:
    plain = dry_run(config, quiet=True)
    choosing = dry_run(replace(config, training=replace(config.training, choose_search=True)), quiet=True)
    assert "to choose the search" in choosing.words
    assert "to choose the search" not in plain.words


def test_no_search_is_chosen_by_pictures_that_are_gone(config: Config) -> None:
    trainer = trainer_of(config, epochs=1)
    gone = [replace(sample, image=Path("gone.png")) for sample in trainer.task.samples]
    words = run.Known.load(trainer.run, "captions").words
    with pytest.raises(DataError, match="none of the validation pictures can be read"):
        choose.choose_search(trainer.run, trainer.task.model, words, config, gone, quiet=True)


def test_the_average_is_what_is_loaded(config: Config) -> None:
    trainer = trainer_of(config, epochs=1, ema=0.9)
    train(trainer, quiet=True)
    assert trainer.average is not None
    loaded = weights.learned(trained.load_captioner(trainer.run)[0])
    assert all(torch.equal(loaded[name], value) for name, value in trainer.average.mean.items())
    raw = weights.learned(trainer.task.model)
    assert any(not torch.equal(loaded[name], raw[name]) for name in trainer.average.mean)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])  # no CPU is fast in it
def test_lower_precision_learns_as_well(config: Config, precision: str) -> None:
    trainer = trainer_of(config, precision=precision)
    batches = list(trainer.batches.iterate(0, 0, 0))
    losses = [trainer.step([batches[0]])["loss"] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_norm_is_of_gradients_and_not_of_scaled_ones(config: Config) -> None:
    norms = {}
    for precision in ("fp32", "fp16"):
        trainer = trainer_of(config, precision=precision)
        norms[precision] = trainer.step([trainer.batches[0]])["norm"]
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.02)


def test_a_bad_step_leaves_no_trace(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the weights, nor in their average, nor in what batch norm has noted."""
    trainer = trainer_of(config, ema=0.9)
    assert trainer.average
    assert trainer.statistics
    batch, plain = trainer.batches[0], trainer.task.loss
    trainer.step([batch])

    def held() -> list[torch.Tensor]:
        assert trainer.average
        live = weights.learned(trainer.task.model)
        return [value.clone() for value in (*live.values(), *trainer.average.mean.values())]

    before = held()
    with monkeypatch.context() as patch:
        patch.setattr(trainer.task, "loss", lambda *given: _made_nan(plain(*given), True))
        assert math.isnan(trainer.step([batch])["norm"])
    assert all(map(torch.equal, held(), before))
    assert (trainer.at.step, trainer.at.skipped) == (2, 1)
    trainer.step([batch])
    assert not any(map(torch.equal, held()[-3:], before[-3:]))


def test_a_loss_is_of_smoothed_words_and_of_where_is_looked(config: Config) -> None:
    task = trainer_of(config, label_smoothing=0.2, attention_weight=500.0).task
    batch = run.prepare(config, quiet=True).batches[0]
    task.model.eval()
    with torch.no_grad():
        task.model.decoder.vocabulary.bias.normal_(std=3)  # a model that takes all words for equally likely is smooth
    loss, told = task.loss(batch, 0.25, 100, 0.0)
    nats, looks = task.model.cross_entropy(batch.inputs, batch.tokens, smoothing=0.2)
    penalty = coverage_penalty(looks, batch.tokens[..., 1:] != 0)
    assert told == pytest.approx(float(nats.detach()), rel=1e-6)
    assert float((loss - nats / 100).detach()) == pytest.approx(500 * 0.25 * float(penalty.detach()), rel=1e-3)
    plain, _ = task.model.cross_entropy(batch.inputs, batch.tokens)
    assert float(plain.detach()) != pytest.approx(told, rel=1e-3)


def test_guesses_become_more_to_the_end(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(config, scheduled_sampling=0.5)
    plain, shares = trainer.task.loss, []
    monkeypatch.setattr(trainer.task, "loss", lambda *given: shares.append(given[3]) or plain(*given))
    batch, steps = trainer.batches[0], trainer.total_steps
    for step in (0, steps // 2, steps):
        trainer.at.step = step
        trainer.step([batch])
    assert shares == pytest.approx([0, 0.25, 0.5], abs=0.01)


def test_a_loss_that_is_no_number_is_named(config: Config) -> None:
    trainer = trainer_of(config)
    with torch.no_grad():
        trainer.task.model.decoder.vocabulary.bias[5] = float("nan")
    with pytest.raises(ModelError, match="no number in 11 steps up to step 11, from the first checkpoint on"):
        train(trainer, quiet=True)


def test_a_step_without_a_picture_that_can_be_read_is_told_as_that(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is no number, but nothing has gone wrong with the learning."""
    trainer = trainer_of(config, epochs=1, workers=0, unreadable=0.5)
    source, lost = trainer.batches.source, trainer.batches[1].pictures.tolist()
    assert isinstance(source, PictureSource)
    read = source._try
    source.cached[:] = 0
    monkeypatch.setattr(source, "_try", lambda index: "it is gone" if index in lost else read(index))
    at = train(trainer, quiet=True)
    events = [json.loads(line) for line in (trainer.run / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events[:3]] == ["step", "step", "unreadable"]
    assert not [event for event in events if event["kind"] == "skipped"]
    told = [entry["what"] for entry in journal.read(trainer.run) if entry["kind"] == "unreadable"]
    assert told == ["picture left out: it is gone"] * len(lost)
    assert (at.step, at.skipped, at.trouble) == (trainer.steps_per_epoch, 0, 0)


def test_a_picture_that_is_asked_for_again_and_again_is_one(config: Config) -> None:
    """As one of a rare class is, which is shown often."""
    trainer = trainer_of(config)
    loop = Loop(trainer, lambda *_: None, quiet=True)
    for _ in range(9):
        loop._miss({"rare.png": "it is gone"})
    loop.close()
    assert trainer.at.unreadable == 1
    assert len([entry for entry in journal.read(trainer.run) if entry["kind"] == "unreadable"]) == 1


def second_stage(config: Config) -> tuple[Trainer, Progress]:
    """A run at the beginning of its second stage, and where it is then."""
    staged = replace(config, stages=({"training": {"epochs": 1}}, {"training": {"epochs": 2, "bad_steps": 1}}))
    prepared = run.prepare(staged, quiet=True)
    path = run.create(prepared)
    at = train(run.trainer(prepared, path), quiet=True)
    later = run.trainer(run.prepare(staged, known=prepared.known, stage=1, quiet=True), path)
    later.begin_stage(at)
    return later, at


def test_a_stage_goes_back_to_nothing_of_another_stage(config: Config) -> None:
    """Its last checkpoint would be sound, but of other settings: taken up, this stage would be at its end at once."""
    later, at = second_stage(config)
    with torch.no_grad():
        later.task.model.decoder.vocabulary.bias[5] = float("nan")
    with pytest.raises(ModelError, match=f"in 2 steps up to step {at.step + 2}, from the beginning of stage 2 on"):
        train(later, quiet=True)


def test_a_stage_goes_back_to_its_own_checkpoint(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    later, at = second_stage(config)
    plain, bad = later.task.loss, iter([False] * later.steps_per_epoch + [True] * 2)
    monkeypatch.setattr(later.task, "loss", lambda *given: _made_nan(plain(*given), next(bad, False)))
    ended = train(later, quiet=True)
    assert (ended.stage, ended.epoch, ended.setbacks) == (1, 2, 1)
    assert ended.step == at.step + 2 * later.steps_per_epoch


def test_a_best_that_is_forgotten_is_the_best_no_longer(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Better weights came while the trouble began: the old best went for them, and they go as the run goes back."""
    trainer = trainer_of(config, epochs=4, bad_steps=1, keep=1)
    train(trainer, quiet=True)
    loop = Loop(trainer, lambda *_: None, quiet=True)
    trainer.at.best, trainer.at.best_step, trainer.at.trouble = 99.0, 1, 0
    loop._save()
    trainer.at.step, trainer.at.trouble = trainer.at.step + 1, 20
    loop._go_back()
    loop.close()
    assert (trainer.at.best, trainer.at.best_step) == (-math.inf, -1)


def test_a_loader_that_has_not_answered_yet_is_seen_to_be_slow() -> None:
    meter = Meter()
    meter.since -= 10.0
    meter.waiting = meter.since + 2.0  # and still
    assert meter.read()["loader_wait_share"] == pytest.approx(0.8, abs=0.02)
    meter.since -= 10.0
    meter.waiting -= 10.0
    assert meter.read()["loader_wait_share"] == 1.0


def test_a_run_that_learns_both_chooses_its_search_by_what_captions_score() -> None:
    score = SimpleNamespace(cider=60.0, bleu=(70.0, 50.0, 35.0, 25.0))
    told = Validation({"en": score}, {})  # type: ignore[dict-item]
    assert [told.metric(name) for name in ("cider", "bleu4", "accuracy")] == [60.0, 25.0, 60.0]


def _made_nan(told: tuple[torch.Tensor, float], bad: bool) -> tuple[torch.Tensor, float]:
    return (told[0] * math.nan, told[1]) if bad else told


def test_a_part_of_the_encoder_learns_at_its_own_rate(config: Config) -> None:
    own = replace(config, encoder=replace(config.encoder, train="stage3", rate=1e-5))
    prepared = run.prepare(own, quiet=True)
    groups = weights.parameter_groups(prepared.model, own)
    stages = prepared.model.encoder.stages()
    late = {id(p) for stage in stages[3:] for p in stage}
    slow = {id(p) for group in groups if group["lr"] == 1e-5 for p in group["params"]}
    assert slow == late
    assert not any(p.requires_grad for stage in stages[:3] for p in stage)
    decays = {group["weight_decay"] for group in groups if group["params"][0].ndim > 1}
    assert decays == {own.training.weight_decay} != {0}
    assert all(group["weight_decay"] == 0 for group in groups if group["params"][0].ndim == 1)


def test_vectors_of_another_width_are_refused(config: Config, tmp_path: Path) -> None:
    vectors = tmp_path / "glove.txt"
    vectors.write_text("red 1 2 3\nsmall 4 5 6\n")
    given = replace(config, words=replace(config.words, embeddings=str(vectors)))
    assert run.prepare(given, quiet=True).config.decoder.embed == 3
    with pytest.raises(ConfigError, match=r"have 3 numbers, decoder\.embed is 8"):
        run.prepare(replace(given, decoder=replace(config.decoder, embed=8)), quiet=True)


def test_searches_that_contradict_themselves_are_refused_before_anything_is_learned(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"min_length 40 is more than search\.max_length 10"):
        run.prepare(replace(config, search=replace(config.search, min_length=40)), quiet=True)


def test_runs_never_overwrite_each_other(config: Config, tmp_path: Path) -> None:
    prepared = run.prepare(config, quiet=True)
    one, two = run.create(prepared), run.create(prepared)
    assert one != two
    assert (tmp_path / "latest").resolve() == two.resolve()
