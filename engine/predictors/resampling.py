"""Bilinear and nearest resampling of maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def bilinear_weights(
    cells: int, extent: float, samples: int, covered: float, *, mirrored: bool = False
) -> NDArray[np.float32]:
    """(cells, samples): weights that resample a map along one axis; sampled beyond its middle, an edge value repeats.

    The image covers the first ``extent`` cells and the first ``covered`` share of the samples.
    """
    share = np.minimum((np.arange(cells) + 0.5) / extent, 1.0)
    share = 1.0 - share if mirrored else share
    position = np.clip(share * covered * samples - 0.5, 0, samples - 1)
    below = np.minimum(position.astype(np.int64), max(samples - 2, 0))
    fraction = (position - below).astype(np.float32)
    weights = np.zeros((cells, samples), np.float32)
    row = np.arange(cells)
    weights[row, below] = 1 - fraction
    weights[row, np.minimum(below + 1, samples - 1)] += fraction
    return weights


def resample_nearest(array: Any, size: tuple[int, int], xp: Any = np) -> Any:
    """Nearest-neighbor resampling of (H, W) with half-pixel centers; ``xp`` is the library of ``array``."""
    rows, columns = (
        (xp.arange(length) * 2 + 1) * cells // (2 * length) for length, cells in zip(size, array.shape, strict=True)
    )
    return array[rows[:, None], columns]
