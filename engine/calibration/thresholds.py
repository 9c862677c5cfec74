"""Exact conformal thresholds from nonconformity scores on disk.

Scores of the true class are appended image by image and read back as a memory map. A threshold is an order statistic of
them, found exactly in two passes: counts of the scores' high 16 bits choose a bucket, counts of the low 16 bits inside
it give the score. Counts are integers and add up, so neither the order of images nor their grouping matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from .score_spill import NO_CLASS, ScoreSpill

Group = Literal["pooled", "class", "position"]
Unit = Literal["pixel", "image"]

GROUPS: tuple[str, ...] = get_args(Group)
UNITS: tuple[str, ...] = get_args(Unit)

_CLASSES_AT_ONCE = 256  # 65,536 counts of 8 bytes each: 128 MiB
_ROWS_AT_ONCE = 64 << 20  # bytes of a tile of the position grid, over all images


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Largest nonconformity score in the prediction set."""

    values: NDArray[np.float32]
    """One per scored class (Ke,), or one per cell of the grid (gh, gw); +inf puts the class into every set."""
    pooled: float
    """The threshold over all classes and positions."""
    starved: NDArray[np.bool_]
    """(K,): the class was seen in too few images and takes the pooled threshold."""
    num_pixels: NDArray[np.int64]
    """(K,): pixels of each class."""
    num_images: NDArray[np.int64]
    """(K,): images in which each class was seen."""


def fit_thresholds(
    spill: ScoreSpill,
    indices: Sequence[int],
    *,
    num_targets: int,
    num_scored: int,
    alpha: Fraction,
    group: Group,
    unit: Unit,
    min_images: int,
) -> Thresholds:
    """Thresholds from the images ``indices`` of a spill.

    A class seen in fewer than ``min_images`` images takes the pooled threshold, as does "none of these". On a grid, a
    cell that no image covers with a true class takes the pooled threshold.
    """
    num_pixels, num_images = np.zeros(num_targets, np.int64), np.zeros(num_targets, np.int64)
    for _, classes in spill.images(indices):
        counts = np.bincount(classes, minlength=NO_CLASS + 1)[:num_targets]
        num_pixels += counts
        num_images += counts > 0
    starved = num_images < min_images
    fit = _pixel_thresholds if unit == "pixel" else _image_thresholds
    per_class, pooled = fit(spill, indices, num_targets if group == "class" else 0, alpha)
    if group == "position":
        values = _position_thresholds(spill, indices, alpha, pooled)
    else:
        values = np.full(num_scored, pooled, np.float32)
        if group == "class":
            values[:num_targets] = np.where(starved, np.float32(pooled), per_class)
    return Thresholds(values=values, pooled=pooled, starved=starved, num_pixels=num_pixels, num_images=num_images)


def _class_blocks(num_classes: int) -> list[tuple[int, int]]:
    starts = range(0, max(num_classes, 1), _CLASSES_AT_ONCE)
    return [(start, min(_CLASSES_AT_ONCE, num_classes - start)) for start in starts]


def _shifted(classes: NDArray[np.uint16], start: int) -> NDArray[np.uint16]:
    # Classes before the block wrap around to large values, which count in the pooled row only.
    return classes if start == 0 else classes - np.uint16(start)


def _pixel_thresholds(
    spill: ScoreSpill, indices: Sequence[int], num_classes: int, alpha: Fraction
) -> tuple[NDArray[np.float32], float]:
    """The ceil((n + 1)(1 - alpha))-th smallest score of each class and of all pixels; +inf where there is none."""
    per_class, pooled = np.full(num_classes, np.inf, np.float32), np.inf
    for start, size in _class_blocks(num_classes):
        high = low = None
        for scores, classes in spill.images(indices):
            high = kernels.score_counts(scores, classes=_shifted(classes, start), num_classes=size, out=high)
        if high is None:
            break
        ranks = np.array([kernels.conformal_rank(int(n), alpha) for n in high.sum(axis=1)], np.int64)
        prefix, within = kernels.select_prefix(high, ranks)
        for scores, classes in spill.images(indices):
            low = kernels.score_counts(
                scores, classes=_shifted(classes, start), num_classes=size, prefix=prefix, out=low
            )
        found = kernels.kth_score(low, prefix, within)
        per_class[start : start + size] = found[:-1]
        pooled = float(found[-1])
    return per_class, pooled


