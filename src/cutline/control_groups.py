"""What control groups of Linux, of version 1 or 2, leave to this process: containers and batch systems set them.

Functions take the root of the file system, below which they find `/proc` and `/sys`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
NO_LIMIT = 2**60
"""Version 1 of control groups writes "no limit" as a number of about this size or above."""


@dataclass(frozen=True)
class Memory:
    limit: int
    used: int

    @property
    def left(self) -> int:
        return self.limit - self.used


def memory(root: Path = ROOT) -> list[Memory]:
    """The process's control group and those above it, as far as they limit memory.

    In use is all but the pages of files that nobody has lately asked for: the kernel gives those up before it kills.
    """
    found = []
    for folder in _folders(root, "memory"):
        for maximum, current, idle in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(folder / maximum), _number(folder / current)
            if limit is not None and used is not None and limit < NO_LIMIT:
                found.append(Memory(limit, max(0, used - _table(folder / "memory.stat").get(idle, 0))))
    return found


def processors(root: Path = ROOT) -> int | None:
    """As many as the process's control groups give it the time of, a part of one as one; None where none limits it."""
    found = []
    for folder in _folders(root, "cpu"):
        told = " ".join(_lines(folder / "cpu.max")).split() or [
            *_lines(folder / "cpu.cfs_quota_us"),
            *_lines(folder / "cpu.cfs_period_us"),
        ]
        if len(told) == 2 and told[0].isdecimal():  # "max" and -1 are no limit
            found.append(math.ceil(int(told[0]) / int(told[1])))
    return min(found, default=None)


def oom_kills(root: Path = ROOT) -> int:
    """How many processes of this control group the kernel has ended for want of memory.

    The kernel counts a victim in its own group, whichever limit was hit, its parent's or the machine's; the parent's
    count would add what befell its other children. Where groups do not count, the whole machine's count stands in.
    """
    for folder in _folders(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):  # of version 2, of version 1
            counts = _table(folder / name)
            if "oom_kill" in counts:
                return counts["oom_kill"]
    return _table(root / "proc/vmstat").get("oom_kill", 0)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the groups that may limit the process, its own first."""
    own = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if not controllers or controller in controllers.split(","):
            own["cgroup" if controllers else "cgroup2"] = name
    for kind, mounted, at in _mounts(root, controller):
        if kind not in own:
            continue
        path = PurePosixPath(own.pop(kind))
        # A container sees its own group as the top of the tree, but may be told the path it has outside.
        inside = path.relative_to(mounted) if path.is_relative_to(mounted) and ".." not in path.parts else ""
        top = root / at.lstrip("/")
        folder = top / inside
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(top))


def _mounts(root: Path, controller: str) -> Iterator[tuple[str, str, str]]:
    """Of each tree of control groups with a say: its kind, the group at its top, and where it is mounted."""
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if len(fields) < 5 or len(tail) < 3:
            continue
        if tail[0] == "cgroup2" or (tail[0] == "cgroup" and controller in tail[2].split(",")):
            yield tail[0], _unescape(fields[3]), _unescape(fields[4])


def _unescape(path: str) -> str:
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), path)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # another system, or a group that has no such file
        return []


def _number(path: Path) -> int | None:
    text = "".join(_lines(path))
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """Lines of `name number`."""
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
