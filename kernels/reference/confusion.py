"""Counts of true class against label: the specification."""

from __future__ import annotations

import numpy as np

from ..plans.confusion import check_maps


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
