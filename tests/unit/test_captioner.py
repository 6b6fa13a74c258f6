"""A captioner learns from pictures or stored features alike, and search sees it as NumPy arrays."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cutline.config import Config, DecoderConfig, EncoderConfig, PicturesConfig, SearchConfig, TrainingConfig
from cutline.models.captioner import Captioner, TorchStep, build_captioner
from cutline.search import search

WORDS = 20
KINDS = [("lstm", "luong"), ("gru", "bahdanau"), ("lstm", "none"), ("transformer", "luong")]


def captioner_of(kind="lstm", attention="luong", **training) -> Captioner:
    torch.manual_seed(0)
    decoder = DecoderConfig(kind=kind, attention=attention, hidden=16, heads=4, dropout=0.0)
    config = Config(pictures=PicturesConfig(size=36), decoder=decoder, training=TrainingConfig(**training))
    return build_captioner(config, WORDS)


def batch(pictures=4, rows=2, tokens=6):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (pictures, 3, 36, 36), generator=generator, dtype=torch.uint8)
    captions = torch.randint(3, WORDS, (pictures, rows, tokens + 1), generator=generator)
    captions[0, 1, 4:] = 0
    return pixels, captions


def test_stored_features_are_as_good_as_pictures():
    captioner = captioner_of().eval()
    pixels, captions = batch()
    features = captioner.encoder(pixels)
    direct, _ = captioner((pixels,), captions)
    stored, _ = captioner(tuple(features), captions)
    torch.testing.assert_close(stored, direct)
    halves = tuple(part.half() for part in features)  # as a feature store keeps them
    assert captioner(halves, captions)[0].dtype == torch.float32


def test_the_loss_is_the_summed_cross_entropy_of_the_scores():
    captioner = captioner_of().eval()
    pixels, captions = batch()
    nats, attention = captioner.cross_entropy((pixels,), captions, smoothing=0.1)
    logits, looks = captioner((pixels,), captions[..., :-1])
    expected = F.cross_entropy(
        logits.flatten(0, -2),
        captions[..., 1:].flatten(),
        ignore_index=0,
        reduction="sum",
        label_smoothing=0.1,
    )
    torch.testing.assert_close(nats, expected)
    torch.testing.assert_close(attention, looks)


@pytest.mark.parametrize("sampling", [0.0, 1.0])
def test_scheduled_sampling_feeds_the_models_own_guesses(sampling):
    captioner = captioner_of().eval()
    pixels, captions = batch()
    given = captions[..., :-1]
    guesses = captioner((pixels,), given)[0].argmax(-1)
    fed = torch.cat([given[..., :1], torch.where(given[..., 1:] != 0, guesses[..., :-1], 0)], -1)
    expected, _ = captioner((pixels,), fed if sampling else given)
    mixed, _ = captioner((pixels,), given, sampling=sampling)
    torch.testing.assert_close(mixed, expected)


def test_scheduled_sampling_never_guesses_padding():
    captioner = captioner_of().eval()
    pixels, captions = batch()
    with torch.no_grad():
        captioner.decoder.vocabulary.bias[0] = 100.0
    mixed = captioner._given(captioner.features((pixels,)), captions, 1.0)
    assert torch.equal(mixed == 0, captions == 0)


def test_scheduled_sampling_has_nothing_to_guess_where_no_picture_has_a_caption():
    captioner = captioner_of()
    pixels, _ = batch()
    nats, _ = captioner.cross_entropy((pixels,), torch.zeros(4, 1, 2, dtype=torch.int64), sampling=0.5)
    assert float(nats.detach()) == 0


def test_scheduled_sampling_is_seeded_and_takes_its_share():
    captioner = captioner_of().eval()
    pixels, captions = batch(pictures=64, rows=8)
    features = captioner.features((pixels,))

    def mixed(seed, share):
        torch.manual_seed(seed)
        return captioner._given(features, captions, share)

    assert torch.equal(mixed(1, 0.4), mixed(1, 0.4))
    assert not torch.equal(mixed(1, 0.4), mixed(2, 0.4))
    changed = (mixed(1, 0.4) != captions)[..., 1:].float().mean()
    assert 0.3 < changed <= 0.42  # now and then a guess is the very word
    assert torch.equal(mixed(1, 0.9)[..., 0], captions[..., 0])


@pytest.mark.parametrize(("kind", "attention"), KINDS)
def test_search_sees_the_words_that_training_scored(kind, attention):
    captioner = captioner_of(kind, attention)
    pixels, captions = batch()
    step = TorchStep(captioner)
    state = step.reorder(step.start(pixels.permute(0, 2, 3, 1).numpy()), np.zeros((4, 2), np.int64))
    logits, looks = captioner((pixels,), captions)
    for t in range(4):
        logp, attention_t, state = step.step(state, captions[:, :, t].numpy())
        np.testing.assert_allclose(logp, logits[:, :, t].log_softmax(-1).detach().numpy(), atol=2e-6)
        np.testing.assert_allclose(attention_t, looks[:, :, t].detach().numpy(), atol=2e-6)
    assert logp.dtype == np.float32


@pytest.mark.parametrize(("kind", "attention"), KINDS)
def test_beam_search_of_a_batch_is_that_of_each_picture(kind, attention):
    step = TorchStep(captioner_of(kind, attention))
    pixels, _ = batch(pictures=6)
    settings = SearchConfig(beam=3, max_length=8)
    together = search(step, (pixels,), 2, 1, (0, 2), settings)
    for picture, found in zip(pixels, together, strict=True):
        (alone,) = search(step, (picture[None],), 2, 1, (0, 2), settings)
        assert found[0].tokens == alone[0].tokens
        assert found[0].score == pytest.approx(alone[0].score, abs=1e-5)


@pytest.mark.parametrize(("kind", "attention"), KINDS)
def test_bf16_search_scores_words_nearly_alike_and_leaves_the_captioner_in_fp32(kind, attention):
    captioner = captioner_of(kind, attention)
    pixels, captions = batch()
    exact, rough = (TorchStep(captioner, precision=p) for p in ("fp32", "bf16"))
    scores = [step.step(step.start((pixels,)), captions[:, :1, 0].numpy())[0] for step in (exact, rough)]
    assert scores[1].dtype == np.float32
    np.testing.assert_allclose(scores[1], scores[0], atol=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in captioner.parameters())


def test_checkpointing_gives_the_same_gradients_to_the_encoder_too():
    pixels, captions = batch()
    found = []
    for checkpointing in (False, True):
        captioner = captioner_of(attention="bahdanau", checkpointing=checkpointing).train()
        captioner.cross_entropy((pixels,), captions)[0].backward()
        found.append({name: p.grad for name, p in captioner.named_parameters()})
    assert found[0]["encoder.blocks.0.0.weight"].abs().sum() > 0
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_autocast_trains_in_bf16():
    captioner = captioner_of()
    pixels, captions = batch()
    exact, _ = captioner.cross_entropy((pixels,), captions, smoothing=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = captioner.cross_entropy((pixels,), captions, smoothing=0.1)
    rough.backward()
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=2e-2, atol=0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in captioner.parameters())


def test_a_frozen_encoder_gets_no_gradients():
    config = Config(encoder=EncoderConfig(train="nothing"), pictures=PicturesConfig(size=36))
    captioner = build_captioner(config, WORDS)
    pixels, captions = batch()
    captioner.cross_entropy((pixels,), captions)[0].backward()
    assert all(p.grad is None for p in captioner.encoder.parameters())
    assert all(p.grad is not None for p in captioner.decoder.parameters())
