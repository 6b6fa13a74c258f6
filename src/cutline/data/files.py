"""Files and folders as readers see them: their text, their names, and how those names may be spelt."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cutline.errors import DataError


def cache_folder() -> Path:
    """For drawn scenes, pictures written out and stored features: $CUTLINE_CACHE, else the user's cache folder."""
    if named := os.environ.get("CUTLINE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cutline"


def read_lines(file: Path, problem: Callable[[Path, int, str], None]) -> list[str]:
    """The lines of a text, without their ends: UTF-8, or UTF-16 that says so; a line that is neither is left empty, and
    noted.
    """
    try:
        data = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # Notepad's and Excel's "Unicode"
        try:
            data = data.decode("utf-16").encode()
        except UnicodeError as error:
            raise DataError(f"{file} is damaged UTF-16: {error}", fix="save it as UTF-8") from None
    if b"\n" not in data:  # Excel on a Mac may still write so
        data = data.replace(b"\r", b"\n")
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        lines = []
        for number, line in enumerate(data.split(b"\n"), 1):
            try:
                lines.append(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                byte = line[error.start]
                problem(file, number, f"not UTF-8: byte 0x{byte:02x} at column {error.start + 1}")
                lines.append("")
    # Only real line ends: a caption may hold characters that `splitlines` would break it at.
    return [line.removesuffix("\r") for line in lines]


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, as `json.loads` asks for one; refused where it has two values of one name."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = [f"'{name}'" for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise DataError(f"given twice in one object: {', '.join(twice[:3])}{' …' * (len(twice) > 3)}")
    return content


def folders(path: Path) -> list[Path]:
    """The folders in a folder, in order; hidden ones and what archives of Macs leave behind are left out."""
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and _shown(entry.name)]
    return [path / name for name in sorted(names)]


def files_in(path: Path, *endings: str) -> list[Path]:
    """The files in a folder whose names end so, in order."""
    # Endings are compared before any path is made: there may be 100,000 pictures beside the file that is sought.
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if entry.name.lower().endswith(endings) and entry.is_file()]
    return [path / name for name in sorted(filter(_shown, names))]


def _shown(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def folder_name(path: Path) -> str:
    """A folder's full name with `/`."""
    return Path(os.path.abspath(path)).as_posix()  # noqa: PTH100  # `Path.absolute` keeps every "..", which names have too


def writable(text: str) -> bool:
    """Whether it can be written: JSON may hold half a character, and Linux any bytes in a file's name."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def plain(text: str) -> str:
    """`text` with what cannot be written spelt out."""
    return text if writable(text) else text.encode("utf-8", "backslashreplace").decode()


def folded(name: str) -> str:
    """Alike for names that differ in case, or in how accents are composed, as other systems may have written them."""
    return "\0" + unicodedata.normalize("NFC", name).casefold()


def spellings(folder: Path) -> dict[str, str]:
    """The files in a folder: each by its name, and by its folded name where only one has it."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except (OSError, ValueError):  # no such folder, or no name that one could have
        return {}
    listing: dict[str, str] = {}
    for name in names:
        key = folded(name)
        listing[key] = "" if key in listing else name
    return {**listing, **{name: name for name in names}}
