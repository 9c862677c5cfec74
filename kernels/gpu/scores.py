"""Score counts and exact quantiles on a device: ``cuda/scores.cu``."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...errors import UsageError
from ..plans.scores import BINS, conformal_rank
from .device import NULL, ceil_div, contiguous, empty, integers, launch, output, spread, upload, zeros

THREADS = 256
MOST_BLOCKS = 4096
"""Blocks that fill the largest device several times over; more would only queue."""


def _scores_of(scores, classes, num_classes, prefix):
    """The arguments that the two ways of counting share: scores, classes, their code, number of classes, prefix."""
    scores = contiguous(scores, np.float32)
    code = np.int32(0)
    if classes is None:
        classes = NULL
    elif classes.shape != scores.shape:
        raise UsageError(f"classes must have the shape of the scores, {scores.shape}, got {classes.shape}")
    else:
        classes, code = integers(classes, "classes")
    if prefix is None:
        prefix = NULL
    else:
        prefix = upload(prefix, dtype=np.int64)
        if prefix.shape != (num_classes + 1,):
            raise UsageError(f"prefix must have shape {(num_classes + 1,)}, one a row, got {prefix.shape}")
    return scores, (classes, code, np.int32(num_classes), prefix)


def _blocks(count: int) -> tuple[int]:
    return (min(ceil_div(count, THREADS), MOST_BLOCKS),)


def score_counts(scores, *, classes=None, num_classes=0, prefix=None, out=None):
    """As :func:`maskmill.kernels.score_counts`, for CuPy arrays."""
    shape = (num_classes + 1, BINS)
    counts = zeros(shape, np.uint64) if out is None else output(out, shape, np.uint64)
    scores, others = _scores_of(scores, classes, num_classes, prefix)
    launch(
        "scores",
        "score_counts",
        _blocks(scores.size),
        (THREADS,),
        (scores, np.int64(scores.size), *others, counts),
    )
    return counts


def weighted_score_counts(scores, weights, *, classes=None, num_classes=0, prefix=None, out=None):
    """As :func:`maskmill.kernels.weighted_score_counts`, for CuPy arrays.

    The weights of a call are summed as integers, so that their sum does not depend on the order: each is rounded to
    2^-(61 - log2(number of scores)) of the largest of them.
    """
    shape = (num_classes + 1, BINS)
    counts = zeros(shape, np.float64) if out is None else output(out, shape, np.float64)
    scores, others = _scores_of(scores, classes, num_classes, prefix)
    weights = contiguous(upload(weights, np.float64))
    if weights.shape != scores.shape:
        raise UsageError(f"weights must have the shape of the scores, {scores.shape}, got {weights.shape}")
    count = np.int64(scores.size)
    largest, sums = zeros(1, np.uint64), zeros(shape, np.uint64)
    blocks = _blocks(scores.size)
    launch("scores", "largest_weight", blocks, (THREADS,), (weights, count, largest))
    launch(
        "scores",
        "weighted_score_counts",
        blocks,
        (THREADS,),
        (scores, weights, count, *others, largest, sums),
    )
    if scores.size:
        launch(
            "scores",
            "add_fixed_point",
            (ceil_div(counts.size, THREADS),),
            (THREADS,),
            (sums, counts, np.int64(counts.size), largest, count),
        )
    return counts


def _kinds(counts):
    """Type parameter of the kernels for counts, and the dtypes of ranks as the caller and as the kernel see them."""
    weighted = counts.dtype == np.float64
    return ("double", np.float64, np.float64) if weighted else ("uint64", np.int64, np.uint64)


def select_prefix(counts, ranks):
    """As :func:`maskmill.kernels.select_prefix`, for CuPy arrays; ranks that are not positive give bin 0."""
    counts = contiguous(counts)
    kind, shown, held = _kinds(counts)
    rows = counts.shape[0]
    ranks = contiguous(spread(upload(ranks, dtype=shown), (rows,)))
    prefix, within = empty(rows, np.int64), empty(rows, shown)
    arguments = (counts, ranks.view(held), prefix, within.view(held))
    launch("scores", f"select_prefix<{kind}>", (rows,), (THREADS,), arguments)
    return prefix, within


def kth_score(counts_low, prefix, ranks_within):
    """As :func:`maskmill.kernels.kth_score`, for CuPy arrays.

    NaN where the two passes did not count the same scores; finding that out here would wait for the device.
    """
    counts = contiguous(counts_low)
    kind, shown, held = _kinds(counts)
    prefix = upload(prefix, dtype=np.int64)
    within = upload(ranks_within, dtype=shown)
    scores = empty(counts.shape[0], np.float32)
    arguments = (counts, contiguous(prefix), contiguous(within).view(held), scores)
    launch("scores", f"kth_score<{kind}>", scores.shape, (THREADS,), arguments)
    return scores


@lru_cache(maxsize=64)
def _rank_table(maps: int, alpha) -> np.ndarray:
    """int32 (maps + 1,): the conformal rank of every number of scores a position can have."""
    return np.array([conformal_rank(n, alpha) for n in range(maps + 1)], np.int32)


def position_quantiles(scores, alpha, *, fallback=np.inf, out=None):
    """As :func:`maskmill.kernels.position_quantiles`, for CuPy arrays."""
    scores = contiguous(scores, np.float32)
    maps, shape = scores.shape[0], scores.shape[1:]
    quantile = output(out, shape, np.float32)
    positions, threads = quantile.size, 128
    ranks = upload(_rank_table(maps, alpha))
    launch(
        "scores",
        "position_quantiles",
        (ceil_div(positions, threads),),
        (threads,),
        (scores, np.int32(maps), np.int64(positions), ranks, np.float32(fallback), quantile),
    )
    return quantile
