"""The runtime over a bundle made by hand, whose captions are known: it names the colour of a picture."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import cutline
from cutline.bundle import FORMAT, MANIFEST, PARTS, seal_of
from cutline.config import SearchConfig, WordsConfig, to_dict
from cutline.data.images import Transform
from cutline.data.words import Words
from cutline.errors import ConfigError, CutlineError, DataError, ModelError
from cutline.predict import Captioner, load
from cutline.search import check

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TEXTS = {
    "en": [f"a {colour} picture" for colour in COLOURS],
    "de": [f"ein {colour} bild" for colour in ("rotes", "grünes", "blaues")],
}
SIZE, SIDE = 8, 2
CUT = b"P6 4 4 255 cut"
"""What Pillow opens as a picture, and then cannot read."""


def make_bundle(folder: Path) -> Path:
    """The caption's word is looked up by the word before; which colour, by the mean of the picture."""
    words = Words.learn(TEXTS, WordsConfig(min_count=1))
    count = len(words.pieces)
    table, colours = np.full((count, count), -20, np.float32), np.zeros((3, count), np.float32)
    for lang, texts in TEXTS.items():
        for channel, text in enumerate(texts):
            ids = [words.begin(lang), *words.encode(text), words.end]
            table[ids[:-1], ids[1:]] = 0
            colours[channel, ids[2]] = 10
    folder.mkdir(parents=True)
    _encoder(folder / "encoder.onnx")
    _decoder(folder / "decoder.onnx", table, colours)
    words.save(folder / "words.json")
    seal(folder)
    return folder


def seal(folder: Path, **changes: object) -> None:
    import hashlib

    facts = {
        "format": FORMAT,
        "memory": 1,
        "languages": list(TEXTS),
        "search": to_dict(SearchConfig(max_length=6)),
        "transform": Transform(size=SIZE).to_dict(),
        "files": {
            name: {
                "bytes": (folder / name).stat().st_size,
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            }
            for name in PARTS["captions"]
        },
    } | changes
    (folder / MANIFEST).write_text(json.dumps(facts | {"seal": seal_of(facts)}))


def _encoder(path: Path) -> None:
    """memory_0 (B,R,3): the mean colour in each quarter; state_0 (B,1,1): how many words there are."""
    nodes = [
        helper.make_node("Cast", ["pictures"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["x"]),
        helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["first"], ["pool"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Reshape", ["pool", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["memory_0"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["memory_0", "axes"], ["most"], keepdims=1),
        helper.make_node("Mul", ["most", "zero"], ["state_0"]),
    ]
    _save(
        path,
        nodes,
        {"pictures": (TensorProto.UINT8, ["B", SIZE, SIZE, 3])},
        {
            "memory_0": (TensorProto.FLOAT, ["B", SIDE**2, 3]),
            "state_0": (TensorProto.FLOAT, ["B", 1, 1]),
        },
        white=np.float32(255),
        shape=np.array([0, 3, -1]),
        axes=np.array([1, 2]),
        zero=np.float32(0),
    )


def _decoder(path: Path, table: np.ndarray, colours: np.ndarray) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["chain"]),
        helper.make_node("ReduceMean", ["memory_0", "one"], ["mean"], keepdims=1),
        helper.make_node("MatMul", ["mean", "colours"], ["hue"]),
        helper.make_node("Add", ["chain", "hue"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["logp"], axis=-1),
        helper.make_node("ReduceSum", ["memory_0", "two"], ["bright"], keepdims=0),
        helper.make_node("Unsqueeze", ["bright", "one"], ["look"]),
        helper.make_node("Mul", ["look", "zero"], ["same"]),
        helper.make_node("Sub", ["look", "state_0"], ["scored"]),
        helper.make_node("Softmax", ["scored"], ["attention"], axis=-1),
        helper.make_node("Add", ["state_0", "step"], ["state_0_next"]),
    ]
    floats, ints = TensorProto.FLOAT, TensorProto.INT64
    _save(
        path,
        nodes,
        {
            "memory_0": (floats, ["B", SIDE**2, 3]),
            "state_0": (floats, ["B", "N", 1]),
            "tokens": (ints, ["B", "N"]),
        },
        {
            "logp": (floats, ["B", "N", len(table)]),
            "attention": (floats, ["B", "N", SIDE**2]),
            "state_0_next": (floats, ["B", "N", 1]),
        },
        table=table,
        colours=colours,
        one=np.array([1]),
        two=np.array([2]),
        zero=np.float32(0),
        step=np.float32(1),
    )


def _save(path: Path, nodes, inputs, outputs, **constants) -> None:
    def values(shapes):
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()]

    stored = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, path.stem, values(inputs), values(outputs), stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("models") / "colours")


