"""Errors that say what happened, what was expected, and the way out.

A `CutlineError` is the user's to mend: the command line prints it without a traceback and exits with 2.
Anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterable
from types import ModuleType


class CutlineError(Exception):
    """What happened; then, where they help, what was expected and how to go on."""

    def __init__(self, what: str, *, expected: str = "", fix: str = "") -> None:
        self.what, self.expected, self.fix = what, expected, fix
        lines = [what]
        if expected:
            lines.append(f"expected: {expected}")
        if fix:
            lines.append(f"to fix:   {fix}")
        super().__init__("\n".join(lines))


class DataError(CutlineError):
    """Pictures, captions or label files are not what they should be."""


class ConfigError(CutlineError):
    """A setting, flag or config file is not what it should be."""


class ModelError(CutlineError):
    """Weights, checkpoints, feature stores or bundles are missing, damaged or do not fit."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name most like `name`, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def choose(name: str, known: Iterable[str], what: str) -> str:
    """`name` if it is one of `known`; otherwise an error that lists them."""
    names = sorted(known)
    if name not in names:
        raise ConfigError(f"unknown {what} '{name}'{nearest(name, names)}", expected=", ".join(names))
    return name


WORKSHOP = (
    "torch", "torchvision", "timm", "safetensors", "tokenizers", "regex", "xxhash", "tomli_w", "onnx", "onnxscript",
    "sklearn", "matplotlib", "psutil", "filelock",
)  # fmt: skip
"""What the extra `train` brings, by the names that it is imported by."""


def require_workshop(purpose: str) -> None:
    """See that all is there that learning and exporting take, so that none of it is missed when hours have gone by.

    Who has torch already, and has then installed the core alone, has some of it.
    """
    for module in WORKSHOP:
        if importlib.util.find_spec(module) is None:
            raise _missing(module, "train", purpose)


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional library, or name the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        # A module missing *inside* an installed library is a broken installation, not an absent extra.
        if missing.name is None or missing.name.split(".")[0] != module.split(".")[0]:
            raise
        raise _missing(module.split(".")[0], extra, purpose) from None


def _missing(module: str, extra: str, purpose: str) -> CutlineError:
    return CutlineError(f"{purpose} needs '{module}', which is not installed", fix=f"pip install 'cutline[{extra}]'")
