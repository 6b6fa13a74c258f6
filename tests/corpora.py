"""Corpora as people have them on disk, in a few lines, and what readers make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from cutline.data.corpus import Corpus, Sample


def fill(root: Path, files: dict[str, Any]) -> Path:
    """Write files: pictures by their names, JSON for `.json`, bytes as they are, lines joined."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif file.suffix == ".json":
            file.write_text(json.dumps(content), encoding="utf-8")
        elif isinstance(content, list):
            file.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in content), encoding="utf-8")
        else:
            Image.new("RGB", (2, 2)).save(file)
    return root


PICTURE = None
NAMES = [f"{number}.jpg" for number in range(1, 7)]


def by_id(corpus: Corpus) -> dict[str, Sample]:
    return {sample.id: sample for sample in corpus.samples}


def messages(corpus: Corpus) -> list[str]:
    """Problems as `file:line: message` with the file's name alone."""
    return [
        f"{p.file.name}:{p.line}: {p.message}" if p.line else f"{p.file.name}: {p.message}" for p in corpus.problems
    ]
