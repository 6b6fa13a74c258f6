"""What learning by reward is paid in: CIDEr-D as the scores have it, and a gradient that is REINFORCE's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cutline import config as configuration
from cutline.config import Config, DecoderConfig, EncoderConfig, PicturesConfig, TrainingConfig, WordsConfig
from cutline.data.corpus import Corpus, Sample
from cutline.data.sources import read
from cutline.data.words import Words
from cutline.engine import run
from cutline.engine.batches import Batch, pad
from cutline.engine.runtime import reseed
from cutline.engine.task import Critic
from cutline.evaluation import ngrams
from cutline.evaluation.reward import END, Reward
from cutline.evaluation.tokens import tokenize
from cutline.models.captioner import Captioner, build_captioner
from cutline.models.encoders import Features
from cutline.models.vocabulary import Vocabulary

VOCABULARY = ["a", "the", "red", "blue", "dog", "cat", "runs", "sits", "on", "under", "small", "big", "grass"]


def caption(chance: random.Random) -> list[str]:
    return [chance.choice(VOCABULARY) for _ in range(chance.randint(0, 9))]


@pytest.fixture(scope="module")
def corpus() -> tuple[list[list[str]], list[list[list[str]]]]:
    chance = random.Random(3)
    references = [[caption(chance) for _ in range(chance.randint(1, 5))] for _ in range(40)]
    return [caption(chance) for _ in references], references


def test_it_is_cider_d_with_an_end_to_every_caption(corpus: tuple[list[list[str]], list[list[list[str]]]]) -> None:
    candidates, references = corpus
    ended = [[*words, END] for words in candidates], [[[*words, END] for words in group] for group in references]
    _, each = ngrams.cider(ngrams.Captions.of(*ended))
    rewards = Reward(references)(references, [[words] for words in candidates])
    np.testing.assert_allclose(rewards[:, 0], each, rtol=1e-9, atol=1e-12)
    assert rewards.max() > 0.5


def test_breaking_off_is_paid_less() -> None:
    """An end that no reference has, after `on the`, costs something; the scores themselves do not look at ends."""
    chance = random.Random(1)
    references = [[caption(chance) for _ in range(5)] for _ in range(50)]
    whole = ["a", "small", "dog", "sits", "on", "the", "grass"]
    ((complete, cut),) = Reward([[whole], *references])([[whole]], [[whole, whole[:-1]]])
    assert complete == pytest.approx(10)
    said = [whole[:-1], *(group[0] for group in references)]
    scored = ngrams.cider(ngrams.Captions.of(said, [[whole], *references]))[1][0]
    assert cut < 0.95 * scored


def test_pictures_without_the_language_make_nothing_rarer(
    corpus: tuple[list[list[str]], list[list[list[str]]]],
) -> None:
    candidates, references = corpus
    alone, beside = Reward(references), Reward([*references, *[[]] * 360])
    said = [[words] for words in candidates]
    np.testing.assert_allclose(beside(references, said), alone(references, said))


def test_bleu_may_be_part_of_it(corpus: tuple[list[list[str]], list[list[list[str]]]]) -> None:
    candidates, references = corpus
    alone = Reward(references)(references, [[words] for words in candidates])
    mixed = Reward(references, bleu=2.0)(references, [[words] for words in candidates])
    bleu = (mixed - alone) / 2
    assert (bleu >= 0).all()
    assert bleu.max() <= 1.0
    long = next(number for number, group in enumerate(references) if len(group[0]) > 6)
    said = [[references[long][0], references[long][0][::-1]]]
    (alone,), (mixed,) = (Reward(references, bleu=bleu)([references[long]], said) for bleu in (0.0, 2.0))
    assert (mixed - alone)[0] == pytest.approx(2.0)
    assert (mixed - alone)[1] < 1.5


def shown(*pictures: int, mirrored: bool = False) -> Batch:
    """A batch as a critic sees it."""
    return Batch((), torch.zeros(len(pictures), 0, 2), torch.tensor(pictures), torch.tensor([mirrored] * len(pictures)))


def test_each_is_measured_by_the_others_of_its_picture() -> None:
    texts = ["a red dog runs", "a blue cat sits", "the small dog sits on grass"]
    samples = [Sample(str(n), None, {"en": (text,)}, None, "train") for n, text in enumerate(texts)]  # type: ignore[arg-type]
    words = Words.learn({"en": texts}, WordsConfig(min_count=1))
    critic = Critic(samples, ["en"], words, 0.0)
    said = [[words.begin("en"), *words.encode(text, "en"), words.end] for text in (texts[1], texts[0])]
    longest = max(map(len, said))
    tokens = torch.tensor([[ids + [0] * (longest - len(ids)) for ids in said]])
    better = critic(shown(1), tokens)
    reward = Reward([[text.split()] for text in texts])([[texts[1].split()]], [[texts[1].split(), texts[0].split()]])[0]
    assert better.tolist()[0] == pytest.approx([reward[0] - reward[1], reward[1] - reward[0]], rel=1e-5)
    assert critic.mean == pytest.approx(reward.mean())


def test_captions_of_mirrored_pictures_are_measured_by_mirrored_references() -> None:
    texts = ["a red dog runs to the left", "a blue cat sits", "the small dog sits on the right"]
    samples = [Sample(str(n), None, {"en": (text,)}, None, "train") for n, text in enumerate(texts)]  # type: ignore[arg-type]
    words = Words.learn({"en": texts}, WordsConfig(min_count=1))
    critic = Critic(samples, ["en"], words, 0.0)
    said = [texts[0], texts[0].replace("left", "right")]
    tokens = pad([[[words.begin("en"), *words.encode(text, "en"), words.end] for text in said]])
    plain, mirror_image = (critic(shown(0, mirrored=turned), tokens)[0].tolist() for turned in (False, True))
    assert plain[0] > 1 > 0 > plain[1]
    assert mirror_image[1] > 1 > 0 > mirror_image[0]


def test_a_batch_says_which_of_its_pictures_are_mirrored(scenes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What drawn captions are measured by is what is given of the same picture, mirrored or not."""
    settings = {
        "threads": 1, "data": {"path": str(scenes_folder), "languages": ["en"]}, "words": {"min_count": 1},
        "pictures": {"size": 48, "augment_flip": True}, "decoder": {"hidden": 16},
        "training": {"batch": 24, "captions": 5, "objective": "self_critical"},
    }  # fmt: skip
    prepared = run.prepare(configuration.from_dict(settings), quiet=True)
    critic, words, batch = prepared.task.critic, prepared.known.words, prepared.batches[0]
    assert 0 < batch.mirrored.sum() < len(batch)
    measured_by: list[Sequence[Sequence[str]]] = []

    def listening(references: list[Sequence[Sequence[str]]], captions: Sequence[object]) -> list[list[float]]:
        measured_by.extend(references)
        return [[0.0] * 5]

    monkeypatch.setitem(critic.rewards, "en", listening)
    for part in batch.parts(3):  # as where memory runs out
        critic(part, part.tokens)
    given = [[tokenize(words.decode([i for i in row if i][1:-1])) for row in rows] for rows in batch.tokens.tolist()]
    assert [sorted(group) for group in measured_by] == [sorted(group) for group in given]


