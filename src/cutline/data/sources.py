"""The corpus that a configuration names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cutline.config import Config
from cutline.console import say
from cutline.data import scenes
from cutline.data.copies import contradictions, copies_among, sizes_of
from cutline.data.corpus import Corpus
from cutline.data.draft import summary
from cutline.data.files import cache_folder
from cutline.data.grammar import LANGUAGES
from cutline.data.labels import evenly, oddities
from cutline.data.readers import read_corpus

_LISTED = 5
COMPARED = 50_000
"""Most pictures that are looked through for copies when a run begins; `cutline data inspect` compares any number."""


def read(config: Config, *, quiet: bool = False) -> Corpus:
    """Its pictures and captions, drawn first if they are scenes, limited to what it wants of them."""
    data = config.data
    path = Path(data.path)
    if data.path == "scenes":
        if path.is_dir():
            say(f"'scenes' means drawn ones; for the folder of that name: --data {path.resolve()}", quiet=quiet)
        path = _draw(config, quiet)
    corpus = read_corpus(
        path,
        data.format,
        images=data.images,
        languages=data.languages,
        divide=data.divide,
        val_share=data.val_share,
        test_share=data.test_share,
        seed=data.split_seed,
        skip_bad=data.skip_bad,
    )
    if corpus.problems:
        say(f"left out: {len(corpus.problems)} that cannot be used (cutline data inspect lists them)", quiet=quiet)
    has_classes = config.task != "captions" or not corpus.languages
    if data.limit:
        training = corpus.split("train")
        chosen = {s.id for s in (evenly(training, data.limit) if has_classes else training[: data.limit])}
        corpus = replace(corpus, samples=tuple(s for s in corpus.samples if s.split != "train" or s.id in chosen))
    if not quiet and has_classes:
        few = len(corpus) <= COMPARED  # of many, most have another of their size, and all would be read
        copies = copies_among(sizes_of(corpus.samples)) if few else ()
        if not few:
            say(f"copies are not looked for among {len(corpus):,} pictures: cutline data inspect does")
        if odd := oddities(corpus.samples) + contradictions(corpus.samples, copies):
            say(summary("classes", odd, _LISTED))
    return corpus


def _draw(config: Config, quiet: bool) -> Path:
    """A folder of its own for each way to draw scenes, so that nothing is drawn twice or over another."""
    languages = config.data.languages or LANGUAGES
    size = config.pictures.size or 96
    name = f"scenes-{config.data.scenes}-{'-'.join(languages)}-{size}-seed{config.data.split_seed}"
    path = cache_folder() / name
    if not path.exists():
        say(f"drawing {config.data.scenes} scenes into {path}", quiet=quiet)
    return scenes.draw(path, count=config.data.scenes, languages=languages, size=size, seed=config.data.split_seed)
