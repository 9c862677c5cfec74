"""Compiled loops of ``class_stats``: source rows sampled at an output row's columns, and blended."""

from __future__ import annotations

import numpy as np
from numba import njit

from .simd import LANES, fma, load, load_first_scores, load_scores, splat, store, transpose, where

_ZERO, _ONE = np.float32(0), np.float32(1)
_INF = np.float32(np.inf)

_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def padded_classes(channels):
    """Return the number of classes rounded up to whole vectors."""
    return (channels + LANES - 1) // LANES * LANES


@_compiled
def _turn_span(flat, is_bfloat16, start, class_stride, first, count, channels, block, span):
    """Copy ``count`` pixels of a source row whose pixels are neighbours in memory to (pixel, class) order."""
    padded = padded_classes(channels)
    for x in range(0, count, LANES):
        for c in range(0, channels, LANES):
            for k in range(min(LANES, channels - c)):
                at = start + (c + k) * class_stride + first + x
                if x + LANES <= count:
                    store(block, k * LANES, load_scores(flat, at, is_bfloat16))
                else:
                    store(block, k * LANES, load_first_scores(flat, at, count - x, is_bfloat16))
            transpose(span, x * padded + c, padded, block, 0, LANES)


@_compiled
def _sample(flat, is_bfloat16, start, stride, lower, upper, weight, channels, block, row, check):
    """Sample a source row, whose classes are neighbours in memory, at a tile's columns.

    ``row`` gets class c of pixel i at (i // 16 * channels + c) * 16 + i % 16; ``check`` is NaN where a class is not
    finite and 0 elsewhere.
    """
    padded = padded_classes(channels)
    whole = channels // LANES * LANES
    for left in range(0, lower.size, LANES):
        for i in range(LANES):
            a = start + lower[left + i] * stride
            b = start + upper[left + i] * stride
            across = splat(weight[left + i])
            keep = splat(_ONE - weight[left + i])
            for c in range(0, whole, LANES):
                value = keep * load_scores(flat, a + c, is_bfloat16)
                store(block, i * padded + c, fma(across, load_scores(flat, b + c, is_bfloat16), value))
            if whole < channels:
                c, count = whole, channels - whole
                value = keep * load_first_scores(flat, a + c, count, is_bfloat16)
                value = fma(across, load_first_scores(flat, b + c, count, is_bfloat16), value)
                store(block, i * padded + c, value)
        for c in range(0, channels, LANES):
            transpose(row, left * channels + c * LANES, LANES, block, c, padded)
        seen = splat(_ZERO)
        for c in range(channels):
            seen = fma(load(row, left * channels + c * LANES), splat(_ZERO), seen)
        store(check, left, seen)


@_compiled
def sample_row(
    flat, is_bfloat16, start, column_stride, class_stride, lower, upper, weight, channels, block, span, row, check
):
    """As :func:`_sample`, for a source row whose classes or whose pixels are neighbours in memory."""
    if class_stride == 1:
        _sample(flat, is_bfloat16, start, column_stride, lower, upper, weight, channels, block, row, check)
    else:
        first, last, stride = lower[0], upper[-1], padded_classes(channels)
        _turn_span(flat, is_bfloat16, start, class_stride, first, last + 1 - first, channels, block, span)
        _sample(span, False, -first * stride, stride, lower, upper, weight, channels, block, row, check)


@_compiled
def blend_rows(above, below, at, weight, channels, values):
    """Blend sixteen pixels of two sampled rows; return the highest value and its class."""
    best, top, index = splat(-_INF), splat(_ZERO), splat(_ZERO)
    down, keep = splat(weight), splat(_ONE - weight)
    for c in range(channels):
        value = fma(down, load(below, at + c * LANES), keep * load(above, at + c * LANES))
        store(values, c * LANES, value)
        higher = value > best
        best = where(higher, value, best)
        top = where(higher, index, top)
        index = index + splat(_ONE)
    return best, top
