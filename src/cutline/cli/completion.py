"""`cutline completion SHELL`: complete verbs and their flags with the Tab key."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from typing import Literal

import tyro

from cutline.cli.arguments import parse

BASH = """\
_cutline() {
  local word="${COMP_WORDS[COMP_CWORD]}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then words="%(verbs)s"; else
    case "${COMP_WORDS[1]}" in
%(cases)s
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [ "$COMP_CWORD" -gt 1 ] && [ "${word#-}" = "$word" ]; then COMPREPLY+=($(compgen -f -- "$word")); fi
}
complete -o filenames -F _cutline cutline
"""


@dataclass(frozen=True)
class Completion:
    """Print a completion script. For bash: cutline completion bash >> ~/.bash_completion"""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Which shell."""


def main(arguments: list[str]) -> int:
    print(script(parse(Completion, arguments, verb="completion").shell), end="")
    return 0


def script(shell: str) -> str:
    from cutline.cli import VERBS

    flags = {verb: flags_of(verb) for verb in VERBS}
    if shell == "fish":
        lines = [f"complete -c cutline -n __fish_use_subcommand -a {verb} -d '{VERBS[verb][1]}'" for verb in VERBS]
        for verb, names in flags.items():
            lines += [f"complete -c cutline -n '__fish_seen_subcommand_from {verb}' -l {n[2:]}" for n in names]
        return "\n".join(lines) + "\n"
    cases = "\n".join(f'      {verb}) words="{" ".join(names)}" ;;' for verb, names in flags.items())
    text = BASH % {"verbs": " ".join(VERBS), "cases": cases}
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def flags_of(verb: str) -> list[str]:
    """A verb's flags, as its own help shows them, so that the two cannot differ."""
    import importlib

    from cutline.cli import VERBS

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        importlib.import_module(VERBS[verb][0]).main(["--help"])
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", shown.getvalue())))
