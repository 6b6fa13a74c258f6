"""The same picture seen several times: as it is, mirrored, and a little to each side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutline.errors import ConfigError

COUNTS = (1, 2, 10)
_ASIDE = 16
"""A view to the side is off by this part of the picture's side."""


def views(pictures: NDArray[Any], count: int) -> list[NDArray[Any]]:
    """Pictures (B,H,W,3) as they are; for 2 also mirrored; for 10 also moved to each corner, and those mirrored.

    What a move leaves empty is filled with what lies beside it, mirrored, so that no view has an edge of its own.
    """
    if count not in COUNTS:
        raise ConfigError(f"{count} views of a picture", expected=", ".join(map(str, COUNTS)))
    seen = [pictures]
    if count == 10:
        height, width = pictures.shape[1:3]
        rows, columns = height // _ASIDE, width // _ASIDE
        wide = np.pad(pictures, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode="reflect")
        for top in (0, 2 * rows):
            seen += [wide[:, top : top + height, left : left + width] for left in (0, 2 * columns)]
    mirrored = [each[:, :, ::-1] for each in seen] if count > 1 else []
    return [np.ascontiguousarray(each) for each in (*seen, *mirrored)]
