"""Compiled loops of ``class_stats`` that sample source rows at an output row's columns and blend them."""

from __future__ import annotations

import numpy as np

from ..compiled import compiled
from .scoring import class_index
from .simd import (
    LANES,
    fma,
    gather_scores,
    load,
    load_first_scores,
    load_ints,
    load_scores,
    permute,
    splat,
    store,
    transpose,
    where,
)

_ZERO, _ONE = np.float32(0), np.float32(1)
_INF = np.float32(np.inf)

_compiled = compiled(error_model="numpy")


@_compiled
def padded(count):
    """Return the count rounded up to whole vectors."""
    return (count + LANES - 1) // LANES * LANES


@_compiled
def _copy_pixels(flat, is_bfloat16, start, class_stride, count, channels, span, pitch):
    """Copy a source row whose pixels are adjacent in memory."""
    for c in range(channels):
        at = start + c * class_stride
        for x in range(0, count, LANES):
            if x + LANES <= count:
                store(span, c * pitch + x, load_scores(flat, at + x, is_bfloat16))
            else:
                store(span, c * pitch + x, load_first_scores(flat, at + x, count - x, is_bfloat16))


@_compiled
def _turn_classes(flat, is_bfloat16, start, column_stride, count, channels, block, span, pitch):
    """Copy a source row whose classes are adjacent in memory."""
    if count >= LANES and channels >= LANES:
        # The last blocks of pixels and of classes overlap those before them.
        for left in range(0, count, LANES):
            x = min(left, count - LANES)
            for above in range(0, channels, LANES):
                c = min(above, channels - LANES)
                at = start + x * column_stride + c
                transpose(span, c * pitch + x, pitch, flat, at, column_stride, is_bfloat16)
        return
    for x in range(0, count, LANES):
        for c in range(0, channels, LANES):
            for i in range(min(LANES, count - x)):
                at = start + (x + i) * column_stride + c
                store(block, i * LANES, load_first_scores(flat, at, channels - c, is_bfloat16))
            transpose(span, c * pitch + x, pitch, block, 0, LANES, False)


@_compiled
def _sample(array, is_bfloat16, base, pitch, taps, channels, row, check):
    """Sample a source row; pixel x of class c is at base + x + c * pitch of the array."""
    starts, lower, upper, weight = taps
    for v in range(starts.size):
        left = v * LANES
        a, b, across = load_ints(lower, left), load_ints(upper, left), load(weight, left)
        keep, sums = splat(_ONE) - across, splat(_ZERO)
        within = upper[left + LANES - 1] < LANES
        for c in range(channels):
            at = base + starts[v] + c * pitch
            if within:
                window = load_scores(array, at, is_bfloat16)
                value = fma(across, permute(window, b), keep * permute(window, a))
            else:
                value = keep * gather_scores(array, at, a, is_bfloat16)
                value = fma(across, gather_scores(array, at, b, is_bfloat16), value)
            store(row, left * channels + c * LANES, value)
            sums = fma(value, splat(_ZERO), sums)
        store(check, left, sums)


@_compiled
def sample_row(source, start, in_place, taps, channels, block, span, row, check):
    """Sample the row of ``source`` (see decode_rows) that begins at ``start``, at a tile's columns.

    ``taps`` are starts, lower, upper and weight: column i blends pixels starts[i // 16] + lower[i] and
    starts[i // 16] + upper[i], the upper one with the weight. With ``in_place`` the row's pixels are adjacent in memory
    and the taps of each block of sixteen columns are within sixteen pixels; otherwise the part of the row that the tile
    needs is copied to ``span`` first.

    Class c of column i is written to ``row`` at (i // 16 * channels + c) * 16 + i % 16; ``check`` is NaN for a column
    with a class that is not finite, and 0 for the others.
    """
    flat, is_bfloat16, _, column_stride, class_stride = source
    if in_place:
        _sample(flat, is_bfloat16, start, class_stride, taps, channels, row, check)
        return
    starts, _, upper, _ = taps
    first, count = starts[0], starts[-1] + upper[-1] + 1 - starts[0]
    begin, pitch = start + first * column_stride, padded(count) + LANES
    if column_stride == 1:
        _copy_pixels(flat, is_bfloat16, begin, class_stride, count, channels, span, pitch)
    else:
        _turn_classes(flat, is_bfloat16, begin, column_stride, count, channels, block, span, pitch)
    _sample(span, False, -first, pitch, taps, channels, row, check)


@_compiled
def blend_rows(above, below, at, weight, channels, values):
    """Blend sixteen pixels of two sampled rows; return the highest value and its class."""
    best, top = splat(-_INF), splat(_ZERO)
    down, keep = splat(weight), splat(_ONE - weight)
    for c in range(channels):
        value = fma(down, load(below, at + c * LANES), keep * load(above, at + c * LANES))
        store(values, c * LANES, value)
        higher = value > best
        best = where(higher, value, best)
        top = where(higher, class_index(c), top)
    return best, top
