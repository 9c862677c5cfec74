"""The loops of ``class_stats``: one thread, float32, a tile of ``TILE`` columns at a time.

A source row is first sampled at the tile's columns, class by class, and kept while output rows still use it; an output
row blends two such rows. Every later loop runs over the pixels of the tile with the class fixed, so each is
elementwise: LLVM vectorizes it without reassociation, and a pixel's result does not depend on its neighbours, on the
band of rows it falls in or on the outputs asked for. Pixels past the right edge of the map repeat the last column and
are not written.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

from ..types import UNREACHED

TILE = 64
"""Pixels of one row handled together."""

SOFTMAX, SIGMOID, NONE = range(3)
ARGMAX, FOREGROUND, SINGLE, AGREE = range(4)
OFFICIAL, EXACT = range(2)
FLOAT16, BFLOAT16 = range(2)

# Rows of the tile's state, float32 (class indices included: below 2048 they are exact).
_BEST, _TOP, _REST, _SQUARES, _INVERSE, _FINITE, _LIMIT, _SIZE, _CHOICE, _RANK, _SECOND, _SECOND_RANK, _STATES = range(
    13
)

_LOG2E = np.float32(1.4426950408889634)
_SHIFT = np.float32(1.5 * 2**23)
_LOWEST = np.float32(-86)
_ZERO, _ONE = np.float32(0), np.float32(1)
_INF = np.float32(np.inf)
# Minimax polynomial of 2^f on [-0.5, 0.5] with 2^0 = 1 exactly; relative error below 1e-7.
_C1 = np.float32(0.6931470036506653)
_C2 = np.float32(0.24022242426872253)
_C3 = np.float32(0.05550733581185341)
_C4 = np.float32(0.009671512991189957)
_C5 = np.float32(0.001326472614891827)

_HALF_SCALE = np.float32(2.0**112)


def widen(value, kind):
    """Return the float32 value of a float32, or of the bits of a float16 or bfloat16."""
    raise NotImplementedError("compiled code only")


@overload(widen)
def _widen(value, kind):
    if value == types.float32:

        def same(value, kind):
            return value

        return same

    def of_bits(value, kind):
        bits = np.uint32(value)
        if kind == BFLOAT16:
            return np.uint32(bits << np.uint32(16)).view(np.float32)
        magnitude = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13))
        # Rebias the exponent by a multiplication, which normalises subnormal halves too; infinities and NaN apart.
        scaled = np.float32(np.uint32(magnitude).view(np.float32) * _HALF_SCALE).view(np.uint32)
        special = np.uint32(magnitude | np.uint32(0x7F800000))
        widened = special if (bits & np.uint32(0x7C00)) == np.uint32(0x7C00) else scaled
        return np.uint32(widened | ((bits & np.uint32(0x8000)) << np.uint32(16))).view(np.float32)

    return of_bits


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def exp_negative(x):
    """Return float32 exp(x) for x <= 0, relative error below 5e-7 near 0; exactly 1 at 0 and 0 below -86."""
    shifted = x * _LOG2E + _SHIFT
    power = shifted - _SHIFT
    f = x * _LOG2E - power
    series = _ONE + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * _C5))))
    bits = np.int32(np.float32(series).view(np.int32) + (np.float32(shifted).view(np.int32) << np.int32(23)))
    return np.int32(bits).view(np.float32) if x > _LOWEST else _ZERO


# No contraction from here on: calibration and labelling must round alike wherever a function is inlined.
_exact = njit(nogil=True, cache=True, error_model="numpy")


@_exact
def sigmoid(z):
    """Return float32 1 / (1 + exp(-z)), without cancellation at either end."""
    small = exp_negative(-abs(z))
    return (_ONE if z >= _ZERO else small) / (_ONE + small)


@_exact
def nonconformity(activation, value, is_top, best, rest, inverse):
    """Return the float32 score of one class of one pixel: the mass of all others, accumulated apart for the top class."""
    if activation == SOFTMAX:
        return (rest if is_top else (best + rest) - value) * inverse
    if activation == SIGMOID:
        return sigmoid(-value)
    return _ONE - value


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _sample_row(flat, kind, start, class_stride, lower, upper, weight, row, check):
    """Sample one source row at the tile's columns, (C, TILE); ``check`` is NaN where a value is not finite."""
    check[:] = _ZERO
    for c in range(row.shape[0]):
        begin = start + c * class_stride
        for i in range(TILE):
            w = weight[i]
            a = widen(flat[begin + lower[i]], kind)
            b = widen(flat[begin + upper[i]], kind)
            value = (_ONE - w) * a + w * b
            row[c, i] = value
            check[i] += value * _ZERO


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _blend_rows(above, below, weight, values, state):
    """Blend two sampled rows into ``values`` (C, TILE); the highest value and its class go to the state."""
    best, top = state[_BEST], state[_TOP]
    best[:] = -_INF
    top[:] = _ZERO
    keep = _ONE - weight
    for c in range(values.shape[0]):
        index = np.float32(c)
        for i in range(TILE):
            value = keep * above[c, i] + weight * below[c, i]
            values[c, i] = value
            higher = value > best[i]
            best[i] = value if higher else best[i]
            top[i] = index if higher else top[i]


