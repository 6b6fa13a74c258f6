"""Which pictures are named."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from cutline.cli.pictures import named


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_list_on_standard_input_may_begin_with_a_mark(mark: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    given = io.BufferedReader(io.BytesIO(mark + "é.jpg\r\n\nb c.png".encode()))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given))
    assert [Path(str(each)).name for each in named(["-"]).files] == ["é.jpg", "b c.png"]
