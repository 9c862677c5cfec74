"""Conformal ranks, score counts and exact quantiles: the specification.

Source: Vovk et al., split conformal prediction; the k-th smallest of n calibration scores, k = ceil((n+1)(1-alpha)),
is the threshold of sets that hold a fresh exchangeable score with probability at least 1-alpha. The k-th score is
found in two passes of counting over an order-preserving integer key of the float32 score: the high 16 bits, then the
low 16 bits of the scores inside the bin that holds it. Counts add, so any sharding gives the same threshold.
"""

from __future__ import annotations

import numpy as np

from ..plans.scores import BINS, conformal_rank, order_key


def _add_counts(out, scores, weights, classes, num_classes, prefix):
    seen = ~np.isnan(scores)
    key = order_key(scores[seen])
    high, low = key >> 16, key & (BINS - 1)
    for row in range(num_classes + 1):
        member = np.ones(key.size, bool)
        if row < num_classes:
            member[:] = False if classes is None else classes[seen] == row
        bins = high
        if prefix is not None:
            member &= high == prefix[row]
            bins = low
        held = None if weights is None else weights[seen][member]
        out[row] += np.bincount(bins[member], held, BINS).astype(out.dtype)
    return out


def score_counts(scores, *, classes=None, num_classes=0, prefix=None, out=None):
    """uint64 (num_classes + 1, 65536): scores a bin, one row a class, the last row pooled; added into ``out``.

    Without ``prefix`` the bins are the high halves of the keys; with it, (num_classes + 1,) int64, the low halves of
    the keys whose high half is the row's prefix (a negative prefix: none). NaN is left out, infinities count. A score
    whose class is not in [0, num_classes) counts in the pooled row alone.
    """
    out = np.zeros((num_classes + 1, BINS), np.uint64) if out is None else out
    return _add_counts(out, np.asarray(scores, np.float32), None, classes, num_classes, prefix)


def weighted_score_counts(scores, weights, *, classes=None, num_classes=0, prefix=None, out=None):
    """float64 (num_classes + 1, 65536): as :func:`score_counts`, each score counting its weight (risk control)."""
    out = np.zeros((num_classes + 1, BINS), np.float64) if out is None else out
    weights = np.asarray(weights, np.float64)
    return _add_counts(out, np.asarray(scores, np.float32), weights, classes, num_classes, prefix)


def position_quantiles(scores, alpha, *, fallback=np.inf, out=None):
    """float32 (h, w): the conformal threshold of every position from scores (n, h, w) float32, NaN = not seen.

    Each position has its own n and rank; none seen gives ``fallback``, too few for alpha gives +inf.
    """
    scores = np.asarray(scores, np.float32)
    ranks = np.array([conformal_rank(n, alpha) for n in range(len(scores) + 1)])
    seen = np.count_nonzero(~np.isnan(scores), axis=0)
    rank = ranks[seen]
    # NaN sorts last, so the scores seen are the first ones; the extra layer stands for the infinite threshold.
    ordered = np.concatenate([np.sort(scores, axis=0), np.full((1, *scores.shape[1:]), np.inf, np.float32)])
    layer = np.where(rank > seen, len(scores), rank - 1)
    chosen = np.take_along_axis(ordered, layer[None], axis=0)[0]
    result = np.where(seen == 0, np.float32(fallback), chosen)
    if out is None:
        return result
    out[...] = result
    return out
