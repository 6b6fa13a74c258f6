"""Encoders: what they see, which part of them learns, and weights that are right or refused."""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cutline.config import EncoderConfig, PicturesConfig
from cutline.errors import ConfigError, ModelError
from cutline.models.encoders import build_encoder, weights_hash

TIMM = "resnet10t"  # a small one
PICTURES = PicturesConfig(size=64)


def encoder_of(name="small", pictures=PICTURES, **changes):
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(name=name, **{"weights": "none", **changes}), pictures)


def pixels(count=2, size=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [12, 48, 96, 97, 100, 107, 224])
def test_small_encoder_says_what_it_gives_at_any_size(size):
    encoder = encoder_of(pictures=PicturesConfig(size=size)).eval()
    grid, pooled = encoder(pixels(2, size))
    assert grid.shape == (2, encoder.grid_side**2, encoder.channels)
    assert pooled.shape == (2, encoder.pooled_channels)
    assert encoder.transform.size == size


def test_regions_are_in_reading_order():
    encoder = encoder_of(pictures=PicturesConfig(size=96)).eval()
    plain = torch.full((1, 3, 96, 96), 128, dtype=torch.uint8)
    marked = plain.clone()
    marked[:, :, 8:16, 80:88] = 0  # top right
    changed = (encoder(marked).grid - encoder(plain).grid).abs().sum(-1).view(8, 8)
    assert divmod(int(changed.argmax()), 8) in {(0, 6), (0, 7), (1, 6), (1, 7)}
    assert changed[4:].sum() == 0
    assert changed[:, :3].sum() == 0


@pytest.mark.parametrize(
    ("name", "size", "side"), [(TIMM, 64, 2), ("vit_tiny_patch16_224", 64, 4), ("swin_tiny_patch4_window7_224", 64, 2)]
)
def test_timm_models_of_every_layout_give_a_square_grid(name, size, side):
    encoder = encoder_of(name, PicturesConfig(size=size)).eval()
    with torch.no_grad():
        grid, pooled = encoder(pixels(2, size))
    assert encoder.grid_side == side
    assert grid.shape == (2, side * side, encoder.channels)
    assert pooled.shape == (2, encoder.pooled_channels)


def test_pictures_are_normalised_inside():
    encoder = encoder_of(TIMM).eval()
    picture = pixels(1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.transform.mean, encoder.transform.std))
    expected = encoder.model.forward_features((picture / 255 - mean) / std).flatten(2).mT
    torch.testing.assert_close(encoder(picture).grid, expected, atol=1e-4, rtol=1e-4)


def test_names_carry_arguments_for_the_model_and_its_preprocessing():
    encoder = encoder_of(f"{TIMM}:output_stride=16,mean=0.5,std=(0.5,0.25,0.5),interpolation=bilinear")
    assert encoder.grid_side == 4
    assert encoder.transform.mean == (0.5, 0.5, 0.5)
    assert encoder.transform.std == (0.5, 0.25, 0.5)
    assert encoder.transform.interpolation == "bilinear"


def test_what_learns_is_what_was_asked_for():
    def learning(**changes):
        encoder = encoder_of(**changes)
        return [any(p.requires_grad for p in stage) for stage in encoder.stages()]

    assert learning() == [True] * 5
    assert learning(train="nothing") == [False] * 5
    assert learning(train="stage3") == [False, False, False, True, True]
    assert learning(name=TIMM, train="stage4")[-1]
    assert not any(learning(name=TIMM, train="stage4")[:-1])
    with pytest.raises(ConfigError, match="stage5") as caught:
        learning(train="stage5")
    assert "stage4" in str(caught.value)


@pytest.mark.parametrize("name", ["small", TIMM])
def test_frozen_batch_norms_keep_their_statistics(name):
    encoder = encoder_of(name, train="stage3").train()
    before = {key: value.clone() for key, value in encoder.state_dict().items() if "running" in key}
    encoder(pixels(4))
    changed = {
        key for key, value in encoder.state_dict().items() if key in before and not torch.equal(value, before[key])
    }
    learning = {key.rpartition(".")[0] for key, p in encoder.named_parameters() if p.requires_grad}
    assert changed
    assert {key.rpartition(".")[0] for key in changed} <= learning
    still = encoder_of(name, train="nothing").train()
    torch.testing.assert_close(still(pixels(4)).grid[:1], still(pixels(4)[:1]).grid, atol=1e-4, rtol=1e-4)