@pytest.fixture(scope="module")
def captioner(bundle: Path) -> Captioner:
    return load(bundle)


@pytest.fixture
def damaged(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "damaged")


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (30, 20), COLOURS[colour])


def test_captions_of_every_kind_of_picture(captioner: Captioner, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    picture("red").save(file)
    kinds = [file, str(file), file.read_bytes(), picture("red"), np.asarray(picture("red"))]
    for kind in kinds:
        assert [caption.text for caption in captioner.caption(kind)] == ["a red picture"]
    found = captioner.caption([*kinds, picture("blue"), picture("green")], batch=3)
    assert [caption.text for caption in found] == ["a red picture"] * 5 + ["a blue picture", "a green picture"]
    assert found[0].words == ("a", "red", "picture")
    assert found[0].lang == "en"
    assert captioner.caption([]) == []


def test_grey_and_transparent_arrays_are_pictures(captioner: Captioner) -> None:
    assert captioner.caption(np.zeros((5, 7), np.uint8))
    assert captioner.caption(np.zeros((5, 7, 1), np.uint8))
    clear_red = np.dstack([np.asarray(picture("red")), np.full((20, 30), 255, np.uint8)])
    assert captioner.caption(clear_red)[0].text == "a red picture"


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        b"no picture",
        b"",
        "absent.jpg",
        42,
        Image.new("RGB", (0, 5)),
        Image.open(io.BytesIO(CUT)),
    ],
)
def test_what_is_no_picture_is_refused(captioner: Captioner, wrong: object) -> None:
    with pytest.raises(DataError):
        captioner.caption(wrong)  # type: ignore[arg-type]


def test_language_is_chosen_or_the_known_ones_named(captioner: Captioner) -> None:
    assert captioner.languages == ("en", "de")
    assert captioner.caption(picture("green"), lang="de")[0].text == "ein grünes bild"
    with pytest.raises(ConfigError, match="en, de"):
        captioner.caption(picture("green"), lang="fr")


def test_several_captions_of_a_picture(captioner: Captioner) -> None:
    (caption,) = captioner.caption(picture("red"), num=5)
    everything = [caption, *caption.alternatives]
    assert len({each.text for each in everything}) == 5
    assert [each.score for each in everything] == sorted((each.score for each in everything), reverse=True)
    assert caption.text == "a red picture"
    draws = captioner.caption(picture("red"), method="sample", num=3, seed=7)
    assert draws == captioner.caption(picture("red"), method="sample", num=3, seed=7)
    assert len(captioner.caption(picture("red"), method="diverse", num=4)[0].alternatives) == 3


def test_attention_is_a_map_for_each_word(captioner: Captioner) -> None:
    half = Image.new("RGB", (20, 20), COLOURS["red"])
    half.paste((0, 0, 0), (10, 0, 20, 20))
    (caption,) = captioner.caption(half, attention=True)
    assert caption.attention is not None
    assert caption.attention.shape == (3, SIDE, SIDE)
    np.testing.assert_allclose(caption.attention.sum(axis=(1, 2)), 1, rtol=1e-6)
    assert (caption.attention[:, :, 0] > caption.attention[:, :, 1]).all()  # it looks at the bright side
    assert captioner.caption(half)[0].attention is None


