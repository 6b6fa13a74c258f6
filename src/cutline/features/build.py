"""Filling a store: pictures are decoded in threads while the encoder runs, and each finished batch is kept."""

from __future__ import annotations

import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutline import cpus
from cutline.config import Config
from cutline.console import progress, say
from cutline.data.corpus import Sample
from cutline.data.files import cache_folder
from cutline.data.images import Transform
from cutline.errors import DataError, ModelError
from cutline.features import backends
from cutline.features.backends import Backend, Pair, Pixels
from cutline.features.draft import Draft, Entry, Plan, claim, only_builder, stamp
from cutline.features.store import FeatureStore, StoreKey, digest

if TYPE_CHECKING:
    from cutline.models.encoders import Encoder

BATCH = 32
PROBE = 8
"""Pictures on which a backend is compared with PyTorch."""
AHEAD = 3
"""Batches decoded, or waiting to be written, at a time."""
LARGEST = float(np.finfo(np.float16).max)

Decoded = tuple[Pixels | None, tuple[int, int, str], str]
"""A picture or None, what its file was, and why there is no picture."""


def build(
    samples: Sequence[Sample],
    encoder: Encoder,
    out: Path,
    *,
    backend: str = "auto",
    precision: str = "auto",
    batch: int = BATCH,
    threads: int = 0,
    skip_bad: bool = False,
    replace_old: bool = False,
    quiet: bool = False,
) -> FeatureStore:
    """The features of `samples` in the folder `out`, made by the fastest backend that is exact enough.

    A build that was ended is gone on with, to the same bytes. A store that is there already is returned if it is this
    one; another is refused, or with `replace_old` replaced once the new one is complete.
    """
    if not samples:
        raise DataError("there are no pictures to build features of")
    if batch < 1:
        raise DataError(f"a batch of {batch} pictures", expected="at least 1")
    if out.name in ("", ".."):
        raise ModelError(f"'{out}' cannot be a store", fix="name a folder that is not there yet")
    key = replace(key_of(encoder), precision=precision if precision != "auto" else "any")
    folder = out.with_name(f"{out.name}.building")
    with only_builder(out, folder):
        if not replace_old and (there := _already(out, key, samples, skip_bad)):
            say(f"{out} holds these features already", quiet=quiet)
            shutil.rmtree(folder, ignore_errors=True)  # of whoever was ended just after it had made them
            return there
        threads = threads or _threads(folder, key, samples, backend, batch)
        draft, run = _draft(folder, key, samples, encoder, backend, batch, threads, quiet=quiet)
        claim(folder)
        bad = _fill(draft, run, samples, encoder.transform, quiet=quiet)
        if bad and (not skip_bad or len(bad) == len(samples)):
            draft.close()
            raise _unreadable(bad, len(samples))
        if bad:
            say(f"{len(bad)} pictures cannot be read and were left out", quiet=quiet)
        draft.finish(out, samples)
    return FeatureStore.open(out)


def open_or_build(samples: Sequence[Sample], encoder: Encoder, config: Config, *, quiet: bool = False) -> FeatureStore:
    """The features that a run needs, from the user's cache, where they are put if they are not there."""
    key = key_of(encoder)
    out = store_path(key, [sample.id for sample in samples])
    for path in sorted(out.parent.glob("*/index.json")) if out.parent.is_dir() else []:
        if path.parent.suffix == ".building":
            continue
        try:
            store = FeatureStore.open(path.parent)
            store.check(key)
            if not all(s.id in store or s.id in store.index["left_out"] for s in samples):
                continue
            left_out = [sample for sample in samples if sample.id not in store]
            if (left_out and not config.data.skip_bad) or store.changed(samples):
                continue
            if damaged := store.verify():
                raise ModelError(f"{store.path}: the features of {len(damaged)} pictures are damaged")
        except ModelError as error:
            say(f"not used: {error.what}", quiet=quiet)
            continue
        say(f"features: {store.path} ({store.index['backend']} {store.key.precision})", quiet=quiet)
        if left_out:
            say(f"{len(left_out)} pictures cannot be read and were left out", quiet=quiet)
        return store
    return build(
        samples,
        encoder,
        out,
        backend="cpu" if config.device == "cpu" else "auto",
        threads=config.threads,
        skip_bad=config.data.skip_bad,
        replace_old=True,
        quiet=quiet,
    )


