"""`cutline features`: build, verify or show a store of picture features."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from cutline.cli.arguments import dispatch, parse
from cutline.errors import ConfigError, require_workshop


@dataclass(frozen=True)
class Build:
    """Compute the features of all pictures of DATA, resuming what was begun. Prints the store's folder."""

    data: tyro.conf.Positional[str | None] = None
    """A folder or file of captioned pictures, or "scenes" (default: the config file's)."""
    encoder: str | None = None
    """The encoder's name: vgg16, resnet50, inception_v3, densenet121, or any other timm model (default:
    mobilenetv2_100, as in `cutline train`)."""
    weights: str | None = None
    """"hub", "none" (random), a local file, or the folder of a run whose encoder is meant."""
    out: Path | None = None
    """The store's folder (default: in the user's cache, where `cutline train` finds it)."""
    config: Path | None = None
    """Take the data's, the pictures' and the encoder's settings from this file."""
    format: str | None = None
    """How to read DATA: a reader's name (default: look)."""
    images: str = ""
    """The folder from which a table or JSON file names its pictures (default: the one it lies in)."""
    limit: int | None = None
    """Only so many training pictures."""
    backend: Literal["auto", "cpu", "cuda", "openvino", "onnxruntime", "torch"] = "auto"
    """What runs the encoder (auto: the fastest that is exact enough)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What it computes in (auto: the fastest whose features are within 1 % of fp32's)."""
    batch: int = 32
    """Pictures encoded together."""
    threads: int = 0
    """CPU threads (0: all)."""
    skip_bad: bool = False
    """Leave out pictures that cannot be read, and count them."""
    quiet: bool = False
    """Print nothing but the store's folder."""


@dataclass(frozen=True)
class Verify:
    """Compare every row with its hash; exits with 1, naming the pictures, where one differs."""

    store: tyro.conf.Positional[Path]
    """The store's folder."""
    quiet: bool = False
    """Show no progress; damaged pictures are still named."""


@dataclass(frozen=True)
class Info:
    """Show whose features a store holds, and what made them."""

    store: tyro.conf.Positional[Path]
    """The store's folder."""


def main(arguments: list[str]) -> int:
    return dispatch("features", TASKS, arguments)


def _build(arguments: list[str]) -> int:
    given = parse(Build, arguments, verb="features build")
    if given.limit is not None and given.limit < 0:
        raise ConfigError(f"--limit {given.limit}", expected="0 (all of them) or more")
    require_workshop("encoding pictures")
    from cutline import config as configuration
    from cutline.data import sources
    from cutline.engine import taught
    from cutline.presets import PRESETS

    base = PRESETS["frozen"]()  # as `cutline train` begins, so that it finds what is built here
    config = configuration.load(given.config, base) if given.config else base
    data = replace(
        config.data,
        path=given.data or config.data.path,
        format=given.format or config.data.format,
        images=given.images or config.data.images,
        limit=config.data.limit if given.limit is None else given.limit,
        skip_bad=given.skip_bad or config.data.skip_bad,
    )
    encoder = replace(
        config.encoder, name=given.encoder or config.encoder.name, weights=given.weights or config.encoder.weights
    )
    config = taught.named(replace(config, data=data, encoder=encoder), base, keep=given.encoder is not None)
    if given.batch < 1 or given.threads < 0:
        raise ConfigError("--batch and --threads count pictures and threads", expected="a positive number")
    corpus = sources.read(config, quiet=given.quiet)

    import torch

    from cutline.engine.runtime import use_threads
    from cutline.engine.trained import take_encoder
    from cutline.features import build, store_path
    from cutline.features.build import key_of
    from cutline.models.encoders import build_encoder

    torch.manual_seed(config.seed)
    threads = given.threads or config.threads
    use_threads(threads)
    network = build_encoder(taught.without(config).encoder, config.pictures)
    if teacher := taught.by(config.encoder):
        take_encoder(network, teacher, config.encoder)
    out = given.out or store_path(key_of(network), [sample.id for sample in corpus.samples])
    store = build(
        corpus.samples,
        network,
        out,
        backend=given.backend,
        precision=given.precision,
        batch=given.batch,
        threads=threads,
        skip_bad=data.skip_bad,
        quiet=given.quiet,
    )
    print(store.path)
    return 0


def _verify(arguments: list[str]) -> int:
    given = parse(Verify, arguments, verb="features verify")
    path = given.store
    from cutline.features.store import FeatureStore

    store = FeatureStore.open(path)
    damaged = store.verify(quiet=given.quiet)
    for row, name in damaged:
        print(f"{path}: row {row} ({name}) is damaged", file=sys.stderr)
    print(f"{path}: {len(store) - len(damaged)} of {len(store)} pictures are as they were written")
    return 1 if damaged else 0


def _info(arguments: list[str]) -> int:
    path = parse(Info, arguments, verb="features info").store
    from cutline.features.store import FeatureStore

    store = FeatureStore.open(path)
    index, transform = store.index, store.key.transform
    _, regions, channels = store.grid.shape
    kept = "centre crop" if transform["fit"] == "crop" else "squashed"
    lines = {
        "pictures": f"{len(store)}" + (f" ({len(index['left_out'])} left out)" if index["left_out"] else ""),
        "encoder": f"{store.key.encoder}, weights {store.key.weights}",
        "transform": f"{transform['size']} x {transform['size']}, {kept}, {transform['interpolation']}",
        "grid": f"{regions} regions x {channels} channels, {store.grid.nbytes / 1e6:.1f} MB in fp16",
        "pooled": f"{store.pooled.shape[1]} channels, {store.pooled.nbytes / 1e6:.1f} MB in fp16",
        "made by": f"{index['backend']} {index['backend_version']} in {store.key.precision}, "
        f"error {index['error']:.2g} of fp32",
    }
    print("\n".join(f"{name:<10} {line}" for name, line in lines.items()))
    return 0


TASKS = {
    "build": (_build, "compute what the encoder sees in each picture, once"),
    "verify": (_verify, "check that every picture's row is as it was written"),
    "info": (_info, "show whose features they are, and what made them"),
}
