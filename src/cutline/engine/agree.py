"""The consensus of a run: learned from its training pictures once its captioner is ready, and kept in its folder.

It belongs to the weights whose encoder saw the pictures, and is named by their checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cutline import durable
from cutline.config import Config
from cutline.consensus import Consensus, fit
from cutline.console import progress
from cutline.data.corpus import Sample
from cutline.data.words import Words
from cutline.engine import choose, folder, run
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.runtime import Precision, choose_device
from cutline.errors import DataError, ModelError
from cutline.models.captioner import Captioner

FILE = "consensus-{}.npz"


def learn(
    path: Path, model: Captioner, words: Words, config: Config, samples: Sequence[Sample], *, quiet: bool = False
) -> Consensus:
    """See every training picture once as the encoder of the best weights does, and fit."""
    device = choose_device(config.device).torch
    learn_from = list(samples)
    best = Checkpoints(path, folder.identity(path)).best()
    stage = config.stage(best.stage)  # which has its features, if any has
    source, _ = run.stored_or_pictures(stage, model.to(device), learn_from, [], quiet)
    seen, kept = [], []
    computing = Precision(config.training.precision, device).autocast()
    with computing, progress("seeing what captions agree on", len(learn_from), "pictures", quiet=quiet) as advance:
        for some, _, pooled in choose.encode(model, learn_from, source, config.training.batch):
            seen.append(pooled.float().cpu().numpy())
            kept += some
            advance(len(some))
    model.cpu()
    if not kept:
        raise DataError("none of the training pictures can be read")
    captions = {
        lang: [[tuple(words.encode(text, lang)) for text in sample.captions.get(lang, ())] for sample in kept]
        for lang in words.languages
    }
    file = path / FILE.format(best.path.name)
    durable.put(file, fit(np.concatenate(seen), captions).to_bytes())
    for old in set(path.glob(FILE.format("*"))) - {file}:
        old.unlink()
    found = load(path)
    assert found
    return found


def load(path: Path) -> Consensus | None:
    """The consensus of a run's best weights, if it has one."""
    file = path / FILE.format(Checkpoints(path, folder.identity(path)).best().path.name)
    try:
        return Consensus.parse(file.read_bytes()) if file.exists() else None
    except ModelError as error:
        fix = "remove it, and it is learned again"
        raise ModelError(f"{file}: {error.what}", expected=error.expected, fix=fix) from None