def test_weights_from_a_file_freeze_the_encoder_and_are_its_weights(tmp_path):
    for name in ("small", TIMM):
        source = encoder_of(name)
        owner = source if name == "small" else source.model
        weights = {f"{k}": v.clone().half().contiguous() for k, v in owner.state_dict().items()}
        weights = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
        if name != "small":
            weights["fc.weight"] = torch.zeros(1000, 512)  # a classifier is no part of it
        save_file(weights, tmp_path / "weights.safetensors")
        torch.manual_seed(9)
        loaded = build_encoder(EncoderConfig(name=name, weights=str(tmp_path / "weights.safetensors")), PICTURES)
        assert not any(p.requires_grad for p in loaded.parameters())
        assert all(p.dtype == torch.float32 for p in loaded.parameters())
        torch.testing.assert_close(loaded.eval()(pixels()).grid, source.eval()(pixels()).grid, atol=0.05, rtol=0.05)
        assert weights_hash(loaded) != weights_hash(source)  # half precision was not the same


@pytest.mark.parametrize(("wrapping", "wrapper"), [("state_dict", "module."), ("model", "module._orig_mod.")])
def test_weights_as_training_scripts_save_them(wrapping, wrapper, tmp_path):
    source = encoder_of(TIMM)
    weights = {f"{wrapper}{name}": tensor for name, tensor in source.model.state_dict().items()}
    weights[f"{wrapper}fc.weight"] = torch.zeros(1000, 512)
    torch.save({wrapping: weights, "epoch": 3}, tmp_path / "best.pth")
    loaded = encoder_of(TIMM, weights=str(tmp_path / "best.pth"))
    assert weights_hash(loaded) == weights_hash(source)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no weights file"),
        (b"not weights at all", "cannot read weights"),
        ({"conv1.0.weight": torch.zeros(3)}, "lacks"),
        ("surplus", "has besides other.weight"),
        ("shape", "in another shape"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_that_do_not_fit_are_refused_by_name(content, said, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    if content in ("surplus", "shape"):
        state = {k: v.clone().contiguous() for k, v in encoder_of().state_dict().items()}
        first = next(iter(state))
        content = {**state, **({"other.weight": torch.zeros(1)} if content == "surplus" else {first: torch.zeros(2)})}
    if isinstance(content, dict):
        save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        encoder_of(weights=str(path))
    assert "weights" in str(caught.value)


class Malice:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malice()}, "evil.pth")
    with pytest.raises(ModelError, match="cannot read weights"):
        encoder_of(weights="evil.pth")
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet5O", "did you mean 'resnet50'"),
        ("smal", "did you mean 'small'"),
        ("small:width=64", "'small' takes none"),
        (f"{TIMM}:stride", "no argument"),
        (f"{TIMM}:strides=3", "strides"),
        (f"{TIMM}.c3_in2k", f"no weights 'c3_in2k' .*did you mean '{TIMM}.c3_in1k'"),
        (f"{TIMM}:mean=grey", "mean=grey"),
        (f"{TIMM}:std=(0.5,0.5)", "std=.* three in brackets"),
        (f"{TIMM}:crop_pct=most", "crop_pct=most"),
        (f"{TIMM}:interpolation=nearest", "interpolation=nearest .*bilinear or bicubic"),
        (f"{TIMM}:features_only=true", "other than one grid"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        encoder_of(name)


@pytest.mark.parametrize("name", ["caformer_s18", "rdnet_tiny"])
def test_where_timm_knows_no_parts_all_or_nothing_learns(name):
    assert all(p.requires_grad for p in encoder_of(name, train="all").parameters())
    assert not any(p.requires_grad for p in encoder_of(name, train="nothing").parameters())
    with pytest.raises(ConfigError, match="stage1"):
        encoder_of(name, train="stage1")


def test_too_few_pixels_for_the_small_encoder():
    with pytest.raises(ConfigError, match="8 x 8 pixels"):
        encoder_of(pictures=PicturesConfig(size=8))


def test_small_has_no_weights_on_the_hub():
    with pytest.raises(ConfigError, match="hub has no weights"):
        encoder_of(weights="hub")


def test_without_a_network_the_ways_out_are_named_at_once(tmp_path):
    code = (
        "import time; from cutline.config import *; from cutline.models.encoders import build_encoder\n"
        "import timm, huggingface_hub; start = time.perf_counter()\n"
        "try: build_encoder(EncoderConfig(name='resnet10t'), PicturesConfig())\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "assert time.perf_counter() - start < 10"
    )
    # A port that nobody listens on is a network that is not there.
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **offline}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "ModelError no weights for encoder 'resnet10t'" in done.stdout
    assert all(way in done.stdout for way in ("a file", '"none"', '"small"', "--train-encoder all"))


