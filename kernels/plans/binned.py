"""Argument checks of ``binned_counts``, shared by every form."""

from __future__ import annotations

from ...errors import UsageError
from ..types import Array

MOST_BINS = 1024
"""Bins of a table; a device keeps their edges in shared memory."""


def check_binned(scores: Array, truth: Array, top: Array, top_scores: Array, edges: Array, num_classes: int) -> None:
    """Check that the maps can be counted together.

    Raises:
        UsageError: the shapes differ, a map of classes does not hold integers, there are no or too many edges, or
            ``num_classes`` is not positive.
    """
    for name, array in (("truth", truth), ("top", top), ("top_scores", top_scores)):
        if array.shape != scores.shape:
            raise UsageError(f"{name} must have the shape of the scores, {scores.shape}, got {array.shape}")
    for name, array in (("truth", truth), ("top", top)):
        if array.dtype.kind not in "ui":
            raise UsageError(f"{name} must hold integers, got {array.dtype}")
    if len(edges.shape) != 1 or not 1 <= edges.shape[0] <= MOST_BINS:
        raise UsageError(f"edges must have the shape (B,) with B from 1 to {MOST_BINS}, got {edges.shape}")
    if num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")
