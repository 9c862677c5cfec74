"""Score counts and exact quantiles on a device: ``cuda/scores.cu``."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from ...errors import UsageError
from ..plans.scores import BINS, conformal_rank
from .device import (
    NULL,
    DeviceArray,
    Pointer,
    ceil_div,
    contiguous,
    empty,
    integers,
    launch,
    output,
    spread,
    upload,
    zeros,
)

THREADS = 256
SHARED_BINS = 8192
"""Bins that a block counts in shared memory, as scores.cu's WINDOW."""

MOST_BLOCKS = 4096
"""Blocks that fill the largest device several times; more would only queue."""


def _scores_of(
    scores: DeviceArray, classes: DeviceArray | None, num_classes: int, prefix: DeviceArray | None
) -> tuple[DeviceArray, tuple[Pointer | np.generic, ...]]:
    """Return the arguments of both counting kernels: scores; classes, their code, number of classes, prefix."""
    scores = contiguous(scores, np.float32)
    members, code, bins = NULL, np.int32(0), NULL
    if classes is not None:
        if classes.shape != scores.shape:
            raise UsageError(f"classes must have the shape of the scores, {scores.shape}, got {classes.shape}")
        members, code = integers(classes, "classes")
    if prefix is not None:
        bins = upload(prefix, dtype=np.int64)
        if bins.shape != (num_classes + 1,):
            raise UsageError(f"prefix must have shape {(num_classes + 1,)}, one value per row, got {bins.shape}")
    return scores, (members, code, np.int32(num_classes), bins)


def _blocks(count: int) -> tuple[int, ...]:
    return (min(ceil_div(count, THREADS), MOST_BLOCKS),)


def score_counts(
    scores: DeviceArray,
    *,
    classes: DeviceArray | None = None,
    num_classes: int = 0,
    prefix: DeviceArray | None = None,
    out: DeviceArray | None = None,
) -> DeviceArray:
    """Run :func:`maskmill.kernels.score_counts` on CuPy arrays."""
    shape = (num_classes + 1, BINS)
    counts = zeros(shape, np.uint64) if out is None else output(out, shape, np.uint64)
    if num_classes >= BINS - 1:
        raise UsageError(f"num_classes must be below {BINS - 1}, got {num_classes}")
    scores, class_arguments = _scores_of(scores, classes, num_classes, prefix)
    # A block of the first pass adds up to SHARED_BINS counts of its own at its end.
    blocks = _blocks(scores.size) if prefix is not None else (min(ceil_div(scores.size, SHARED_BINS), MOST_BLOCKS),)
    launch(
        "scores",
        f"score_counts<{'true' if prefix is None else 'false'}>",
        blocks,
        (THREADS,),
        (scores, np.int64(scores.size), *class_arguments, counts),
    )
    return counts


def weighted_score_counts(
    scores: DeviceArray,
    weights: DeviceArray,
    *,
    classes: DeviceArray | None = None,
    num_classes: int = 0,
    prefix: DeviceArray | None = None,
    out: DeviceArray | None = None,
) -> DeviceArray:
    """Run :func:`maskmill.kernels.weighted_score_counts` on CuPy arrays.

    The weights of a call are summed as integers, so that their sum does not depend on the order: each is rounded to
    2^-(61 - log2(number of scores)) of the largest weight.
    """
    shape = (num_classes + 1, BINS)
    counts = zeros(shape, np.float64) if out is None else output(out, shape, np.float64)
    scores, class_arguments = _scores_of(scores, classes, num_classes, prefix)
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
        (scores, weights, count, *class_arguments, largest, sums),
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


def _kinds(counts: DeviceArray) -> tuple[str, type, type]:
    """Return the kernels' type parameter for counts, and the dtypes of ranks for the caller and for the kernel."""
    weighted = counts.dtype == np.float64
    return ("double", np.float64, np.float64) if weighted else ("uint64", np.int64, np.uint64)


def select_prefix(counts: DeviceArray, ranks: DeviceArray | Sequence[int] | int) -> tuple[DeviceArray, DeviceArray]:
    """Run :func:`maskmill.kernels.select_prefix` on CuPy arrays; ranks that are not positive give bin 0."""
    counts = contiguous(counts)
    kind, public, internal = _kinds(counts)
    rows = counts.shape[0]
    row_ranks = contiguous(spread(upload(ranks, dtype=public), (rows,)))
    prefix, within = empty(rows, np.int64), empty(rows, public)
    arguments = (counts, row_ranks.view(internal), prefix, within.view(internal))
    launch("scores", f"select_prefix<{kind}>", (rows,), (THREADS,), arguments)
    return prefix, within


def kth_score(counts_low: DeviceArray, prefix: DeviceArray, ranks_within: DeviceArray) -> DeviceArray:
    """Run :func:`maskmill.kernels.kth_score` on CuPy arrays.

    The result is NaN if the two passes counted different scores, since raising an error would need a sync.
    """
    counts = contiguous(counts_low)
    kind, public, internal = _kinds(counts)
    prefix = upload(prefix, dtype=np.int64)
    within = upload(ranks_within, dtype=public)
    scores = empty(counts.shape[0], np.float32)
    arguments = (counts, contiguous(prefix), contiguous(within).view(internal), scores)
    launch("scores", f"kth_score<{kind}>", scores.shape, (THREADS,), arguments)
    return scores


@lru_cache(maxsize=64)
def _rank_table(maps: int, alpha: float | str | Fraction) -> np.ndarray:
    """Return the conformal rank for every number of scores that a position can have, int32 (maps + 1,)."""
    return np.array([conformal_rank(n, alpha) for n in range(maps + 1)], np.int32)


def position_quantiles(
    scores: DeviceArray, alpha: float | str | Fraction, *, fallback: float = np.inf, out: DeviceArray | None = None
) -> DeviceArray:
    """Run :func:`maskmill.kernels.position_quantiles` on CuPy arrays."""
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
