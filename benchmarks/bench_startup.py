"""From the start of a process to its first caption, and to the help text."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import Row, paired

HELP_SECONDS = 0.25
"""What `cutline --help` may take beyond starting Python."""

TORCH = """
import sys
from pathlib import Path
import numpy as np, safetensors.torch, timm, torch
from cutline import config
from cutline.data.words import Words
from cutline.models.captioner import TorchStep, build_captioner
from cutline.search import search

folder, picture = Path(sys.argv[1]), sys.argv[2]
settings, words = config.load(folder / "config.toml"), Words.load(folder / "words.json")
captioner = build_captioner(settings, len(words.pieces)).eval()
captioner.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
pixels = np.stack([captioner.encoder.transform.from_file(picture)])
(best, *_), = search(TorchStep(captioner), pixels, words.begin("en"), words.end, words.forbidden, settings.search)
print(words.decode(best.tokens))
"""


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        yield _caption("mobilenetv2_100", folder / "mobile")
        yield _caption("resnet50", folder / "resnet")
    cutline, python = paired(lambda: _run("-m", "cutline", "--help"), lambda: _run("-c", "pass"), rounds=9)
    yield Row(
        "cutline --help",
        f"python -c pass + {HELP_SECONDS} s",
        HELP_SECONDS / max(cutline - python, 1e-3),
        1.0,
        f"{cutline:.3f} s against {python:.3f} s",
    )


def _caption(encoder: str, folder: Path) -> Row:
    picture = _prepare(encoder, folder)
    script = folder / "with_torch.py"
    script.write_text(TORCH)
    ours = ("-m", "cutline", "caption", str(picture), "--model", str(folder / "bundle"))
    theirs = (str(script), str(folder), str(picture))
    assert _run(*ours) == _run(*theirs), "not the same caption"
    seconds, other = paired(lambda: _run(*ours), lambda: _run(*theirs), rounds=3)
    return Row(
        f"cutline caption one.jpg ({encoder})",
        "torch + timm",
        other / seconds,
        8.0,
        f"{seconds:.2f} s (at most 1.5 s wanted) against {other:.2f} s",
    )


def _prepare(encoder: str, folder: Path) -> Path:
    """A captioner with random weights, as a bundle and as what a script with torch would load; and a picture."""
    import numpy as np
    import safetensors.torch
    import torch
    from PIL import Image

    from cutline import config
    from cutline.data.words import Words
    from cutline.export import export_bundle
    from cutline.models.captioner import build_captioner

    folder.mkdir()
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstu"
    spelt = [a + b + c for a in letters for b in letters for c in letters][:9000]
    settings = config.Config(
        encoder=config.EncoderConfig(name=encoder, weights="none"),
        words=config.WordsConfig(min_count=1, max_size=9000),
        search=config.SearchConfig(max_length=20),
    )
    words = Words.learn({"en": [" ".join(spelt)]}, settings.words)
    captioner = build_captioner(settings, len(words.pieces)).eval()
    (folder / "config.toml").write_text(config.to_toml(settings))
    words.save(folder / "words.json")
    safetensors.torch.save_file(
        {name: value.contiguous().clone() for name, value in captioner.state_dict().items()},
        folder / "weights.safetensors",
    )
    export_bundle(captioner, words, captioner.encoder.transform, settings.search, folder / "bundle", {})
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    picture = folder / "one.jpg"
    Image.fromarray(noise).resize((800, 600)).save(picture)
    return picture


def _run(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout
