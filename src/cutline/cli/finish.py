"""What follows training: the bundle, a look at what it writes, and the page that shows both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutline.console import progress, say
from cutline.errors import ModelError

if TYPE_CHECKING:
    from cutline.config import Config
    from cutline.data.corpus import Corpus, Sample
    from cutline.evaluation.judge import Judged
    from cutline.predict import Captioner

EXAMPLES = 12
CHECKED = 200


def export(run: Path, out: Path, *, step: int | None = None, one_file: bool = False, force: bool = False) -> Any:
    """The run's best captioner as a bundle at `out`; returns the captioner in torch that it must equal."""
    from cutline.engine.run import load_captioner
    from cutline.export import export_bundle

    captioner, words, config = load_captioner(run, step=step)
    export_bundle(
        captioner, words, captioner.encoder.transform, config.search, out, card(run, config),
        one_file=one_file, force=force,
    )  # fmt: skip
    return captioner


def card(run: Path, config: Config) -> dict[str, Any]:
    """What a model card says of how the model came about and how good it was on validation."""
    from cutline.engine.events import read

    facts: dict[str, Any] = {
        "Made from": {
            "run": run.resolve().name,
            "data": config.data.path,
            "encoder": config.encoder.name,
            **asdict(config.decoder),
        }
    }
    validations = [event for event in read(run / "events.jsonl") if event["kind"] == "validation"]
    if validations:
        best = max(validations, key=lambda event: (event["best"], event["step"]))
        facts["Validation scores (0 to 100)"] = {
            key: value for key, value in best.items() if key.endswith(("_bleu_4", "_cider", "_rouge_l"))
        }
    return facts


def finish(run: Path, corpus: Corpus, config: Config, split: str, *, quiet: bool = False) -> dict[str, Judged]:
    """Export, check, caption the split with the bundle itself, and write the report."""
    from cutline.export import check_bundle
    from cutline.predict import load

    say("exporting the bundle", quiet=quiet)
    bundle = run / "bundle"
    torch_captioner = export(run, bundle, force=True)
    samples = corpus.split(split)
    pictures = [sample.image for sample in samples[:CHECKED]]
    agreement = check_bundle(torch_captioner, bundle, pictures)
    say(f"the bundle against PyTorch: {agreement}", quiet=quiet)
    if not agreement.reached:
        raise ModelError(f"the bundle {bundle} does not caption as PyTorch does: {agreement}")
    captioner = load(bundle)
    languages = [lang for lang in captioner.languages if any(s.captions.get(lang) for s in samples)]
    judged = {lang: caption_split(captioner, samples, lang, corpus, quiet=quiet) for lang in languages}
    report(run, samples, judged, split)
    return judged


def caption_split(captioner: Captioner, samples: Sequence[Sample], lang: str, corpus: Corpus, *, quiet: bool) -> Judged:
    """Caption pictures with their attention, and score them."""
    from cutline.evaluation.judge import judge

    learned = {text for sample in corpus.split("train") for text in sample.captions.get(lang, ())}
    with progress(f"captioning ({lang})", len(samples), "pictures", quiet=quiet) as advance:
        return judge(captioner, samples, lang, training=learned, advance=advance, attention=True)


def report(run: Path, samples: Sequence[Sample], judged: dict[str, Judged], split: str) -> Path:
    return run / "report.html"
