"""How every verb reads its arguments, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import tyro

T = TypeVar("T")


def parse(form: type[T], arguments: Sequence[str], *, verb: str) -> T:
    """An instance of the dataclass `form`; a misspelt flag exits with 2 and names the nearest one."""
    return tyro.cli(
        form,
        args=arguments,
        prog=f"cutline {verb}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
