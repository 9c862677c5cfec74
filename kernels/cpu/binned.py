"""Binned score counts with Numba."""

from __future__ import annotations

import numpy as np

from ..plans.binned import check_binned
from .compiled import compiled


@compiled(inline="always")
def _bin(edges, score):
    """Return the first bin whose edge is at least the score; the last one if there is none or the score is NaN."""
    low, high = 0, edges.size - 1
    if score != score:
        return high
    while low < high:
        middle = (low + high) // 2
        if edges[middle] < score:
            low = middle + 1
        else:
            high = middle
    return low


@compiled()
def _count(scores, truth, top, top_scores, edges, ignore, counts):
    """Add the pixels of flat maps to counts (3, rows, bins)."""
    num_classes = counts.shape[1]
    for i in range(truth.size):
        row = np.int64(truth[i])
        if row < 0 or row >= num_classes or row == ignore:
            continue
        score_bin = _bin(edges, scores[i])
        counts[0, row, score_bin] += 1
        best = np.int64(top[i])
        if best == row:
            counts[1, row, score_bin] += 1
        elif 0 <= best < num_classes:
            counts[2, best, _bin(edges, top_scores[i])] += 1


def binned_counts(
    scores: np.ndarray,
    truth: np.ndarray,
    top: np.ndarray,
    top_scores: np.ndarray,
    edges: np.ndarray,
    *,
    num_classes: int,
    ignore: int = 255,
) -> np.ndarray:
    """Run :func:`maskmill.kernels.binned_counts` on NumPy arrays."""
    check_binned(scores, truth, top, top_scores, edges, num_classes)
    counts = np.zeros((3, num_classes, len(edges)), np.uint32)
    arrays = [np.ascontiguousarray(array, np.float32).reshape(-1) for array in (scores, top_scores, edges)]
    classes = [np.ascontiguousarray(array).reshape(-1) for array in (truth, top)]
    _count(arrays[0], *classes, arrays[1], arrays[2], ignore, counts)
    return counts
