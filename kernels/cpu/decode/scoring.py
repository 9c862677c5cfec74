"""Compiled loops of ``class_stats`` from sixteen pixels' upsampled values to scores, top classes and prediction sets.

In the arrays, the sixteen values of class k start at index k * 16; vectors hold one value per pixel.
"""

from __future__ import annotations

import numpy as np

from ...plans.class_stats import MAX_CLASSES
from ..compiled import compiled
from .simd import (
    LANES,
    add_exponent,
    as_ints,
    fma,
    load,
    load_first_scores,
    look_up,
    permute,
    splat,
    store,
    where,
)

# Indices of plans.class_stats.ACTIVATIONS.
SOFTMAX, SIGMOID, NONE = range(3)
NO_CLASS = np.float32(-1)

_ZERO, _ONE = np.float32(0), np.float32(1)
_LANES, _LAST_LANE = np.float32(LANES), np.float32(LANES - 1)
_INF, _NAN = np.float32(np.inf), np.float32(np.nan)

_LOG2E = np.float32(1.4426950408889634)
_SHIFT = np.float32(1.5 * 2**23)
_LOWEST = np.float32(-86)
# Minimax polynomial of 2^f on [-0.5, 0.5] with 2^0 = 1 exactly; relative error below 1e-7.
_C1 = np.float32(0.6931470036506653)
_C2 = np.float32(0.24022242426872253)
_C3 = np.float32(0.05550733581185341)
_C4 = np.float32(0.009671512991189957)
_C5 = np.float32(0.001326472614891827)

_INDICES = np.arange(MAX_CLASSES + 1, dtype=np.float32)

_compiled = compiled(error_model="numpy")


@_compiled
def class_index(k):
    """Return the class's index in every lane: a load, since a conversion would occupy the arithmetic units."""
    return splat(_INDICES[k])


@_compiled
def exp_negative(x):
    """Return exp(x) for x <= 0; relative error 2e-7 from -1 on, 6e-7 from -30, 2e-6 from -86; 0 below, 1 at 0."""
    magic = fma(x, splat(_LOG2E), splat(_SHIFT))
    f = fma(x, splat(_LOG2E), splat(_SHIFT) - magic)
    series = fma(f, splat(_C5), splat(_C4))
    series = fma(f, series, splat(_C3))
    series = fma(f, series, splat(_C2))
    series = fma(f, series, splat(_C1))
    series = fma(f, series, splat(_ONE))
    return where(x > splat(_LOWEST), add_exponent(series, magic), splat(_ZERO))


@_compiled
def sigmoid(z):
    """Return 1 / (1 + exp(-z)), without cancellation at either end."""
    zero, one = splat(_ZERO), splat(_ONE)
    positive = z > zero
    small = exp_negative(where(positive, zero - z, z))
    return where(positive, one, small) / (one + small)


@_compiled
def nonconformity(activation, value, is_top, best, rest, inverse):
    """Return the score of one class: the mass of all others over the total, summed separately for the top class."""
    if activation == SOFTMAX:
        return where(is_top, rest, (best + rest) - value) * inverse
    if activation == SIGMOID:
        return sigmoid(splat(_ZERO) - value)
    return splat(_ONE) - value


@_compiled
def softmax(values, channels, best, top):
    """Compute exp(value - best) in place; return the mass and the squared mass of all classes except the top."""
    other_mass, squares = splat(_ZERO), splat(_ZERO)
    for c in range(channels):
        mass = exp_negative(load(values, c * LANES) - best)
        store(values, c * LANES, mass)
        part = where(class_index(c) == top, splat(_ZERO), mass)
        other_mass = other_mass + part
        squares = fma(part, part, squares)
    return other_mass, squares


@_compiled
def group_scores(values, groups, num_scored, activation, best, group_values):
    """Compute each scored class's mass (softmax), highest value (sigmoid) or sum (none) over its model classes."""
    start = splat(-_INF) if activation == SIGMOID else splat(_ZERO)
    for k in range(num_scored):
        store(group_values, k * LANES, start)
    for c in range(groups.size):
        at = groups[c] * LANES
        value, group = load(values, c * LANES), load(group_values, at)
        if activation == SOFTMAX:
            store(group_values, at, group + exp_negative(value - best))
        elif activation == SIGMOID:
            store(group_values, at, where(value > group, value, group))
        else:
            store(group_values, at, group + value)