@_exact
def _softmax(values, state):
    """exp(value - best) in place; mass and squared mass of the classes other than the top."""
    best, top, rest, squares = state[_BEST], state[_TOP], state[_REST], state[_SQUARES]
    for c in range(values.shape[0]):
        index = np.float32(c)
        for i in range(TILE):
            mass = exp_negative(values[c, i] - best[i])
            values[c, i] = mass
            other = mass if top[i] != index else _ZERO
            rest[i] += other
            squares[i] += other * other
    best[:] = _ONE


@_exact
def _softmax_grouped(values, groups, grouped, state):
    """Sum of exp(value - best) over each group's classes."""
    best = state[_BEST]
    grouped[:] = _ZERO
    for c in range(values.shape[0]):
        row = grouped[groups[c]]
        for i in range(TILE):
            row[i] += exp_negative(values[c, i] - best[i])


@_exact
def _highest_grouped(values, groups, grouped):
    grouped[:] = -_INF
    for c in range(values.shape[0]):
        row = grouped[groups[c]]
        for i in range(TILE):
            row[i] = values[c, i] if values[c, i] > row[i] else row[i]


@_exact
def _sum_grouped(values, groups, grouped):
    grouped[:] = _ZERO
    for c in range(values.shape[0]):
        row = grouped[groups[c]]
        for i in range(TILE):
            row[i] += values[c, i]


@_exact
def _find_top(values, reached, state):
    best, top = state[_BEST], state[_TOP]
    best[:] = -_INF
    for k in range(values.shape[0]):
        if reached[k]:
            index = np.float32(k)
            for i in range(TILE):
                higher = values[k, i] > best[i]
                best[i] = values[k, i] if higher else best[i]
                top[i] = index if higher else top[i]


@_exact
def _find_second(values, reached, state):
    """Class of the highest value but the top's; NaN where there is none."""
    rank, second, top = state[_SECOND_RANK], state[_SECOND], state[_TOP]
    rank[:] = -_INF
    second[:] = np.float32(np.nan)
    for k in range(values.shape[0]):
        if reached[k]:
            index = np.float32(k)
            for i in range(TILE):
                higher = (values[k, i] > rank[i]) & (top[i] != index)
                rank[i] = values[k, i] if higher else rank[i]
                second[i] = index if higher else second[i]


@_exact
def _add_rest(values, reached, activation, state):
    """Score and squared score of the classes other than the top, for scores that need no common total."""
    best, top, rest, squares = state[_BEST], state[_TOP], state[_REST], state[_SQUARES]
    for k in range(values.shape[0]):
        if reached[k]:
            index = np.float32(k)
            for i in range(TILE):
                score = sigmoid(values[k, i]) if activation == SIGMOID else values[k, i]
                other = score if top[i] != index else _ZERO
                rest[i] += other
                squares[i] += other * other
    if activation == SIGMOID:
        for i in range(TILE):
            best[i] = sigmoid(best[i])


@_exact
def _count_members(values, reached, activation, thresholds, state):
    """Size of each pixel's prediction set, and its last member."""
    best, top, rest, inverse = state[_BEST], state[_TOP], state[_REST], state[_INVERSE]
    limits, size, choice = state[_LIMIT], state[_SIZE], state[_CHOICE]
    size[:] = _ZERO
    choice[:] = np.float32(-1)
    for k in range(values.shape[0]):
        if reached[k]:
            index = np.float32(k)
            limit = thresholds[k]
            for i in range(TILE):
                score = nonconformity(activation, values[k, i], top[i] == index, best[i], rest[i], inverse[i])
                member = score <= (limit if limit > limits[i] else limits[i])
                size[i] += _ONE if member else _ZERO
                choice[i] = index if member else choice[i]


