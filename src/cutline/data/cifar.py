"""CIFAR-10 in its own binary files: pictures that are no files, until they are written out once.

Everything else in Cutline knows a picture as a file, and reads, hashes and names it as one. So they become files in the
cache, in a folder named after their content: read again, whoever reads, nothing is written twice.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cutline.data.draft import Draft
from cutline.data.files import cache_folder, files_in, read_lines
from cutline.errors import DataError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Of the classes, by their numbers, where `batches.meta.txt` is not there to say so."""
_SIDE = 32
_RECORD = 1 + 3 * _SIDE**2
"""Bytes of a picture: its class, then all its red, all its green and all its blue."""
_META = "batches.meta.txt"
_FOLDER = "cifar-10-batches-bin"


def cifar_files(path: Path) -> list[Path]:
    """The binary files in a folder or in the one that its archive makes there; or `path`, if it is one."""
    if path.is_file():
        return [path] if _is_one(path.name) else []
    inner = path / _FOLDER
    return [file for file in files_in(inner if inner.is_dir() else path, ".bin") if _is_one(file.name)]


def _is_one(name: str) -> bool:
    return name.endswith(".bin") and name.startswith(("data_batch", "test_batch"))


def read_cifar(path: Path, draft: Draft) -> None:
    files = cifar_files(path)
    if not files:
        raise DataError(f"no CIFAR-10 in {path}", expected="data_batch_1.bin … data_batch_5.bin and test_batch.bin")
    names = _names(files[0].parent, draft)
    records = {file: _records(file, draft) for file in files}
    written = _written_out(records)
    for file, rows in records.items():
        split = "test" if file.name.startswith("test") else "train"
        for number, label in enumerate(rows[:, 0].tolist()):
            if label >= len(names):
                draft.problem(file, None, f"unknown class: picture {number} is of class {label}, of {len(names)}")
            elif entry := draft.found(str(written / _file(file, number)), file, None, f"{file.stem}/{number:05}"):
                entry.label, entry.split = names[label], split


def _names(folder: Path, draft: Draft) -> Sequence[str]:
    file = folder / _META
    if not file.is_file():
        return NAMES
    names = [line.strip() for line in read_lines(file, draft.problem) if line.strip()]
    if len(set(names)) != len(NAMES):
        raise DataError(f"{file} names {len(set(names))} classes", expected=f"{len(NAMES)}, one a line")
    return names


def _records(file: Path, draft: Draft) -> np.ndarray:
    """(pictures, bytes of a picture); what is left of a picture at the end of a file is noted."""
    data = np.fromfile(file, np.uint8)
    whole, rest = divmod(len(data), _RECORD)
    if rest or not whole:
        draft.problem(file, None, f"cut short: {whole:,} pictures of {_RECORD} bytes, and {rest} bytes more")
    return data[: whole * _RECORD].reshape(whole, _RECORD)


def _written_out(records: dict[Path, np.ndarray]) -> Path:
    """The folder with all pictures as files; it appears whole or not at all."""
    digest = hashlib.blake2b(digest_size=8)
    for file, rows in records.items():
        digest.update(f"{file.name} {len(rows)} ".encode() + rows.tobytes())
    folder = cache_folder().absolute() / f"cifar10-{digest.hexdigest()}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            draft = Path(temporary) / "pictures"
            for file, rows in records.items():
                (draft / file.stem).mkdir(parents=True)
                for number, row in enumerate(rows):
                    pixels = row[1:].reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)
                    Image.fromarray(np.ascontiguousarray(pixels)).save(draft / _file(file, number), compress_level=1)
            draft.chmod(0o755)
            try:
                draft.rename(folder)
            except OSError:
                if not folder.is_dir():  # someone else was faster: theirs are the same
                    raise
    except OSError as error:
        raise DataError(
            f"cannot write CIFAR-10's pictures to {folder}: {error.strerror or error}",
            fix="make room there, or name another place in CUTLINE_CACHE",
        ) from None
    return folder


def _file(file: Path, number: int) -> Path:
    return Path(file.stem, f"{number:05}.png")
