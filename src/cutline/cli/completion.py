"""`cutline completion SHELL`: complete verbs and their flags with the Tab key."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from dataclasses import dataclass
from typing import Literal

import tyro

from cutline.cli import VERBS
from cutline.cli.arguments import parse

BASH = """\
_cutline() {
  local word="${COMP_WORDS[COMP_CWORD]}" given="" words=""
  if [ "$COMP_CWORD" -gt 1 ]; then given="${COMP_WORDS[1]}"; fi
  case "$given ${COMP_WORDS[2]}" in
%(tasks)s
    *) case "$given" in
%(verbs)s
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [ "$COMP_CWORD" -gt 1 ] && [ "${word#-}" = "$word" ]; then
    local IFS=$'\\n'  # names may have spaces
    COMPREPLY+=($(compgen -f -- "$word"))
  fi
}
complete -o filenames -F _cutline cutline
"""
ZSH = """\
(( $+functions[compdef] )) || { autoload -U compinit && compinit }
autoload -U +X bashcompinit && bashcompinit
"""


@dataclass(frozen=True)
class Completion:
    """Print a completion script.

    For bash: cutline completion bash >> ~/.bash_completion

    For zsh: cutline completion zsh >> ~/.zshrc

    For fish: cutline completion fish > ~/.config/fish/completions/cutline.fish
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Which shell."""


def main(arguments: list[str]) -> int:
    print(script(parse(Completion, arguments, verb="completion").shell), end="")
    return 0


def script(shell: str) -> str:
    words = {"": [*VERBS], **{verb: [*tasks_of(verb), *flags_of(verb)] for verb in VERBS}}
    deeper = {(verb, task): flags_of(verb, task) for verb in VERBS for task in tasks_of(verb)}
    if shell == "fish":
        return _fish(words, deeper)
    text = BASH % {
        "tasks": "\n".join(
            f'    "{verb} {task}") words="{" ".join(names)}" ;;' for (verb, task), names in deeper.items()
        ),
        "verbs": "\n".join(f'      "{verb}") words="{" ".join(names)}" ;;' for verb, names in words.items()),
    }
    return ZSH + text if shell == "zsh" else text


def _fish(words: dict[str, list[str]], deeper: dict[tuple[str, str], list[str]]) -> str:
    about = {verb: line.replace("'", r"\'") for verb, (_, line) in VERBS.items()}
    lines = [f"complete -c cutline -n __fish_use_subcommand -a {verb} -d '{about[verb]}'" for verb in VERBS]
    everything = {(verb,): names for verb, names in words.items() if verb} | deeper
    for place, names in everything.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in place)
        lines += [
            f"complete -c cutline -n '{seen}' " + (f"-l {name[2:]}" if name.startswith("--") else f"-a {name}")
            for name in names
        ]
    return "\n".join(lines) + "\n"


def tasks_of(verb: str) -> list[str]:
    """The tasks of a verb that has some, such as `data inspect`."""
    return list(getattr(importlib.import_module(VERBS[verb][0]), "TASKS", ()))


def flags_of(verb: str, task: str | None = None) -> list[str]:
    """A verb's flags, as its own help shows them, so that the two cannot differ."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        importlib.import_module(VERBS[verb][0]).main([*([task] if task else []), "--help"])
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", shown.getvalue())))
