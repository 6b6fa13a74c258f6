"""Pictures: any file a real folder holds, decoded rightly or refused by name; and the one way to resize them.

`Transform.from_file` is the road that training, feature stores and the runtime all take from a file to pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from cutline.errors import DataError

with contextlib.suppress(ImportError):  # Pillow 11.3 brought it
    from PIL import AvifImagePlugin as AvifImagePlugin

Source = Path | str | bytes | BinaryIO

# Importing a plugin registers it with Pillow; only these are ever asked, whatever else the process registers.
_PLUGINS = (
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
    GifImagePlugin,
    BmpImagePlugin,
    TiffImagePlugin,
    PpmImagePlugin,
)
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
_ENDINGS = "jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff ppm pgm pbm pnm avif heic heif"
EXTENSIONS = frozenset(f".{ending}" for ending in _ENDINGS.split())

_NOT_PICTURES = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"8BPS": "a Photoshop document",
    b"\x00\x00\x01\x00": "an icon",
    b"<!do": "a web page, not the picture it should have brought",
    b"<htm": "a web page, not the picture it should have brought",
    b"<svg": "a vector drawing (SVG)",
    b"<?xm": "XML",
}

_ORIENTATION_TAG = 0x0112
_BITS_TAG = 258
_WHITE_IS_TAG = 262
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Limits:
    """What a picture may cost, checked on its header before anything is decoded."""

    pixels: int = 216_000_000
    """Width times height; a telephone's largest pictures have 200 million."""
    bytes: int = 256_000_000
    """Size of the file."""


def open_picture(source: Source, limits: Limits = Limits(), *, at_least: int = 0) -> Image.Image:
    """The first frame of `source` in RGB, upright, transparency on white; or a `DataError` that says why not.

    With `at_least`, a JPEG may be decoded smaller, at 1/2, 1/4 or 1/8, but never with a side below `at_least`: several
    times faster for photographs from a camera. A colour profile is ignored, as it was when the usual encoders
    learned, so that they see the numbers they know.
    """
    name = str(source) if isinstance(source, Path | str) else "picture"
    with _open_file(source, name, limits) as file:
        try:
            picture = _identify(file, name)
        except OSError as error:  # of a disk, or of a place that is no longer there
            raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
        if picture.width * picture.height > limits.pixels:
            size = f"{picture.width} x {picture.height}"
            raise DataError(
                f"{name}: {size} pixels are more than the limit of {limits.pixels / 1e6:g} million",
                fix="make the picture smaller",
            )
        try:
            if at_least:
                picture.draft(None, (at_least, at_least))
            picture.load()
            upright = _UPRIGHT.get(_orientation(picture))
            result = as_rgb(picture)
        except Image.DecompressionBombError as error:
            raise _above_pillows_own(name, error) from None
        except Exception as error:  # decoders meet damaged bytes with any kind of exception
            raise _refusal(name, f"damaged: {_reason(error)}") from error
    result = result.transpose(upright) if upright is not None else result
    result.info = {}  # nothing that was already applied may be applied again
    return result


def as_rgb(picture: Image.Image) -> Image.Image:
    """`picture` in 8-bit RGB: deep samples scaled, transparent places white."""
    if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
        return Image.fromarray(_deep(picture)).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture.convert("RGBA"))
        return white.convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


