"""A corpus in the making: what readers fill in, row by row, while everything wrong is collected."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cutline.data.corpus import Corpus, Problem, Sample
from cutline.data.division import divide
from cutline.data.files import folded, folder_name, folders, plain, spellings, writable
from cutline.errors import DataError

UNKNOWN_LANGUAGE = "und"
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_LISTED = 20


class NothingUsableError(DataError):
    """Not one picture is left to learn from."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        """Empty, but for the problems."""
        what = summary(corpus.source, corpus.problems) if corpus.problems else f"{corpus.source}: nothing was found"
        super().__init__(what, expected="at least one picture that is there, with a caption or a label")


@dataclass(slots=True)
class Entry:
    """A picture and what has been read about it so far."""

    name: str
    """As its source calls it, with `/`: the id, unless the source gives another."""
    image: Path
    file: Path
    line: int | None
    """Where it was first named."""
    id: str = ""
    captions: dict[str, list[str]] = field(default_factory=dict)
    label: str | None = None
    split: str | None = None
    unclear: bool = False
    """What was said of its split, label or id cannot be trusted."""
    described: bool = False
    """A caption was given, even one that is of no use or in another language than those asked for."""


class Draft:
    """Gathers entries and problems; `finish` makes the corpus of them, or one error of all the problems."""

    def __init__(
        self, root: Path, languages: Sequence[str] = (), pictures: bool = True, *, named_from_root: bool = False
    ) -> None:
        self.root = root
        self.named_from_root = named_from_root
        """Whether files name pictures as seen from the root, and not from the folder that they lie in themselves."""
        self.languages = tuple(languages)
        self.pictures = pictures
        """Whether every picture must be there."""
        self.entries: dict[str, Entry] = {}
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        """What a person should know of how it was read, though nothing is wrong."""
        self._languages_seen: dict[str, None] = {}
        self._read_all = True
        self._home = folder_name(root).rstrip("/") + "/"
        self._real = folder_name(root.resolve()).rstrip("/") + "/"
        self._homes: dict[Path, str] = {}
        """The folder that the names in each file are relative to."""
        self._named: dict[tuple[str, str], Entry | None] = {}
        self._listings: dict[str, dict[str, str]] = {}
        self._subfolders: list[str] | None = None

    def problem(self, file: Path, line: int | None, message: str) -> None:
        """Note something wrong. What stands before the colon is its kind, by which problems are counted."""
        self.problems.append(Problem(file, line, plain(message)))

    # Pictures -------------------------------------------------------------------------------------------------

    def picture(self, name: str, file: Path, line: int | None) -> Entry | None:
        """The entry of the picture that `file` names; None where there is no such picture (noted once)."""
        if (home := self._homes.get(file)) is None:
            home = self._homes[file] = self._folder_of(file)
        key = (name, home)
        if key not in self._named:
            self._named[key] = self._new(name, home, file, line)
        return self._named[key]

    def _new(self, name: str, home: str, file: Path, line: int | None) -> Entry | None:
        inside = self._inside(name, home)
        if not inside:
            message = f"outside the folder: '{name}' (not in {self.root}; name another folder with --images)"
            self.problem(file, line, message if name.strip() else "no picture named: the field is empty")
            return None
        found = self._find(inside, home)
        if len(found) != 1:
            places = " and ".join(found[:3])
            message = f"ambiguous picture: {places}" if found else "no such picture"
            self.problem(file, line, f"{message}: {name}")
            return None
        return self.found(found[0], file, line, self._below(inside, home))

    def has(self, name: str, file: Path) -> bool:
        """Whether there is a picture of that name, which need not be."""
        home = self._folder_of(file)
        inside = self._inside(name, home)
        return bool(inside and self._find(inside, home))

    def found(self, path: str, file: Path, line: int | None, name: str = "") -> Entry | None:
        """The entry of a picture that is known to be there, by its path below the root."""
        if not writable(path):
            self.problem(self.root, None, f"file name not in UTF-8: {path}")
            return None
        if path not in self.entries:
            self.entries[path] = Entry(name or path, self.root / path, file, line)
        return self.entries[path]

    def _folder_of(self, file: Path) -> str:
        """The folder that the names in a file are relative to."""
        return folder_name(self.root if self.named_from_root else file.parent)

    def _inside(self, name: str, home: str) -> str:
        """`name`, as a file in the folder `home` has it, as a path below the root; empty if it leads elsewhere."""
        name = plain(name.strip().replace("\\", "/"))
        if not name:
            return ""
        absolute = name.startswith("/") or re.match(r"[A-Za-z]:", name)
        path = posixpath.normpath(name if absolute else f"{home}/{name}")
        homes = (self._home, self._real) if absolute else (self._home,)
        return next((path.removeprefix(home) for home in homes if path.startswith(home)), "")

    def _below(self, name: str, home: str) -> str:
        """`name`, a path below the root, as seen from `home` where it lies below that too."""
        return f"{self._home}{name}".removeprefix(f"{home}/").removeprefix(self._home)

    def _find(self, name: str, home: str) -> list[str]:
        """Where the picture is: at `name`, or else at `name` in one of the root's folders ("Images", "val2017")."""
        if exact := self._listed(name):
            return [exact]
        if self._subfolders is None:
            with os.scandir(self.root) as entries:
                self._subfolders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        # A table in a folder of its own ("annotations") names pictures that lie in folders beside that.
        below = self._below(name, home)
        hits = [self._listed(f"{folder}/{below}") for folder in self._subfolders] + [self._listed(below)]
        return [hit for hit in hits if hit] or ([] if self.pictures else [name])

    def _listed(self, name: str) -> str:
        """`name` as the folder spells it: exactly, or but for case and Unicode form; empty if it is not there."""
        folder, _, base = name.rpartition("/")
        if folder not in self._listings:
            self._listings[folder] = spellings(self.root / folder)
        real = self._listings[folder].get(base) or self._listings[folder].get(folded(base), "")
        return posixpath.join(folder, real) if real else ""

    # What is known about a picture ------------------------------------------------------------------------------

    def caption(self, entry: Entry, text: str, lang: str, file: Path, line: int | None) -> None:
        """Add a caption; `lang` is empty where the source does not say."""
        entry.described = True
        text = " ".join(text.split())
        if not text or not writable(text):
            self.problem(file, line, f"{'broken characters in a' if text else 'empty'} caption: {entry.name}")
            return
        self._languages_seen[lang] = None
        if not self.languages or lang in self.languages:
            entry.captions.setdefault(lang, []).append(text)

    def pass_over(self, lang: str) -> None:
        """Remember that there are captions in a language that nobody asked for, and that they were not read."""
        self._languages_seen[lang] = None
        self._read_all = False

    def language(self, stated: str, otherwise: str = UNKNOWN_LANGUAGE) -> str:
        """The code of a language; where none is stated, the only one asked for, or else `otherwise`."""
        return plain(stated.strip().lower()) or (self.languages[0] if len(self.languages) == 1 else otherwise)

    def split(self, entry: Entry, stated: str, file: Path, line: int | None) -> None:
        split = split_named(stated)
        if split is None:
            self.problem(file, line, f"unknown split: '{stated}' (known: {', '.join(_SPLIT_NAMES)})")
            entry.unclear = True
        elif entry.split not in (None, split):
            self.problem(file, line, f"in two splits: {entry.name} is in {entry.split} and in {split}")
            entry.unclear = True
        else:
            entry.split = split

    def label(self, entry: Entry, label: str, file: Path, line: int | None) -> None:
        label = unicodedata.normalize("NFC", plain(label))
        if entry.label not in (None, label):
            self.problem(file, line, f"two labels: {entry.name} is '{entry.label}' and '{label}'")
            entry.unclear = True
        else:
            entry.label = label

    def identify(self, entry: Entry, id: str, file: Path, line: int | None) -> None:
        if entry.id not in ("", plain(id)):
            hint = "leave such a column out if it numbers captions"
            self.problem(file, line, f"two ids: {entry.name} is '{entry.id}' and '{id}' ({hint})")
            entry.unclear = True
        else:
            entry.id = plain(id)

    # The end ----------------------------------------------------------------------------------------------------

    def forget_splits(self) -> None:
        """What the source says of splits does not count."""
        for entry in self.entries.values():
            entry.split = None

    def finish(self, source: str, shares: tuple[float, float], seed: int, skip_bad: bool) -> Corpus:
        entries = self._usable()
        missing = [lang for lang in self.languages if lang not in self._languages_seen]
        if missing and entries | self._languages_seen:
            there = ", ".join(self._languages_seen) or "none"
            raise DataError(f"{source}: no captions in {', '.join(missing)}", expected=f"languages there: {there}")
        if self.problems and not skip_bad:
            raise DataError(
                summary(source, self.problems),
                fix="mend them, or go on without them: --skip-bad (`cutline data inspect` lists them all)",
            )
        if not entries:
            raise NothingUsableError(Corpus((), source, tuple(self.problems)))
        if said := divide(list(entries.values()), shares, seed):
            self.notes.append(said)
        samples = (
            Sample(id, e.image, {lang: tuple(texts) for lang, texts in e.captions.items()}, e.label, e.split or "train")
            for id, e in entries.items()
        )
        return Corpus(tuple(samples), "; ".join([source, *self.notes]), tuple(self.problems))

    def _usable(self) -> dict[str, Entry]:
        """Entries by id that have something to learn from."""
        wanted = "caption" if self._languages_seen or not any(e.label for e in self.entries.values()) else "label"
        usable: dict[str, Entry] = {}
        for entry in self.entries.values():
            if entry.unclear:
                continue
            if not entry.captions and entry.label is None:
                if not entry.described and self._read_all:
                    self.problem(entry.file, entry.line, f"picture without a {wanted}: {entry.name}")
                continue
            entry.id = entry.id or entry.name
            other = usable.setdefault(entry.id, entry)
            if other is not entry:
                message = f"id used twice: '{entry.id}' for {other.image} and {entry.image}"
                self.problem(entry.file, entry.line, message)
        return usable