@_exact
def _best_member(values, reached, activation, thresholds, background, state):
    """Best member of each pixel's set but the background, which is taken where it is the only one."""
    best, top, rest, inverse = state[_BEST], state[_TOP], state[_REST], state[_INVERSE]
    limits, rank, choice = state[_LIMIT], state[_RANK], state[_CHOICE]
    choice[:] = np.float32(-1)
    rank[:] = -_INF
    for k in range(values.shape[0]):
        if reached[k]:
            index = np.float32(k)
            limit = thresholds[k]
            for i in range(TILE):
                score = nonconformity(activation, values[k, i], top[i] == index, best[i], rest[i], inverse[i])
                member = score <= (limit if limit > limits[i] else limits[i])
                value = values[k, i] if k != background else -_INF
                higher = member & ((value > rank[i]) | (choice[i] < _ZERO) | (choice[i] == background))
                higher = higher & ((k != background) | (choice[i] < _ZERO))
                rank[i] = value if higher else rank[i]
                choice[i] = index if higher else choice[i]


@_exact
def _choose(values, reached, activation, thresholds, rule, background, want_size, state):
    """Class the rule takes from each pixel's prediction set, -1 where it takes none."""
    best, top, rest, inverse = state[_BEST], state[_TOP], state[_REST], state[_INVERSE]
    limits, size, choice = state[_LIMIT], state[_SIZE], state[_CHOICE]
    if want_size or rule in (SINGLE, AGREE):
        _count_members(values, reached, activation, thresholds, state)
    if rule == FOREGROUND:
        _best_member(values, reached, activation, thresholds, background, state)
    elif rule == ARGMAX:
        for i in range(TILE):
            k = int(top[i])
            score = nonconformity(activation, values[k, i], True, best[i], rest[i], inverse[i])
            choice[i] = top[i] if score <= max(thresholds[k], limits[i]) else np.float32(-1)
    else:
        for i in range(TILE):
            alone = size[i] == _ONE
            if rule == AGREE:
                alone = alone & (choice[i] == top[i])
            choice[i] = choice[i] if alone else np.float32(-1)


