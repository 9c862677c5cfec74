"""Public functions for exact conformal thresholds: ranks, score counts and quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ..arrays import dispatch
from ..plans.scores import conformal_rank
from ..types import Array, ArrayT

__all__ = [
    "conformal_rank",
    "kth_score",
    "position_quantiles",
    "score_counts",
    "select_prefix",
    "weighted_score_counts",
]


def score_counts(
    scores: ArrayT,
    *,
    classes: Array | None = None,
    num_classes: int = 0,
    prefix: Array | None = None,
    out: ArrayT | None = None,
) -> ArrayT:
    """Count scores per bin; two such passes find an exact quantile.

    Args:
        scores: float32, any shape. NaN is excluded, infinities count.
        classes: integers, shaped like ``scores``; a score whose class is not in [0, num_classes) counts only in the
            pooled row.
        num_classes: rows before the pooled one, which is the last.
        prefix: int64 (num_classes + 1,), from :func:`select_prefix`. Without it the bins are the high 16 bits of the
            scores' order-preserving keys; with it, the low 16 bits of the scores in the row's bin.
        out: uint64 (num_classes + 1, 65536) to add to, so that counts of shards merge.

    Returns:
        uint64 (num_classes + 1, 65536).

    Raises:
        UsageError: ``classes`` or ``prefix`` has the wrong shape.
    """
    return dispatch("score_counts", scores, classes=classes, num_classes=num_classes, prefix=prefix, out=out)


def weighted_score_counts(
    scores: ArrayT,
    weights: Array,
    *,
    classes: Array | None = None,
    num_classes: int = 0,
    prefix: Array | None = None,
    out: ArrayT | None = None,
) -> ArrayT:
    """Sum the weights of the scores in each bin.

    Args:
        scores: as in :func:`score_counts`.
        weights: float64, shaped like ``scores``.
        classes: as in :func:`score_counts`.
        num_classes: as in :func:`score_counts`.
        prefix: as in :func:`score_counts`.
        out: float64 (num_classes + 1, 65536) to add to.

    Returns:
        float64 (num_classes + 1, 65536).

    Raises:
        UsageError: ``weights``, ``classes`` or ``prefix`` has the wrong shape.
    """
    return dispatch(
        "weighted_score_counts", scores, weights, classes=classes, num_classes=num_classes, prefix=prefix, out=out
    )


def select_prefix(counts: ArrayT, ranks: Array | Sequence[int] | int) -> tuple[ArrayT, ArrayT]:
    """Find the bin of each row that holds the k-th score, and the score's rank inside that bin.

    Args:
        counts: (rows, 65536), from the first pass of :func:`score_counts` or :func:`weighted_score_counts`.
        ranks: k, from 1: (rows,) or one value for all rows; for weighted counts, a weight.

    Returns:
        int64 (rows,): the bin, or -1 if the rank exceeds the row's total; and (rows,): the rank inside the bin.

    Raises:
        UsageError: a rank is not positive (on a CPU).
    """
    return dispatch("select_prefix", counts, ranks)


def kth_score(counts_low: ArrayT, prefix: Array, ranks_within: Array) -> ArrayT:
    """Return the k-th score of each row from the counts of the second pass.

    Args:
        counts_low: (rows, 65536), counted with ``prefix``.
        prefix: int64 (rows,), from :func:`select_prefix`.
        ranks_within: (rows,), from :func:`select_prefix`.

    Returns:
        float32 (rows,); +inf if the prefix is -1.

    Raises:
        UsageError: the two passes counted different scores (on a CPU).
    """
    return dispatch("kth_score", counts_low, prefix, ranks_within)


def position_quantiles(
    scores: ArrayT, alpha: float | str | Fraction, *, fallback: float = np.inf, out: ArrayT | None = None
) -> ArrayT:
    """Return the conformal threshold of every position.

    Args:
        scores: (n, h, w) float32, NaN if an image does not cover the position.
        alpha: miscoverage in (0, 1); see :func:`conformal_rank`. Each position has its own number of scores.
        fallback: threshold of positions without a score.
        out: array to fill.

    Returns:
        float32 (h, w).

    Raises:
        UsageError: alpha is not inside (0, 1).

    Source: ConformalSAM.
    """
    return dispatch("position_quantiles", scores, alpha, fallback=fallback, out=out)