def test_wrong_options_are_refused(captioner: Captioner) -> None:
    for options in ({"num": 0}, {"beam": 0}, {"method": "bea"}, {"num": 3, "beam": 2}, {"batch": 0}, {"seed": -1}):
        with pytest.raises(ConfigError):
            captioner.caption(picture("red"), **options)
    with pytest.raises(ConfigError, match="did you mean 'beam'"):
        captioner.caption(picture("red"), beams=3)
    for method, name in (("greedy", "beam"), ("sample", "beam"), ("greedy", "seed"), (None, "seed")):
        with pytest.raises(ConfigError, match=f"has no {name}"):
            captioner.caption(picture("red"), method=method, **{name: 2})


def test_many_files_keep_their_order_and_their_errors(captioner: Captioner, tmp_path: Path) -> None:
    names, files = list(COLOURS), []
    for number in range(50):
        files.append(tmp_path / f"{number}.png")
        picture(names[number % 3]).save(files[-1])
    (tmp_path / "13.png").write_bytes(b"broken")
    (tmp_path / "14.png").unlink()
    results = list(captioner.caption_all(files, batch=7))
    assert [result.path for result in results] == files
    for number, result in enumerate(results):
        if number in (13, 14):
            assert result.caption is None
            assert f"{number}.png" in str(result.error)
        else:
            assert result.error is None
            assert result.caption is not None
            assert result.caption.text == f"a {names[number % 3]} picture"


def test_many_files_are_read_as_they_are_wanted(captioner: Captioner, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    picture("red").save(file)
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield file

    results = captioner.caption_all(endless(), batch=4)
    assert [next(results).caption.text for _ in range(9)] == ["a red picture"] * 9
    assert asked <= 24
    results.close()
    assert list(captioner.caption_all([])) == []
    for alone in (file, str(file), file.read_bytes()):
        assert [r.error for r in captioner.caption_all(alone)] == [None]
    assert [r.error is None for r in captioner.caption_all([tmp_path / "none.png"] * 3)] == [False] * 3


def test_one_file_is_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    packed = tmp_path / "colours.cutline"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in bundle.iterdir():
            archive.write(file, file.name)
    assert load(packed).caption(picture("blue"))[0].text == "a blue picture"
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 16
    packed.write_bytes(data)
    with pytest.raises(ModelError):
        load(packed)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:  # zipped anew, and damaged
        for file in bundle.iterdir():
            archive.write(file, file.name)
    with zipfile.ZipFile(packed) as archive:
        place = archive.getinfo(MANIFEST).header_offset + 30 + len(MANIFEST) + 4
    deflated = bytearray(packed.read_bytes())
    deflated[place : place + 8] = b"\xff" * 8
    packed.write_bytes(deflated)
    with pytest.raises(ModelError, match="not a bundle"):
        load(packed)
    packed.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="not a bundle"):
        load(packed)


@pytest.mark.parametrize("name", [*PARTS["captions"], MANIFEST])
def test_a_damaged_file_is_found(damaged: Path, name: str) -> None:
    file = damaged / name
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    for broken in (bytes(flipped), whole[:-3], b""):
        file.write_bytes(broken)
        with pytest.raises(ModelError, match="damaged"):
            load(damaged)
    file.unlink()
    with pytest.raises(ModelError, match=r"missing|not a bundle"):
        load(damaged)


def test_what_is_no_bundle_is_refused(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no bundle"):
        load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="not a bundle"):
        load(tmp_path / "empty")
    text = tmp_path / "file.txt"
    text.write_text("hello")
    with pytest.raises(ModelError, match="not a bundle"):
        load(text)
    for foreign in ("[" * 100_000, "[]", "{}", "null", '{"format": "x"}', '{"format": 1, "files": 3, "seal": ""}'):
        (damaged / MANIFEST).write_text(foreign)
        with pytest.raises(ModelError):
            load(damaged)
    seal(damaged, format=FORMAT + 1)
    with pytest.raises(ModelError, match="newer Cutline"):
        load(damaged)