def test_hash_tells_weights_and_kinds_apart():
    one, same = encoder_of(), encoder_of()
    assert weights_hash(one) == weights_hash(same)
    with torch.no_grad():
        next(same.parameters())[0] += 1e-3
    assert weights_hash(one) != weights_hash(same)
    strided, plain = encoder_of(f"{TIMM}:output_stride=16"), encoder_of(TIMM)
    assert weights_hash(strided) != weights_hash(plain)  # the same weights, but something else comes out


def test_small_needs_no_timm():
    code = (
        "import sys; from cutline.config import *; from cutline.models.encoders import build_encoder\n"
        "build_encoder(EncoderConfig(), PicturesConfig()); assert 'timm' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


DATA = Path(os.environ.get("CUTLINE_DATA", Path(__file__).parents[3] / "shared" / "data"))
WEIGHTS = DATA / "weights" / "mobilenetv2_100.safetensors"


@pytest.mark.data
@pytest.mark.skipif(not WEIGHTS.exists(), reason="no mobilenetv2_100.safetensors where CUTLINE_DATA says")
def test_trained_weights_tell_dogs_from_the_rest_when_padded_as_they_learned():
    captions = defaultdict(list)
    for line in (DATA / "flickr8k" / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        place, _, text = line.partition("\t")
        captions[place.split("#")[0]].append("dog" in text.lower())
    files = {file.name: file for file in sorted((DATA / "flickr8k").rglob("*.jpg"))}
    kinds = [[files[n] for n, said in captions.items() if n in files and all(d == dog for d in said)] for dog in (1, 0)]
    files = [file for pair in zip(*(kind[:40] for kind in kinds)) for file in pair]  # dog, none, dog, none, ...

    def right(name):
        """Share of pictures nearer to the centre of other pictures of their kind."""
        encoder = build_encoder(EncoderConfig(name=name, weights=str(WEIGHTS)), PicturesConfig()).eval()
        pixels = torch.stack([torch.tensor(encoder.transform.from_file(file)).permute(2, 0, 1) for file in files])
        with torch.no_grad():
            pooled = torch.nn.functional.normalize(encoder(pixels).pooled, dim=-1).view(-1, 2, encoder.pooled_channels)
        centres = pooled[:20].mean(0)
        return float(((pooled[20:] @ centres.mT).argmax(-1) == torch.arange(2)).float().mean())

    learned = right("mobilenetv2_100:pad_type=same,mean=0.5,std=0.5")
    assert learned >= 0.9
    assert learned >= right("mobilenetv2_100")


def test_a_cell_of_the_small_encoder_sees_what_it_is_drawn_over():
    """The middle of what a cell sees is the middle of the cell, so that attention is shown where it was."""
    encoder = encoder_of().eval()
    picture = encoder.normalise(torch.full((1, 3, 96, 96), 127, dtype=torch.uint8)).requires_grad_()
    grid = encoder.blocks(picture)
    for row, column in ((3, 4), (4, 3)):
        (seen,) = torch.autograd.grad(grid[0, :, row, column].sum(), picture, retain_graph=True)
        used = seen.abs().sum((0, 1)) > 0
        for cell, places in ((row, used.any(1).nonzero()), (column, used.any(0).nonzero())):
            assert (places.min() + places.max() + 1) / 2 == (cell + 0.5) * 12
