"""The compiled loops of ``class_stats``: one thread, float32, sixteen pixels of a row at a time.

A source row is sampled at a tile's columns once and kept, sixteen pixels of each class together, while output rows
still use it; an output row blends two such rows. From there on the sixteen pixels are the lanes of vectors and loops
run over the classes, so that a pixel's result does not depend on its neighbours, on the rows it is computed with or on
the outputs asked for: calibration and labelling see the same scores to the bit.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..types import UNREACHED
from .simd import LANES, add_exponent, fma, load, load_first_scores, load_scores, splat, store, transpose, where

TILE = 8 * LANES
"""Columns whose sampled rows are kept together."""

SOFTMAX, SIGMOID, NONE = range(3)
ARGMAX, FOREGROUND, SINGLE, AGREE = range(4)

# Fields of a decoded line, in the order of the outputs: float32 ones, then those that become integers.
_CONFIDENCE, _SHARE, _DISPERSION, _SECOND_CONFIDENCE, _TRUE_SCORE, _TOP, _SECOND, _SET_SIZE, _LABEL, _FIELDS = range(10)
_FLOATS = _TRUE_SCORE + 1

_ZERO, _ONE, _NO_CLASS = np.float32(0), np.float32(1), np.float32(-1)
_INF, _NAN = np.float32(np.inf), np.float32(np.nan)
_UNREACHED = np.float32(UNREACHED)

_LOG2E = np.float32(1.4426950408889634)
_SHIFT = np.float32(1.5 * 2**23)
_LOWEST = np.float32(-86)
# Minimax polynomial of 2^f on [-0.5, 0.5] with 2^0 = 1 exactly; relative error below 1e-7.
_C1 = np.float32(0.6931470036506653)
_C2 = np.float32(0.24022242426872253)
_C3 = np.float32(0.05550733581185341)
_C4 = np.float32(0.009671512991189957)
_C5 = np.float32(0.001326472614891827)

_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def exp_negative(x):
    """Return exp(x) of x <= 0 within 3e-7 of it near 0 and 2e-6 at -86; 1 at 0, and 0 below -86."""
    shifted = fma(x, splat(_LOG2E), splat(_SHIFT))
    f = fma(x, splat(_LOG2E), splat(_SHIFT) - shifted)
    series = fma(f, splat(_C5), splat(_C4))
    series = fma(f, series, splat(_C3))
    series = fma(f, series, splat(_C2))
    series = fma(f, series, splat(_C1))
    series = fma(f, series, splat(_ONE))
    return where(x > splat(_LOWEST), add_exponent(series, shifted), splat(_ZERO))


@_compiled
def sigmoid(z):
    """Return 1 / (1 + exp(-z)), without cancellation at either end."""
    zero, one = splat(_ZERO), splat(_ONE)
    positive = z > zero
    small = exp_negative(where(positive, zero - z, z))
    return where(positive, one, small) / (one + small)


@_compiled
def nonconformity(activation, value, is_top, best, rest, inverse):
    """Return the score of one class: the mass of all others over the total, for the top class summed apart."""
    if activation == SOFTMAX:
        return where(is_top, rest, (best + rest) - value) * inverse
    if activation == SIGMOID:
        return sigmoid(splat(_ZERO) - value)
    return splat(_ONE) - value


@_compiled
def _turn_span(flat, is_bfloat16, start, class_stride, first, count, channels, block, span):
    """Copy ``count`` pixels of a source row whose pixels are neighbours in memory to (pixel, class) order."""
    padded = _padded(channels)
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
def _sample_row(flat, is_bfloat16, start, stride, lower, upper, weight, channels, block, row, check):
    """Sample a source row, whose classes are neighbours in memory, at a tile's columns.

    ``row`` gets class c of pixel i at (i // 16 * channels + c) * 16 + i % 16; ``check`` is NaN where a class is not
    finite and 0 elsewhere.
    """
    padded = _padded(channels)
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
def _padded(channels):
    return (channels + LANES - 1) // LANES * LANES


@_compiled
def _blend(above, below, at, weight, channels, values):
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


@_compiled
def _softmax(values, channels, best, top):
    """exp(value - best) in place; return the mass and the squared mass of the classes other than the top."""
    rest, squares, index = splat(_ZERO), splat(_ZERO), splat(_ZERO)
    for c in range(channels):
        mass = exp_negative(load(values, c * LANES) - best)
        store(values, c * LANES, mass)
        other = where(index == top, splat(_ZERO), mass)
        rest = rest + other
        squares = fma(other, other, squares)
        index = index + splat(_ONE)
    return rest, squares


@_compiled
def _group(values, groups, num_scored, activation, best, grouped):
    """Each scored class's mass (softmax), highest value (sigmoid) or sum (none) over its model classes."""
    start = splat(-_INF) if activation == SIGMOID else splat(_ZERO)
    for k in range(num_scored):
        store(grouped, k * LANES, start)
    for c in range(groups.size):
        at = groups[c] * LANES
        value, held = load(values, c * LANES), load(grouped, at)
        if activation == SOFTMAX:
            store(grouped, at, held + exp_negative(value - best))
        elif activation == SIGMOID:
            store(grouped, at, where(value > held, value, held))
        else:
            store(grouped, at, held + value)


@_compiled
def _highest(values, reached, excluded):
    """Return the highest value of the classes but ``excluded``, and its class; -inf and -1 where there is none."""
    best, top = splat(-_INF), splat(_NO_CLASS)
    for k in range(reached.size):
        if reached[k]:
            index = splat(np.float32(k))
            value = where(index == excluded, splat(-_INF), load(values, k * LANES))
            higher = value > best
            best = where(higher, value, best)
            top = where(higher, index, top)
    return best, top


@_compiled
def _score(activation, value):
    return sigmoid(value) if activation == SIGMOID else value


@_compiled
def _add_rest(values, reached, activation, top):
    """Return the sum and the squared sum of the scores of the classes other than the top."""
    rest, squares = splat(_ZERO), splat(_ZERO)
    for k in range(reached.size):
        if reached[k]:
            other = _score(activation, load(values, k * LANES))
            other = where(splat(np.float32(k)) == top, splat(_ZERO), other)
            rest = rest + other
            squares = fma(other, other, squares)
    return rest, squares


@_compiled
def _count_members(values, reached, activation, limits, has_map, map_limit, top, best, rest, inverse):
    """Return the prediction set's size and its last member, -1 for none."""
    size, last = splat(_ZERO), splat(_NO_CLASS)
    for k in range(reached.size):
        if reached[k]:
            index = splat(np.float32(k))
            score = nonconformity(activation, load(values, k * LANES), index == top, best, rest, inverse)
            member = score <= (map_limit if has_map else splat(limits[k]))
            size = where(member, size + splat(_ONE), size)
            last = where(member, index, last)
    return size, last


@_compiled
def _best_member(values, reached, activation, limits, has_map, map_limit, background, top, best, rest, inverse):
    """Return the best member of the prediction set but the background; the background where alone, -1 for none."""
    rank, chosen, fallback = splat(-_INF), splat(_NO_CLASS), splat(_NO_CLASS)
    for k in range(reached.size):
        if reached[k]:
            index, value = splat(np.float32(k)), load(values, k * LANES)
            score = nonconformity(activation, value, index == top, best, rest, inverse)
            member = score <= (map_limit if has_map else splat(limits[k]))
            if k == background:
                fallback = where(member, index, fallback)
            else:
                value = where(member, value, splat(-_INF))
                higher = value > rank
                rank = where(higher, value, rank)
                chosen = where(higher, index, chosen)
    return where(chosen > splat(_NO_CLASS), chosen, fallback)


@_compiled
def _top_limit(top, limits, scratch):
    """Return the threshold of each pixel's top class."""
    store(scratch, 0, top)
    for i in range(LANES):
        scratch[i] = limits[int(scratch[i])]
    return load(scratch, 0)


@_compiled
def _true_scores(values, reached, activation, truth, y, x, ignore, top, best, rest, inverse, finite, scratch):
    """Return the true classes' scores; NaN where the truth is left out, +inf where its class cannot be scored."""
    for i in range(LANES):
        k = truth[y, x + i] if x + i < truth.shape[1] else -1
        inside = 0 <= k < reached.size and k != ignore
        reachable = inside and reached[k]
        scratch[i] = np.float32(k)
        scratch[LANES + i] = values[k * LANES + i] if reachable else _ZERO
        scratch[2 * LANES + i] = _ZERO if reachable else (_INF if inside else _NAN)
    true, value, instead = load(scratch, 0), load(scratch, LANES), load(scratch, 2 * LANES)
    score = nonconformity(activation, value, true == top, best, rest, inverse)
    zero = splat(_ZERO)
    return where(instead == zero, where(finite == zero, splat(_INF), score), instead)


@_compiled
def _map_limit(threshold_map, y, x, scratch):
    """Return the thresholds of sixteen positions."""
    for i in range(LANES):
        scratch[i] = threshold_map[y, x + i] if x + i < threshold_map.shape[1] else _ZERO
    return load(scratch, 0)


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
    padded = _padded(channels)
    block = np.zeros(LANES * padded, np.float32)
    # Transposed blocks end past the last class, hence the room at the ends.
    rows = np.empty((2, TILE * channels + LANES * LANES), np.float32)
    checks = np.empty((2, TILE), np.float32)
    values = np.empty(channels * LANES, np.float32)
    scores = np.empty(num_scored * LANES, np.float32) if groups.size > 0 else values
    lines = np.empty(_FIELDS * TILE, np.float32)
    scratch = np.empty(3 * LANES, np.float32)
    turned = class_stride != 1
    span = np.empty((column_upper.max() + LANES) * padded if turned else 0, np.float32)

    zero, one, no_class = splat(_ZERO), splat(_ONE), splat(_NO_CLASS)
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
                    if turned:
                        first = lower[0]
                        count = upper[-1] + 1 - first
                        _turn_span(flat, is_bfloat16, start, class_stride, first, count, channels, block, span)
                        _sample_row(
                            span,
                            False,
                            -first * padded,
                            padded,
                            lower,
                            upper,
                            across,
                            channels,
                            block,
                            rows[slot],
                            checks[slot],
                        )
                    else:
                        _sample_row(
                            flat,
                            is_bfloat16,
                            start,
                            column_stride,
                            lower,
                            upper,
                            across,
                            channels,
                            block,
                            rows[slot],
                            checks[slot],
                        )
            above, below = row_lower[y] % 2, row_upper[y] % 2

            for x in range(left, min(left + TILE, width), LANES):
                at = x - left
                finite = where(load(checks[above], at) + load(checks[below], at) == zero, one, zero)
                best, top = _blend(rows[above], rows[below], at * channels, row_weight[y], channels, values)
                if groups.size > 0:
                    _group(values, groups, num_scored, activation, best, scores)
                    best, top = _highest(scores, reached, splat(_NO_CLASS))
                top_value, second_best, second = best, zero, splat(_NO_CLASS)
                if want_second:
                    second_best, second = _highest(scores, reached, top)
                if activation == SOFTMAX and groups.size == 0:
                    if want_second:
                        second_best = exp_negative(second_best - best)
                    rest, squares = _softmax(values, channels, best, top)
                    best = one
                else:
                    rest, squares = _add_rest(scores, reached, activation, top)
                    best = _score(activation, best)
                    second_best = _score(activation, second_best)
                total = best + rest
                inverse = where(total > zero, one / total, zero)
                finite_mask = finite == one

                label = top
                if has_sets:
                    limit = _map_limit(threshold_map, y, x, scratch) if has_map else _top_limit(top, limits, scratch)
                    if rule in (ARGMAX, AGREE):
                        score = nonconformity(activation, top_value, one == one, best, rest, inverse)
                        label = where(score <= limit, top, no_class)
                    if want_size or rule in (SINGLE, AGREE):
                        size, last = _count_members(
                            scores, reached, activation, limits, has_map, limit, top, best, rest, inverse
                        )
                        store(lines, _SET_SIZE * TILE + at, where(finite_mask, size, zero))
                        if rule in (SINGLE, AGREE):
                            label = where(size == one, last if rule == SINGLE else label, no_class)
                    if rule == FOREGROUND:
                        label = _best_member(
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
                    score = _true_scores(
                        scores, reached, activation, truth, y, x, ignore, top, best, rest, inverse, finite, scratch
                    )
                    store(lines, _TRUE_SCORE * TILE + at, score)

            n = min(TILE, width - left)
            for field in range(_FIELDS):
                line = lines[field * TILE : field * TILE + n]
                if field < _FLOATS:
                    if floats[field].shape[0] > 0:
                        values_out = floats[field][y, left : left + n]
                        for i in range(n):
                            values_out[i] = line[i]
                elif indices[field - _FLOATS].shape[0] > 0:
                    indices_out = indices[field - _FLOATS][y, left : left + n]
                    for i in range(n):
                        indices_out[i] = np.uint16(np.int32(line[i]))
            if labels.shape[0] > 0:
                line, labels_out = lines[_LABEL * TILE : _LABEL * TILE + n], labels[y, left : left + n]
                for i in range(n):
                    labels_out[i] = np.uint8(np.int32(line[i]))
