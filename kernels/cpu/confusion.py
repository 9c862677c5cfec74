"""Confusion counts with Numba."""

from __future__ import annotations

import numpy as np

from ..plans.confusion import check_maps
from ..plans.outputs import output
from .compiled import compiled
from .threads import num_threads, share

_WORTH_THREADS = 1 << 20
"""Number of pixels below which starting threads costs more than it saves."""


@compiled()
def _count(label, truth, ignore, counts):
    """Add the pixels of flat maps to counts (rows, rows + 1)."""
    num_classes = counts.shape[0]
    for i in range(truth.size):
        row = np.int64(truth[i])
        if 0 <= row < num_classes and row != ignore:
            column = np.int64(label[i])
            if column < 0 or column > num_classes:
                column = np.int64(num_classes)
            counts[row, column] += 1


def confusion_counts(
    label: np.ndarray, truth: np.ndarray, *, num_classes: int, ignore: int = 255, out: np.ndarray | None = None
) -> np.ndarray:
    """Run :func:`maskmill.kernels.confusion_counts` on NumPy arrays."""
    check_maps(label, truth, num_classes)
    shape = (num_classes, num_classes + 1)
    counts = np.zeros(shape, np.int64) if out is None else output(out, shape, np.int64)
    label, truth = np.ascontiguousarray(label).reshape(-1), np.ascontiguousarray(truth).reshape(-1)
    threads = num_threads(truth.size, _WORTH_THREADS)
    if threads == 1:
        _count(label, truth, ignore, counts)
        return counts
    partial = np.zeros((threads, *shape), np.int64)
    pieces = zip(np.array_split(label, threads), np.array_split(truth, threads), partial, strict=True)
    share(_count, [(labels, truths, ignore, row) for labels, truths, row in pieces], threads)
    counts += partial.sum(axis=0)
    return counts
