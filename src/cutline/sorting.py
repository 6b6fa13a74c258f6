"""Pictures into a folder for each class, and back again.

Nothing is written over and nothing is lost, whenever this ends: what is about to be done stands in the undo file first,
and whether it was done is asked of the pictures themselves, by their bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cutline import durable
from cutline.classify import Classified
from cutline.errors import ConfigError, DataError
from cutline.undo import Entry, Print, Undo, held

UNDO = "undo.jsonl"
UNSURE = "unsure"
_CHUNK = 1 << 20
_LONGEST = 255
"""Bytes of a file name that every usual file system takes."""


class Sorting:
    """Puts pictures into folders. Made by `sort_into`."""

    def __init__(self, undo: Undo, labels: Sequence[str], *, move: bool, least: float) -> None:
        self._undo, self._move, self._least = undo, move, least
        self.folders = folder_names(labels)
        """By class; names that some file systems would not take are changed."""
        self.put_into: Counter[str] = Counter()
        """Pictures put into each folder."""
        self.there = 0
        """Pictures whose bytes were there already."""
        self._earlier = {entry.source: entry for entry in undo.entries.values()}
        self._looked: defaultdict[tuple[str, str], dict[Print, str]] = defaultdict(dict)
        """By folder and name, the bytes of those that have it, with a number or without, in the order of the numbers: a
        thousand pictures of one name are not looked at again for each of them."""
        self._interrupted: Entry | None = None
        """A move that may lack its last step."""
        for line, entry in list(undo.entries.items())[-1:]:  # no other can have been interrupted
            if _never_put(undo.folder, entry):
                undo.drop([line])
            elif entry.moved:
                self._interrupted = entry

    def __str__(self) -> str:
        done = "moved" if self._move else "copied"
        told = [f"{self.put_into.total()} pictures {done} into {self._undo.folder}"]
        if unsure := self.put_into[UNSURE]:
            told.append(f"{unsure} of them into {UNSURE} (less than {100 * self._least:g} % sure)")
        if self.there:
            told.append(f"{self.there} not {done}: the same picture is there already")
        return ", ".join(told)

    def sort(self, results: Iterable[Classified]) -> Iterator[Classified]:
        """The results as they pass, each picture put where it belongs; one that has to stay has an error instead."""
        for result in results:
            if result.guesses:
                try:
                    self.put(result.path, result.guesses[0].label, result.guesses[0].probability)
                except DataError as error:
                    result = result._replace(guesses=None, error=error)
            yield result

    def put(self, picture: Path, label: str, probability: float) -> None:
        """Copy or move a picture into the folder of its class, or of the unsure ones; or a `DataError`: it stays."""
        source = self._undo.source(picture)
        folder = self.folders[label] if probability >= self._least else UNSURE
        try:
            if self._move and source.is_symlink():
                raise OSError("it is a link; only a copy of what it leads to can be sorted")
            if self._put(source, folder):
                self.put_into[folder] += 1
            else:
                self.there += 1
        except OSError as error:
            raise DataError(f"{picture}: stays where it is: {_why(error)}") from None

    def _put(self, source: Path, folder: str) -> bool:
        """False where its bytes are there already."""
        seen, print = source.stat(), _fingerprint(source)
        within = self._undo.folder / folder
        earlier = self._earlier.get(source)
        if earlier and earlier.print == print and _whole(self._undo.folder, earlier):
            target = self._undo.folder / earlier.target
            if not self._move or earlier is not self._interrupted or target.parent != within:
                return False
            _remove(source, seen, target)
            return True
        if not within.is_dir():
            self._undo.make(folder)
        looked = self._looked[folder, source.name]
        if print in looked and _whole(self._undo.folder, Entry(source, looked[print], print, moved=self._move)):
            return False
        for name in _numbered(source.name, len(looked)):
            entry = Entry(source, f"{folder}/{name}", print, moved=self._move)
            if os.path.lexists(within / name):
                there = _fingerprint(within / name) if _plain(within / name) else Print(-1, name)
                looked[there if there not in looked else Print(-1, name)] = entry.target
                if there == print:
                    return False
                continue
            line = self._undo.add(entry)
            try:
                _bring(source, within / name, print, seen, move=self._move)
            except OSError as error:
                taken = isinstance(error, FileExistsError)  # by another program, in this moment
                if taken or not os.path.lexists(within / name):
                    self._undo.drop([line])
                if taken:
                    continue
                raise
            self._earlier[source] = entry
            looked[print] = entry.target
            return True
        raise AssertionError("there is always another number")


@contextlib.contextmanager
def sort_into(folder: Path, labels: Sequence[str], *, move: bool, least: float) -> Iterator[Sorting]:
    """A folder to put pictures into, with its undo file; goes on where an earlier sort into it has ended."""
    try:
        place = folder.resolve()
        new = list(itertools.takewhile(lambda each: not each.exists(), (place, *place.parents)))
        durable.make(folder)
    except OSError as error:
        raise _no_place(folder, error) from None
    with held(folder / UNDO, new=True) as undo:
        if undo.unreadable:
            what = f"{undo.path}: line {undo.unreadable[0]} cannot be read"
            raise DataError(what, fix="mend it, or sort into another folder")
        try:
            for each in new:
                undo.make("." if each == place else str(each))
            sorting = Sorting(undo, labels, move=move, least=least)
        except OSError as error:
            raise _no_place(folder, error) from None
        try:
            yield sorting
        finally:
            if not undo.entries:
                undo.tidy()


def _no_place(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder} cannot be a folder to sort into: {error.strerror}", fix="name another")


def bring_back(undo: Undo) -> Iterator[str]:
    """Undo what was done, the last first: for each picture nothing, or why it was left as it is."""
    if _lies_elsewhere(undo):
        raise DataError(
            f"{undo.path} does not lie where its pictures are: neither they nor their folders are beside it",
            expected="the undo file in the folder that was sorted into",
            fix="move it back; where that folder was emptied by hand, nothing can be taken back",
        )
    back = []
    for line, entry in reversed(list(undo.entries.items())):
        try:
            left = _bring_back(undo.folder, entry)
        except OSError as error:
            left = f"{undo.folder / entry.target}: {_why(error)}"
        if not left:
            back.append(line)
        yield left
    yield from (f"{undo.path}: line {line} cannot be read" for line in undo.unreadable)
    # A power loss must not bring a picture back to where it was sorted, once that is no longer known.
    for place in {(undo.folder / undo.entries[line].target).parent for line in back}:
        if place.is_dir():
            durable.sync(place)
    undo.drop(back)
    undo.tidy()


def _lies_elsewhere(undo: Undo) -> bool:
    """Whether the undo file alone was moved: the folder of what is to be undone is there all the time."""
    places = undo.in_use() | {undo.folder / name for name in undo.made} - {undo.folder}
    return bool(undo.entries) and not any(place.is_dir() for place in places)


def _bring_back(folder: Path, entry: Entry) -> str:
    source, target = entry.source, folder / entry.target
    if _never_put(folder, entry):
        return ""
    if not os.path.lexists(target):
        original = f"another file is at {source}" if os.path.lexists(source) else f"neither is {source}"
        return f"{target}: is no longer there, and {original}"
    seen = target.lstat()
    if not _whole(folder, entry):
        return f"{target}: has changed since it was put there"
    if _begins(source, target):  # an interruption has met the way back
        source.unlink()
    if not os.path.lexists(source):
        durable.make(source.parent)
        _bring(target, source, entry.print, seen, move=True)
    elif source.is_file() and _fingerprint(source) == entry.print:
        _remove(target, seen, source)
    else:
        return f"{target}: another file is at {source}"
    return ""


def _bring(source: Path, target: Path, print: Print, seen: os.stat_result, *, move: bool) -> None:
    """Copy or move a file to a name that nothing has, or raise `FileExistsError`; it is there whole or not at all."""
    if not (move and _linked(source, target)):
        _copy(source, target, print)
    durable.sync(target.parent)
    if move:
        try:
            _remove(source, seen, target)
        except OSError:
            target.unlink()
            raise


def _linked(source: Path, target: Path) -> bool:
    """Give a file a second name: unlike a rename, that never takes the name away from another file."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # another file system, or one without links
        return False
    return True


