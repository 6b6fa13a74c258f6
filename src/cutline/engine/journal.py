"""What happens to a run while it learns: starts, saves, restarts, alerts, the machine's health; each with its time.

Beside it stands `events.jsonl`, what the run has learned: that is a function of its settings and data and comes out the
same, byte for byte, however often the run was interrupted. The journal is the story of those interruptions, so it is
only ever added to, by every process that has to do with the run and is on its first machine. The others have a journal
each: a disk that machines share does not keep apart what two of them append to one file.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"


class Journal:
    """Appends to `RUN/journal.jsonl`, or to that of another machine; several processes may, at the same time."""

    def __init__(self, run: Path, machine: str = "") -> None:
        self.path = run / (f"journal-{machine}.jsonl" if machine else NAME)

    def write(self, kind: str, **values: Any) -> bool:
        """False when it could not be written, as on a full disk: no run ends because of its journal."""
        entry = {"time": round(time.time(), 3), "kind": kind, **values}
        text = json.dumps(entry, ensure_ascii=False, default=str) + "\n"
        line = text.encode(errors="backslashreplace")  # as JSON has it: a path may be no text in UTF-8
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError:
            return False
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":  # a power loss or a full disk has cut the last one
                line = b"\n" + line
            return os.write(handle, line) == len(line)  # one call, so that lines of two processes never mix
        except OSError:
            return False
        finally:
            os.close(handle)

    def started(self, **values: Any) -> None:
        """This process begins to work on the run, or to see that others do."""
        self.write("started", pid=os.getpid(), host=socket.gethostname(), **values)


def of_machines(run: Path) -> dict[str, Path]:
    """The journals of the machines that are not the first, by their names."""
    return {path.stem.removeprefix("journal-"): path for path in sorted(run.glob("journal-*.jsonl"))}


def read(run: Path) -> list[dict[str, Any]]:
    """All whole entries of the first machine, oldest first; a line that was cut short is left out."""
    return entries(run / NAME)


def entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "kind" in entry:
            found.append(entry)
    return found