def store_path(key: StoreKey, ids: Sequence[str]) -> Path:
    """Where the user's cache has the features of these pictures."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", key.encoder)
    return cache_folder() / "features" / f"{name}-{key.digest[:16]}" / digest(list(ids))[:16]


def key_of(encoder: Encoder) -> StoreKey:
    from cutline.models.encoders import weights_hash

    return StoreKey(encoder.name, weights_hash(encoder), encoder.transform.to_dict())


def _already(out: Path, key: StoreKey, samples: Sequence[Sample], skip_bad: bool) -> FeatureStore | None:
    """The store that is wanted, if it is there; anything else that is there is not ours to replace."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    fix = f"delete {out}, or name another store with --out"
    store = FeatureStore.open(out)
    store.check(key)
    if (left_out := store.index["left_out"]) and not skip_bad:
        raise ModelError(f"{out} was built without {len(left_out)} pictures: {', '.join([*left_out][:10])}", fix=fix)
    wanted = [sample.id for sample in samples if sample.id not in store.index["left_out"]]
    if wanted != list(store.ids):
        raise ModelError(f"{out} holds features of other pictures: {len(store)}, not {len(wanted)}", fix=fix)
    if changed := store.changed(samples):
        raise ModelError(
            f"{len(changed)} pictures have changed since {out} was built: {', '.join(changed[:10])}", fix=fix
        )
    return store


def _draft(
    folder: Path,
    key: StoreKey,
    samples: Sequence[Sample],
    encoder: Encoder,
    backend: str,
    batch: int,
    threads: int,
    *,
    quiet: bool,
) -> tuple[Draft, Backend]:
    """What an earlier builder left, where it was about to make the same bytes; else a new beginning."""
    ids = digest([sample.id for sample in samples])
    plan = Plan.read(folder)
    if plan and _same(plan, key, ids, backend, batch, threads):
        draft = Draft.resume(folder, plan, samples)
        if draft is not None:
            done = sum(len(entry.pictures) for entry in draft.entries.values())
            say(f"going on with {folder.name}: {done} of {len(samples)} pictures are there", quiet=quiet)
            run = backends.make(encoder, plan.backend, plan.key.precision, threads)
            say(f"backend: {run}, as before", quiet=quiet)
            return draft, run
    if folder.exists():
        say(f"{folder.name} was left by another build: starting over", quiet=quiet)
    names, probe = _probe(samples, encoder.transform)
    reference = backends.eager(encoder)(probe)
    for part in reference:
        _half(part, names)  # better now than after an hour
    chosen, error = backends.select(
        encoder, probe, reference, backend, key.precision.replace("any", "auto"), threads, quiet=quiet
    )
    grid, pooled = (part.shape[1:] for part in reference)
    plan = Plan(
        key=replace(key, precision=chosen.precision),
        ids=ids,
        backend=chosen.name,
        backend_version=chosen.version,
        error=error,
        batch=batch,
        threads=threads,
        grid=(len(samples), *grid),
        pooled=(len(samples), *pooled),
    )
    return Draft.begin(folder, plan), chosen


def _threads(folder: Path, key: StoreKey, samples: Sequence[Sample], backend: str, batch: int) -> int:
    """As many as there are cores; but those of what is begun here, which on another machine would be begun anew."""
    begun = Plan.read(folder)
    ids = digest([sample.id for sample in samples])
    same = begun and _same(begun, key, ids, backend, batch, begun.threads)
    return begun.threads if begun and same else cpus.count()


def _same(plan: Plan, key: StoreKey, ids: str, backend: str, batch: int, threads: int) -> bool:
    """Whether a builder asked for this would do what the plan says."""
    asked = (key.digest, ids, batch, threads)
    return (
        asked == (plan.key.digest, plan.ids, plan.batch, plan.threads)
        and key.precision in ("any", plan.key.precision)
        and backends.could_be(plan.backend, plan.key.precision, plan.backend_version, backend)
    )


def _probe(samples: Sequence[Sample], transform: Transform) -> tuple[list[str], Pixels]:
    """The first pictures that can be read, with their ids."""
    found, names, bad = [], [], {}
    for sample in samples:
        picture, _, reason = _decode(sample, transform)
        if picture is None:
            bad[sample.id] = reason
        else:
            found.append(picture)
            names.append(sample.id)
        if len(found) == PROBE:
            break
    if not found:
        raise _unreadable(bad, len(samples))
    return names, np.stack(found)


