"""From a path to a corpus: which format it is, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cutline.data.cifar import cifar_files, read_cifar
from cutline.data.classes import read_classes
from cutline.data.corpus import Corpus
from cutline.data.draft import Draft
from cutline.data.files import files_in, folders, plain
from cutline.data.formats import (
    captions_txt,
    json_files,
    read_coco,
    read_flickr8k,
    read_folder,
    read_karpathy,
    token_files,
)
from cutline.data.images import is_picture, walk
from cutline.data.tables import read_csv, read_jsonl
from cutline.errors import ConfigError, DataError, choose


@dataclass(frozen=True)
class Format:
    read: Callable[[Path, Draft], None]
    """Fills a draft from a file or folder."""
    sign: Callable[[Path], str]
    """What in a file or folder shows that it is of this format; empty if nothing does."""
    description: str


def _ending(*endings: str) -> Callable[[Path], str]:
    def sign(path: Path) -> str:
        if path.is_file():
            return path.name if path.name.lower().endswith(endings) else ""
        return _names(files_in(path, *endings))

    return sign


def _flickr8k_sign(path: Path) -> str:
    table = captions_txt(path)
    return ", ".join([*(file.name for file in token_files(path)), *([table.name] if table else [])])


def _folder_sign(path: Path) -> str:
    for _, names in walk(path) if path.is_dir() else ():
        pictures = {form for name in filter(is_picture, names) for form in (name, Path(name).stem)}
        for text in (Path(name).stem for name in names if name.lower().endswith(".txt")):
            if pictures & {text, text.rpartition(".")[0]}:
                return f"{text}.txt and its picture"
    return ""


def _classes_sign(path: Path) -> str:
    for folder in folders(path) if path.is_dir() else ():
        if any(is_picture(name) for _, names in walk(folder) for name in names):
            return f"{folder.name} and the pictures in it"
    return ""


FORMATS: dict[str, Format] = {
    "flickr8k": Format(
        read_flickr8k, _flickr8k_sign, "Flickr8k.token.txt with split files and Flickr8k.de.token.txt, or captions.txt"
    ),
    "coco": Format(
        read_coco, lambda p: _names(json_files(p, "coco")), "COCO captions JSON, pictures in folders beside it"
    ),
    "karpathy": Format(
        read_karpathy, lambda p: _names(json_files(p, "karpathy")), "Karpathy's dataset_*.json with splits"
    ),
    "csv": Format(
        read_csv, _ending(".csv", ".tsv"), "a table with image and caption, perhaps lang, label, split and id"
    ),
    "jsonl": Format(
        read_jsonl, _ending(".jsonl", ".ndjson"), "an object a line: image, captions, and what else a table may have"
    ),
    "cifar10": Format(read_cifar, lambda p: _names(cifar_files(p)), "CIFAR-10's data_batch_*.bin and test_batch.bin"),
    "folder": Format(
        read_folder, _folder_sign, "photo.jpg with photo.txt (photo.de.txt for German) beside it, a caption a line"
    ),
    "classes": Format(
        read_classes,
        _classes_sign,
        "a folder of pictures for each class, perhaps below train, val and test, as ImageNet has it",
    ),
}
# Only looked for where there is no table of captions: pictures lie in some arrangement always.
_BY_ARRANGEMENT = ("folder", "classes")


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files)


def read_corpus(
    path: str | Path,
    format: str = "auto",
    *,
    images: str | Path = "",
    languages: Sequence[str] = (),
    divide: Literal["given", "anew"] = "given",
    val_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    skip_bad: bool = False,
    pictures: bool = True,
) -> Corpus:
    """The corpus at `path`, a folder or a file.

    A table or JSON file names its pictures as seen from its own folder, or from `images` where that is given.
    Splits that the data gives are kept, unless it is to be divided anew; a picture without one falls into one by the
    hash of its id and `seed`. All problems are raised together as one `DataError`, or with `skip_bad` left out and kept
    in `corpus.problems`. Without `pictures`, captions alone are wanted, and the pictures need not be there.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"there is no {path}", expected="a folder or file of captioned pictures")
    if min(val_share, test_share) < 0 or val_share + test_share >= 1:
        raise ConfigError(f"shares of {val_share} for validation and {test_share} for testing leave nothing to learn")
    name = detect(path) if format == "auto" else choose(format, FORMATS, "format")
    if name in _BY_ARRANGEMENT and not path.is_dir():
        raise DataError(f"{path} is a file", expected=f"a folder, for the format '{name}'")
    if images and (name in _BY_ARRANGEMENT or name == "cifar10"):
        what = f"there is no other folder of pictures for the format '{name}': {FORMATS[name].description}"
        raise ConfigError(what, fix="leave out --images (data.images)")
    root = Path(images).expanduser() if images else _root(path)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", expected="the folder that pictures lie in, for --images")
    draft = Draft(root, [lang.strip().lower() for lang in languages], pictures, named_from_root=bool(images))
    try:
        FORMATS[name].read(path, draft)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from None
    if choose(divide, ("given", "anew"), "divide") == "anew":
        draft.forget_splits()
    return draft.finish(plain(f"{path} ({name})"), (val_share, test_share), seed, skip_bad)


def detect(path: Path) -> str:
    """The name of the format that `path` is in; refused where none or several fit."""
    try:
        tables = {name: sign for name in FORMATS if name not in _BY_ARRANGEMENT and (sign := FORMATS[name].sign(path))}
        arranged = next((name for name in _BY_ARRANGEMENT if not tables and FORMATS[name].sign(path)), "")
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from None
    if len(tables) > 1:
        seen = "; ".join(f"{name} by {sign}" for name, sign in tables.items())
        fix = f"say which: --format {next(iter(tables))}, or name a file"
        raise DataError(f"{path} may be of several formats: {seen}", fix=fix)
    if name := next(iter(tables), arranged):
        return name
    raise DataError(
        f"cannot tell what format {path} is in: found {_contents(path)}",
        expected="\n".join(["one of these formats", *(f"  {name:<9} {f.description}" for name, f in FORMATS.items())]),
    )


def _contents(path: Path) -> str:
    if path.is_file():
        return f"a file ending in '{path.suffix}'"
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in path.iterdir())
    return f"{', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}" or "nothing"


def _root(path: Path) -> Path:
    """The folder that holds a corpus's pictures: `path`, or where its file lies; COCO's files lie one deeper."""
    if path.is_dir():
        return path
    return path.parent.parent if path.absolute().parent.name == "annotations" else path.parent
