"""Public function ``binned_counts``."""

from __future__ import annotations

from ..arrays import dispatch
from ..types import Array, ArrayT


def binned_counts(
    scores: ArrayT, truth: Array, top: Array, top_scores: Array, edges: Array, *, num_classes: int, ignore: int = 255
) -> ArrayT:
    """Count the pixels of labeled images by class and bin of a nonconformity score.

    Args:
        scores: float32, any shape: score of each pixel's true class.
        truth: integers, shaped like ``scores``; ``ignore`` and classes outside [0, num_classes) are excluded.
        top: integers, shaped like ``scores``: class of the highest score.
        top_scores: float32, shaped like ``scores``: nonconformity score of the top class.
        edges: float32 (B,), ascending, at most 1,024: largest score of each bin. A score above all of them, or NaN,
            counts in the last bin.
        num_classes: classes that are counted, K.
        ignore: value of ``truth`` that is excluded.

    Returns:
        uint32 (3, K, B): pixels by true class and ``scores``; those of them whose top class is right; pixels of other
        classes by top class and ``top_scores``.

    Raises:
        UsageError: the shapes differ, a map does not hold integers, or there are no or too many edges.
    """
    return dispatch("binned_counts", scores, truth, top, top_scores, edges, num_classes=num_classes, ignore=ignore)
