"""Decoders keep their promises: a step is a word of the sentence, rows share a picture, padding does not matter."""

import numpy as np
import onnxruntime
import pytest
import torch

from cutline.config import DecoderConfig
from cutline.errors import ConfigError
from cutline.models.attention import coverage_penalty
from cutline.models.decoder import build_decoder

KINDS = [(kind, look) for kind in ("lstm", "gru") for look in ("none", "bahdanau", "luong")] + [
    ("transformer", "luong")
]
WORDS, REGIONS = 30, 9


def decoder_of(kind, attention, **changes):
    torch.manual_seed(1)
    config = DecoderConfig(kind=kind, attention=attention, **{"hidden": 16, "heads": 4, "dropout": 0.0, **changes})
    return build_decoder(config, words=WORDS, channels=12, pooled_channels=10, regions=REGIONS)


def batch(pictures=3, rows=2, tokens=6):
    generator = torch.Generator().manual_seed(2)
    grid, pooled = (torch.randn(pictures, *shape, generator=generator) for shape in ((REGIONS, 12), (10,)))
    return grid, pooled, torch.randint(1, WORDS, (pictures, rows, tokens), generator=generator)


def reorder(state, rows):
    return tuple(part[torch.arange(len(rows))[:, None], rows] for part in state)


@pytest.mark.parametrize(("kind", "attention"), KINDS)
@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_steps_are_the_sentence_word_by_word(kind, attention, layers):
    decoder = decoder_of(kind, attention, layers=layers, embed=8, dropout=0.5).eval()
    grid, pooled, tokens = batch()
    logits, looks = decoder(grid, pooled, tokens)
    assert logits.shape == (3, 2, 6, WORDS)
    assert looks.shape == (3, 2, 6, 0 if attention == "none" else REGIONS)
    memory, state = decoder.start(grid, pooled)
    assert all(part.shape[:2] == (3, 1) for part in state)
    state = reorder(state, torch.zeros(3, 2, dtype=torch.long))
    for t in range(tokens.shape[2]):
        logp, weights, state = decoder.step(memory, state, tokens[:, :, t])
        torch.testing.assert_close(logp, logits[:, :, t].log_softmax(-1), atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(weights, looks[:, :, t], atol=2e-6, rtol=1e-5)
        assert logp.dtype == torch.float32
    if attention != "none":
        torch.testing.assert_close(looks.sum(-1), torch.ones(3, 2, 6))


@pytest.mark.parametrize(("kind", "attention"), KINDS)
@torch.no_grad()
def test_reordered_rows_go_on_from_the_rows_they_continue(kind, attention):
    decoder = decoder_of(kind, attention).eval()
    grid, pooled, tokens = batch(rows=2, tokens=4)
    swapped = tokens.clone()
    swapped[0, :, :2] = tokens[0, [1, 0], :2]  # after two words, the first picture's rows change places
    memory, state = decoder.start(grid, pooled)
    state = reorder(state, torch.zeros(3, 2, dtype=torch.long))
    for t in range(4):
        if t == 2:
            state = reorder(state, torch.tensor([[1, 0], [0, 1], [0, 1]]))
        logp, _, state = decoder.step(memory, state, tokens[:, :, t])
    expected, _ = decoder(grid, pooled, swapped)
    torch.testing.assert_close(logp, expected[:, :, 3].log_softmax(-1), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("kind", "attention"), KINDS)
@torch.no_grad()
def test_a_word_depends_on_no_later_word_no_other_row_and_no_other_picture(kind, attention):
    decoder = decoder_of(kind, attention).eval()
    grid, pooled, tokens = batch()
    before, _ = decoder(grid, pooled, tokens)
    tokens[0, 1] = 7
    tokens[1, 0, 4:] = 0
    grid[2] += 1
    after, _ = decoder(grid, pooled, tokens)
    torch.testing.assert_close(after[0, 0], before[0, 0])
    torch.testing.assert_close(after[1, 0, :4], before[1, 0, :4])
    torch.testing.assert_close(after[1, 1], before[1, 1])
    assert not torch.allclose(after[0, 1], before[0, 1])


@pytest.mark.parametrize(("kind", "attention"), KINDS)
def test_longer_padding_changes_neither_loss_nor_gradients(kind, attention):
    decoder = decoder_of(kind, attention)
    grid, pooled, captions = batch()
    captions[0, 1, 3:] = 0

    def learn(captions):
        decoder.zero_grad()
        outputs, looks = decoder.outputs(grid, pooled, captions[..., :-1])
        loss = decoder.vocabulary.cross_entropy(outputs, captions[..., 1:], 0.1)
        if looks.shape[-1]:
            loss = loss + coverage_penalty(looks, captions[..., 1:] != 0)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in decoder.parameters() if p.grad is not None]

    loss, gradients = learn(captions)
    wider = torch.nn.functional.pad(captions, (0, 3, 0, 1))  # three tokens and a row more, of nothing
    padded, others = learn(wider)
    torch.testing.assert_close(padded, loss)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "attention"), KINDS)
