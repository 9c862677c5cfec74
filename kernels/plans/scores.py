"""Order statistics of nonconformity scores: ranks, sortable keys, and the host half of the two-pass quantile."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from ...errors import UsageError

BINS = 1 << 16
"""Bins of one row of counts: one for each value of half a key."""

_SIGN = np.uint32(1 << 31)


def conformal_rank(n: int, alpha: float | str | Fraction) -> int:
    """Return the rank k (1-based) of the calibration score that is the threshold.

    k = n + 1 - floor((n + 1) * alpha) in integers, and alpha is the decimal that it prints as (0.1 is 1/10). An
    infinite threshold has k = n + 1.

    Raises:
        UsageError: n is negative, or alpha is not inside (0, 1).
    """
    level = alpha if isinstance(alpha, Fraction) else Fraction(str(alpha))
    if not 0 < level < 1:
        raise UsageError(f"alpha must be between 0 and 1, got {alpha}")
    if n < 0:
        raise UsageError(f"the number of scores cannot be negative, got {n}")
    return int(n) + 1 - (int(n) + 1) * level.numerator // level.denominator


def order_key(scores: np.ndarray) -> np.ndarray:
    """Return uint32 keys that sort like the float32 scores; -0.0 and +0.0 share a key, NaN's key is undefined."""
    scores = np.asarray(scores, np.float32)
    bits = np.where(scores == 0, np.float32(0), scores).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def score_of_key(keys: np.ndarray | np.uint32) -> np.ndarray:
    """Return the float32 scores of :func:`order_key`'s keys."""
    keys = np.asarray(keys, np.uint32)
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).view(np.float32)


def select_prefix(counts: ArrayLike, ranks: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Find the bin of each row that holds the k-th score (1-based), int64 (rows,), and the rank inside that bin.

    ``ranks`` is (rows,) or one value for all rows: integers for counts, weights for weighted counts (they select the
    first bin at which the running weight reaches the rank). A rank beyond the row's total has bin -1 (an infinite
    threshold) and is returned unchanged.

    Raises:
        UsageError: a rank is not positive.
    """
    counts = np.asarray(counts)
    row_ranks = np.broadcast_to(np.asarray(ranks), counts.shape[:1])
    if not np.all(row_ranks > 0):
        raise UsageError(f"ranks count from 1, got {row_ranks.min()}")
    within = row_ranks.astype(np.float64 if counts.dtype.kind == "f" else np.int64)
    prefix = np.full(len(counts), -1, np.int64)
    for row, rank in enumerate(row_ranks.astype(counts.dtype)):
        cumulative = np.cumsum(counts[row])
        if rank <= cumulative[-1]:
            prefix[row] = np.searchsorted(cumulative, rank)
            within[row] = rank - (cumulative[prefix[row] - 1] if prefix[row] else 0)
    return prefix, within


def kth_score(counts_low: np.ndarray, prefix: np.ndarray, ranks_within: np.ndarray) -> np.ndarray:
    """Return the k-th score of each row from the second pass's counts, float32 (rows,); +inf if the prefix is -1.

    Raises:
        UsageError: a bin of the first pass holds fewer scores than the rank inside it: the two passes did not count
            the same scores.
    """
    weighted = np.asarray(counts_low).dtype.kind == "f"
    scores = np.full(len(counts_low), np.inf, np.float32)
    for row, high in enumerate(prefix):
        if high < 0:
            continue
        cumulative = np.cumsum(counts_low[row])
        # Sums of weights differ in the last bit between the passes; a rank past the end means the bin's last score.
        rank = min(ranks_within[row], cumulative[-1]) if weighted else ranks_within[row]
        if cumulative[-1] == 0 or rank > cumulative[-1]:
            raise UsageError(
                f"row {row} has {cumulative[-1]} scores in the bin of rank {rank}; "
                "count both passes over the same scores"
            )
        low = np.searchsorted(cumulative, rank)
        scores[row] = score_of_key((np.uint32(high) << np.uint32(16)) | np.uint32(low))
    return scores
