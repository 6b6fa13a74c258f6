from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from PIL import Image

from cutline import cpus
from cutline.config import Config, DataConfig, EncoderConfig, PicturesConfig
from cutline.data.corpus import Sample
from cutline.errors import CutlineError, DataError, ModelError
from cutline.features import FeatureStore, StoreKey, build, open_or_build, store_path
from cutline.features import backends as backends_module
from cutline.features.backends import Backend, error, select
from cutline.features.build import key_of
from cutline.features.draft import only_builder
from cutline.models import linear
from cutline.models.encoders import SmallEncoder

COUNT = 11
FILES = ("grid.npy", "pooled.npy", "index.json")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(COUNT):
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((40, 30)).save(folder / f"{number:02}.png")
    return [Sample(path.name, path) for path in sorted(folder.iterdir())]


@pytest.fixture
def encoder() -> SmallEncoder:
    torch.manual_seed(0)
    return SmallEncoder(PicturesConfig(size=24)).eval()


def made(samples, encoder, out: Path, **options) -> FeatureStore:
    return build(samples, encoder, out, **{"backend": "torch", "batch": 4, "quiet": True, **options})


def contents(store: Path) -> dict[str, bytes]:
    return {name: (store / name).read_bytes() for name in FILES}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_rows_are_what_the_encoder_gives(samples, encoder, tmp_path):
    store = made(samples, encoder, tmp_path / "store")
    pictures = np.stack([encoder.transform.from_file(sample.image) for sample in samples])
    with torch.inference_mode():
        grid, pooled = encoder(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    wanted = [samples[i].id for i in (7, 0, 7)]
    got_grid, got_pooled = store[store.rows(wanted)]
    assert got_grid.dtype == got_pooled.dtype == np.float16
    np.testing.assert_allclose(got_grid, grid[[7, 0, 7]].numpy(), rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(got_pooled, pooled[[7, 0, 7]].numpy(), rtol=2e-3, atol=1e-5)
    got_grid[:] = 0  # a copy, and not the store
    assert store.verify() == []
    assert sorted(path.name for path in store.path.iterdir()) == sorted(FILES)


def test_the_encoder_is_left_as_it_was(samples, encoder, tmp_path):
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    made(samples, encoder, tmp_path / "store")
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_missing_pictures_are_named(samples, encoder, tmp_path):
    store = made(samples[:5], encoder, tmp_path / "store")
    with pytest.raises(ModelError, match=r"05\.png, 06\.png"):
        store.rows([sample.id for sample in samples])


@pytest.mark.parametrize("name", ["grid.npy", "pooled.npy"])
def test_a_truncated_file_is_refused_before_it_is_mapped(samples, encoder, tmp_path, name):
    path = made(samples, encoder, tmp_path / "store").path / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ModelError, match="bytes, not"):
        FeatureStore.open(path.parent)


def test_every_flipped_byte_of_the_index_is_noticed(samples, encoder, tmp_path):
    store = made(samples, encoder, tmp_path / "store").path
    whole = (store / "index.json").read_bytes()
    for place in range(0, len(whole), 97):
        flip(store / "index.json", place)
        with pytest.raises(ModelError):
            FeatureStore.open(store)
        (store / "index.json").write_bytes(whole)
    FeatureStore.open(store)


def test_verify_names_the_damaged_pictures(samples, encoder, tmp_path):
    store = made(samples, encoder, tmp_path / "store")
    row_bytes = store.grid[0].nbytes
    begin = (store.path / "grid.npy").stat().st_size - store.grid.nbytes
    flip(store.path / "grid.npy", begin + 3 * row_bytes + 5)
    flip(store.path / "pooled.npy", -1)
    assert FeatureStore.open(store.path).verify() == [(3, "03.png"), (COUNT - 1, f"{COUNT - 1:02}.png")]


def test_features_of_something_else_are_refused(samples, encoder, tmp_path):
    store = made(samples, encoder, tmp_path / "store")
    key = key_of(encoder)
    store.check(key)
    store.check(replace(key, precision="fp32"))
    for other, said in [
        (replace(key, encoder="vgg16"), "'vgg16' rather than 'small'"),
        (replace(key, weights="0"), "weights"),
        (replace(key, transform={**key.transform, "size": 96}), "size 96 rather than 24"),
        (replace(key, precision="bf16"), "'bf16' rather than 'fp32'"),
    ]:
        with pytest.raises(ModelError, match=said):
            store.check(other)
    with torch.no_grad():
        encoder.blocks[0][0].weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(ModelError, match="another weights"):
        made(samples, encoder, tmp_path / "store")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes_read_one_store(samples, encoder, tmp_path, method):
    store = made(samples, encoder, tmp_path / "store")
    batches = [np.array([i, COUNT - 1 - i]) for i in range(COUNT)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        for rows, (grid, pooled) in zip(batches, pool.map(store.__getitem__, batches)):
            np.testing.assert_array_equal(grid, store.grid[rows])
            np.testing.assert_array_equal(pooled, store.pooled[rows])


def test_a_pickled_store_does_not_open_another(samples, encoder, tmp_path):
    data = pickle.dumps(made(samples, encoder, tmp_path / "store"))
    made(samples[:6], encoder, tmp_path / "store", replace_old=True)
    with pytest.raises(ModelError, match="replaced"):
        pickle.loads(data)


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_what_fp16_cannot_hold_is_refused(samples, encoder, tmp_path, value):
    class Loud(SmallEncoder):
        def forward(self, pictures):
            grid, pooled = super().forward(pictures)
            return grid, pooled + value * (pictures.float().mean((1, 2, 3), keepdim=True)[:, :, 0, 0] > self.limit)

    loud = Loud(PicturesConfig(size=24)).eval()
    means = [float(loud.transform.from_file(sample.image).mean()) for sample in samples]
    loud.limit = sorted(means)[-2] if value == value else 0.0
    named = samples[int(np.argmax(means))].id if value == value else samples[0].id
    with pytest.raises(ModelError, match=named) as caught:
        made(samples, loud, tmp_path / "store")
    assert "fp16" in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_unreadable_pictures_are_all_named_and_what_is_done_is_kept(samples, encoder, tmp_path):
    whole = contents(made(samples, encoder, tmp_path / "whole").path)
    good = samples[2].image.read_bytes()
    samples[2].image.write_bytes(b"no picture")
    samples[9].image.rename(tmp_path / "away.png")
    with pytest.raises(DataError, match=r"2 of 11 .*\n.*02\.png: .*not a picture.*\n.*09\.png: .*No such file"):
        made(samples, encoder, tmp_path / "store")
    store = made(samples, encoder, tmp_path / "slim", skip_bad=True)
    kept = [sample for sample in samples if sample.id not in ("02.png", "09.png")]
    assert list(store.ids) == [sample.id for sample in kept]
    assert sorted(store.index["left_out"]) == ["02.png", "09.png"]
    assert store.verify() == []
    np.testing.assert_array_equal(store.grid, FeatureStore.open(tmp_path / "whole").grid[[0, 1, *range(3, 9), 10]])
    with pytest.raises(ModelError, match=r"without 2 pictures: 02\.png, 09\.png"):
        made(samples, encoder, tmp_path / "slim")
    samples[2].image.write_bytes(good)
    (tmp_path / "away.png").rename(samples[9].image)
    os.utime(samples[2].image, ns=(0, FeatureStore.open(tmp_path / "whole").index["pictures"][2][1]))
    assert contents(made(samples, encoder, tmp_path / "store").path) == whole


def test_a_picture_that_was_left_out_is_no_longer_when_it_is_mended(samples, encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUTLINE_CACHE", str(tmp_path / "cache"))
    config = Config(device="cpu", data=DataConfig(skip_bad=True), encoder=EncoderConfig(name="small"))
    good = samples[2].image.read_bytes()
    samples[2].image.write_bytes(good[:60])
    made(samples, encoder, tmp_path / "store", skip_bad=True)
    for _ in range(2):  # built, and found again
        assert "02.png" not in open_or_build(samples, encoder, config)
        assert "1 pictures cannot be read and were left out" in capsys.readouterr().err
    samples[2].image.write_bytes(good)
    assert "02.png" in open_or_build(samples, encoder, config, quiet=True)
    with pytest.raises(ModelError, match=r"1 pictures have changed .*02\.png"):
        made(samples, encoder, tmp_path / "store", skip_bad=True)


def test_no_readable_picture_at_all(samples, encoder, tmp_path):
    for sample in samples:
        sample.image.write_bytes(b"")
    with pytest.raises(DataError, match="11 of 11"):
        made(samples, encoder, tmp_path / "store", skip_bad=True)


def broken_off(samples, encoder, out: Path) -> Path:
    """A build that ended at an unreadable picture in its last batch."""
    good = samples[-1].image.read_bytes()
    status = samples[-1].image.stat()
    samples[-1].image.write_bytes(b"")
    with pytest.raises(DataError):
        made(samples, encoder, out)
    samples[-1].image.write_bytes(good)
    os.utime(samples[-1].image, ns=(status.st_atime_ns, status.st_mtime_ns))
    return out.with_name(f"{out.name}.building")


def count_encoded(monkeypatch) -> list[int]:
    sizes: list[int] = []
    original = backends_module.make

    def counting(*arguments):
        backend = original(*arguments)

        def run(pixels):
            sizes.append(len(pixels))
            return backend.run(pixels)

        return replace(backend, run=run)

    monkeypatch.setattr(backends_module, "make", counting)
    return sizes


@pytest.mark.parametrize("harm", ["none", "row", "torn line", "picture", "array", "plan", "version"])
def test_resuming_repeats_what_is_not_certain_and_nothing_else(samples, encoder, tmp_path, monkeypatch, harm):
    draft = broken_off(samples, encoder, tmp_path / "store")
    journal, plan = draft / "journal.jsonl", draft / "plan.json"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    encoded = {"none": [3], "row": [4, 3], "torn line": [4, 3], "picture": [4, 3]}.get(harm, [8, 4, 4, 3])
    if harm == "row":
        flip(draft / "grid.npy", 128 + 10)
    elif harm == "torn line":
        journal.write_text(lines[0] + lines[1][: len(lines[1]) // 2])
    elif harm == "picture":
        Image.new("RGB", (40, 30), "red").save(samples[5].image)
    elif harm == "array":
        os.truncate(draft / "grid.npy", 200)
    elif harm == "plan":
        plan.write_text("{")
    elif harm == "version":
        plan.write_text(json.dumps({**json.loads(plan.read_text()), "backend_version": "0"}))
    sizes = count_encoded(monkeypatch)
    made(samples, encoder, tmp_path / "store")
    assert sizes == encoded
    assert contents(tmp_path / "store") == contents(made(samples, encoder, tmp_path / "again").path)
    assert not draft.exists()


@pytest.mark.parametrize(("bad", "again"), [((), []), (("09.png",), [2])])
def test_what_is_ended_just_before_it_takes_its_place_is_not_computed_again(
    samples, encoder, tmp_path, monkeypatch, bad, again
):
    """But for the batch of a picture that could not be read, which gets another chance."""
    plain = Path.rename
    for sample in samples:
        if sample.id in bad:
            sample.image.write_bytes(b"no picture")

    def rename(path: Path, to: Path) -> Path:
        if Path(to) == tmp_path / "store":
            raise KeyboardInterrupt
        return plain(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            made(samples, encoder, tmp_path / "store", skip_bad=True)
    encoded = count_encoded(monkeypatch)
    store = made(samples, encoder, tmp_path / "store", skip_bad=True)
    assert encoded == again
    assert store.verify() == []
    assert contents(tmp_path / "store") == contents(made(samples, encoder, tmp_path / "whole", skip_bad=True).path)
    assert {path.name for path in (tmp_path / "store").iterdir()} == set(FILES)
    assert not [*tmp_path.glob("store.*")]


def test_another_number_of_cores_goes_on_with_what_is_done(samples, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(cpus, "count", lambda: 2)
    broken_off(samples, encoder, tmp_path / "store")
    monkeypatch.setattr(cpus, "count", lambda: 1)
    sizes = count_encoded(monkeypatch)
    made(samples, encoder, tmp_path / "store")
    assert sizes == [3]


def test_a_store_needs_a_name(samples, encoder):
    with pytest.raises(ModelError, match=r"'\.' cannot be a store"):
        made(samples, encoder, Path())


def test_other_settings_start_over(samples, encoder, tmp_path, monkeypatch):
    broken_off(samples, encoder, tmp_path / "store")
    sizes = count_encoded(monkeypatch)
    made(samples, encoder, tmp_path / "store", batch=6)
    assert sizes == [8, 6, 5]


def hold(out: Path, ready, done) -> None:
    draft = out.with_name(f"{out.name}.building")
    with only_builder(out, draft):
        draft.mkdir()
        from cutline.features.draft import claim

        claim(draft)
        ready.set()
        done.wait(60)


def test_a_second_builder_is_refused_and_told_of_the_first(samples, encoder, tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    first = context.Process(target=hold, args=(tmp_path / "store", ready, done))
    first.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ModelError, match=f"being built by process {first.pid} on "):
            made(samples, encoder, tmp_path / "store")
    finally:
        done.set()
        first.join()
    made(samples, encoder, tmp_path / "store")


def test_a_full_disk_is_noticed_before_anything_is_built(samples, encoder, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 100))
    with pytest.raises(CutlineError, match="free"):
        made(samples, encoder, tmp_path / "store")
    assert not (tmp_path / "store.building").exists()


def test_what_is_there_already_is_never_lost(samples, encoder, tmp_path):
    first = made(samples, encoder, tmp_path / "store")
    before = contents(first.path)
    made(samples, encoder, tmp_path / "store")
    with pytest.raises(ModelError, match="other pictures"):
        made(samples[:6], encoder, tmp_path / "store")
    samples[4].image.write_bytes(samples[5].image.read_bytes())
    with pytest.raises(ModelError, match=r"1 pictures have changed .*04\.png"):
        made(samples, encoder, tmp_path / "store")
    assert contents(first.path) == before
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(ModelError, match="not a feature store"):
        made(samples, encoder, folder)
    assert (folder / "letter.txt").read_text() == "dear"


def test_the_cache_serves_subsets_and_rebuilds_what_no_longer_holds(samples, encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("CUTLINE_CACHE", str(tmp_path / "cache"))
    config = Config(device="cpu", data=DataConfig(), encoder=EncoderConfig(name="small"))
    key, ids = key_of(encoder), [sample.id for sample in samples]
    path = store_path(key, ids)
    assert path.is_relative_to(tmp_path / "cache" / "features")
    sizes = count_encoded(monkeypatch)
    monkeypatch.setattr(backends_module, "_available", lambda: {"torch": ("fp32",)})
    assert open_or_build(samples, encoder, config, quiet=True).path == path
    assert sum(sizes) == 8 + COUNT
    os.utime(samples[0].image)  # the same picture, however new its file
    assert open_or_build(samples[3:5], encoder, config, quiet=True).path == path
    assert sum(sizes) == 8 + COUNT
    Image.new("RGB", (40, 30), "red").save(samples[4].image)
    store = open_or_build(samples, encoder, config, quiet=True)
    assert store.path == path
    assert sum(sizes) == 2 * (8 + COUNT)
    assert store.changed(samples) == []
    flip(path / "grid.npy", -1)
    assert open_or_build(samples, encoder, config, quiet=True).verify() == []
    assert sum(sizes) == 3 * (8 + COUNT)
    with torch.no_grad():
        encoder.blocks[0][0].weight *= 2
    assert open_or_build(samples, encoder, config, quiet=True).path.parent != path.parent


@pytest.mark.parametrize(("gain", "first"), [(2.0, "bf16"), (0.6, "fp32")])
def test_bf16_comes_first_where_the_processor_gains_by_it(
    gain: float, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And can be asked for wherever there is any."""
    monkeypatch.setattr(openvino.Core, "get_property", lambda *asked: ["FP32", "BF16"])
    monkeypatch.setattr(linear, "gain_of_bf16", lambda: gain)
    found = backends_module._available()["openvino"]
    assert found[0] == first
    assert set(found) == {"bf16", "fp32"}


def test_an_inexact_backend_is_passed_over(encoder, capsys, monkeypatch):
    probe = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    reference = backends_module.eager(encoder)(probe)
    gaps = {"bf16": 0.02, "fp32": 1e-5}

    def make(encoder, name, precision, threads):
        if name == "cuda":
            raise RuntimeError("no such device\nand a long tail")
        return Backend(name, precision, "1", lambda pixels: tuple(part * (1 + gaps[precision]) for part in reference))

    monkeypatch.setattr(backends_module, "make", make)
    monkeypatch.setattr(backends_module, "_available", lambda: {"cuda": ("fp16",), "openvino": ("bf16", "fp32")})
    chosen, found = select(encoder, probe, reference, "auto", "auto", 1, quiet=False)
    assert (chosen.name, chosen.precision) == ("openvino", "fp32")
    assert found == pytest.approx(1e-5, rel=1e-2)
    said = capsys.readouterr().err
    assert "not cuda fp16: no such device\n" in said
    assert "not openvino bf16: error 0.02" in said
    # Asked for by name it is taken, and its error said.
    chosen, found = select(encoder, probe, reference, "openvino", "bf16", 1, quiet=True)
    assert (chosen.precision, round(found, 3)) == ("bf16", 0.02)
    with pytest.raises(ModelError, match="cuda fp16 cannot run"):
        select(encoder, probe, reference, "cuda", "auto", 1, quiet=True)
    gaps["bf16"] = float("nan")
    with pytest.raises(ModelError, match="nothing here"):
        select(encoder, probe, reference, "openvino", "bf16", 1, quiet=True)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_exported_encoder_computes_the_same(encoder, name):
    pytest.importorskip(name)
    pictures = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
    backend = backends_module.make(encoder, name, "fp32", 1)
    reference = backends_module.eager(encoder)
    assert error(backend.run(pictures), reference(pictures)) < 1e-5
    assert error(backend.run(pictures[:1]), reference(pictures[:1])) < 1e-5


def test_the_error_is_relative_and_of_the_worse_part():
    grid, pooled = np.ones((2, 3, 4), np.float32), np.ones((2, 5), np.float32)
    assert error((grid, pooled), (grid, pooled)) == 0
    assert error((grid * 1.01, pooled * 1.03), (grid, pooled)) == pytest.approx(0.03, rel=1e-3)
    assert not error((grid, pooled * np.float32("nan")), (grid, pooled)) < 1e9


def test_keys_differ_in_everything_but_precision():
    key = StoreKey("a", "b", {"size": 1})
    assert key.digest == replace(key, precision="bf16").digest
    assert len({key.digest, replace(key, encoder="x").digest, replace(key, weights="x").digest}) == 3
    assert key.digest != replace(key, transform={"size": 2}).digest
