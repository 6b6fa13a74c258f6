"""Pictures of three colours as classes, and settings to learn them; other tests have settings of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.coloured import draw, settings

from cutline.config import Config


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("coloured"))


@pytest.fixture
def config(coloured: Path, tmp_path: Path) -> Config:
    return settings(coloured, tmp_path)