def test_a_run_folder_stands_for_its_bundle(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "run" / "bundle")
    assert load(tmp_path / "run").caption(picture("red"))[0].text == "a red picture"


def test_bundle_settings_hold_unless_told_otherwise(damaged: Path) -> None:
    seal(damaged, search=to_dict(SearchConfig(max_length=6, num=2, length_penalty=0.0)))
    captioner = load(damaged)
    assert len(captioner.caption(picture("red"))[0].alternatives) == 1
    assert len(captioner.caption(picture("red"), num=1)[0].alternatives) == 0
    check(captioner.settings)


def test_groups_share_whatever_beams_the_bundle_has(damaged: Path) -> None:
    seal(damaged, search=to_dict(SearchConfig(max_length=6, beam=5, groups=3)))
    captioner = load(damaged)
    assert captioner.caption(picture("red"), method="diverse")[0].text == "a red picture"
    with pytest.raises(ConfigError, match="a beam of 9"):
        captioner.caption(picture("red"), method="diverse", beam=7)


def test_openvino_says_the_same(bundle: Path, captioner: Captioner) -> None:
    pytest.importorskip("openvino")
    pictures = [picture(colour) for colour in COLOURS]
    other = load(bundle, backend="openvino").caption(pictures, attention=True, num=2)
    for mine, theirs in zip(captioner.caption(pictures, attention=True, num=2), other):
        assert mine.text == theirs.text
        assert mine.score == pytest.approx(theirs.score, abs=1e-5)
        np.testing.assert_allclose(mine.attention, theirs.attention, atol=1e-5)
    assert [c.text for c in load(bundle, precision="bf16").caption(pictures)] == [c.text for c in other]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_several_threads_get_their_own_answers(bundle: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    captioner = load(bundle, backend=backend)
    pictures = [picture(colour) for colour in COLOURS] * 40
    alone = [captioner.caption(each)[0].text for each in pictures[: len(COLOURS)]] * 40
    with ThreadPoolExecutor(4) as threads:
        assert [found[0].text for found in threads.map(captioner.caption, pictures)] == alone


def test_a_picture_in_memory_is_turned_as_its_file_is(captioner: Captioner, tmp_path: Path) -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    ramp.save(tmp_path / "phone.png", exif=exif)
    with Image.open(tmp_path / "phone.png") as opened:
        np.testing.assert_array_equal(captioner.pixels(opened), captioner.pixels(tmp_path / "phone.png"))
    assert not np.array_equal(captioner.pixels(ramp), captioner.pixels(tmp_path / "phone.png"))


def test_backends_that_cannot_be(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="onnxruntime"):
        load(bundle, backend="onnx")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="bf16"):
        load(bundle, backend="onnxruntime", precision="bf16")
    with pytest.raises(ConfigError, match="-1 threads"):
        load(bundle, threads=-1)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(CutlineError, match=r"cutline\[openvino\]"):
        load(bundle, backend="openvino")


def test_two_lines_of_python(bundle: Path, tmp_path: Path) -> None:
    picture("green").save(tmp_path / "photo.jpg")
    assert cutline.load(bundle).caption(tmp_path / "photo.jpg")[0].text == "a green picture"


def test_the_runtime_brings_no_torch(bundle: Path) -> None:
    data = io.BytesIO()
    picture("red").save(data, "PNG")
    code = (
        "import sys, cutline, cutline.writers, cutline.search, cutline.cli.caption\n"
        f"print(cutline.load({str(bundle)!r}).caption(sys.stdin.buffer.read())[0].text)\n"
        "heavy = {'torch', 'torchvision', 'timm', 'safetensors', 'onnx', 'openvino', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(f'brings {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=data.getvalue(), capture_output=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == "a red picture"