def _copy(source: Path, target: Path, print: Print) -> None:
    """With its dates and permissions, and read back."""
    with source.open("rb") as file:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            while data := file.read(_CHUNK):
                durable.write_all(handle, data)
            with contextlib.suppress(OSError):  # not every file system has all of them
                shutil.copystat(source, target)
            os.fsync(handle)
            if _fingerprint(target) != print:
                raise OSError("the copy is not what the file was")
        except BaseException:
            target.unlink()
            raise
        finally:
            os.close(handle)


def _remove(path: Path, seen: os.stat_result, kept: Path) -> None:
    """Remove a file that is as it was seen, and whose bytes are in another one as well."""
    now = path.lstat()
    if (now.st_ino, now.st_size, now.st_mtime_ns) != (seen.st_ino, seen.st_size, seen.st_mtime_ns):
        raise OSError("it was changed in this moment")
    if path.samefile(kept) and (now.st_nlink < 2 or path.resolve() == kept.resolve()):
        raise OSError(f"it is the same file as {kept}")
    path.unlink()


def _fingerprint(path: Path) -> Print:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Print(file.tell(), digest)


def _plain(path: Path) -> bool:
    """Whether it is a file itself: no link, nor anything that a reader would wait for."""
    return os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode)


def _whole(folder: Path, entry: Entry) -> bool:
    """Whether the picture is where the entry says, with all its bytes."""
    target = folder / entry.target
    return _plain(target) and target.stat().st_size == entry.print.bytes and _fingerprint(target) == entry.print


