"""The compiled loop of ``class_stats``: one thread, float32, sixteen pixels of a row at a time.

A source row is sampled once at a tile's columns and kept, sixteen pixels of each class together, while output rows
use it; an output row blends two such rows. The sixteen pixels are then the lanes of vectors, and the loops run over the
classes. A pixel's result therefore does not depend on its neighbors, on the rows computed with it or on the requested
outputs: calibration and labeling see the same scores to the bit.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from ...types import UNREACHED
from ..compiled import compiled
from .sampling import blend_rows, padded, sample_row
from .scoring import (
    NO_CLASS,
    SOFTMAX,
    best_member,
    count_members,
    exp_negative,
    group_scores,
    highest,
    limit_of,
    map_limit,
    nonconformity,
    score_of,
    softmax,
    sum_others,
    true_scores,
)
from .simd import LANES, fma, in_every_lane, load, splat, store_first, where

_TILE = 1 << 14
"""Class-columns of a sampled row that are kept together: two rows of them stay in the second cache."""

# Indices of plans.class_stats.RULES.
ARGMAX, FOREGROUND, SINGLE, AGREE = range(4)

# Indices of the float32 outputs, then of the 16-bit outputs.
_CONFIDENCE, _SHARE, _DISPERSION, _SECOND_CONFIDENCE, _TRUE_SCORE = range(5)
_TOP, _SECOND, _SET_SIZE, _LABEL = range(4)

_ZERO, _ONE = np.float32(0), np.float32(1)
_MARGIN = np.float32(1 + 1e-5)
_UNREACHED = np.float32(UNREACHED)

_compiled = compiled(error_model="numpy")


@_compiled
def _widest(starts, upper, tile):
    """Return the largest number of source pixels that the columns of a tile span."""
    widest = 0
    for left in range(0, upper.size, tile):
        last = min(left + tile, upper.size) - 1
        widest = max(widest, starts[last // LANES] + upper[last] + 1 - starts[left // LANES])
    return widest


@_compiled
def decode_rows(
    first_row, last_row, source, row_taps, column_taps, classes, selection, truth, exact_dispersion, outputs
):
    """Fill rows ``first_row`` to ``last_row`` of the outputs.

    Args:
        first_row: first row to fill.
        last_row: row to stop before.
        source: the map as 1-D memory, a flag that its 16 bits are bfloat16, and its row, column and class strides;
            the column's or the class's stride is 1.
        row_taps: lower and upper source row and the weight of the upper one, for each row.
        column_taps: taps as in :func:`sample_row`, padded to a multiple of 16; a flag that the taps of each block of
        sixteen columns are within sixteen pixels of the source; the number of columns.
        classes: number of model classes; activation; scored class of each model class, empty for one to one; flags of
            the scored classes that are reached; number of targets.
        selection: thresholds of the scored classes, empty if there are none; position map that replaces them, or a map
            without rows; rule; background; ignore.
        truth: true classes, or a map without rows.
        exact_dispersion: the dispersion does not count the top class's empty slot.
        outputs: float32, uint16 and uint8 outputs as 1-D arrays, empty if not requested.
    """
    _, _, row_stride, column_stride, class_stride = source
    row_lower, row_upper, row_weight = row_taps
    column_starts, column_lower, column_upper, column_weight, windows_fit, width = column_taps
    channels, activation, groups, reached, num_targets = classes
    limits, threshold_map, rule, background, ignore = selection
    floats, indices, labels = outputs

    num_scored = reached.size
    tile = max(4, _TILE // (LANES * channels)) * LANES
    columns = min(tile, column_lower.size)
    widest = _widest(column_starts, column_upper, tile)
    # Classes a multiple of 4 KiB apart share one cache set; in that case copying a row's classes together pays.
    in_place = windows_fit and column_stride == 1 and class_stride % 1024 != 0
    # Space for full vectors: windows and transposed blocks may extend past the last pixel and the last class.
    span = np.zeros(0 if in_place else padded(channels) * (padded(widest) + LANES), np.float32)
    block = np.zeros(LANES * LANES, np.float32)
    rows, checks = np.empty((2, columns * channels), np.float32), np.empty((2, columns), np.float32)
    values = np.empty(channels * LANES, np.float32)
    scores = np.empty(num_scored * LANES, np.float32) if groups.size > 0 else values
    scratch = np.empty(3 * LANES, np.float32)

    zero, unit, no_class = splat(_ZERO), splat(_ONE), splat(NO_CLASS)
    of_others = splat(_ONE / np.float32(max(num_scored - 1, 1)))
    last_target = splat(np.float32(num_targets - 1))
    has_sets, has_map = limits.size > 0, threshold_map.shape[0] > 0
    highest_limit, margin = splat(limits.max() if has_sets and not has_map else _ONE), splat(_MARGIN)
    want_size = indices[_SET_SIZE].size > 0
    want_second = indices[_SECOND].size > 0 or floats[_SECOND_CONFIDENCE].size > 0

    for left in range(0, width, tile):
        right = min(left + tile, column_lower.size)
        starts = column_starts[left // LANES : right // LANES]
        taps = (starts, column_lower[left:right], column_upper[left:right], column_weight[left:right])
        slots = np.array([-1, -1])
        for y in range(first_row, last_row):
            # Source row s is stored in slot s % 2: the two taps of an output row are adjacent or equal.
            above, below = row_lower[y] % 2, row_upper[y] % 2
            for tap in (row_lower[y], row_upper[y]):
                slot = tap % 2
                if slots[slot] != tap:
                    slots[slot] = tap
                    sample_row(
                        source, tap * row_stride, in_place, taps, channels, block, span, rows[slot], checks[slot]
                    )

            for x in range(left, min(left + tile, width), LANES):
                at, out, n = x - left, y * width + x, width - x
                finite = where(load(checks[above], at) + load(checks[below], at) == zero, unit, zero)
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
                    other_mass, squares = softmax(values, channels, best, top)
                    best = unit
                else:
                    other_mass, squares = sum_others(scores, reached, activation, top)
                    best = score_of(activation, best)
                    second_best = score_of(activation, second_best)
                total = best + other_mass
                inverse = where(total > zero, unit / total, zero)
                finite_mask = finite == unit

                label = top
                if has_sets:
                    if has_map:
                        limit = highest_limit = map_limit(threshold_map, y, x, scratch)
                    else:
                        limit = limit_of(limits, where(finite_mask, top, zero))
                    holds_top = nonconformity(activation, top_value, unit == unit, best, other_mass, inverse) <= limit
                    if want_size or rule in (SINGLE, AGREE):
                        # The score of any other class is at least the top's share, except for rounding.
                        if activation == SOFTMAX and in_every_lane(best * inverse > highest_limit * margin):
                            size, last = where(holds_top, unit, zero), where(holds_top, top, no_class)
                        else:
                            size, last = count_members(
                                scores, reached, activation, limits, has_map, limit, top, best, other_mass, inverse
                            )
                        if want_size:
                            store_first(indices[_SET_SIZE], out, n, where(finite_mask, size, zero))
                        label = where(size == unit, last, no_class)
                        if rule == AGREE:
                            label = where(label == top, label, no_class)
                    if rule == ARGMAX:
                        label = where(holds_top, top, no_class)
                    elif rule == FOREGROUND:
                        label = best_member(
                            scores,
                            reached,
                            activation,
                            limits,
                            has_map,
                            limit,
                            background,
                            top,
                            best,
                            other_mass,
                            inverse,
                        )
                label = where(label <= last_target, where(finite_mask, label, no_class), no_class)
                label = where(label > no_class, label, splat(np.float32(ignore)))
                if indices[_LABEL].size > 0:
                    store_first(indices[_LABEL], out, n, label)
                if labels.size > 0:
                    store_first(labels, out, n, label)
                if indices[_TOP].size > 0:
                    store_first(indices[_TOP], out, n, where(finite_mask, top, splat(_UNREACHED)))

                share = where(finite_mask, best * inverse, zero)
                if floats[_SHARE].size > 0:
                    store_first(floats[_SHARE], out, n, share)
                if floats[_CONFIDENCE].size > 0:
                    confidence = share if activation == SOFTMAX else where(finite_mask, best, zero)
                    store_first(floats[_CONFIDENCE], out, n, confidence)
                if floats[_DISPERSION].size > 0:
                    r = other_mass * inverse
                    mean = r * of_others
                    spread = squares * inverse * inverse - r * mean
                    spread = where(spread > zero, spread, zero)
                    if not exact_dispersion:
                        spread = fma(mean, mean, spread)
                    store_first(floats[_DISPERSION], out, n, where(finite_mask, spread * of_others, zero))
                if want_second:
                    has_second = where(finite_mask, second, no_class) > no_class
                    if activation == SOFTMAX:
                        second_best = second_best * inverse
                    if indices[_SECOND].size > 0:
                        store_first(indices[_SECOND], out, n, where(has_second, second, splat(_UNREACHED)))
                    if floats[_SECOND_CONFIDENCE].size > 0:
                        store_first(floats[_SECOND_CONFIDENCE], out, n, where(has_second, second_best, zero))
                if floats[_TRUE_SCORE].size > 0:
                    score = true_scores(
                        scores,
                        reached,
                        activation,
                        truth,
                        y,
                        x,
                        ignore,
                        top,
                        best,
                        other_mass,
                        inverse,
                        finite,
                        scratch,
                    )
                    store_first(floats[_TRUE_SCORE], out, n, score)


@compiled(error_model="numpy", parallel=True)
def decode_bands(
    bounds, source, row_taps, column_taps, classes, selection, truth, exact_dispersion, floats, indices, labels
):
    """Run :func:`decode_rows` on the rows between each two of ``bounds``, in Numba's threads."""
    for band in prange(bounds.size - 1):
        decode_rows(
            bounds[band],
            bounds[band + 1],
            source,
            row_taps,
            column_taps,
            classes,
            selection,
            truth,
            exact_dispersion,
            (floats, indices, labels),
        )
