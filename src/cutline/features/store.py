"""Reading a store of features: `grid.npy`, `pooled.npy` and the `index.json` that says whose they are.

The arrays are mapped, so many processes share one copy in memory and a random batch costs what it costs from an
array. Nothing is mapped before its size on disk is what its header promises: to read past the end of a mapped file
kills the process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutline.console import progress
from cutline.data.corpus import Sample
from cutline.data.images import readable
from cutline.errors import ModelError, require

VERSION = 1
GRID, POOLED, INDEX = "grid.npy", "pooled.npy", "index.json"

Half = NDArray[np.float16]


@dataclass(frozen=True)
class StoreKey:
    """What features are a function of, beside the pictures."""

    encoder: str
    weights: str
    """Hash of the encoder's weights."""
    transform: dict[str, Any]
    precision: str = "any"
    """What the encoder computed in: "fp32", "bf16" or "fp16"; "any" asks for no one in particular."""

    @property
    def digest(self) -> str:
        """Names encoder, weights and transform together."""
        return digest([self.encoder, self.weights, self.transform])


class FeatureStore:
    """Features of pictures, by row: `grid, pooled = store[store.rows(ids)]`.

    Each process maps the files for itself: a store that is forked or pickled is safe in every one of them.
    """

    def __init__(self, path: Path, index: dict[str, Any], grid: Half, pooled: Half) -> None:
        self.path, self.index, self.grid, self.pooled = path, index, grid, pooled
        self.ids: tuple[str, ...] = tuple(index["ids"])
        self.key = StoreKey(*(index[name] for name in ("encoder", "weights", "transform", "precision")))
        self._row_of = {name: row for row, name in enumerate(self.ids)}

    @classmethod
    def open(cls, path: Path | str) -> FeatureStore:
        """The store in the folder `path`, or a `ModelError` that says what is wrong with it."""
        path = Path(path)
        index = _read_index(path)
        grid = _map(path / GRID, tuple(index["grid"]))
        pooled = _map(path / POOLED, tuple(index["pooled"]))
        return cls(path, index, grid, pooled)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.index["digest"])

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self._row_of

    def __getitem__(self, rows: NDArray[np.integer[Any]] | Sequence[int]) -> tuple[Half, Half]:
        """Copies of these rows: grid (rows, R, C) and pooled (rows, P)."""
        chosen = np.asarray(rows)
        return self.grid[chosen], self.pooled[chosen]

    def rows(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """The row of each of these pictures."""
        wanted = list(ids)
        if missing := [name for name in wanted if name not in self._row_of]:
            raise ModelError(
                f"{self.path} has no features of {_some(missing)}",
                expected=f"pictures among its {len(self)}",
                fix="cutline features build DATA, without a limit",
            )
        return np.array([self._row_of[name] for name in wanted], dtype=np.int64)

    def check(self, key: StoreKey) -> None:
        """Refuse to serve features to whoever expects other ones."""
        wrong = []
        for name, wanted in asdict(key).items():
            have = getattr(self.key, name)
            if have != wanted and not (name == "precision" and wanted == "any"):
                wrong.append((name, have, wanted))
        if wrong:
            raise ModelError(
                f"the features in {self.path} are of another " + " and ".join(name for name, *_ in wrong),
                expected="; ".join(f"{name} {_differs(have, wanted)}" for name, have, wanted in wrong),
                fix="name another store, or delete this one and build it again",
            )

    def changed(self, samples: Iterable[Sample]) -> list[str]:
        """Pictures whose file no longer holds what was encoded; one that is gone cannot contradict.

        A file of the recorded size and time is taken as unchanged; any other is read and its hash compared. One that
        was left out has changed if it can be read now.
        """
        found = []
        for sample in samples:
            if sample.id not in self:
                found += [sample.id for _ in readable([sample.image])]
                continue
            size, modified, content = self.index["pictures"][self._row_of[sample.id]]
            try:
                status = sample.image.stat()
                if (status.st_size, status.st_mtime_ns) != (size, modified) and hash_file(sample.image) != content:
                    found.append(sample.id)
            except OSError:
                continue
        return found

    def verify(self, *, quiet: bool = True) -> list[tuple[int, str]]:
        """Row and id of every picture whose features are not those that were written."""
        recorded, damaged = self.index["hashes"], []
        with progress("features checked", len(self.ids), "pictures", quiet=quiet) as advance:
            for row, name in enumerate(self.ids):
                if hash_row(self.grid[row], self.pooled[row]) != recorded[row]:
                    damaged.append((row, name))
                advance()
        return damaged


def digest(value: Any) -> str:
    """A hash of what JSON can hold."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return str(_xxhash().xxh3_128_hexdigest(text.encode("ascii")))


def hash_row(grid: Half, pooled: Half) -> str:
    hasher = _xxhash().xxh3_64()
    hasher.update(np.ascontiguousarray(grid).data)
    hasher.update(np.ascontiguousarray(pooled).data)
    return str(hasher.hexdigest())


def hash_file(path: Path) -> str:
    hasher = _xxhash().xxh3_64()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            hasher.update(part)
    return str(hasher.hexdigest())


def write_header(path: Path, shape: tuple[int, ...]) -> int:
    """Begin a `.npy` of fp16 in C order; where its data begins."""
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        return file.tell()


def check_array(path: Path, shape: tuple[int, ...]) -> int:
    """Where the data of `path` begins, once it is certain to hold fp16 of this shape, to its last byte."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        begin, size = file.tell(), file.seek(0, 2)
    if version != (1, 0) or fortran or dtype != np.float16 or found != shape:
        raise ValueError(f"it holds {dtype} {found}, not float16 {shape}")
    expected = begin + 2 * int(np.prod(shape, dtype=np.int64))
    if size != expected:
        raise ValueError(f"it has {size} bytes, not {expected}")
    return begin


def _read_index(path: Path) -> dict[str, Any]:
    again = f"delete {path} and build it again"
    try:
        index = json.loads((path / INDEX).read_text(encoding="ascii"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{path} is not a feature store: it has no {INDEX}", fix="cutline features build DATA --out FOLDER"
        ) from None
    except OSError as error:
        raise ModelError(f"cannot read {path / INDEX}: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{path / INDEX} is damaged: {error}", fix=again) from None
    if not isinstance(index, dict) or index.get("format") != "cutline-features":
        raise ModelError(f"{path / INDEX} is not the index of a feature store")
    if index.get("version") != VERSION:
        raise ModelError(
            f"{path} is a feature store of version {index.get('version')}", expected=f"version {VERSION}", fix=again
        )
    if index.get("digest") != digest({**index, "digest": ""}):
        raise ModelError(f"{path / INDEX} is damaged: its content does not match its hash", fix=again)
    return index


def _map(path: Path, shape: tuple[int, ...]) -> Half:
    try:
        begin = check_array(path, shape)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", fix=f"delete {path.parent} and build it again") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}", fix=f"delete {path.parent} and build it again") from None
    # As a plain array: every operation on np.memmap itself pays for its Python class.
    return np.asarray(np.memmap(path, np.float16, "r", begin, shape))


def _reopen(path: Path, wanted: str) -> FeatureStore:
    store = FeatureStore.open(path)
    if store.index["digest"] != wanted:
        raise ModelError(f"{path} was replaced by other features while it was in use", fix="start again")
    return store


def _some(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _differs(have: Any, wanted: Any) -> str:
    if isinstance(have, dict) and isinstance(wanted, dict):
        keys = [key for key in sorted({*have, *wanted}) if have.get(key) != wanted.get(key)]
        return ", ".join(f"{key} {wanted.get(key)!r} rather than {have.get(key)!r}" for key in keys)
    return f"{wanted!r} rather than {have!r}"


def _xxhash() -> Any:
    return require("xxhash", "train", "the feature store")
