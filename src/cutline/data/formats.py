"""The published caption sets' own formats, and folders whose file names say everything."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cutline.data.draft import Draft, Entry, split_folders, split_in, split_named
from cutline.data.files import files_in, folders, read_lines
from cutline.data.images import is_picture, walk
from cutline.data.tables import csv_header, read_csv_file
from cutline.errors import DataError

_TOKENS = re.compile(r"(?P<set>[^.]+)(?:\.(?P<lang>[a-z]{2,3}))?\.token(?:\.txt)?")
_SPLIT_FILE = re.compile(r".*(?P<split>train|dev|val|test)images\.txt", re.IGNORECASE)
_NOT_CAPTIONS = {"readme", "license", "licence", "classes", "labels"}


# Flickr8k ---------------------------------------------------------------------------------------------------------


def token_files(path: Path) -> dict[Path, str]:
    """Flickr8k's token files with the language of each, in `path` or in a folder of texts in it."""
    if path.is_file():
        match = _TOKENS.fullmatch(path.name)
        return {path: match["lang"] or "en"} if match else {}
    for folder in (path, *folders(path)):
        files = {file: match for file in files_in(folder, ".token", ".txt") if (match := _TOKENS.fullmatch(file.name))}
        if files:
            return dict(sorted(((file, m["lang"] or "en") for file, m in files.items()), key=lambda f: f[1] != "en"))
    return {}


def captions_txt(path: Path) -> Path | None:
    """Flickr8k as one `captions.txt` with the header `image,caption`."""
    file = path / "captions.txt" if path.is_dir() else path
    if file.suffix != ".txt" or not file.is_file():
        return None
    with file.open("rb") as opened:
        first = opened.readline(200).decode("utf-8", "replace").lstrip("\ufeff").strip().lower()
    return file if csv_header(first)[1] in (("image", "caption"), ("image_name", "comment_number", "comment")) else None


def read_flickr8k(path: Path, draft: Draft) -> None:
    files = token_files(path)
    table = captions_txt(path) if not files else None
    if not files and table is None:
        raise DataError(f"no Flickr8k captions in {path}", expected="Flickr8k.token.txt or captions.txt")
    splits, places = _flickr_splits((table or next(iter(files))).parent, draft)
    left_out = read_csv_file(table, draft, "en", splits) if table is not None else set()
    for file, lang in files.items():
        if draft.languages and lang not in draft.languages:
            draft.pass_over(lang)
        else:
            left_out |= _read_tokens(file, lang, splits, draft)
    if left_out:
        draft.notes.append(f"{len(left_out)} pictures that no split file names left out")
    for name, split in splits.items():
        if entry := draft.picture(name, *places[name]):
            entry.split = split


def _flickr_splits(folder: Path, draft: Draft) -> tuple[dict[str, str], dict[str, tuple[Path, int]]]:
    """Picture -> split, and picture -> where that stands."""
    splits: dict[str, str] = {}
    places: dict[str, tuple[Path, int]] = {}
    for file in files_in(folder, "images.txt"):
        if match := _SPLIT_FILE.fullmatch(file.name):
            split = split_named(match["split"]) or ""
            for line, text in enumerate(read_lines(file, draft.problem), 1):
                name = text.strip()
                if name and splits.setdefault(name, split) != split:
                    first = ":".join(map(str, places[name]))
                    draft.problem(file, line, f"in two splits: {name} is in {splits[name]} by {first}, here in {split}")
                elif name:
                    places.setdefault(name, (file, line))
    return splits, places


def _read_tokens(file: Path, lang: str, splits: dict[str, str], draft: Draft) -> set[str]:
    """Reads `name.jpg#0<TAB>caption` lines; returns the pictures that no split file names."""
    left_out: set[str] = set()
    seen: dict[str, int] = {}
    for line, text in enumerate(read_lines(file, draft.problem), 1):
        if not text.strip():
            continue
        key, tab, caption = text.partition("\t")
        name, mark, _ = key.rpartition("#")
        if not tab or not mark:
            draft.problem(file, line, "malformed line: not 'picture.jpg#number', a tab, and a caption")
        elif splits and name not in splits:
            left_out.add(name)
        elif seen.setdefault(key, line) != line:
            draft.problem(file, line, f"row given twice: {key} is in line {seen[key]} already")
        elif entry := draft.picture(name, file, line):
            draft.caption(entry, caption, lang, file, line)
    return left_out


# JSON -------------------------------------------------------------------------------------------------------------


