"""Counts of true class against label: the specification."""

from __future__ import annotations

import numpy as np

from ...errors import UsageError


def check_maps(label, truth, num_classes: int) -> None:
    """Refuse maps that cannot be compared pixel by pixel.

    Raises:
        UsageError: the shapes differ, a map holds no integers, or ``num_classes`` is not positive.
    """
    if label.shape != truth.shape:
        raise UsageError(f"label and truth must have the same shape, got {label.shape} and {truth.shape}")
    for name, array in (("label", label), ("truth", truth)):
        if array.dtype.kind not in "ui":
            raise UsageError(f"{name} must hold integers, got {array.dtype}")
    if num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")


def confusion_counts(label, truth, *, num_classes, ignore=255, out=None):
    """int64 (num_classes, num_classes + 1): pixels of true class (row) and label (column), added into ``out``.

    The last column counts every label outside [0, num_classes). Pixels whose truth is ``ignore``, or outside
    [0, num_classes), are left out.
    """
    label, truth = np.asarray(label), np.asarray(truth)
    check_maps(label, truth, num_classes)
    counts = np.zeros((num_classes, num_classes + 1), np.int64) if out is None else out
    seen = (truth >= 0) & (truth < num_classes) & (truth != ignore)
    column = np.where((label >= 0) & (label < num_classes), label, num_classes)
    np.add.at(counts, (truth[seen], column[seen]), 1)
    return counts