def _image_thresholds(
    spill: ScoreSpill, indices: Sequence[int], num_classes: int, alpha: Fraction
) -> tuple[NDArray[np.float32], float]:
    """Conformal risk control: the smallest score q with (sum of the images' misses at q + 1) / (n + 1) <= alpha.

    An image's miss is the share of its pixels (of the class) whose score exceeds q; n counts images (with the class).
    """
    pooled = _risk_controlled(spill, indices, 0, 0, alpha)[-1]
    per_class = [_risk_controlled(spill, indices, *block, alpha)[:-1] for block in _class_blocks(num_classes)]
    return np.concatenate([np.empty(0, np.float32), *per_class]), float(pooled)


def _risk_controlled(
    spill: ScoreSpill, indices: Sequence[int], start: int, size: int, alpha: Fraction
) -> NDArray[np.float32]:
    num_images = np.zeros(size + 1, np.int64)

    def weighted() -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.uint16]]]:
        for scores, classes in spill.images(indices):
            shifted = _shifted(classes, start)
            valid = classes != NO_CLASS
            if size:
                counts = np.bincount(shifted, minlength=NO_CLASS + 1)
                weights = np.where(shifted < size, 1.0 / np.maximum(counts, 1)[shifted], 0.0)
                present = counts[:size] > 0
            else:
                weights = valid / max(1, int(valid.sum()))
                present = np.zeros(0, bool)
            yield scores, weights, shifted
            num_images[:size] += present
            num_images[size] += valid.any()

    high = low = None
    for scores, weights, classes in weighted():
        high = kernels.weighted_score_counts(scores, weights, classes=classes, num_classes=size, out=high)
    if high is None:
        return np.full(size + 1, np.inf, np.float32)
    budgets = np.array([float(alpha * (int(n) + 1) - 1) for n in num_images])
    prefix, above = _tail_bucket(high, budgets)
    num_images[:] = 0
    for scores, weights, classes in weighted():
        low = kernels.weighted_score_counts(scores, weights, classes=classes, num_classes=size, prefix=prefix, out=low)
    assert low is not None, "the first pass saw images"
    bucket, _ = _tail_bucket(low, budgets - above)
    # kth_score reads the score from (prefix, position of rank 1 in a one-hot row).
    one_hot = np.zeros(low.shape, np.uint64)
    rows = np.flatnonzero((prefix >= 0) & (bucket >= 0))
    one_hot[rows, bucket[rows]] = 1
    usable = np.full_like(prefix, -1)
    usable[rows] = prefix[rows]
    return kernels.kth_score(one_hot, usable, np.ones(size + 1, np.int64))


def _tail_bucket(counts: NDArray[np.float64], budgets: NDArray[np.float64]) -> tuple[Any, Any]:
    """Per row: the highest bucket whose mass and everything above it exceeds the budget, and the mass above it.

    -1 where the budget is negative (no finite threshold). A row whose whole mass fits the budget gives its lowest
    bucket with mass: the smallest score already satisfies it.
    """
    # Sums of 1/n differ from whole numbers by rounding alone; the slack is far below one pixel of any image.
    slack = 1e-9
    buckets, above = np.full(len(counts), -1, np.int64), np.zeros(len(counts))
    for row, (masses, budget) in enumerate(zip(counts, budgets, strict=True)):
        if budget < -slack or not masses.any():
            continue
        tail = np.cumsum(masses[::-1])[::-1]
        exceeding = np.flatnonzero((tail > budget + slack) & (masses > 0))
        bucket = int(exceeding[-1]) if len(exceeding) else int(np.flatnonzero(masses)[0])
        buckets[row] = bucket
        above[row] = tail[bucket + 1] if bucket + 1 < len(tail) else 0.0
    return buckets, above


def _position_thresholds(
    spill: ScoreSpill, indices: Sequence[int], alpha: Fraction, fallback: float
) -> NDArray[np.float32]:
    assert spill.grid is not None, "position thresholds need a grid"
    height, width = spill.grid
    values = np.full((height, width), fallback, np.float32)
    rows = max(1, math.floor(_ROWS_AT_ONCE / (4 * max(1, len(indices)) * width)))
    for start in range(0, height, rows):
        band = spill.rows(start, min(start + rows, height), indices)
        values[start : start + rows] = kernels.position_quantiles(band, alpha, fallback=fallback)
    return values
