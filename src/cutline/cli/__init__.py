"""The command line: `cutline VERB …`. One file a verb; a verb is imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

VERBS: dict[str, tuple[str, str]] = {
    # verb: (module, what it does in a line)
    "caption": ("cutline.cli.caption", "describe a picture, a folder, a glob, or a list on standard input"),
    "classify": ("cutline.cli.classify", "put pictures into classes, and into folders of them"),
    "train": ("cutline.cli.train", "teach a captioner, a classifier, or both at once"),
    "evaluate": ("cutline.cli.evaluate", "caption or classify a split, and score it"),
    "score": ("cutline.cli.score", "score any system's captions against references"),
    "export": ("cutline.cli.export", "turn a run into a bundle that needs no torch"),
    "data": ("cutline.cli.data", "inspect captioned or labelled pictures, or draw scenes"),
    "runs": ("cutline.cli.runs", "list, show, verify or tidy run folders"),
    "compare": ("cutline.cli.compare", "compare runs: scores, parameters, size and time"),
    "grid": ("cutline.cli.grid", "train a run for each of several settings, and compare them"),
    "benchmark": ("cutline.cli.benchmark", "compare our networks with well-known ones on the same pictures"),
    "watch": ("cutline.cli.watch", "follow a run live"),
    "features": ("cutline.cli.features", "build, verify or show a store of picture features"),
    "demo": ("cutline.cli.demo", "draw, train, caption and score, in minutes, from nothing"),
    "doctor": ("cutline.cli.doctor", "show versions, devices, extras and limits"),
    "completion": ("cutline.cli.completion", "print a completion script for bash, zsh or fish"),
}


def usage() -> str:
    lines = ["Cutline teaches a small, fast model to describe pictures, and runs it anywhere.", ""]
    lines += ["usage: cutline VERB …        cutline VERB --help shows what a verb takes", ""]
    lines += [f"  {verb:<11} {line}" for verb, (_, line) in VERBS.items()]
    return "\n".join([*lines, "", "  --version   show the version"])


def main(argv: Sequence[str] | None = None) -> int:
    from cutline.errors import ConfigError, CutlineError, nearest

    _ready_streams()
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    # Threads that wait should soon sleep: on a machine that does anything else besides, spinning ones made a training
    # step fifteen times slower. But waking takes time, so GNU's OpenMP, which PyTorch has on Linux, may spin for about
    # 50 microseconds first. It must be said before PyTorch loads it.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    verb, *rest = arguments
    try:
        if verb in ("-h", "--help", "help"):
            print(usage(), flush=True)
            return 0
        if verb == "--version":
            from cutline import __version__

            print(f"cutline {__version__}", flush=True)
            return 0
        if verb not in VERBS:
            raise ConfigError(f"unknown verb '{verb}'{nearest(verb, VERBS)}", expected=", ".join(VERBS))
        module = importlib.import_module(VERBS[verb][0])
        code = int(module.main(rest) or 0)
        sys.stdout.flush()
        return code
    except CutlineError as error:
        print(f"cutline {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`).
        _write_no_more()
        return 141
    except OSError as error:
        if error.errno is None:
            raise
        named = f"{error.filename}: " if error.filename else ""
        print(f"cutline {verb}: {named}{error.strerror}", file=sys.stderr)
        _write_no_more()
        return 2


def _ready_streams() -> None:
    """Whatever our caller has closed, or cannot write, is no reason to end."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  # as long as we live
        elif isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _write_no_more() -> None:
    """Keep the interpreter from complaining, at its end, of what standard output would not take."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
