"""Many numbers of each picture as two that can be drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cutline.errors import require

_KEPT = 50
"""Components that t-SNE starts from: what lies beyond is mostly noise, and costs most of its time."""


def pca(features: NDArray[np.floating], wanted: int) -> NDArray[np.float64]:
    """(N,P) along the directions in which they differ most, each turned so that its largest part is positive."""
    centred = np.asarray(features, np.float64) - np.mean(features, 0, dtype=np.float64)
    left, strengths, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    return np.asarray((left * strengths * signs)[:, :wanted])


def tsne(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,P) to (N,2) in which neighbours stay neighbours; distances between groups mean nothing."""
    manifold = require("sklearn.manifold", "train", "the map of pictures")
    if (features == features[0]).all():  # scikit-learn would divide by their spread, and crash
        return np.zeros((len(features), 2))
    few = min(30.0, (len(features) - 1) / 3)
    start = pca(features, _KEPT)
    found = manifold.TSNE(2, perplexity=few, init="pca", random_state=0).fit_transform(start)
    return np.asarray(found, np.float64)
