"""Score counts and exact quantiles with Numba."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ...errors import UsageError
from ..plans.outputs import output
from ..plans.scores import BINS, conformal_rank, kth_score, select_prefix
from .compiled import compiled
from .threads import num_threads, share

__all__ = [
    "conformal_rank",
    "kth_score",
    "position_quantiles",
    "score_counts",
    "select_prefix",
    "weighted_score_counts",
]

_WORTH_THREADS = 1 << 22
"""Scores below which starting threads costs more than it saves."""

_PIECES_PER_THREAD = 4

_SIGN = np.uint32(1 << 31)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INF = np.uint32(0x7F800000)

_ALL = np.uint32(0xFFFFFFFF)
_TILE = 64
"""Positions whose scores are selected together."""


@compiled()
def _is_nan(bits):
    return (bits & _MAGNITUDE) > _INF


@compiled()
def _key(bits):
    """Return the order-preserving key of a float32's bits; -0.0 has the key of +0.0."""
    # Numba widens 32-bit arithmetic; only the conversions keep it at 32 bits.
    if bits & _SIGN:
        return _SIGN if bits == _SIGN else np.uint32(bits ^ _ALL)
    return np.uint32(bits | _SIGN)


@compiled()
def _count_high(bits, counts):
    """Count the high halves of the bits in counts, int64 (65536,)."""
    for i in range(bits.size):
        counts[np.uint64(bits[i] >> np.uint32(16))] += 1


@compiled()
def _count_low(bits, high, counts):
    """Count the low halves of the bits whose high half is ``high`` in counts, int64 (65536,)."""
    base = np.uint32(high << 16)
    for i in range(bits.size):
        low = np.uint32(bits[i] - base)
        if low < np.uint32(BINS):
            counts[np.uint64(low)] += 1


@compiled()
def _count_equal(bits, value, counts):
    """Count the bits equal to ``value`` in counts, int64 (1,)."""
    equal = 0
    for i in range(bits.size):
        equal += bits[i] == value
    counts[0] += equal


@compiled()
def _count_classes(bits, weights, classes, prefix, counts):
    """Count each score in the row of its class and in the last row of counts (rows, 65536)."""
    pooled = counts.shape[0] - 1
    for i in range(bits.size):
        if _is_nan(bits[i]):
            continue
        key = _key(bits[i])
        high, low = np.int64(key >> np.uint32(16)), np.int64(key & np.uint32(0xFFFF))
        weight = counts.dtype.type(1) if weights is None else weights[i]
        if prefix is None:
            counts[pooled, high] += weight
        elif prefix[pooled] == high:
            counts[pooled, low] += weight
        if classes is not None:
            row = np.int64(classes[i])
            if 0 <= row < pooled:
                if prefix is None:
                    counts[row, high] += weight
                elif prefix[row] == high:
                    counts[row, low] += weight


