"""The compiled loop of ``class_stats``: one thread, float32, sixteen pixels of a row at a time.

A source row is sampled at a tile's columns once and kept, sixteen pixels of each class together, while output rows
still use it; an output row blends two such rows. From there on the sixteen pixels are the lanes of vectors and loops
run over the classes, so that a pixel's result does not depend on its neighbours, on the rows it is computed with or on
the outputs asked for: calibration and labelling see the same scores to the bit.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..types import UNREACHED
from .sampling import blend_rows, padded_classes, sample_row
from .scoring import (
    NO_CLASS,
    SOFTMAX,
    best_member,
    count_members,
    exp_negative,
    group_scores,
    highest,
    map_limit,
    nonconformity,
    score_of,
    softmax,
    sum_others,
    top_limit,
    true_scores,
)
from .simd import LANES, fma, load, splat, store, where

TILE = 8 * LANES
"""Columns whose sampled rows are kept together."""

ARGMAX, FOREGROUND, SINGLE, AGREE = range(4)

# Fields of a decoded line, in the order of the outputs: float32 ones, then those that become integers.
_CONFIDENCE, _SHARE, _DISPERSION, _SECOND_CONFIDENCE, _TRUE_SCORE, _TOP, _SECOND, _SET_SIZE, _LABEL, _FIELDS = range(10)
_FLOATS = _TRUE_SCORE + 1

_ZERO, _ONE = np.float32(0), np.float32(1)
_UNREACHED = np.float32(UNREACHED)


_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def _emit(lines, y, left, n, floats, indices, labels):
    """Write ``n`` decoded pixels to the outputs that were asked for."""
    for field in range(_FIELDS):
        line = lines[field * TILE : field * TILE + n]
        if field < _FLOATS:
            if floats[field].shape[0] > 0:
                values = floats[field][y, left : left + n]
                for i in range(n):
                    values[i] = line[i]
        elif indices[field - _FLOATS].shape[0] > 0:
            integers = indices[field - _FLOATS][y, left : left + n]
            for i in range(n):
                integers[i] = np.uint16(np.int32(line[i]))
    if labels.shape[0] > 0:
        line, narrow = lines[_LABEL * TILE : _LABEL * TILE + n], labels[y, left : left + n]
        for i in range(n):
            narrow[i] = np.uint8(np.int32(line[i]))


@_compiled
def decode_rows(
    first_row,
    last_row,
    flat,
    is_bfloat16,
    offset,
    row_stride,
    column_stride,
    class_stride,
    channels,
    row_lower,
    row_upper,
    row_weight,
    column_lower,
    column_upper,
    column_weight,
    width,
    activation,
    groups,
    reached,
    num_targets,
    limits,
    threshold_map,
    rule,
    background,
    ignore,
    exact_dispersion,
    truth,
    floats,
    indices,
    labels,
):
    """Fill rows ``first_row`` to ``last_row`` of the outputs.

    ``flat`` holds the map: element (y, x, c) at offset + y * row_stride + x * column_stride + c * class_stride, where
    the column or the class stride is 1. The column taps are padded to a multiple of 16. ``groups`` is empty
    where model classes are scored one to one, ``limits`` where there are no thresholds; with a ``threshold_map``, the
    limits are not used. ``floats``, ``indices`` and ``labels`` are the outputs; those without rows were not asked for.
    """
    num_scored = reached.size
    padded = padded_classes(channels)
    block = np.zeros(LANES * padded, np.float32)
    # Transposed blocks end past the last class, hence the room at the ends.
    rows = np.empty((2, TILE * channels + LANES * LANES), np.float32)
    checks = np.empty((2, TILE), np.float32)
    values = np.empty(channels * LANES, np.float32)
    scores = np.empty(num_scored * LANES, np.float32) if groups.size > 0 else values
    lines = np.empty(_FIELDS * TILE, np.float32)
    scratch = np.empty(3 * LANES, np.float32)
    span = np.empty((column_upper.max() + LANES) * padded if class_stride != 1 else 0, np.float32)

    zero, one, no_class = splat(_ZERO), splat(_ONE), splat(NO_CLASS)
    of_others = splat(_ONE / np.float32(max(num_scored - 1, 1)))
    last_target = splat(np.float32(num_targets - 1))
    has_sets, has_map = limits.size > 0, threshold_map.shape[0] > 0
    want_size = indices[_SET_SIZE - _TOP].shape[0] > 0
    want_dispersion = floats[_DISPERSION].shape[0] > 0
    want_second = indices[_SECOND - _TOP].shape[0] > 0 or floats[_SECOND_CONFIDENCE].shape[0] > 0
    want_true = floats[_TRUE_SCORE].shape[0] > 0

    for left in range(0, width, TILE):
        right = min(left + TILE, column_lower.size)
        lower, upper, across = column_lower[left:right], column_upper[left:right], column_weight[left:right]
        held = np.array([-1, -1])
        for y in range(first_row, last_row):
            # Source row s lives in slot s % 2: an output row's two taps are neighbours, or one and the same.
            for tap in (row_lower[y], row_upper[y]):
                slot = tap % 2
                if held[slot] != tap:
                    held[slot] = tap
                    start = offset + tap * row_stride
                    sample_row(
                        flat,
                        is_bfloat16,
                        start,
                        column_stride,
                        class_stride,
                        lower,
                        upper,
                        across,
                        channels,
                        block,
                        span,
                        rows[slot],
                        checks[slot],
                    )
            above, below = row_lower[y] % 2, row_upper[y] % 2

            for x in range(left, min(left + TILE, width), LANES):
                at = x - left
                finite = where(load(checks[above], at) + load(checks[below], at) == zero, one, zero)
                best, top = blend_rows(rows[above], rows[below], at * channels, row_weight[y], channels, values)
                if groups.size > 0:
                    group_scores(values, groups, num_scored, activation, best, scores)
                    best, top = highest(scores, reached, splat(NO_CLASS))
                top_value, second_best, second = best, zero, splat(NO_CLASS)
                if want_second:
                    second_best, second = highest(scores, reached, top)
                if activation == SOFTMAX and groups.size == 0:
                    if want_second:
                        second_best = exp_negative(second_best - best)
                    rest, squares = softmax(values, channels, best, top)
                    best = one
                else:
                    rest, squares = sum_others(scores, reached, activation, top)
                    best = score_of(activation, best)
                    second_best = score_of(activation, second_best)
                total = best + rest
                inverse = where(total > zero, one / total, zero)
                finite_mask = finite == one

                label = top
                if has_sets:
                    limit = map_limit(threshold_map, y, x, scratch) if has_map else zero
                    if want_size or rule in (SINGLE, AGREE):
                        size, last = count_members(
                            scores, reached, activation, limits, has_map, limit, top, best, rest, inverse
                        )
                        store(lines, _SET_SIZE * TILE + at, where(finite_mask, size, zero))
                        label = where(size == one, last, no_class)
                        if rule == AGREE:
                            label = where(label == top, label, no_class)
                    if rule == ARGMAX:
                        if not has_map:
                            limit = top_limit(top, limits, scratch)
                        score = nonconformity(activation, top_value, one == one, best, rest, inverse)
                        label = where(score <= limit, top, no_class)
                    elif rule == FOREGROUND:
                        label = best_member(
                            scores, reached, activation, limits, has_map, limit, background, top, best, rest, inverse
                        )
                label = where(label <= last_target, where(finite_mask, label, no_class), no_class)
                store(lines, _LABEL * TILE + at, where(label > no_class, label, splat(np.float32(ignore))))
                store(lines, _TOP * TILE + at, where(finite_mask, top, splat(_UNREACHED)))

                share = where(finite_mask, best * inverse, zero)
                store(lines, _SHARE * TILE + at, share)
                confidence = share if activation == SOFTMAX else where(finite_mask, best, zero)
                store(lines, _CONFIDENCE * TILE + at, confidence)
                if want_dispersion:
                    r = rest * inverse
                    mean = r * of_others
                    spread = squares * inverse * inverse - r * mean
                    spread = where(spread > zero, spread, zero)
                    if not exact_dispersion:
                        spread = fma(mean, mean, spread)
                    store(lines, _DISPERSION * TILE + at, where(finite_mask, spread * of_others, zero))
                if want_second:
                    found = where(finite_mask, second, no_class) > no_class
                    store(lines, _SECOND * TILE + at, where(found, second, splat(_UNREACHED)))
                    if activation == SOFTMAX:
                        second_best = second_best * inverse
                    store(lines, _SECOND_CONFIDENCE * TILE + at, where(found, second_best, zero))
                if want_true:
                    score = true_scores(
                        scores, reached, activation, truth, y, x, ignore, top, best, rest, inverse, finite, scratch
                    )
                    store(lines, _TRUE_SCORE * TILE + at, score)

            _emit(lines, y, left, min(TILE, width - left), floats, indices, labels)