@_exact
def decode_band(
    first_row,
    last_row,
    flat,
    kind,
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
    thresholds,
    threshold_map,
    rule,
    background,
    ignore,
    dispersion_form,
    truth,
    label8,
    label16,
    out_top,
    confidence,
    share,
    dispersion,
    out_second,
    second_confidence,
    set_size,
    true_score,
):
    """Fill rows ``first_row`` to ``last_row`` of the outputs; arrays of no rows are outputs not asked for.

    ``flat`` holds one map, element (y, x, c) at offset + y * row_stride + x * column_stride + c * class_stride. The
    column taps are padded to a multiple of ``TILE``.
    """
    num_scored = reached.size
    rows = np.empty((2, channels, TILE), np.float32)
    checks = np.empty((2, TILE), np.float32)
    values = np.empty((channels, TILE), np.float32)
    grouped = np.empty((num_scored if groups.size > 0 else 0, TILE), np.float32)
    state = np.empty((_STATES, TILE), np.float32)
    best, top, rest, squares = state[_BEST], state[_TOP], state[_REST], state[_SQUARES]
    inverse, finite, limits, size = state[_INVERSE], state[_FINITE], state[_LIMIT], state[_SIZE]
    choice, second = state[_CHOICE], state[_SECOND]
    want_label = label8.shape[0] > 0 or label16.shape[0] > 0
    want_size = set_size.shape[0] > 0
    want_second = out_second.shape[0] > 0 or second_confidence.shape[0] > 0
    others = np.float32(num_scored - 1)

    for left in range(0, width, TILE):
        n = min(TILE, width - left)
        lower = column_lower[left : left + TILE] * column_stride
        upper = column_upper[left : left + TILE] * column_stride
        weight = column_weight[left : left + TILE]
        held = np.array([-1, -1])
        for y in range(first_row, last_row):
            # Source row s lives in slot s % 2: an output row's two taps are neighbours, or one and the same.
            for tap in (row_lower[y], row_upper[y]):
                if held[tap % 2] != tap:
                    held[tap % 2] = tap
                    start = offset + tap * row_stride
                    _sample_row(flat, kind, start, class_stride, lower, upper, weight, rows[tap % 2], checks[tap % 2])
            above, below = row_lower[y] % 2, row_upper[y] % 2
            _blend_rows(rows[above], rows[below], row_weight[y], values, state)
            for i in range(TILE):
                finite[i] = _ONE if checks[above, i] + checks[below, i] == _ZERO else _ZERO

            rest[:] = _ZERO
            squares[:] = _ZERO
            scores = values
            if groups.size > 0:
                scores = grouped
                if activation == SOFTMAX:
                    _softmax_grouped(values, groups, grouped, state)
                elif activation == SIGMOID:
                    _highest_grouped(values, groups, grouped)
                else:
                    _sum_grouped(values, groups, grouped)
                _find_top(grouped, reached, state)
            if want_second:
                _find_second(scores, reached, state)
            if activation == SOFTMAX and groups.size == 0:
                _softmax(values, state)
            else:
                _add_rest(scores, reached, activation, state)
            for i in range(TILE):
                total = best[i] + rest[i]
                inverse[i] = _ONE / total if total > _ZERO else _ZERO

            if thresholds.size > 0:
                limits[:] = -_INF
                if threshold_map.shape[0] > 0:
                    for i in range(n):
                        limits[i] = threshold_map[y, left + i]
                _choose(scores, reached, activation, thresholds, rule, background, want_size, state)
            else:
                choice[:] = top

            if want_label:
                for i in range(n):
                    label = choice[i]
                    emitted = (label >= _ZERO) & (label < num_targets) & (finite[i] != _ZERO)
                    index = np.int32(label) if emitted else np.int32(ignore)
                    if label8.shape[0] > 0:
                        label8[y, left + i] = np.uint8(index)
                    else:
                        label16[y, left + i] = np.uint16(index)
            if out_top.shape[0] > 0:
                for i in range(n):
                    out_top[y, left + i] = np.uint16(top[i]) if finite[i] != _ZERO else np.uint16(UNREACHED)
            if confidence.shape[0] > 0:
                for i in range(n):
                    score = best[i] * inverse[i] if activation == SOFTMAX else best[i]
                    confidence[y, left + i] = score if finite[i] != _ZERO else _ZERO
            if share.shape[0] > 0:
                for i in range(n):
                    share[y, left + i] = best[i] * inverse[i] if finite[i] != _ZERO else _ZERO
            if dispersion.shape[0] > 0:
                for i in range(n):
                    r = rest[i] * inverse[i]
                    mean = r / others
                    spread = squares[i] * inverse[i] * inverse[i] - r * mean
                    spread = max(spread, _ZERO)
                    if dispersion_form == OFFICIAL:
                        spread += mean * mean
                    dispersion[y, left + i] = spread / others if finite[i] != _ZERO else _ZERO
            if want_second:
                for i in range(n):
                    found = (second[i] >= _ZERO) & (finite[i] != _ZERO)
                    k = np.int64(second[i]) if found else 0
                    score = scores[k, i]
                    if activation == SOFTMAX:
                        score = score * inverse[i]
                    elif activation == SIGMOID:
                        score = sigmoid(score)
                    if out_second.shape[0] > 0:
                        out_second[y, left + i] = np.uint16(k) if found else np.uint16(UNREACHED)
                    if second_confidence.shape[0] > 0:
                        second_confidence[y, left + i] = score if found else _ZERO
            if want_size:
                for i in range(n):
                    set_size[y, left + i] = np.uint16(size[i]) if finite[i] != _ZERO else np.uint16(0)
            if true_score.shape[0] > 0:
                for i in range(n):
                    k = truth[y, left + i]
                    if k < 0 or k >= num_scored or k == ignore:
                        true_score[y, left + i] = np.float32(np.nan)
                    elif finite[i] == _ZERO or not reached[k]:
                        true_score[y, left + i] = _INF
                    else:
                        true_score[y, left + i] = nonconformity(
                            activation, scores[k, i], top[i] == np.float32(k), best[i], rest[i], inverse[i]
                        )