def json_files(path: Path, kind: str) -> list[Path]:
    """The JSON files of this kind: "coco" or "karpathy"."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and json_kind(path) == kind else []
    places = [path, path / "annotations"]
    found = [file for place in places if place.is_dir() for file in files_in(place, ".json")]
    named = [file for file in found if file.name.startswith("captions_" if kind == "coco" else "dataset")]
    return [file for file in named or found if json_kind(file) == kind]


def _json_to_read(path: Path, kind: str) -> list[Path]:
    files = [path] if path.is_file() else json_files(path, kind)
    if not files:
        names = ", ".join(file.name for file in files_in(path, ".json")) or "no JSON"
        raise DataError(f"no JSON of the kind '{kind}' in {path}: found {names}")
    return files


def json_kind(file: Path) -> str:
    """By the words in it, since parsing may take seconds."""
    data = file.read_bytes()
    if b'"images"' not in data:
        return ""
    return "karpathy" if b'"sentences"' in data else "coco" if b'"caption"' in data else ""


def read_coco(path: Path, draft: Draft) -> None:
    for file in _json_to_read(path, "coco"):
        content = _load(file)
        entries: dict[str, Entry | None] = {}
        split_of_file = split_in(file.stem)
        for number, image in enumerate(_records(content, "images", file)):
            id, name = str(image.get("id", "")), image.get("file_name")
            if not isinstance(name, str) or not id:
                draft.problem(file, None, f"malformed picture: images[{number}] has no 'file_name' or no 'id'")
            elif id in entries:
                draft.problem(file, None, f"id used twice: images[{number}] has id {id} again")
            elif entry := entries.setdefault(id, draft.picture(name, file, None)):
                draft.identify(entry, id, file, None)
                folder = entry.image.parent
                if split := split_of_file or (split_in(folder.name) if folder != draft.root else None):
                    draft.split(entry, split, file, None)
        for number, note in enumerate(_records(content, "annotations", file)):
            id, text = str(note.get("image_id", "")), note.get("caption")
            if id not in entries:
                draft.problem(file, None, f"unknown picture id: annotations[{number}] is about '{id}'")
            elif entry := entries[id]:
                if not isinstance(text, str):
                    text = ""  # an empty caption is noted as such
                draft.caption(entry, text, draft.language("", "en"), file, None)


def read_karpathy(path: Path, draft: Draft) -> None:
    files = _json_to_read(path, "karpathy")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{path} holds several such files: {names}", fix="name the file itself")
    for file in files:
        for number, image in enumerate(_records(_load(file), "images", file)):
            name, sentences = image.get("filename"), image.get("sentences")
            if not isinstance(name, str) or not isinstance(sentences, list):
                message = f"malformed picture: images[{number}] has no 'filename' or no 'sentences'"
                draft.problem(file, None, message)
                continue
            # COCO's pictures are in "val2014" and "train2014"; many keep them in one folder all the same.
            folder = image.get("filepath")
            inner = folder if isinstance(folder, str) and draft.has(f"{folder}/{name}", file) else ""
            entry = draft.picture(f"{inner}/{name}" if inner else name, file, None)
            if entry is None:
                continue
            if image.get("cocoid") is not None:
                draft.identify(entry, str(image["cocoid"]), file, None)
            if image.get("split"):
                draft.split(entry, str(image["split"]), file, None)
            for sentence in sentences:
                draft.caption(entry, _sentence(sentence), draft.language("", "en"), file, None)


def _sentence(sentence: Any) -> str:
    if not isinstance(sentence, dict):
        return ""
    tokens = sentence.get("tokens")
    return str(sentence.get("raw") or (" ".join(map(str, tokens)) if isinstance(tokens, list) else ""))


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {error}") from None


def _records(content: Any, key: str, file: Path) -> list[dict[str, Any]]:
    records = content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{file} has no list of objects '{key}'", expected="the published form of that format")
    return records


# Folders ----------------------------------------------------------------------------------------------------------


def read_folder(path: Path, draft: Draft) -> None:
    """A picture and, beside it, a text of the same name: a caption in each line."""
    by_split = split_folders(path)
    for where, names in walk(path):
        folder = Path(where)
        inside = folder.relative_to(path)
        owners: dict[str, list[Entry]] = {}
        for name in filter(is_picture, names):
            entry = draft.found((inside / name).as_posix(), folder / name, None)
            if entry is None:
                continue
            if by_split:
                entry.split = by_split.get(inside.parts[0]) if inside.parts else None
            owners.setdefault(name, []).append(entry)
            owners.setdefault(Path(name).stem, []).append(entry)
        for name in names:
            if name.lower().endswith(".txt"):
                _read_sidecar(folder / name, owners, draft)


def _read_sidecar(file: Path, owners: dict[str, list[Entry]], draft: Draft) -> None:
    stem, lang = file.stem, ""
    if stem not in owners and (match := re.fullmatch(r"(.+)\.([a-z]{2,3})", stem)):
        stem, lang = match[1], match[2]
    pictures = owners.get(stem, [])
    if len(pictures) != 1:
        if pictures or file.stem.lower() not in _NOT_CAPTIONS:
            names = " and ".join(entry.name for entry in pictures)
            what = f"ambiguous picture: {names}" if pictures else "no such picture: a text without one"
            draft.problem(file, None, what)
        return
    entry = pictures[0]
    if not file.is_file():
        draft.problem(file, None, "unusable text: no file, or a link that leads nowhere")
        return
    lines = [(number, text) for number, text in enumerate(read_lines(file, draft.problem), 1) if text.strip()]
    for number, text in lines:
        draft.caption(entry, text, draft.language(lang), file, number)
    if not lines:
        draft.caption(entry, "", draft.language(lang), file, None)
