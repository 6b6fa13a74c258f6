"""A config file that says what each of its settings means."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import get_type_hints

from cutline import config
from cutline.config import Config


def explained(settings: Config) -> str:
    """As `to_toml`, with what each setting means above it."""
    meanings, lines, table = _meanings(), [], ""
    for line in config.to_toml(settings).splitlines():
        if line.startswith("["):
            table = line.strip("[]") + "."
        meaning = meanings.get(table + line.partition(" = ")[0], "")
        lines += [*textwrap.wrap(meaning, 79, initial_indent="# ", subsequent_indent="# "), line]
    return "\n".join(lines) + "\n"


def _meanings() -> dict[str, str]:
    """What stands below each setting in `config`, by the setting's name in a config file."""
    tables = {kind.__name__: f"{name}." for name, kind in get_type_hints(Config).items() if isinstance(kind, type)}
    found = {}
    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef):
            for setting, said in pairwise(node.body):
                if isinstance(setting, ast.AnnAssign) and isinstance(said, ast.Expr):
                    name = f"{tables.get(node.name, '')}{ast.unparse(setting.target)}"
                    found[name] = " ".join(ast.literal_eval(said.value).split())
    return found
