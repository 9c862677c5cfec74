"""Argument checks of ``confusion_counts``, shared by every form."""

from __future__ import annotations

from ...errors import UsageError
from ..types import Array


def check_maps(label: Array, truth: Array, num_classes: int) -> None:
    """Check that two maps can be compared pixel by pixel.

    Raises:
        UsageError: the shapes differ, a map does not hold integers, or ``num_classes`` is not positive.
    """
    if label.shape != truth.shape:
        raise UsageError(f"label and truth must have the same shape, got {label.shape} and {truth.shape}")
    for name, array in (("label", label), ("truth", truth)):
        if array.dtype.kind not in "ui":
            raise UsageError(f"{name} must hold integers, got {array.dtype}")
    if num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")