@_compiled
def highest(values, reached, excluded):
    """Return the highest value of all classes except ``excluded``, and its class; -inf and -1 if there is none."""
    best, top = splat(-_INF), splat(NO_CLASS)
    for k in range(reached.size):
        if reached[k]:
            index = class_index(k)
            value = where(index == excluded, splat(-_INF), load(values, k * LANES))
            higher = value > best
            best = where(higher, value, best)
            top = where(higher, index, top)
    return best, top


@_compiled
def score_of(activation, value):
    """Return the score of a scored class's value, without softmax's common total."""
    return sigmoid(value) if activation == SIGMOID else value


@_compiled
def sum_others(values, reached, activation, top):
    """Return the sum of the scores, and of their squares, of all classes except the top."""
    other_mass, squares = splat(_ZERO), splat(_ZERO)
    for k in range(reached.size):
        if reached[k]:
            score = score_of(activation, load(values, k * LANES))
            score = where(class_index(k) == top, splat(_ZERO), score)
            other_mass = other_mass + score
            squares = fma(score, score, squares)
    return other_mass, squares


@_compiled
def count_members(values, reached, activation, limits, has_map, map_limit, top, best, other_mass, inverse):
    """Return the prediction set's size and its last member, -1 for none."""
    size, last = splat(_ZERO), splat(NO_CLASS)
    for k in range(reached.size):
        if reached[k]:
            index = class_index(k)
            score = nonconformity(activation, load(values, k * LANES), index == top, best, other_mass, inverse)
            member = score <= (map_limit if has_map else splat(limits[k]))
            size = where(member, size + splat(_ONE), size)
            last = where(member, index, last)
    return size, last


@_compiled
def best_member(values, reached, activation, limits, has_map, map_limit, background, top, best, other_mass, inverse):
    """Return the set's best member other than the background; the background if it is the only one, -1 for none."""
    rank, winner, fallback = splat(-_INF), splat(NO_CLASS), splat(NO_CLASS)
    for k in range(reached.size):
        if reached[k]:
            index, value = class_index(k), load(values, k * LANES)
            score = nonconformity(activation, value, index == top, best, other_mass, inverse)
            member = score <= (map_limit if has_map else splat(limits[k]))
            if k == background:
                fallback = where(member, index, fallback)
            else:
                value = where(member, value, splat(-_INF))
                higher = value > rank
                rank = where(higher, value, rank)
                winner = where(higher, index, winner)
    return where(winner > splat(NO_CLASS), winner, fallback)


@_compiled
def true_scores(values, reached, activation, truth, y, x, ignore, top, best, other_mass, inverse, finite, scratch):
    """Return the true classes' scores; NaN if the truth is excluded, +inf if its class cannot be scored."""
    for i in range(LANES):
        k = truth[y, x + i] if x + i < truth.shape[1] else -1
        inside = 0 <= k < reached.size and k != ignore
        reachable = inside and reached[k]
        scratch[i] = np.float32(k)
        scratch[LANES + i] = values[k * LANES + i] if reachable else _ZERO
        scratch[2 * LANES + i] = _ZERO if reachable else (_INF if inside else _NAN)
    true, value, instead = load(scratch, 0), load(scratch, LANES), load(scratch, 2 * LANES)
    score = nonconformity(activation, value, true == top, best, other_mass, inverse)
    zero = splat(_ZERO)
    return where(instead == zero, where(finite == zero, splat(_INF), score), instead)


@_compiled
def limit_of(limits, top):
    """Return the thresholds of sixteen classes; up to 32 thresholds are permuted in registers."""
    if limits.size > 2 * LANES:
        return look_up(limits, top)
    upper = top > splat(_LAST_LANE)
    index = as_ints(where(upper, top - splat(_LANES), top))
    low = permute(load_first_scores(limits, 0, limits.size, False), index)
    high = permute(load_first_scores(limits, LANES, limits.size - LANES, False), index)
    return where(upper, high, low)


@_compiled
def map_limit(threshold_map, y, x, scratch):
    """Return the thresholds of sixteen positions."""
    for i in range(LANES):
        scratch[i] = threshold_map[y, x + i] if x + i < threshold_map.shape[1] else _ZERO
    return load(scratch, 0)
