"""What a run has learned, step by step: one JSON object a line, the truth that every other view is made from.

Nothing in it depends on the clock or on interruptions (those are in the journal), so that a run that was stopped and
resumed leaves the same bytes as one that was not.
"""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

from cutline.console import say
from cutline.errors import require


class Sink(Protocol):
    """Another place that wants to see the events, such as TensorBoard."""

    def __call__(self, event: dict[str, Any]) -> None: ...


class Events:
    """Appends to `events.jsonl` and passes each event on to the sinks."""

    def __init__(self, path: Path, *sinks: Sink, keep_bytes: int = 0) -> None:
        """`keep_bytes` cuts the log to what a resumed run had written when its checkpoint was made."""
        self.path, self.sinks = path, sinks
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.size = min(keep_bytes, os.fstat(self._handle).st_size)
        if self.size < keep_bytes:
            say(f"{path} lacks {keep_bytes - self.size} bytes that were there at the checkpoint; what is left goes on")
        os.ftruncate(self._handle, self.size)
        self._unwritten = b""

    def write(self, kind: str, step: int, **values: Any) -> None:
        # JSON has no infinity, which a gradient's norm may be in fp16.
        whole = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        event = {"kind": kind, "step": step, **whole}
        line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
        self.size += len(line)
        self._unwritten += line
        self.flush()
        for sink in self.sinks:
            sink(event)

    def flush(self) -> bool:
        """Write what a full disk has kept back; False when it still does."""
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._handle, self._unwritten) :]
        except OSError:
            return False
        return True

    def cut(self, size: int) -> None:
        """Forget what came after the first `size` bytes: the run goes another way from there."""
        self.flush()
        os.ftruncate(self._handle, size)
        self.size, self._unwritten = size, b""

    def sync(self, size: int) -> None:
        """Make the first `size` bytes last, from any thread; an error when a full disk still keeps some back."""
        if os.fstat(self._handle).st_size < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fsync(self._handle)

    def close(self) -> None:
        self.flush()
        os.close(self._handle)


def read(path: Path) -> list[dict[str, Any]]:
    """All whole events; a last line cut short by a crash is left out."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [json.loads(line) for line in whole.splitlines()]  # of bytes: in text, letters of a name may end a line too


def best_validation(path: Path, step: int | None = None) -> dict[str, Any]:
    """What validation found at this step, or when it was at its best; nothing where it was never done."""
    found = [event for event in read(path) if event["kind"] == "validation" and step in (None, event["step"])]
    return max(found, key=lambda event: (event["best"], event["step"]), default={})


def tensorboard(folder: Path) -> Sink:
    """A sink that writes every figure of every event for TensorBoard.

    A disk that takes none of it costs the run nothing: what is missing there is in `events.jsonl`.
    """
    require("tensorboard", "tensorboard", "TensorBoard output")
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = None
    failed = False

    def sink(event: dict[str, Any]) -> None:
        nonlocal writer, failed
        if failed:  # its writer goes on to raise what it once did
            return
        try:
            writer = writer or SummaryWriter(str(folder))
            for key, value in event.items():
                if key != "step" and isinstance(value, int | float):
                    writer.add_scalar(f"{event['kind']}/{key}", value, event["step"])
            writer.flush()
        except OSError as error:
            failed = True
            say(f"nothing more is written for TensorBoard until the next start: {folder}: {error.strerror}")

    return sink