def _fill(
    draft: Draft, backend: Backend, samples: Sequence[Sample], transform: Transform, *, quiet: bool
) -> dict[str, str]:
    """Every batch that is not there yet; ids and reasons of pictures that cannot be read."""
    size = draft.plan.batch
    batches = {
        number: samples[first : first + size]
        for number, first in enumerate(range(0, len(samples), size))
        if number not in draft.entries
    }
    done = len(samples) - sum(map(len, batches.values()))
    writer = ThreadPoolExecutor(1, "features-writer")
    pending: deque[tuple[int, Future[None]]] = deque()
    try:
        with progress("features", len(samples), "pictures", done=done, quiet=quiet) as advance:

            def settle(most: int) -> None:
                while len(pending) > most:
                    count, written = pending.popleft()
                    written.result()
                    advance(count)

            for number, mine, decoded in _decoded(batches, transform, draft.plan.threads):
                job = _job(draft, number, mine, decoded, backend.run)
                pending.append((len(mine), writer.submit(job)))
                settle(AHEAD)
            settle(0)
    finally:
        writer.shutdown(wait=True, cancel_futures=True)
    return {name: reason for entry in draft.entries.values() for name, reason in entry.bad.items()}


def _decoded(
    batches: dict[int, Sequence[Sample]], transform: Transform, threads: int
) -> Iterator[tuple[int, Sequence[Sample], list[Decoded]]]:
    """The batches in order, some of them decoded ahead (Pillow lets other threads run meanwhile)."""
    pool = ThreadPoolExecutor(threads, "features-decoder")
    waiting: deque[tuple[int, Sequence[Sample], list[Future[Decoded]]]] = deque()
    try:
        for number, mine in batches.items():
            waiting.append((number, mine, [pool.submit(_decode, sample, transform) for sample in mine]))
            if len(waiting) >= AHEAD:
                first, samples, futures = waiting.popleft()
                yield first, samples, [future.result() for future in futures]
        for first, samples, futures in waiting:
            yield first, samples, [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(sample: Sample, transform: Transform) -> Decoded:
    try:
        file = stamp(sample.image)
        return transform.from_file(sample.image), file, ""
    except OSError as error:
        return None, (0, 0, ""), f"{sample.image}: {error.strerror or error}"
    except DataError as error:
        return None, (0, 0, ""), error.what


def _job(
    draft: Draft, number: int, samples: Sequence[Sample], decoded: list[Decoded], run: Callable[[Pixels], Pair]
) -> Callable[[], None]:
    """Encode a batch, and return what writes it: that is work for another thread."""
    good = [row for row, (picture, *_) in enumerate(decoded) if picture is not None]
    pictures = [picture for picture, *_ in decoded if picture is not None]
    bad = {sample.id: reason for sample, (picture, _, reason) in zip(samples, decoded) if picture is None}
    entry = Entry(number, [file for _, file, _ in decoded], [""] * len(samples), bad)
    features = run(np.stack(pictures)) if pictures else None

    def write() -> None:
        shapes = draft.grid.shape[1:], draft.pooled.shape[1:]
        grid, pooled = features or (np.empty((0, *shape), np.float32) for shape in shapes)
        names = [samples[row].id for row in good]
        draft.write(number, entry, _half(grid, names), _half(pooled, names), good)

    return write


def _half(values: np.ndarray[Any, np.dtype[np.float32]], names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float16]]:
    """`values` in fp16, which ends at 65,504: what does not fit is refused rather than stored as infinite."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    fine = np.isfinite(halves).all(axis=tuple(range(1, halves.ndim)))
    if not fine.all():
        place = int(np.argmin(fine))
        raise ModelError(
            f"the encoder gives {np.abs(values[place]).max():g} for picture {names[place]}",
            expected=f"finite features within ±{LARGEST:.0f}, the range of fp16",
            fix="check the encoder's weights, or train without stored features (training.features = false)",
        )
    return halves


def _unreadable(bad: dict[str, str], total: int) -> DataError:
    shown = [f"  {name}: {reason}" for name, reason in list(bad.items())[:20]]
    more = [f"  … and {len(bad) - 20} more"] if len(bad) > 20 else []
    return DataError(
        "\n".join([f"{len(bad)} of {total} pictures cannot be read:", *shown, *more]),
        fix="mend them, or leave them out with --skip-bad; what is done already is kept",
    )
