"""Public function ``confusion_counts``."""

from __future__ import annotations

from ..arrays import dispatch
from ..types import Array, ArrayT


def confusion_counts(
    label: ArrayT, truth: Array, *, num_classes: int, ignore: int = 255, out: ArrayT | None = None
) -> ArrayT:
    """Count the pixels of each pair of true class and label.

    Args:
        label: integers, (H, W), (N, H, W) or any other shape; values outside [0, num_classes) count in the last column.
        truth: integers, shaped like ``label``; pixels outside [0, num_classes) are excluded.
        num_classes: rows of the result.
        ignore: value of ``truth`` that is excluded too.
        out: int64 (num_classes, num_classes + 1), C-contiguous, to add to, so that counts of images merge.

    Returns:
        int64 (num_classes, num_classes + 1): pixels of true class (row) and label (column).

    Raises:
        UsageError: the shapes differ, a map does not hold integers, or num_classes is not positive.
    """
    return dispatch("confusion_counts", label, truth, num_classes=num_classes, ignore=ignore, out=out)
