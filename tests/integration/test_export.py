"""Bundles caption as PyTorch does, appear whole or not at all, and never replace what was there unasked."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import torch

import cutline
from cutline.cli import finish, finish_classes
from cutline.config import Config, DecoderConfig, EncoderConfig, PicturesConfig, SearchConfig, WordsConfig
from cutline.consensus import fit
from cutline.data.sources import read
from cutline.data.words import Words
from cutline.engine import folder
from cutline.errors import ConfigError, ModelError
from cutline.export import check_bundle, check_classifier, export_bundle, export_classifier
from cutline.models.captioner import Captioner, build_captioner
from cutline.models.classifier import build_classifier
from cutline.models.compact import compact, rounded
from cutline.predict import load

SIZE = 48
SEARCH = SearchConfig(beam=3, max_length=12)
WORDS = Words.learn(
    {"en": ["a red circle above two blue squares ."], "de": ["ein roter kreis über zwei blauen quadraten ."]},
    WordsConfig(min_count=1),
)
KINDS = {
    "lstm-luong": DecoderConfig(kind="lstm", attention="luong", hidden=32),
    "gru-bahdanau": DecoderConfig(kind="gru", attention="bahdanau", hidden=32, layers=2),
    "lstm-none": DecoderConfig(kind="lstm", attention="none", hidden=32, tie=False, embed=16),
    "transformer": DecoderConfig(kind="transformer", hidden=32, heads=2, layers=2),
}


def build(decoder: DecoderConfig) -> Captioner:
    torch.manual_seed(1)
    captioner = build_captioner(Config(decoder=decoder, pictures=PicturesConfig(size=SIZE)), len(WORDS.pieces))
    for parameter in captioner.decoder.parameters():  # surer of its words than fresh weights are
        parameter.data *= 2
    return captioner.eval()


def write(captioner: Captioner, out: Path, **more) -> Path:
    return export_bundle(captioner, WORDS, captioner.encoder.transform, SEARCH, out, {}, **more)


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return build(KINDS["lstm-luong"])


@pytest.fixture(scope="module")
def bundle(captioner: Captioner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    captioner.train()
    bundle = write(captioner, tmp_path_factory.mktemp("models") / "bundle")
    assert captioner.training, "export leaves the model as it was"
    captioner.eval()
    return bundle


@pytest.fixture
def graphs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of `bundle` stand in for new ones, for tests of all that comes after them."""

    def copy(_: Captioner, folder: Path, *, pooled: bool) -> int:
        for name in ("encoder.onnx", "decoder.onnx"):
            shutil.copy(bundle / name, folder)
        return int(json.loads((bundle / "bundle.json").read_text())["memory"])

    monkeypatch.setattr("cutline.export._write_graphs", copy)


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(count).integers(0, 256, (count, 60, 70, 3), np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_captions_as_in_torch(kind: str, captioner: Captioner, bundle: Path, tmp_path: Path) -> None:
    if kind != "lstm-luong":
        captioner = build(KINDS[kind])
        bundle = write(captioner, tmp_path / kind)
    agreement = check_bundle(captioner, bundle, pictures(50))
    assert agreement.answers == 100  # in both languages
    assert agreement.reached, str(agreement)
    encoder, decoder = (onnxruntime.InferenceSession(bundle / f"{name}.onnx") for name in ("encoder", "decoder"))
    for count, rows in ((1, 1), (1, 4), (5, 3)):
        _compare_step_by_step(captioner, encoder, decoder, np.stack(pictures(count))[:, :SIZE, :SIZE], rows)


def _compare_step_by_step(captioner, encoder, decoder, pixels, rows) -> None:
    with torch.no_grad():
        features = captioner.encoder(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        memory, state = captioner.decoder.start(features.grid, features.pooled)
    outputs = encoder.run(None, {"pictures": pixels})
    exported = outputs[len(memory) :]
    assert len(outputs) == len(memory) + len(state)
    width = 1
    for step in range(6):
        tokens = np.random.default_rng(step).integers(3, len(WORDS.pieces), (len(pixels), width))
        names = [given.name for given in decoder.get_inputs()]
        logp, attention, *exported = decoder.run(
            None, dict(zip(names, [*outputs[: len(memory)], *exported, tokens], strict=True))
        )
        with torch.no_grad():
            expected, looks, state = captioner.decoder.step(memory, state, torch.from_numpy(tokens))
        assert logp.dtype == np.float32
        np.testing.assert_allclose(logp, expected.numpy(), atol=2e-4)
        np.testing.assert_allclose(attention, looks.numpy(), atol=1e-5)
        if width < rows:
            state = tuple(part.expand(-1, rows, *part.shape[2:]) for part in state)
            exported = [np.repeat(part, rows, axis=1) for part in exported]
            width = rows


def test_a_bundle_takes_its_consensus_along(captioner: Captioner, bundle: Path, tmp_path: Path) -> None:
    some = pictures(60)
    pixels = np.stack([load(bundle).pixels(picture) for picture in some])
    with torch.no_grad():
        seen = captioner.encoder(torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooled.numpy()
    draw, words = np.random.default_rng(0), range(WORDS.begin("de") + 1, len(WORDS.pieces))
    captions = [[tuple(draw.choice(words, 4).tolist())] for _ in some]
    agreed = fit(seen, {"en": captions})  # and none in German
    settings = replace(SEARCH, beam=6, consensus=5.0)
    transform = captioner.encoder.transform
    for weights in ("fp32", "int8"):
        out = export_bundle(captioner, WORDS, transform, settings, tmp_path / weights, {}, consensus=agreed,
                            weights=weights, one_file=weights == "int8")  # fmt: skip
        agreement = check_bundle(captioner, out, some, batch=7)
        if weights == "fp32":
            assert agreement.reached, str(agreement)
        ours, plain = load(out), load(bundle)
        changed = {}
        for lang in ("en", "de"):
            pairs = zip(ours.caption(some, lang=lang), plain.caption(some, beam=6, lang=lang), strict=True)
            changed[lang] = sum(one.text != other.text for one, other in pairs)
        assert changed["en"] > 10
        if weights == "fp32":
            assert changed["de"] == 0
        assert len(ours.caption(some[0], num=3)[0].alternatives) == 2
    held = tmp_path / "fp32" / "consensus.npz"
    held.write_bytes(held.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"consensus\.npz has \d+ bytes of"):
        load(tmp_path / "fp32")
    held.unlink()
    with pytest.raises(ModelError, match=r"consensus\.npz is missing"):
        load(tmp_path / "fp32")


def test_a_bundle_of_other_weights_is_found_out(captioner: Captioner, bundle: Path) -> None:
    other = build(KINDS["lstm-luong"])
    other.decoder.vocabulary.bias.data[4:8] += 3  # type: ignore[union-attr]
    assert check_bundle(captioner, bundle, pictures(10)).reached
    assert not check_bundle(other, bundle, pictures(10)).reached


@pytest.mark.usefixtures("graphs")
def test_nothing_is_overwritten_unasked(captioner: Captioner, bundle: Path, tmp_path: Path) -> None:
    there = shutil.copytree(bundle, tmp_path / "bundle")
    (there / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already there"):
        write(captioner, there)
    assert (there / "notes.txt").exists()
    write(captioner, there, force=True)
    assert not (there / "notes.txt").exists()
    (there / "README.md").write_text("The card is its owner's to edit.")
    assert load(there).caption(pictures(1))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.jpg").touch()
    with pytest.raises(ConfigError, match="other than a bundle"):
        write(captioner, tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "dog.jpg").exists()
    (tmp_path / "current").symlink_to(there)
    write(captioner, tmp_path / "current", force=True)
    assert not (tmp_path / "current").is_symlink()
    assert load(tmp_path / "current").caption(pictures(1))
    assert (there / "README.md").exists()


@pytest.mark.usefixtures("graphs")
def test_what_was_there_outlives_a_failure(
    captioner: Captioner, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = shutil.copytree(bundle, tmp_path / "bundle")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cutline.export._sync", full)
    with pytest.raises(OSError, match="space"):
        write(captioner, there, force=True)
    assert load(there).caption(pictures(1))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("graphs")
def test_one_file_holds_the_same(captioner: Captioner, bundle: Path, tmp_path: Path) -> None:
    packed = write(captioner, tmp_path / "model.cutline", one_file=True)
    with zipfile.ZipFile(packed) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert load(packed).caption(pictures(5)) == load(bundle).caption(pictures(5))
    assert [path.name for path in tmp_path.iterdir()] == ["model.cutline"]


@pytest.mark.usefixtures("graphs")
def test_the_card_says_what_it_is(captioner: Captioner, tmp_path: Path) -> None:
    card = {"Scores": {"BLEU-4": 18.512345, "note": "a | b"}, "Licence": "CC0"}
    settings = replace(SEARCH, consensus=2.0)  # of which there is none
    out = export_bundle(captioner, WORDS, captioner.encoder.transform, settings, tmp_path / "colours", card)
    text = (out / "README.md").read_text()
    assert "| consensus | 0 |" in text
    assert text.startswith("# colours\n")
    for part in ("en, de", "| BLEU-4 | 18.51 |", "a \\| b", "## Licence\n\nCC0", "48 x 48", "cutline.load("):
        assert part in text


@pytest.mark.parametrize("of", [finish, finish_classes])
def test_the_card_has_the_scores_of_the_weights_that_it_goes_with(of: ModuleType, tmp_path: Path) -> None:
    scored = [{"en_cider": 10.0 * step, "accuracy": 10.0 * step, "best": step == 2, "step": step} for step in (1, 2, 3)]
    lines = [json.dumps({"kind": "validation", **each}) + "\n" for each in scored]
    (tmp_path / "events.jsonl").write_text("".join(lines))
    (tmp_path / "config.toml").write_text("search.beam = 4")

    def told(step: int | None) -> list[float]:
        chosen = Config(search=SearchConfig(beam=20))
        tables = [t for title, t in of.card(tmp_path, chosen, step=step).items() if title.startswith("Validation")]
        assert of is finish_classes or all(table["search"] == "4 beams" for table in tables)  # not of the end
        return [value for table in tables for value in table.values() if isinstance(value, float)]

    assert told(None) == told(2) == [20.0]
    assert told(3) == [30.0]
    assert told(4) == []  # it was never scored


def test_a_run_of_few_pictures_ends_with_a_bundle_that_has_no_consensus(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    config = folder.settings(copy)
    config = replace(config, search=replace(config.search, consensus=2.0))
    corpus = read(config, quiet=True)
    corpus = replace(corpus, samples=(*corpus.split("train")[:3], *corpus.split("val")[:1]))

    def export_bundle(*_: object, consensus: object, **__: object) -> None:
        raise InterruptedError(f"come to the bundle with {consensus}")

    monkeypatch.setattr("cutline.export.export_bundle", export_bundle)
    with pytest.raises(InterruptedError, match="come to the bundle with None"):
        finish.finish(copy, corpus, config, "val", quiet=True)
    assert "without a consensus" in capsys.readouterr().err


def test_export_verb(run_cutline, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_cutline("export", tiny_run, "--out", out, "--check", 24)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(out)]
    assert "captions are the same as in PyTorch" in done.stderr
    assert load(out).languages == ("en", "de")
    facts = json.loads((out / "bundle.json").read_text())
    assert facts["search"]["beam"] == 2
    refused = run_cutline("export", tiny_run, "--out", out)
    assert refused.returncode == 2
    assert "already there" in refused.stderr
    assert "Traceback" not in refused.stderr
    absent = run_cutline("export", tmp_path / "none")
    assert absent.returncode == 2
    assert "not a run folder" in absent.stderr


def test_weights_in_fewer_bytes_make_a_smaller_bundle_that_captions_alike(
    captioner: Captioner, bundle: Path, tmp_path: Path
) -> None:
    def size(path: Path) -> int:
        return sum((path / name).stat().st_size for name in ("encoder.onnx", "decoder.onnx"))

    exact = load(bundle).caption(pictures(8))
    for kind, least, most, close in (("fp16", 0.5, 0.6, 2e-3), ("int8", 0.25, 0.55, 0.1)):
        small = write(captioner, tmp_path / kind, weights=kind)
        assert least < size(small) / size(bundle) < most, kind
        for backend in ("onnxruntime", "openvino"):
            found = load(small, backend=backend).caption(pictures(8))
            assert [one.score for one in found] == pytest.approx([one.score for one in exact], abs=close)


def test_one_byte_weights_are_as_near_as_their_channel_allows() -> None:
    values = np.random.default_rng(0).standard_normal((24, 40)).astype(np.float32)
    values *= np.geomspace(1e-3, 10, 40, dtype=np.float32)  # channels of very different size, along the second axis
    for given in (values, values.T.copy()):
        whole, scale = rounded(given)
        assert whole.dtype == np.int8
        largest = np.abs(given).max(axis=int(np.argmin(scale.shape)), keepdims=True)
        assert (np.abs(whole * scale - given) <= largest / 254 * 1.001).all()
    assert not rounded(np.zeros((3, 4), np.float32))[0].any(), "a channel of noughts has no size to be divided by"


def test_matrices_take_one_byte_and_kernels_two(captioner: Captioner, tmp_path: Path) -> None:
    import onnx

    small = write(captioner, tmp_path / "small", weights="int8")
    kinds = {
        len(tensor.dims): tensor.data_type
        for graph in small.glob("*.onnx")
        for tensor in onnx.load(graph).graph.initializer
        if np.prod(tensor.dims) >= 2048
    }
    assert kinds == {4: onnx.TensorProto.FLOAT16, 2: onnx.TensorProto.INT8}


def test_vectors_take_two_bytes_a_number(tmp_path: Path) -> None:
    """One byte, and four for the scale of each number, would be more than there was."""
    import onnx

    vector = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    weight, out = (
        onnx.numpy_helper.from_array(vector, "bias"),
        onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [4096]),
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["bias"], ["out"])], "g", [], [out], [weight])
    file = tmp_path / "graph.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), file)
    before = file.stat().st_size
    compact(file, "int8")
    assert file.stat().st_size < 0.55 * before
    (found,) = onnx.reference.ReferenceEvaluator(onnx.load(file)).run(None, {})
    np.testing.assert_allclose(found, vector, rtol=1e-3, atol=1e-6)


def test_a_classifier_classifies_as_in_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = ["círculo", "square", "three, four"]
    config = Config(
        task="classes", encoder=EncoderConfig(name="cnn:width=8,stages=2"), pictures=PicturesConfig(size=32)
    )
    classifier = build_classifier(config, len(names)).eval()
    out = export_classifier(classifier, names, 2.0, tmp_path / "shapes.cutline", {"Why": "to see"}, one_file=True)
    given = pictures(40)
    assert str(check_classifier(classifier, out, given)) == "40 of 40 classes are the same as in PyTorch"
    ours = cutline.load(out)
    pixels = np.stack([ours.pixels(picture) for picture in given])
    with torch.no_grad():
        logits = classifier((torch.from_numpy(pixels).permute(0, 3, 1, 2),))
    np.testing.assert_allclose(ours.logits(pixels), logits.numpy(), atol=1e-4)
    for guesses, wanted in zip(ours.classify(given, top=2), (logits / 2).softmax(1), strict=True):
        best = wanted.argsort(descending=True)[:2].tolist()
        assert [guess.label for guess in guesses] == [names[place] for place in best]
        assert [guess.probability for guess in guesses] == pytest.approx(wanted[best].tolist(), abs=1e-4)
    with pytest.raises(ModelError, match="puts pictures into classes"):
        load(out)
    with zipfile.ZipFile(out) as archive:
        card = archive.read("README.md").decode()
        assert set(archive.namelist()) == {"README.md", "bundle.json", "classes.json", "classifier.onnx"}
    assert "cutline classify photo.jpg" in card
    assert "## Why" in card
