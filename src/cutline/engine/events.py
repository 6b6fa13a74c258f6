"""The log of a run: one JSON object a line, the truth that every other view is made from."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

from cutline.errors import require


class Sink(Protocol):
    """Another place that wants to see the events, such as TensorBoard."""

    def __call__(self, event: dict[str, Any]) -> None: ...


class Events:
    """Appends to `events.jsonl` and passes each event on to the sinks."""

    def __init__(self, path: Path, *sinks: Sink, keep_bytes: int | None = None) -> None:
        """`keep_bytes` cuts the log to what a resumed run had written when its checkpoint was made."""
        self.path, self.sinks = path, sinks
        if keep_bytes is not None and path.exists():
            os.truncate(path, min(keep_bytes, path.stat().st_size))
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, **values: Any) -> None:
        # JSON has no infinity, which a gradient's norm may be in fp16.
        whole = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        event = {"kind": kind, "step": step, "time": round(time.time(), 3), **whole}
        self._file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._file.flush()
        for sink in self.sinks:
            sink(event)

    @property
    def size(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """All whole events; a last line cut short by a crash is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def tensorboard(folder: Path) -> Sink:
    """A sink that writes every figure of every event for TensorBoard."""
    require("tensorboard", "tensorboard", "TensorBoard output")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def sink(event: dict[str, Any]) -> None:
        for key, value in event.items():
            if key not in ("step", "time") and isinstance(value, int | float):
                writer.add_scalar(f"{event['kind']}/{key}", value, event["step"], event["time"])
        writer.flush()

    return sink
