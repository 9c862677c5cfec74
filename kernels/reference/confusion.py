"""Confusion counts: the specification."""

from __future__ import annotations

import numpy as np

from ..plans.confusion import check_maps


def confusion_counts(
    label: np.ndarray, truth: np.ndarray, *, num_classes: int, ignore: int = 255, out: np.ndarray | None = None
) -> np.ndarray:
    """Add the pixels of each true class (row) and label (column) to ``out``, int64 (num_classes, num_classes + 1).

    The last column counts every label outside [0, num_classes). Pixels whose truth is ``ignore``, or outside
    [0, num_classes), are excluded.
    """
    label, truth = np.asarray(label), np.asarray(truth)
    check_maps(label, truth, num_classes)
    counts = np.zeros((num_classes, num_classes + 1), np.int64) if out is None else out
    has_class = (truth >= 0) & (truth < num_classes) & (truth != ignore)
    column = np.where((label >= 0) & (label < num_classes), label, num_classes)
    np.add.at(counts, (truth[has_class], column[has_class]), 1)
    return counts
