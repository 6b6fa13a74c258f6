"""The fast decoders are the plain per-word ones: the same outputs, the same attention, the same gradients."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cutline.config import DecoderConfig
from cutline.models.decoder import build_decoder

_path = Path(__file__).parents[2] / "benchmarks" / "plain.py"
_spec = importlib.util.spec_from_file_location("plain", _path)
plain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain)

KINDS = [(kind, attention) for kind in ("lstm", "gru") for attention in ("none", "bahdanau", "luong")]
WORDS, REGIONS = 40, 9


def decoder_of(kind, attention, dtype, **changes):
    torch.manual_seed(3)
    config = DecoderConfig(kind=kind, attention=attention, **{"hidden": 16, "dropout": 0.0, **changes})
    return build_decoder(config, words=WORDS, channels=24, pooled_channels=20, regions=REGIONS).to(dtype)


def batch(dtype, pictures=4, rows=3, tokens=7):
    generator = torch.Generator().manual_seed(5)
    grid = torch.randn(pictures, REGIONS, 24, generator=generator, dtype=dtype, requires_grad=True)
    pooled = torch.randn(pictures, 20, generator=generator, dtype=dtype, requires_grad=True)
    return grid, pooled, torch.randint(3, WORDS, (pictures, rows, tokens + 1), generator=generator)


def gradients(loss, decoder, *inputs):
    named = dict(decoder.named_parameters())
    found = torch.autograd.grad(loss, [*named.values(), *inputs], allow_unused=True)
    return dict(zip([*named, "grid", "pooled"], found, strict=True))


def plain_loss(decoder, grid, pooled, captions, smoothing):
    """Each caption by itself, its picture's features copied for it, as tutorials do."""
    rows = captions.shape[1]
    repeated = (part.repeat_interleave(rows, 0) for part in (grid, pooled))
    flat = captions.flatten(0, 1)
    logits, attention = plain.PlainRecurrent(decoder)(*repeated, flat[:, :-1])
    targets = flat[:, 1:].flatten()
    total = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=0, reduction="sum", label_smoothing=smoothing)
    return total, logits, attention


def equal(mine, other, tolerance):
    assert mine.keys() == other.keys()
    for name, gradient in mine.items():
        if gradient is None or other[name] is None:  # a picture's grid, where nothing looks at it
            assert gradient is None, name
            assert other[name] is None, name
            continue
        torch.testing.assert_close(
            gradient, other[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("kind", "attention"), KINDS)
@pytest.mark.parametrize("changes", [{}, {"layers": 2, "embed": 12}, {"tie": False, "embed": 12}], ids=str)
@pytest.mark.parametrize("group", [40, 3], ids=["in one", "in four groups"])
def test_outputs_and_gradients_equal_in_double_precision(kind, attention, changes, group, monkeypatch):
    monkeypatch.setattr("cutline.models.decoder.GROUP", group)
    decoder = decoder_of(kind, attention, torch.float64, **changes)
    grid, pooled, captions = batch(torch.float64)
    captions[1, 2] = 0  # a picture with fewer captions than the others
    captions[2, 0, 5:] = 0
    theirs, logits, weights = plain_loss(decoder, grid, pooled, captions, 0.1)
    mine, looks = decoder(grid, pooled, captions[..., :-1])
    there = captions[..., :-1].flatten(0, 1) != 0
    torch.testing.assert_close(mine.flatten(0, 1)[there], logits[there], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(looks.flatten(0, 1)[there], weights[there], atol=1e-10, rtol=1e-10)
    outputs, _ = decoder.outputs(grid, pooled, captions[..., :-1])
    loss = decoder.vocabulary.cross_entropy(outputs, captions[..., 1:], 0.1)
    torch.testing.assert_close(loss, theirs, atol=1e-10, rtol=1e-10)
    equal(gradients(loss, decoder, grid, pooled), gradients(theirs, decoder, grid, pooled), 1e-10)


@pytest.mark.parametrize(("kind", "attention"), KINDS)
def test_gradients_equal_in_single_precision_and_at_full_size(kind, attention, monkeypatch):
    # Enough rows for the fast product and several blocks of the loss.
    monkeypatch.setattr("cutline.models.vocabulary.BLOCK", 400 * WORDS)
    decoder = decoder_of(kind, attention, torch.float32, hidden=32)
    grid, pooled, captions = batch(torch.float32, pictures=40, rows=2, tokens=9)
    theirs, _, _ = plain_loss(decoder, grid, pooled, captions, 0.0)
    outputs, _ = decoder.outputs(grid, pooled, captions[..., :-1])
    mine = decoder.vocabulary.cross_entropy(outputs, captions[..., 1:])
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=0)
    equal(gradients(mine, decoder, grid, pooled), gradients(theirs, decoder, grid, pooled), 2e-3)


def test_a_gradient_that_was_used_cannot_be_used_again():
    decoder = decoder_of("lstm", "luong", torch.float64)
    grid, pooled, captions = batch(torch.float64)
    outputs, _ = decoder.outputs(grid, pooled, captions[..., :-1])
    loss = decoder.vocabulary.cross_entropy(outputs, captions[..., 1:])
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
