"""How every verb reads its arguments, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tyro

from cutline.errors import choose

T = TypeVar("T")
Task = tuple[Callable[[list[str]], int], str]
"""What a task of a verb does, and that in a line."""


def dispatch(verb: str, tasks: Mapping[str, Task], arguments: Sequence[str]) -> int:
    """Run the task of a verb that has several: `cutline data inspect …`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"usage: cutline {verb} TASK …   cutline {verb} TASK --help shows what a task takes", ""]
        print("\n".join([*lines, *(f"  {name:<9} {line}" for name, (_, line) in tasks.items())]))
        return 0
    name, *rest = arguments
    return tasks[choose(name, tasks, f"task of cutline {verb}")][0](rest)


def parse(form: type[T], arguments: Sequence[str], *, verb: str) -> T:
    """An instance of the dataclass `form`; a misspelt flag exits with 2 and names the nearest one."""
    return tyro.cli(
        form,
        args=arguments,
        prog=f"cutline {verb}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