@dataclass(frozen=True)
class Transform:
    """How a picture becomes an encoder's square; recorded in every model.

    Normalising by `mean` and `std` is the encoder's own business: a picture stays `uint8`.
    """

    size: int = 224
    fit: Literal["squash", "crop"] = "squash"
    """Resize both sides, or cut the centre: a square of `crop_pct` of the short side."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_pct: float = 1.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {getattr(self, name)!r}"
            for name, right in {
                "size": isinstance(self.size, int) and self.size > 0,
                "fit": self.fit in ("squash", "crop"),
                "interpolation": self.interpolation in _FILTERS,
                "crop_pct": 0 < self.crop_pct <= 1,
                "mean": len(self.mean) == 3,
                "std": len(self.std) == 3 and min(self.std) > 0,
            }.items()
            if not right
        ]
        if wrong:
            raise DataError(f"not a transform of pictures: {', '.join(wrong)}")

    def __call__(self, picture: Image.Image) -> NDArray[np.uint8]:
        """`picture` as `(size, size, 3)`. Always antialiased: without it, small pictures of large ones shimmer."""
        width, height = picture.size
        box = (0.0, 0.0, float(width), float(height))
        if self.fit == "crop":
            side = min(width, height) * self.crop_pct
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
        square = as_rgb(picture).resize((self.size, self.size), _FILTERS[self.interpolation], box=box)
        return np.asarray(square)

    def from_file(self, source: Source, limits: Limits = Limits()) -> NDArray[np.uint8]:
        """`source` as `(size, size, 3)`."""
        kept = self.crop_pct if self.fit == "crop" else 1.0
        return self(open_picture(source, limits, at_least=round(_SPARE * self.size / kept)))

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Transform:
        known = {field.name for field in dataclasses.fields(cls)}
        if set(values) != known:
            names = ", ".join(sorted(set(values) ^ known))
            raise DataError(f"a recorded transform has other settings than ours: {names}")
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SPARE = 2
"""A JPEG is decoded at no less than this many times the size wanted, so that the resizing filter still decides."""


def find_pictures(argument: str, other: Callable[[str], object] = lambda name: None) -> list[Path]:
    """The pictures that a file, a folder (with all below it) or a glob names, in natural order.

    Folders that may not be looked into are there in the place of their pictures, for whoever opens them to be told so.
    `other` is told the names of a folder's files that are no pictures by their ending, hidden ones apart.
    """
    try:
        path = Path(argument).expanduser()
    except RuntimeError as error:  # ~someone who is not known here
        raise DataError(f"there is no {argument}: {error}") from None
    if path.is_dir():
        closed: list[Path] = []
        below = walk(path, unreadable=lambda error: closed.append(Path(error.filename)))
        found = []
        for folder, names in below:
            for name in names:
                if is_picture(name):
                    found.append(Path(folder, name))
                elif not name.startswith("."):
                    other(name)
        found += closed
        if not found:
            raise DataError(f"no pictures in {path}", expected=f"files ending in {_ENDINGS}")
        return found
    if path.exists() or path.is_symlink():
        return [path]
    if not glob.has_magic(argument):
        raise DataError(f"there is no {argument}", expected="a picture, a folder or a glob such as 'photos/*.jpg'")
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207  # Path.glob takes no absolute pattern
    found = [match for match in matches if is_picture(match.name) and match.is_file()]
    if not found:
        raise DataError(
            f"'{argument}' matches {len(matches) or 'nothing'}{', but no picture' if matches else ''}",
            expected=f"files ending in {_ENDINGS}",
        )
    return sorted(found, key=lambda match: natural(str(match)))


def readable(images: Iterable[Path]) -> Iterator[Path]:
    """Those that can be opened and decoded."""
    for image in images:
        with contextlib.suppress(DataError):
            open_picture(image, at_least=1)  # JPEG is decoded small, which is quick and reads all of it
            yield image


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture; hidden files never are."""
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def natural(text: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sorting key that puts `2.jpg` before `10.jpg`."""
    parts = re.split(r"(\d+)", text.casefold())
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts], text


def _cannot_list(error: OSError) -> NoReturn:
    raise DataError(f"cannot list {error.filename}: {error.strerror}") from None


def walk(folder: Path, unreadable: Callable[[OSError], object] = _cannot_list) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `folder` down with its files' names, in natural order; hidden ones are left out.

    Links to folders are followed, each folder is visited once.
    """
    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        status = Path(where).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted((f for f in folders if not f.startswith((".", "__MACOSX"))), key=natural)
        yield where, sorted((name for name in names if not name.startswith(".")), key=natural)


@contextlib.contextmanager
def _open_file(source: Source, name: str, limits: Limits) -> Iterator[BinaryIO]:
    """`source` as a file that can be read anywhere, not empty and within the limit."""
    if isinstance(source, Path | str):
        try:
            file: BinaryIO = open(source, "rb", opener=_open_regular)  # noqa: SIM115
        except (OSError, ValueError) as error:  # a name with a zero in it, for one
            raise DataError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
        size = os.fstat(file.fileno()).st_size
    else:
        data = source if isinstance(source, bytes) else source.read(limits.bytes + 1)
        file, size = io.BytesIO(data), len(data)
    with file:
        if size == 0:
            raise _refusal(name, "empty file")
        if size > limits.bytes:
            raise DataError(f"{name}: the file is larger than the limit of {limits.bytes / 1e6:g} million bytes")
        yield file


def _open_regular(path: str, flags: int) -> int:
    """Opens a file, but never waits for a pipe and never reads a device without end."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a file" if not Path(path).is_dir() else "a folder, not a picture")
    return descriptor


def _identify(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """The picture in `file`, with only its header read, by the format that its first bytes show.

    `Image.open` would do it, but it prints a warning for large pictures and refuses by a limit that the whole process
    shares; ours is each caller's own.
    """
    head = file.read(64)
    kinds = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
    heif = head[4:8] == b"ftyp" and head[8:12] in kinds and b"avif" not in head
    if heif:
        _register_heif(name)
    for format_name in _FORMATS:
        if heif and format_name == "AVIF":  # which takes the last two of them for its own
            continue
        factory, accepts = Image.OPEN.get(format_name, (None, None))
        if factory is None or (accepts is not None and accepts(head[:16]) is not True):
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except Image.DecompressionBombError as error:
            raise _above_pillows_own(name, error) from None
        except Exception as error:  # as for decoding: damaged headers raise anything
            raise _refusal(name, f"damaged {format_name}: {_reason(error)}") from error
    begin = head.lstrip().lower()
    kind = next((kind for start, kind in _NOT_PICTURES.items() if begin.startswith(start.lower())), "")
    if not kind and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        kind = "text"
    raise _refusal(name, f"not a picture but {kind}" if kind else "of no kind that is known as a picture")


def _above_pillows_own(name: str, error: Exception) -> DataError:
    """TIFF and WebP are held by Pillow to a limit of the whole process, which is not ours to change."""
    return DataError(f"{name}: more pixels than Pillow takes of this format ({error})", fix="make the picture smaller")


def _register_heif(name: str) -> None:
    if "HEIF" in Image.OPEN:
        return
    try:
        import pillow_heif  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise DataError(f"{name}: HEIC pictures need 'pillow-heif'", fix="pip install pillow-heif") from None
    pillow_heif.register_heif_opener()


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged note about a sound picture
        return 1


def _deep(picture: Image.Image) -> NDArray[np.uint8]:
    """Deep grey samples as 8 bits, black as 0, with white for the one that PNG may call transparent."""
    grey = _eight_bits(picture)
    if getattr(picture, "tag_v2", {}).get(_WHITE_IS_TAG) == 0:
        grey = 255 - grey
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey[np.asarray(picture) == clear] = 255
    return grey


def _eight_bits(picture: Image.Image) -> NDArray[np.uint8]:
    """Deep grey samples as 8 bits: by their full range where the format fixes it, else by the range that is used."""
    values = np.asarray(picture)
    if picture.mode != "F" and (picture.mode != "I" or picture.format in ("PNG", "PPM")):
        most = _largest(picture)
        return ((values.astype(np.uint32) * 255 + most // 2) // most).clip(max=255).astype(np.uint8)
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0:  # the customary ranges, so that a dark picture stays dark
        low, high = 0.0, next((top for top in (1.0, 255.0, 65535.0) if high <= top), high)
    scaled = (values - low) / max(high - low, 1e-30)
    return np.rint(255 * scaled).astype(np.uint8)


def _largest(picture: Image.Image) -> int:
    """What white is in samples of 16 bits; microscopes and scanners write fewer, and TIFF says how many."""
    bits = getattr(picture, "tag_v2", {}).get(_BITS_TAG, (16,))
    return int(2 ** min(max(int(bits[0]), 1), 16)) - 1


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _refusal(name: str, reason: str) -> DataError:
    return DataError(f"{name}: {reason}", expected="JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF")
