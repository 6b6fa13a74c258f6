"""Markup that is safe by construction: whatever is not `Html` is text, and is escaped."""

from __future__ import annotations

import html

from cutline.data.files import plain

_EMPTY = {"img", "meta"}
"""Elements that have no end."""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: str | float | None) -> Html:
    """An element. `class_` stands for `class`, `_` for `-`; an attribute that is None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    start = Html(f"<{name}{given}>")
    return start if name in _EMPTY else join(start, *content, Html(f"</{name}>"))


def join(*parts: str) -> Html:
    """Markup one after another."""
    return Html("".join(part if isinstance(part, Html) else _escape(part) for part in parts))


def _escape(text: str) -> str:
    return html.escape(plain(text))