def test_captions_go_in_groups_of_about_one_length_and_come_back_in_their_places(kind, attention, monkeypatch):
    decoder = decoder_of(kind, attention).eval()
    grid, pooled, tokens = batch(pictures=5, rows=3, tokens=9)
    for row, length in enumerate([9, 2, 5, 1, 7, 3, 0, 4, 9, 6, 2, 2, 8, 5, 1]):
        tokens[row // 3, row % 3, length:] = 0
    there = tokens != 0
    asked = []
    sentences = decoder.sentences
    monkeypatch.setattr(decoder, "sentences", lambda *given: asked.append(given[2].shape) or sentences(*given))
    together, looks = decoder.outputs(grid, pooled, tokens)
    monkeypatch.setattr("cutline.models.decoder.GROUP", 4)
    apart, other = decoder.outputs(grid, pooled, tokens)
    torch.testing.assert_close(apart[there], together[there])
    torch.testing.assert_close(other[there], looks[there])
    assert asked == [(5, 3, 9), (5, 1, 9), (5, 1, 5), (5, 1, 2)]


@pytest.mark.parametrize(("kind", "attention"), [("lstm", "bahdanau"), ("transformer", "luong")])
def test_checkpointing_gives_the_same_gradients_with_dropout(kind, attention):
    decoder = decoder_of(kind, attention, dropout=0.3, layers=2).train()
    grid, pooled, tokens = batch()

    def learn(on):
        decoder.zero_grad()
        decoder.checkpointing = on
        torch.manual_seed(4)
        decoder(grid, pooled, tokens)[0].square().mean().backward()
        return [p.grad.clone() for p in decoder.parameters() if p.grad is not None]

    for stored, recomputed in zip(learn(False), learn(True), strict=True):
        assert torch.equal(stored, recomputed)


@pytest.mark.parametrize("tie", [True, False])
def test_word_vectors_begin_as_given_and_unknown_words_as_they_were(tie):
    decoder = decoder_of("lstm", "luong", tie=tie, embed=8)
    table = decoder.vocabulary.table.weight
    before = table.detach().clone()
    matrix = np.random.default_rng(0).normal(3, 5, (WORDS, 8)).astype(np.float32)
    known = np.zeros(WORDS, bool)
    known[[4, 9, 11]] = True
    decoder.load_vectors(matrix, known)
    after = table.detach()
    assert torch.equal(after[~known], before[~known])
    given = torch.from_numpy(matrix[known])
    torch.testing.assert_close(torch.cosine_similarity(after[known], given), torch.ones(3))
    assert after[known].square().mean().sqrt() == pytest.approx(8**-0.5, rel=1e-4)
    decoder.load_vectors(matrix, np.zeros(WORDS, bool))
    assert torch.equal(table, after)


def test_tied_words_are_one_table_and_untied_ones_two():
    tied, untied = (decoder_of("lstm", "none", tie=tie) for tie in (True, False))
    assert tied.vocabulary.weight is tied.vocabulary.table.weight
    assert untied.vocabulary.weight is not untied.vocabulary.table.weight


def test_coverage_penalty_is_zero_for_even_looks_and_blind_to_padding():
    even = torch.full((1, 2, 4, 5), 0.2)
    there = torch.tensor([[[True, True, True, False], [False] * 4]])
    assert coverage_penalty(even, there) == pytest.approx(0, abs=1e-6)
    one = torch.zeros(1, 2, 4, 5)
    one[..., 0] = 1  # always the same region: share 5 of it, 0 of four others
    assert coverage_penalty(one, there) == pytest.approx((16 + 4) / 5)
    assert coverage_penalty(one, torch.zeros_like(there)) == 0


def test_coverage_penalties_of_parts_add_up_to_that_of_the_batch():
    torch.manual_seed(0)
    attention, there = torch.randn(4, 5, 6, 9).mul(2).softmax(-1), torch.ones(4, 5, 6, dtype=torch.bool)
    there[:2, 1:] = False  # pictures with one caption, beside some with five
    parts = [coverage_penalty(attention[at], there[at]) for at in (slice(0, 1), slice(1, 4))]
    assert coverage_penalty(attention, there) == pytest.approx(parts[0] / 4 + parts[1] * 3 / 4)


def test_heads_that_cannot_share_the_width_are_refused():
    with pytest.raises(ConfigError, match="3 heads"):
        decoder_of("transformer", "luong", heads=3)


@pytest.mark.parametrize(("kind", "attention"), [("lstm", "luong"), ("gru", "bahdanau"), ("transformer", "luong")])
def test_a_step_exports_to_onnx_for_any_number_of_pictures_and_rows(kind, attention, tmp_path):
    decoder = decoder_of(kind, attention, layers=2).eval()
    grid, pooled, tokens = batch()
    memory, state = decoder.start(grid, pooled)
    state = reorder(state, torch.zeros(3, 2, dtype=torch.long))
    state = decoder.step(memory, state, tokens[:, :, 0])[2]

    class Step(torch.nn.Module):
        def forward(self, memory, state, tokens):
            return decoder.step(memory, state, tokens)

    any_b, any_n, any_t = (torch.export.Dim(name) for name in "BNT")
    grows = kind == "transformer"
    shapes = (
        tuple({0: any_b} for _ in memory),
        tuple({0: any_b, 1: any_n} | ({2: any_t} if grows else {}) for _ in state),
        {0: any_b, 1: any_n},
    )
    with torch.no_grad():
        program = torch.onnx.export(
            Step().eval(), (memory, state, tokens[:, :, 1]), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    program.save(tmp_path / "step.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])
    grid, pooled, tokens = batch(pictures=5, rows=4, tokens=2)
    memory, state = decoder.start(grid, pooled)
    state = reorder(state, torch.zeros(5, 4, dtype=torch.long))
    for t in range(2):
        values = [*memory, *state, tokens[:, :, t]]
        feeds = {given.name: value.detach().numpy() for given, value in zip(session.get_inputs(), values, strict=True)}
        logp, weights, *_ = session.run(None, feeds)
        expected, looks, state = decoder.step(memory, state, tokens[:, :, t])
        np.testing.assert_allclose(logp, expected.detach(), atol=1e-5)
        np.testing.assert_allclose(weights, looks.detach(), atol=1e-5)
