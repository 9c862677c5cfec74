"""Conformal ranks, score counts and exact quantiles: the specification.

Source: Vovk et al., split conformal prediction; the k-th smallest of n calibration scores, k = ceil((n+1)(1-alpha)),
is the threshold of sets that contain a new exchangeable score with probability at least 1-alpha. Two counting passes
over an order-preserving integer key of the float32 scores find the k-th score: first over the high 16 bits, then over
the low 16 bits of the scores inside the selected bin. Counts add, so any sharding gives the same threshold.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ..plans.scores import BINS, conformal_rank, order_key


def _add_counts(
    out: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray | None,
    classes: np.ndarray | None,
    num_classes: int,
    prefix: np.ndarray | None,
) -> np.ndarray:
    is_number = ~np.isnan(scores)
    key = order_key(scores[is_number])
    high, low = key >> 16, key & (BINS - 1)
    for row in range(num_classes + 1):
        member = np.ones(key.size, bool)
        if row < num_classes:
            member[:] = False if classes is None else classes[is_number] == row
        bins = high
        if prefix is not None:
            member &= high == prefix[row]
            bins = low
        masses = None if weights is None else weights[is_number][member]
        out[row] += np.bincount(bins[member], masses, BINS).astype(out.dtype)
    return out


def score_counts(
    scores: np.ndarray,
    *,
    classes: np.ndarray | None = None,
    num_classes: int = 0,
    prefix: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Add the scores per bin to ``out``, uint64 (num_classes + 1, 65536): one row per class, then the pooled row.

    Without ``prefix`` the bins are the high halves of the keys; with it, int64 (num_classes + 1,), the low halves of
    the keys whose high half is the row's prefix (none for a negative prefix). NaN is excluded, infinities count. A
    score whose class is not in [0, num_classes) counts only in the pooled row.
    """
    out = np.zeros((num_classes + 1, BINS), np.uint64) if out is None else out
    return _add_counts(out, np.asarray(scores, np.float32), None, classes, num_classes, prefix)


def weighted_score_counts(
    scores: np.ndarray,
    weights: np.ndarray,
    *,
    classes: np.ndarray | None = None,
    num_classes: int = 0,
    prefix: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Add the scores' weights per bin to ``out``, float64 (num_classes + 1, 65536), as :func:`score_counts`."""
    out = np.zeros((num_classes + 1, BINS), np.float64) if out is None else out
    weights = np.asarray(weights, np.float64)
    return _add_counts(out, np.asarray(scores, np.float32), weights, classes, num_classes, prefix)


def position_quantiles(
    scores: np.ndarray, alpha: float | str | Fraction, *, fallback: float = np.inf, out: np.ndarray | None = None
) -> np.ndarray:
    """Compute the conformal threshold of every position, float32 (h, w), from float32 scores (n, h, w), NaN = none.

    Each position has its own n and rank; no score gives ``fallback``, too few scores for alpha give +inf.
    """
    scores = np.asarray(scores, np.float32)
    ranks = np.array([conformal_rank(n, alpha) for n in range(len(scores) + 1)])
    numbers = np.count_nonzero(~np.isnan(scores), axis=0)
    rank = ranks[numbers]
    # NaN sorts last, so the scores come first; the extra layer is the infinite threshold.
    padded_scores = np.concatenate([np.sort(scores, axis=0), np.full((1, *scores.shape[1:]), np.inf, np.float32)])
    layer = np.where(rank > numbers, len(scores), rank - 1)
    quantiles = np.take_along_axis(padded_scores, layer[None], axis=0)[0]
    result = np.where(numbers == 0, np.float32(fallback), quantiles)
    if out is None:
        return result
    out[...] = result
    return out
