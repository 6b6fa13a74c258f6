"""`cutline doctor`: what is installed, what the machine has, and what that means for Cutline."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutline import __version__, control_groups, cpus
from cutline.cli.arguments import parse

PATIENCE = 20.0
"""Seconds that a driver has to answer."""
EXTRAS = {
    "": ("numpy", "pillow", "onnxruntime", "rich", "tyro"),
    "train": (
        "torch", "torchvision", "timm", "safetensors", "tokenizers", "regex", "xxhash", "tomli-w", "onnx", "onnxscript",
        "scikit-learn", "matplotlib", "psutil", "filelock",
    ),
    "openvino": ("openvino",),
    "tensorboard": ("tensorboard",),
    "health": ("nvidia-ml-py", "prometheus-client"),
    "heic": ("pillow-heif",),
}  # fmt: skip


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices, extras and limits: what to send along with a question."""

    json: bool = False
    """Print one JSON object."""


def main(arguments: list[str]) -> int:
    given = parse(Doctor, arguments, verb="doctor")
    facts = examine()
    if given.json:
        print(json.dumps(facts, indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if isinstance(value, dict):
            for part, version in value.items():
                table.add_row(f"  {part}" if name else part, str(version or "not installed"))
        else:
            table.add_row(name, str(value))
    Console(markup=False, highlight=False).print(table)  # the brackets of cutline[train] are no markup
    return 0


def examine() -> dict[str, Any]:
    memory, limit = memory_bytes()
    facts: dict[str, Any] = {
        "cutline": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": f"{processor()}; {cpus.count()} cores for us",
        "number formats": ", ".join(number_formats()) or "plain",
        "memory": f"{memory / 1e9:.1f} GB" + (f", limited to {limit / 1e9:.1f} GB" if limit else ""),
        "disk here": disk_here(),
        "open files": open_files(),
        "GPU": gpus(),
    }
    for extra, packages in EXTRAS.items():
        facts[f"extra '{extra}'" if extra else "core"] = {name: version(name) for name in packages}
    missing = [
        f"pip install 'cutline[{extra}]'" for extra in EXTRAS if extra and not all(facts[f"extra '{extra}'"].values())
    ]
    facts["to add"] = "; ".join(missing) or "nothing: every extra is there"
    return facts


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def number_formats() -> list[str]:
    """The fast formats that the processor has units for."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    known = {"amx_bf16": "bf16 (AMX)", "avx512_bf16": "bf16 (AVX-512)", "avx512_vnni": "int8 (AVX-512)", "avx2": "AVX2"}
    return [name for flag, name in known.items() if flag in flags]


def memory_bytes() -> tuple[int, int]:
    """All of the machine's, and the limit that a container puts on us (0: none)."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = min((group.limit for group in control_groups.memory()), default=whole)
    return whole, limit if limit < whole else 0


def open_files() -> str:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{soft}, at most {hard}"


def disk_here() -> str:
    try:
        return f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB free"
    except OSError as error:
        return f"not known: {error.strerror}"


def gpus() -> str:
    """Asked of the driver, so that it needs no torch."""
    import subprocess

    tool = shutil.which("nvidia-smi")
    if not tool:
        return "none found (no nvidia-smi)"
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return "nvidia-smi does not answer"
    return "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else "nvidia-smi finds none"
