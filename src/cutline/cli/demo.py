"""`cutline demo`: the whole way in minutes, on pictures that Cutline draws itself."""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cutline.cli.arguments import parse
from cutline.console import duration, say
from cutline.errors import ConfigError, require_workshop

if TYPE_CHECKING:
    from cutline.cli.finish import Finished
    from cutline.config import Config
    from cutline.data.corpus import Corpus
    from cutline.engine.run import Prepared
    from cutline.evaluation.judge import Judged

LEAST = 60
"""Scenes, so that there are some of each split."""


@dataclass(frozen=True)
class Demo:
    """Draw scenes, train an attention captioner, caption scenes it has never seen, and show how well it does."""

    out: Path = Path("demo")
    """Folder for the scenes and the run."""
    scenes: int = 3000
    """Pictures to draw."""
    epochs: int = 6
    """Times that every picture is learned from."""
    quiet: bool = False
    """Print only the scores."""


def main(arguments: list[str]) -> int:
    given = parse(Demo, arguments, verb="demo")
    if given.scenes < LEAST or given.epochs < 1:
        raise ConfigError(f"{given.scenes} scenes, {given.epochs} epochs", expected=f"{LEAST} or more, and 1 or more")
    require_workshop("training")
    started = time.monotonic()
    say("Loading PyTorch (some seconds) ...", quiet=given.quiet)
    from cutline.cli.evaluate import show
    from cutline.data import scenes
    from cutline.engine import run
    from cutline.engine.loop import Stopped

    config = configure(given)
    say(f"1/4  drawing {given.scenes} scenes", quiet=given.quiet)
    scenes.draw(Path(config.data.path), count=given.scenes, languages=config.data.languages)
    say("2/4  training a CNN and an LSTM with attention, from scratch", quiet=given.quiet)
    prepared = run.prepare(config, quiet=given.quiet)
    folder = run.create(prepared)
    try:
        finished = learn(prepared, folder, quiet=given.quiet)
    except Stopped as stopped:
        say(f"cutline train --resume {folder} goes on from there", quiet=given.quiet)
        return 128 + stopped.number
    say("4/4  scores", quiet=given.quiet)
    for line in examples(finished.judged["en"], prepared.corpus):
        print(line)
    show({lang: each.scores for lang, each in finished.judged.items()})
    for line in guesses(prepared.corpus):
        print(line)
    print(finished.looks)
    for line in photograph():
        print(line)
    print(f"\ndone in {duration(time.monotonic() - started)}")
    print(f"look:     {folder / 'report.html'}")
    picture = prepared.corpus.split("test")[0].image
    print(f"try:      {own_name()} caption {picture} --model {folder / 'bundle'}")
    return 0


def learn(prepared: Prepared, path: Path, *, quiet: bool) -> Finished:
    """Train and export, with the run's lock held meanwhile, as whoever looks at runs or tidies them expects."""
    from cutline.cli.finish import finish
    from cutline.engine import folder, run
    from cutline.engine.journal import Journal
    from cutline.engine.loop import train

    journal = Journal(path)
    with folder.held(path):
        journal.started(processes=1)
        at = train(run.trainer(prepared, path), quiet=quiet)
        say("3/4  exporting, and captioning unseen scenes without PyTorch", quiet=quiet)
        finished = finish(path, prepared.corpus, prepared.config, "test", quiet=quiet)
        journal.write("finished", step=at.step)
    return finished


def own_name() -> str:
    """How this program can be called from here: by its name only where the shell would find it."""
    program = Path(sys.argv[0])
    if program.name != "cutline":
        return f"{sys.executable} -m cutline"
    found = shutil.which("cutline")
    return "cutline" if found and Path(found).resolve() == program.resolve() else str(program)


def configure(given: Demo) -> Config:
    from cutline.presets import scenes

    config = scenes()
    return replace(
        config,
        name="demo",
        output=str(given.out / "runs"),
        data=replace(config.data, path=str(given.out / f"scenes-{given.scenes}"), scenes=given.scenes),
        training=replace(config.training, epochs=given.epochs),
    )


def examples(judged: Judged, corpus: Corpus, count: int = 5) -> list[str]:
    """A few unseen pictures with what the model wrote and what a person might have."""
    lines = []
    for sample in corpus.split("test")[:count]:
        lines += [
            f"  {sample.image.name}: {judged.captions[sample.id].text}",
            f"      one of five: {sample.captions['en'][0]}",
        ]
    return [*lines, ""]


def guesses(corpus: Corpus, lang: str = "en") -> list[str]:
    """What guessing would score, so that the figures above mean something."""
    from cutline.evaluation.text import score

    test = corpus.split("test")
    references = {sample.id: sample.captions[lang] for sample in test}
    common, _ = Counter(text for s in corpus.split("train") for text in s.captions[lang]).most_common(1)[0]
    always = score(dict.fromkeys(references, common), references)
    shuffled = score({sample.id: _shuffled(sample.captions[lang], sample.id) for sample in test}, references)
    told = {"the commonest training caption for every picture": always, "the right words in random order": shuffled}
    return [f"{what + ':':<50} BLEU-4 {s.bleu[3]:.1f}, CIDEr-D {s.cider:.1f}" for what, s in told.items()]


def photograph() -> list[str]:
    """What the captioner in the box says of a real photograph, one that scikit-learn brings along."""
    from importlib.resources import as_file, files

    from cutline.predict import load
    from cutline.starter import starter

    captioner = load(starter())
    with as_file(files("sklearn.datasets.images") / "flower.jpg") as picture:
        said = {lang: captioner.caption(picture, lang=lang)[0].text for lang in captioner.languages}
    lines = [f"  {lang}: {text}" for lang, text in said.items()]
    return ["", "a real photograph (flower.jpg of scikit-learn), by the captioner that comes with Cutline:", *lines]


def _shuffled(captions: Sequence[str], seed: str) -> str:
    words = captions[0].split()
    random.Random(seed).shuffle(words)
    return " ".join(words)