def _flat(
    scores: np.ndarray, classes: np.ndarray | None, num_classes: int, prefix: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the scores as bits, their classes and the prefix, flat; None for those that are absent or unused.

    Raises:
        UsageError: the shapes do not match.
    """
    bits = np.ascontiguousarray(scores, np.float32).reshape(-1).view(np.uint32)
    if classes is not None and classes.shape != scores.shape:
        raise UsageError(f"classes must have the shape of the scores, {scores.shape}, got {classes.shape}")
    if prefix is not None:
        prefix = np.ascontiguousarray(prefix, np.int64)
        if prefix.shape != (num_classes + 1,):
            raise UsageError(f"prefix must have shape {(num_classes + 1,)}, one value per row, got {prefix.shape}")
    members = None if classes is None or num_classes == 0 else np.ascontiguousarray(classes).reshape(-1)
    return bits, members, prefix


def _counts(out: np.ndarray | None, num_classes: int, dtype: DTypeLike) -> np.ndarray:
    shape = (num_classes + 1, BINS)
    return np.zeros(shape, dtype) if out is None else output(out, shape, dtype)


def _in_threads(count: Callable[..., None], bits: np.ndarray, *arguments: Any, bins: int = BINS) -> np.ndarray:
    """Run ``count`` on pieces of the bits, in threads, and return the sum of the counts, int64 (bins,)."""
    threads = num_threads(bits.size, _WORTH_THREADS)
    # More pieces than threads, so that a delayed thread does not delay the others.
    number = 1 if threads == 1 else _PIECES_PER_THREAD * threads
    partial = np.zeros((number, bins), np.int64)
    pieces = np.array_split(bits, number)
    share(count, [(piece, *arguments, row) for piece, row in zip(pieces, partial, strict=True)], threads)
    return partial.sum(axis=0)


def _pooled_high(bits: np.ndarray) -> np.ndarray:
    """Count the high halves of the scores' keys, int64 (65536,).

    The loop counts the unchanged bits, at about the speed of memory. The bins of NaN and -0.0 are corrected afterwards;
    the scores are searched for these values only if a bin may hold them.
    """
    counts = _in_threads(_count_high, bits)
    for infinity in (_INF, _SIGN | _INF):
        bin = int(infinity >> 16)
        counts[bin + 1 : (bin | 0x7F) + 1] = 0
        if counts[bin]:
            counts[bin] = _in_threads(_count_equal, bits, infinity, bins=1)[0]
    if counts[_SIGN >> 16]:
        zeros = _in_threads(_count_equal, bits, _SIGN, bins=1)[0]
        counts[_SIGN >> 16] -= zeros
        counts[0] += zeros
    # Reorder from bits to keys: the negative half reversed, then the positive half.
    return np.concatenate([counts[: BINS // 2 - 1 : -1], counts[: BINS // 2]])


def _pooled_low(bits: np.ndarray, prefix: int) -> np.ndarray:
    """Count the low halves of the keys whose high half is ``prefix``, int64 (65536,)."""
    high = prefix ^ 0x8000 if prefix & 0x8000 else prefix ^ 0xFFFF
    counts = _in_threads(_count_low, bits, high)
    if high & 0x7FFF >= _INF >> 16:
        counts[0 if high & 0x7FFF > _INF >> 16 else 1 :] = 0
    if high == 0:
        counts[0] += _in_threads(_count_equal, bits, _SIGN, bins=1)[0]
    if high == _SIGN >> 16:
        counts[0] = 0
    return counts if prefix & 0x8000 else counts[::-1]


def score_counts(
    scores: np.ndarray,
    *,
    classes: np.ndarray | None = None,
    num_classes: int = 0,
    prefix: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Run :func:`maskmill.kernels.score_counts` on NumPy arrays."""
    counts = _counts(out, num_classes, np.uint64)
    bits, members, prefix = _flat(scores, classes, num_classes, prefix)
    if members is not None:
        _count_classes(bits, None, members, prefix, counts)
    elif prefix is None:
        counts[-1] += _pooled_high(bits).astype(np.uint64)
    elif prefix[-1] >= 0:
        counts[-1] += _pooled_low(bits, int(prefix[-1])).astype(np.uint64)
    return counts


def weighted_score_counts(
    scores: np.ndarray,
    weights: np.ndarray,
    *,
    classes: np.ndarray | None = None,
    num_classes: int = 0,
    prefix: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Run :func:`maskmill.kernels.weighted_score_counts` on NumPy arrays."""
    counts = _counts(out, num_classes, np.float64)
    bits, members, prefix = _flat(scores, classes, num_classes, prefix)
    weights = np.ascontiguousarray(weights, np.float64)
    if weights.shape != scores.shape:
        raise UsageError(f"weights must have the shape of the scores, {scores.shape}, got {weights.shape}")
    _count_classes(bits, weights.reshape(-1), members, prefix, counts)
    return counts


@compiled()
def _select(bits, first, last, ranks, fallback, out):
    """Select the thresholds of positions first..last-1 from bits (n, positions) of float32 scores.

    The k-th smallest key is built from its highest bit down: a bit is set if fewer than k keys are below the value with
    that bit. All positions of a tile are processed together, so that the counting runs in vectors.
    """
    n = bits.shape[0]
    keys = np.empty((n, _TILE), np.uint32)
    for start in range(first, last, _TILE):
        width = min(_TILE, last - start)
        keys[:] = _ALL  # above every score's key: no score
        numbers = np.zeros(_TILE, np.int64)
        for i in range(n):
            for j in range(width):
                x = bits[i, start + j]
                if not _is_nan(x):
                    keys[i, j] = _key(x)
                    numbers[j] += 1
        quantiles, trial = np.zeros(_TILE, np.uint32), np.empty(_TILE, np.uint32)
        for shift in range(31, -1, -1):
            below = np.zeros(_TILE, np.uint32)
            for j in range(_TILE):
                trial[j] = quantiles[j] | np.uint32(1 << shift)
            for i in range(n):
                for j in range(_TILE):
                    below[j] += np.uint32(keys[i, j] < trial[j])
            for j in range(_TILE):
                if np.int64(below[j]) < ranks[numbers[j]]:
                    quantiles[j] = trial[j]
        for j in range(width):
            if numbers[j] == 0:
                out[start + j] = fallback
            elif ranks[numbers[j]] > numbers[j]:
                out[start + j] = _INF
            else:
                out[start + j] = quantiles[j] ^ (_SIGN if quantiles[j] & _SIGN else _ALL)


def position_quantiles(
    scores: np.ndarray, alpha: float | str | Fraction, *, fallback: float = np.inf, out: np.ndarray | None = None
) -> np.ndarray:
    """Run :func:`maskmill.kernels.position_quantiles` on NumPy arrays."""
    scores = np.ascontiguousarray(scores, np.float32)
    n, height, width = scores.shape
    result = output(out, (height, width), np.float32)
    ranks = np.array([conformal_rank(count, alpha) for count in range(n + 1)], np.int64)
    positions = height * width
    threads = num_threads(scores.size, _WORTH_THREADS)
    step = -(-positions // (threads * _TILE)) * _TILE or _TILE
    bits, quantiles = scores.reshape(n, positions).view(np.uint32), result.reshape(-1).view(np.uint32)
    fallback_bits = np.float32(fallback).view(np.uint32)
    spans = [(first, min(first + step, positions)) for first in range(0, positions, step)]
    share(_select, [(bits, *span, ranks, fallback_bits, quantiles) for span in spans], threads)
    return result
