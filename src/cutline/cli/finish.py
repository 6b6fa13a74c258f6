"""What follows training: the bundle, a look at what it writes, and the page that shows both."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutline.console import progress, say
from cutline.errors import DataError, ModelError

if TYPE_CHECKING:
    from cutline.config import Config
    from cutline.consensus import Consensus
    from cutline.data.corpus import Corpus, Sample
    from cutline.data.images import Transform
    from cutline.data.words import Words
    from cutline.evaluation.judge import Judged
    from cutline.models.compact import Weights
    from cutline.predict import Captioner

EXAMPLES = 12
CHECKED = 200


def export(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    weights: Weights = "fp32",
    about: str = "",
    one_file: bool = False,
    force: bool = False,
) -> Any:
    """The run's best captioner as a bundle at `out`; returns the captioner in torch that it must equal."""
    from cutline.engine import agree, folder
    from cutline.engine.trained import load_captioner
    from cutline.export import export_bundle

    captioner, words, config = load_captioner(run, step=step)
    consensus = None
    if config.search.consensus and step is not None:
        say("without the consensus, which goes with the run's best weights")
    elif config.search.consensus:
        consensus = agree.load(run) or _consensus(run, captioner, words, config)
    if config.search.consensus and not consensus:  # what was chosen was chosen for one
        config = replace(config, search=replace(folder.settings(run).search, consensus=0.0))
    export_bundle(
        captioner, words, captioner.encoder.transform, config.search, out, card(run, config, about, step),
        consensus=consensus, weights=weights, one_file=one_file, force=force,
    )  # fmt: skip
    return captioner


def _consensus(
    run: Path, captioner: Any, words: Words, config: Config, corpus: Corpus | None = None, *, quiet: bool = False
) -> Consensus | None:
    """Learned from the run's training pictures, if they are still there and have something to agree on."""
    from cutline.data.sources import read
    from cutline.engine import agree

    try:
        learn_from = (corpus or read(config)).split("train")
        return agree.learn(run, captioner, words, config, learn_from, quiet=quiet)
    except DataError as error:
        say(f"without a consensus, which is learned from the training pictures: {error.what}")
        captioner.cpu()  # wherever that was when it came up
        return None


def card(run: Path, config: Config, about: str = "", step: int | None = None) -> dict[str, Any]:
    """What a model card says of how the model came about and how good it was on validation, after `about`.

    It is of the weights of this `step`, or of the best.
    """
    from cutline.engine import folder
    from cutline.engine.events import best_validation

    decoder = config.decoder
    facts: dict[str, Any] = {"About": about} if about else {}
    facts |= {
        "Made from": {
            "run": run.resolve().name,
            "data": Path(config.data.path).name,
            "encoder": config.encoder.name,
            "decoder": f"{decoder.kind}, attention {decoder.attention}, width {decoder.hidden}",
        }
    }
    if best := best_validation(run / "events.jsonl", step):
        search = folder.settings(run).search  # that of the run, and not what was chosen in the end
        facts["Validation scores that chose its weights (0 to 100)"] = {
            "search": f"{search.beam} beams" if search.method == "beam" and search.beam > 1 else search.method,
            **{key: value for key, value in best.items() if key.endswith(("_bleu_4", "_cider", "_rouge_l", "_count"))},
        }
    facts["Limits"] = (
        "It knows what its training pictures showed and no more, and is sure of itself all the same: of other pictures "
        "it may say what is not there. It says of people what its captions said. Let a person read what matters."
    )
    return facts


@dataclass(frozen=True)
class Finished:
    judged: dict[str, Judged]
    """What the bundle wrote and scored, by language."""
    looks: str
    """How much attention lay on what was named, where the pictures are scenes."""