def split_named(name: str) -> str | None:
    """The split that a word stands for."""
    return _SPLIT_NAMES.get(name.strip().lower())


def split_in(name: str) -> str | None:
    """The only split that a file's or folder's name speaks of: `captions_val2017.json` is "val"."""
    found = {split_named(word) for word in re.split(r"[^a-z]+", name.lower())} - {None}
    return found.pop() if len(found) == 1 else None


def split_folders(path: Path) -> dict[str, str]:
    """Folder -> split, if the folders in `path` are splits; beside a training split and another there may be more."""
    names = [folder.name for folder in folders(path)]
    splits = {name: split for name in names if (split := split_named(name))}
    divided = "train" in splits.values() and len(set(splits.values())) > 1
    return splits if divided or len(splits) == len(names) else {}


def summary(source: str, problems: Sequence[Problem], listed: int = _LISTED) -> str:
    """How many problems of which kind, and the first of them."""
    kinds = Counter(kind(problem) for problem in problems)
    counts = ", ".join(f"{count:,} × {name}" for name, count in kinds.most_common())
    lines = [f"{source}: {len(problems):,} problem{'s' * (len(problems) > 1)} ({counts})"]
    lines += [f"  {problem}" for problem in problems[:listed]]
    return "\n".join(lines + [f"  … and {len(problems) - listed:,} more"] * (len(problems) > listed))


def kind(problem: Problem) -> str:
    return problem.message.partition(":")[0]