def test_pictures_without_a_caption_are_left_to_the_classes(
    scenes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some_without(config: Config, *, quiet: bool) -> Corpus:
        found = read(config, quiet=quiet)
        samples = [
            replace(sample, label="ab"[n % 2], captions={} if n % 4 == 0 else sample.captions)
            for n, sample in enumerate(found.samples)
        ]
        return Corpus(tuple(samples), found.source)

    monkeypatch.setattr(run, "read", some_without)
    settings = {
        "task": "both", "threads": 1, "data": {"path": str(scenes_folder)}, "words": {"min_count": 1},
        "pictures": {"size": 48}, "decoder": {"hidden": 16}, "search": {"max_length": 9},
        "training": {"batch": 8, "captions": 2, "objective": "self_critical", "reward_bleu": 1.0},
    }  # fmt: skip
    prepared = run.prepare(configuration.from_dict(settings), quiet=True)
    task, batch = prepared.task, prepared.batches[0]
    without = batch.tokens[:, 0, 0] == 0
    assert 0 < without.sum() < len(batch)
    critic = task.captions.critic
    drawn: list[torch.Tensor] = []

    def listening(batch: Batch, tokens: torch.Tensor) -> torch.Tensor:
        drawn.append(tokens)
        better = critic(batch, tokens)
        assert (better[tokens[:, 0, 0] == 0] == 0).all()
        return better

    listening.mean = 0.0  # type: ignore[attr-defined]
    monkeypatch.setattr(task.captions, "critic", listening)
    loss, _ = task.loss(batch, 1.0, batch.amount, 0.0)
    loss.backward()
    (tokens,) = drawn
    assert ((tokens != 0).any(-1).any(-1) != without).all()
    kept = replace(batch, pictures=batch.pictures[~without], mirrored=batch.mirrored[~without])
    told = critic.mean
    critic(kept, tokens[~without])
    assert told == pytest.approx(critic.mean)  # of those that have captions alone
    bare = next(part for part in batch.parts(len(batch)) if part.tokens[0, 0, 0] == 0)
    loss, _ = task.loss(bare, 1 / len(batch), batch.amount, 0.0)  # none of its pictures has a caption
    assert float(loss.detach()) > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_is_the_plain_one(smoothing: float) -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary(11, 6, 6, tie=False).double()
    outputs = torch.randn(3, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(0, 11, (3, 2, 4)), torch.randn(3, 2, 4, dtype=torch.float64)
    fast = vocabulary.cross_entropy(outputs, targets, smoothing, weights)
    each = F.cross_entropy(
        vocabulary.logits(outputs).flatten(0, 2), targets.flatten(), reduction="none", label_smoothing=smoothing
    )
    plain = (each * weights.flatten() * (targets.flatten() != 0)).sum()
    assert float(fast.detach()) == pytest.approx(float(plain.detach()))
    wanted = [outputs, vocabulary.weight, vocabulary.bias]
    for one, other in zip(torch.autograd.grad(fast, wanted), torch.autograd.grad(plain, wanted), strict=True):
        torch.testing.assert_close(one, other)


def tiny(kind: str, attention: str, *, checkpointing: bool = False) -> Captioner:
    decoder = DecoderConfig(kind=kind, attention=attention, hidden=16, layers=2, heads=2, dropout=0.5)  # type: ignore[arg-type]
    training = TrainingConfig(checkpointing=checkpointing)
    config = Config(pictures=PicturesConfig(size=48), encoder=EncoderConfig(), decoder=decoder, training=training)
    torch.manual_seed(1)
    return build_captioner(config, 12).train()


@pytest.mark.parametrize(
    ("kind", "attention"), [("lstm", "luong"), ("gru", "bahdanau"), ("lstm", "none"), ("transformer", "luong")]
)
def test_its_gradient_is_that_of_reinforce(kind: str, attention: str) -> None:
    captioner = tiny(kind, attention)
    pictures = torch.randint(0, 255, (3, 3, 48, 48), dtype=torch.uint8)
    tokens = torch.randint(1, 12, (3, 4, 8))
    tokens[0, 1, 5:] = 0  # one that has ended before the others
    better = torch.linspace(-1, 1, 12).view(3, 4)
    captioner.eval()
    features = captioner.features((pictures,))

    def draw(given: Features) -> torch.Tensor:
        torch.testing.assert_close(given.grid, features.grid)
        captioner.eval()  # as search does
        return tokens

    captioner.encoder.requires_grad_(False)  # so that its batch norm rests, and both ways see the same
    captioner.train()
    learned = [p for p in captioner.parameters() if p.requires_grad]
    loss = captioner.reinforce((pictures,), draw, lambda drawn: better)
    fast = torch.autograd.grad(loss, learned, allow_unused=True)
    assert captioner.training
    assert captioner.decoder.drop.p == 0.5  # type: ignore[union-attr]

    captioner.eval()  # no dropout: captions are judged as they were drawn
    logits, _ = captioner.decoder(features.grid, features.pooled, tokens[..., :-1])
    logp = logits.log_softmax(-1).gather(-1, tokens[..., 1:, None])[..., 0]
    plain = -(logp * (tokens[..., 1:] != 0)).sum(-1).mul(better).sum()
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-4)
    slow = torch.autograd.grad(plain, learned, allow_unused=True)
    for one, other in zip(fast, slow, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("kind", "attention"), [("lstm", "bahdanau"), ("gru", "bahdanau"), ("transformer", "luong")])
def test_what_is_computed_again_is_without_dropout_too(kind: str, attention: str) -> None:
    pictures, tokens = torch.randint(0, 255, (3, 3, 48, 48), dtype=torch.uint8), torch.randint(1, 12, (3, 4, 8))
    better = torch.linspace(-1, 1, 12).view(3, 4)

    def learn(*, checkpointing: bool) -> list[torch.Tensor]:
        captioner = tiny(kind, attention, checkpointing=checkpointing)
        loss = captioner.reinforce((pictures,), lambda features: tokens, lambda drawn: better)
        wanted = [p for p in captioner.parameters() if p.requires_grad]
        return [g for g in torch.autograd.grad(loss, wanted, allow_unused=True) if g is not None]

    for stored, recomputed in zip(learn(checkpointing=False), learn(checkpointing=True), strict=True):
        assert torch.equal(stored, recomputed)


@pytest.mark.parametrize("candidates", ["beam", "sample"])
def test_a_task_learns_from_its_own_captions(candidates: str, scenes_folder: Path, tmp_path: Path) -> None:
    """Two languages at once: each picture's captions are all in the language of the caption that it came with."""
    settings = {
        "threads": 1, "data": {"path": str(scenes_folder)}, "words": {"min_count": 1}, "pictures": {"size": 48},
        "decoder": {"hidden": 16}, "search": {"max_length": 9},
        "training": {"batch": 8, "captions": 4, "objective": "self_critical", "candidates": candidates},
    }  # fmt: skip
    prepared = run.prepare(configuration.from_dict(settings), quiet=True)
    task, batch = prepared.task, prepared.batches[0]
    drawn: list[torch.Tensor] = []
    critic = task.critic
    assert critic

    class Listening:
        mean = 1.0

        def __call__(self, batch: Batch, tokens: torch.Tensor) -> torch.Tensor:
            drawn.append(tokens)
            return critic(batch, tokens)

    task.critic = Listening()  # type: ignore[assignment]
    loss, told = task.loss(batch, 1.0, batch.amount, 0.0)
    loss.backward()
    (tokens,) = drawn
    assert tokens.shape[:2] == (8, 4)
    assert (tokens[..., 0] == batch.tokens[:, :1, 0]).all()
    assert set(tokens[:, 0, 0].tolist()) == {task.words.begin("en"), task.words.begin("de")}
    assert not torch.isin(tokens[..., 1:], torch.tensor(sorted(set(task.words.forbidden) - {0}))).any()
    for row in tokens.flatten(0, 1):  # an end, or no room for one
        end = (row == task.words.end).nonzero()
        assert len(end) == 1 or len(row) == 10
        assert not len(end) or (row[int(end[0]) + 1 :] == 0).all()
    assert len({tuple(row) for row in tokens[0].tolist()}) > 1
    assert told == -batch.amount
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in task.model.encoder.parameters())