def finish(run: Path, corpus: Corpus, config: Config, split: str, *, quiet: bool = False) -> Finished:
    """Export, check, caption the split with the bundle itself, and write the report."""
    from cutline.data.images import readable
    from cutline.engine import agree
    from cutline.engine.choose import choose_search
    from cutline.engine.trained import load_captioner
    from cutline.export import accept, check_bundle, export_bundle, unchecked
    from cutline.predict import load

    captioner, words, _ = load_captioner(run)
    consensus = None
    if config.search.consensus:  # which is there already where a finish was cut short
        with contextlib.suppress(ModelError):  # or it is damaged, and learned again
            consensus = agree.load(run)
        consensus = consensus or _consensus(run, captioner, words, config, corpus, quiet=quiet)
    if config.training.choose_search:
        search = choose_search(run, captioner, words, config, corpus.split("val"), consensus, quiet=quiet)
        config = replace(config, search=search)
    say("exporting the bundle", quiet=quiet)
    bundle = run / "bundle"
    export_bundle(
        captioner, words, captioner.encoder.transform, config.search, unchecked(bundle), card(run, config),
        consensus=consensus, force=True,
    )  # fmt: skip
    samples = corpus.split(split)
    pictures = list(islice(readable(sample.image for sample in samples), CHECKED))
    agreement = check_bundle(captioner, unchecked(bundle), pictures)
    say(f"the bundle against PyTorch: {agreement}", quiet=quiet)
    if not agreement.reached:
        raise ModelError(f"the bundle {unchecked(bundle)} does not caption as PyTorch does: {agreement}")
    accept(bundle)
    bundled = load(bundle)
    config = replace(config, search=bundled.settings)
    languages = [lang for lang in bundled.languages if any(s.captions.get(lang) for s in samples)]
    judged = {lang: caption_split(bundled, samples, lang, corpus, quiet=quiet) for lang in languages}
    if unreadable := {id for each in judged.values() for id in each.unreadable}:
        say(f"in no score, since they cannot be read: {len(unreadable)} of the split {split}")
    looks = _looks(samples, judged)
    write_page(run, config, samples, judged, bundled.transform, split, looks)
    return Finished(judged, looks)


def caption_split(captioner: Captioner, samples: Sequence[Sample], lang: str, corpus: Corpus, *, quiet: bool) -> Judged:
    """Caption pictures with their attention, and score them."""
    from cutline.evaluation.judge import judge

    learned = {text for sample in corpus.split("train") for text in sample.captions.get(lang, ())}
    with progress(f"captioning ({lang})", len(samples), "pictures", quiet=quiet) as advance:
        caption = partial(captioner.caption, lang=lang, attention=True)
        return judge(caption, samples, lang, training=learned, advance=advance)


def _looks(samples: Sequence[Sample], judged: dict[str, Judged]) -> str:
    """For scenes, where it is known what is where; empty for other pictures and for decoders with no attention."""
    from cutline.data.grammar import LANGUAGES
    from cutline.data.scenes import ROWS, objects_of
    from cutline.evaluation.focus import focus

    folder = samples[0].image.parent.parent
    found = next(iter(judged.values())).captions
    if not (folder / ROWS).exists() or next(iter(found.values())).attention is None:
        return ""
    objects = objects_of(folder)
    told = {
        lang: str(focus([(caption, objects[id]) for id, caption in each.captions.items()], lang))
        for lang, each in judged.items()
        # Scenes' pictures may also be named, and captioned in other languages, by a table of the user's.
        if lang in LANGUAGES and each.captions.keys() <= objects.keys()
    }
    if not told:
        return ""
    if len(told) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{lang}: {sentence}" for lang, sentence in told.items())


def write_page(
    run: Path,
    config: Config,
    samples: Sequence[Sample],
    judged: dict[str, Judged],
    transform: Transform,
    split: str,
    looks: str,
) -> Path:
    from cutline.cli.telling import learning
    from cutline.engine.events import read
    from cutline.report.page import Example, write_report

    shown, search = [], config.search
    for lang, each in judged.items():
        scores = each.scores.pictures()
        references = {sample.id: sample for sample in samples}
        for id in list(each.captions)[: max(1, EXAMPLES // len(judged))]:
            sample = references[id]
            example = Example(sample.image, each.captions[id], sample.captions[lang], scores[id]["cider"], transform)
            shown.append(example)
    facts = {
        "data": f"{config.data.path}, split {split}",
        "encoder": f"{config.encoder.name} at {transform.size} x {transform.size}",
        "decoder": f"{config.decoder.kind}, attention {config.decoder.attention}, width {config.decoder.hidden}",
        "training": learning(config),
        "search": f"{search.method}, beam {search.beam}, length penalty {search.length_penalty:g}, "
        f"consensus {search.consensus:g}",
    }
    return write_report(
        run / "report.html",
        title=run.resolve().name,
        facts=facts,
        scores={lang: each.scores for lang, each in judged.items()},
        curves=read(run / "events.jsonl"),
        examples=shown,
        notes=[f"{looks}."] if looks else [],
    )
