"""Bilinear and nearest resampling of maps, at the positions and with the rounding of the decode kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.plans.class_stats import bilinear_taps
from ...kernels.types import BackendArray
from ..backends.base import Backend


def bilinear_matrix(position: NDArray[np.float64], samples: int) -> NDArray[np.float32]:
    """Build the (len(position), samples) matrix that interpolates ``samples`` values at ``position``.

    Positions are in samples, 0 at the center of the first; outside the middle of the map an edge value repeats. The
    weights are computed in float64 and rounded once, as the decode kernel computes them.
    """
    position = np.clip(position, 0, samples - 1)
    lower = position.astype(np.int64)
    weight = position - lower
    matrix = np.zeros((len(position), samples), np.float32)
    row = np.arange(len(position))
    matrix[row, lower] = 1 - weight
    matrix[row, np.minimum(lower + 1, samples - 1)] += weight.astype(np.float32)
    return matrix


def bilinear_weights(
    cells: int, extent: float, samples: int, covered: float, *, mirrored: bool = False
) -> NDArray[np.float32]:
    """Build the (cells, samples) matrix that resamples a map along one axis.

    The image covers the first ``extent`` cells and the first ``covered`` share of the samples; ``mirrored`` reads the
    samples from the image's other edge.
    """
    share = np.minimum((np.arange(cells) + 0.5) / extent, 1.0)
    share = 1.0 - share if mirrored else share
    return bilinear_matrix(share * covered * samples - 0.5, samples)


def sample_pixels(
    scores: Any, size: tuple[int, int], region: tuple[float, float, float, float], cells: Any, backend: Backend
) -> BackendArray:
    """Interpolate the values (S, C) float32 of a map (h, w, C) at the flat pixel indices ``cells`` of the map decoded
    to ``size``; ``region`` (y0, x0, y1, x1) is the part of the map that covers the pixels. All are on ``backend``.
    """
    taps = []
    for axis, index in enumerate((cells // size[1], cells % size[1])):
        along = bilinear_taps(scores.shape[axis], size[axis], region[axis], region[axis + 2])
        lower, upper, weight = (backend.constant(array)[index] for array in (along.lower, along.upper, along.weight))
        taps.append((lower, upper, weight[:, None]))
    (above, below, down), (left, right, across) = taps
    upper = (1 - across) * scores[above, left] + across * scores[above, right]
    lower = (1 - across) * scores[below, left] + across * scores[below, right]
    return ((1 - down) * upper + down * lower).astype(np.float32)


def resample_nearest(array: Any, size: tuple[int, int], xp: Any = np) -> BackendArray:
    """Resample (H, W) to ``size`` by nearest neighbor with half-pixel centers; ``xp`` is the library of ``array``."""
    rows, columns = (
        (xp.arange(length) * 2 + 1) * cells // (2 * length) for length, cells in zip(size, array.shape, strict=True)
    )
    return array[rows[:, None], columns]