def _never_put(folder: Path, entry: Entry) -> bool:
    """Whether a picture is still where it was and nowhere else. What an interruption left of a copy is removed."""
    source, target = entry.source, folder / entry.target
    if not _whole(folder, entry) and _begins(target, source):
        target.unlink()
    return not os.path.lexists(target) and source.is_file() and _fingerprint(source) == entry.print


def _begins(part: Path, whole: Path) -> bool:
    """Whether a file has the first bytes of another, and not all of them."""
    if not _plain(part) or not whole.is_file() or part.stat().st_size >= whole.stat().st_size:
        return False
    with part.open("rb") as some, whole.open("rb") as all:
        return all.read(part.stat().st_size) == some.read()


def _why(error: OSError) -> str:
    place = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{place}" if error.strerror else str(error)


def _numbered(name: str, past: int = 0) -> Iterator[str]:
    """`1.jpg`, `1-2.jpg`, `1-3.jpg`, …, without so many of the first ones."""
    if not past:
        yield name
    stem, ending = Path(name).stem, Path(name).suffix
    for number in itertools.count(max(2, past + 1)):
        tail = f"-{number}{ending}"
        yield _short(stem, _LONGEST - len(os.fsencode(tail))) + tail


def folder_names(labels: Iterable[str]) -> dict[str, str]:
    """A folder for each class, by its own name where every usual file system takes that, and no two alike."""
    taken = {UNSURE, UNDO}
    names: dict[str, str] = {}
    # Names that need no change keep theirs, whatever others are changed to.
    for label in sorted(labels, key=lambda label: _safe(label) != label):
        name = safe = _safe(label)
        for number in itertools.count(2):
            if _alike(name) not in taken:
                break
            name = f"{safe}_{number}"
        taken.add(_alike(name))
        names[label] = name
    return names


def _safe(label: str) -> str:
    """A class as a name that Linux, macOS and Windows take, and that hides no folder."""
    marks = "".join("_" if unicodedata.category(c) in ("Cc", "Cs") or c in '/\\:*?"<>|' else c for c in label)
    name = _short(marks, _LONGEST // 2).lstrip().rstrip(". ")
    if name.split(".")[0].rstrip().casefold() in _DEVICES or name[:1] in ("", "."):
        name = f"_{name}"
    return name


def _alike(name: str) -> str:
    """The same for names that some file systems take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def _short(name: str, most: int) -> str:
    """At most so many bytes of a name, without half a letter."""
    data = os.fsencode(name)
    return name if len(data) <= most else data[:most].decode("utf-8", "ignore")


_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
"""What Windows keeps for itself, with any ending."""