def test_the_dice_fall_anew_at_each_step(scenes_folder: Path) -> None:
    settings = {
        "threads": 1, "data": {"path": str(scenes_folder)}, "words": {"min_count": 1}, "pictures": {"size": 48},
        "decoder": {"hidden": 16}, "search": {"max_length": 9},
        "training": {"batch": 8, "captions": 2, "objective": "self_critical", "candidates": "sample"},
    }  # fmt: skip
    prepared = run.prepare(configuration.from_dict(settings), quiet=True)
    task, batch = prepared.task, prepared.batches[0]

    def drawn(step: int) -> torch.Tensor:
        reseed(0, step)
        with torch.no_grad():
            return task._candidates(batch.tokens[:, 0, 0], task.model.features(batch.inputs))

    task.model.eval()
    assert torch.equal(drawn(1), drawn(1))
    one, other = drawn(1), drawn(2)
    assert one.shape != other.shape or not torch.equal(one, other)


def test_given_captions_keep_their_part_beside_the_reward(scenes_folder: Path) -> None:
    """Where no caption is better than the others, what is left to learn from is what people wrote."""
    settings = {
        "threads": 1, "data": {"path": str(scenes_folder)}, "words": {"min_count": 1}, "pictures": {"size": 48},
        "encoder": {"train": "nothing", "weights": "none"}, "decoder": {"hidden": 16, "dropout": 0.0},
        "search": {"max_length": 9},
        "training": {"batch": 8, "captions": 2, "objective": "self_critical", "ground": 0.25, "label_smoothing": 0.1},
    }  # fmt: skip
    prepared = run.prepare(configuration.from_dict(settings), quiet=True)
    task, batch = prepared.task, prepared.batches[0]

    class Indifferent:
        mean = 0.0

        def __call__(self, batch: Batch, tokens: torch.Tensor) -> torch.Tensor:
            return torch.zeros(tokens.shape[:2])

    task.critic = Indifferent()  # type: ignore[assignment]
    loss, told = task.loss(batch, 1.0, batch.amount, 0.0)
    nats, _ = task.model.cross_entropy(batch.inputs, batch.tokens, smoothing=0.1)
    assert float(loss.detach()) == pytest.approx(0.25 * float(nats.detach()) / batch.amount, rel=1e-5)
    assert told == 0.0
