"""Order statistics of nonconformity scores: ranks, sortable keys, and the host half of the two-pass quantile."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ...errors import UsageError

BINS = 1 << 16
"""Bins of one row of counts: one for each value of half a key."""


_SIGN = np.uint32(1 << 31)


def conformal_rank(n: int, alpha: float | str | Fraction) -> int:
    """Rank k (1-based) of the calibration score that is the threshold; k = n + 1 stands for an infinite threshold.

    k = n + 1 - floor((n + 1) * alpha) in integers, with alpha read as the decimal it prints as (0.1 is 1/10).

    Raises:
        UsageError: n is negative, or alpha is not inside (0, 1).
    """
    level = alpha if isinstance(alpha, Fraction) else Fraction(str(alpha))
    if not 0 < level < 1:
        raise UsageError(f"alpha must lie between 0 and 1, got {alpha}")
    if n < 0:
        raise UsageError(f"the number of scores cannot be negative, got {n}")
    return int(n) + 1 - (int(n) + 1) * level.numerator // level.denominator


def order_key(scores: np.ndarray) -> np.ndarray:
    """uint32 keys that sort like the float32 scores: -0.0 and +0.0 share a key, NaN has none that means anything."""
    scores = np.asarray(scores, np.float32)
    bits = np.where(scores == 0, np.float32(0), scores).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def score_of_key(keys: np.ndarray | np.uint32) -> np.ndarray:
    """float32 scores of :func:`order_key`'s keys."""
    keys = np.asarray(keys, np.uint32)
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).view(np.float32)


def select_prefix(counts, ranks):
    """The bin that holds the k-th score (1-based) of each row, int64 (rows,), and the score's rank inside that bin.

    ``ranks``: (rows,) or one for all; integers for counts, weights for weighted counts (the first bin where the
    running weight reaches it). A rank beyond the row's total has bin -1 (an infinite threshold) and keeps its rank.

    Raises:
        UsageError: a rank is not positive.
    """
    counts = np.asarray(counts)
    ranks = np.broadcast_to(np.asarray(ranks), counts.shape[:1])
    if not np.all(ranks > 0):
        raise UsageError(f"ranks count from 1, got {ranks.min()}")
    within = ranks.astype(np.float64 if counts.dtype.kind == "f" else np.int64)
    prefix = np.full(len(counts), -1, np.int64)
    for row, rank in enumerate(ranks.astype(counts.dtype)):
        running = np.cumsum(counts[row])
        if rank <= running[-1]:
            prefix[row] = np.searchsorted(running, rank)
            within[row] = rank - (running[prefix[row] - 1] if prefix[row] else 0)
    return prefix, within


def kth_score(counts_low, prefix, ranks_within):
    """float32 (rows,): the k-th score of each row from the second pass's counts; +inf where the prefix is -1.

    Raises:
        UsageError: a bin of the first pass holds fewer scores than the rank inside it: the two passes did not count
            the same scores.
    """
    weighted = np.asarray(counts_low).dtype.kind == "f"
    scores = np.full(len(counts_low), np.inf, np.float32)
    for row, high in enumerate(prefix):
        if high < 0:
            continue
        running = np.cumsum(counts_low[row])
        # Weights do not add up to the same last bit in both passes; past the end means the last score there.
        rank = min(ranks_within[row], running[-1]) if weighted else ranks_within[row]
        if running[-1] == 0 or rank > running[-1]:
            raise UsageError(
                f"row {row} has {running[-1]} scores in the bin of rank {rank}; count both passes over the same scores"
            )
        low = np.searchsorted(running, rank)
        scores[row] = score_of_key((np.uint32(high) << np.uint32(16)) | np.uint32(low))
    return scores
