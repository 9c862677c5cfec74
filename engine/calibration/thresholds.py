"""Exact thresholds from spilled scores: order statistics, and conformal risk control over images.

Two streaming passes over the scores of the chosen images: the first counts the high 16 bits of their order-preserving
keys, the second the low 16 bits in the bin that holds the rank. Counts are integers and add up, so neither the order of
images nor their grouping matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...errors import CalibrationError, UsageError
from ..backends.base import Backend
from .scores.score_spill import NO_CLASS, ScoreSpill
from .sharing import FOREGROUND, NEVER, Sharing

Unit = Literal["pixel", "image"]
SmallSample = Literal["refuse", "max", "inf"]

MAX_ALPHA_TEXT = 60
"""Longest text of an error rate, in characters."""
SMALLEST_ALPHA = Fraction(1, 10**9)
"""Smallest error rate; no realistic sample has enough images or pixels for a smaller one."""

_GROUPS_AT_ONCE = 256  # 65,536 counts of 8 bytes each: 128 MiB
_BAND_BYTES = 64 << 20  # bytes per band of the position grid, over all images
_CURVE = tuple(level / 10 for level in range(1, 10))  # quantiles of a position's scores, as features for k-means


def parse_alpha(alpha: str | float) -> Fraction:
    """Read an error rate as an exact decimal or fraction; raises :class:`UsageError` outside [1e-9, 1)."""
    text = str(alpha).strip()
    excerpt = text if len(text) <= MAX_ALPHA_TEXT else f"{text[:MAX_ALPHA_TEXT]}…"
    try:
        # the exact form of 1e-999999999 has a billion digits
        is_small = "/" in text or 1e-99 < float(text) <= 2
        level = Fraction(text) if is_small and len(text) <= MAX_ALPHA_TEXT else None
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"alpha must be a number above 0 and below 1, got {excerpt!r}") from None
    if level is None or not SMALLEST_ALPHA <= level < 1:
        raise UsageError(f"alpha must be above 0 and below 1 (and at least 1e-9), got {excerpt}")
    return level


def alpha_text(alpha: str | float) -> str:
    """Return the canonical text of an error rate for records: 0.2 for 0.20 and 1/5, and 1/3 unchanged."""
    level = parse_alpha(alpha)
    text = repr(float(level))
    return text if Fraction(text) == level else str(level)


def fewest_images(alpha: Fraction) -> int:
    """Return the fewest images that allow a finite threshold for ``alpha``: ceil(1 / alpha) - 1."""
    return -(-alpha.denominator // alpha.numerator) - 1


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Largest nonconformity score in the prediction set."""

    values: NDArray[np.float32]
    """One per scored class (Ke,), or one per cell of the grid (gh, gw): +inf puts a class into every set, -inf into
    none."""
    pooled: float
    """The threshold over all classes and positions."""
    num_pixels: NDArray[np.int64]
    """(K,): pixels of each class."""
    num_images: NDArray[np.int64]
    """(K,): images in which each class was seen."""


def count_classes(spill: ScoreSpill, indices: Sequence[int], num_targets: int) -> tuple[Any, Any]:
    """Count the pixels (K,) and images (K,) of each class in the images ``indices``."""
    xp = spill.backend.xp
    with spill.backend.queue():
        num_pixels, num_images = xp.zeros(num_targets, np.int64), xp.zeros(num_targets, np.int64)
        for _, classes in spill.images(indices):
            counts = xp.bincount(classes, minlength=NO_CLASS + 1)[:num_targets]
            num_pixels += counts
            num_images += counts > 0
        num_pixels, num_images = spill.backend.download(num_pixels, num_images)
    return num_pixels, num_images


def fit_thresholds(
    spill: ScoreSpill,
    indices: Sequence[int],
    sharing: Sharing,
    *,
    num_scored: int,
    alpha: Fraction,
    unit: Unit,
    on_small_n: SmallSample = "refuse",
    names: Sequence[str] | None = None,
    clusters: int | None = None,
) -> Thresholds:
    """Fit thresholds to the images ``indices`` of a spill.

    ``sharing`` assigns classes to thresholds; "none of these" uses the pooled one. With too few images for
    ``alpha`` the threshold would be infinite, so that every set holds every class: ``refuse`` raises
    :class:`CalibrationError` with the smallest alpha that the images allow, ``max`` uses the largest score (without the
    guarantee of ``alpha``), ``inf`` keeps the infinite threshold. ``names`` are the names of the K classes. With
    ``clusters`` positions with similar scores share a threshold, see :func:`_clustered_thresholds`.
    """
    num_targets = len(sharing.group_of)
    num_pixels, num_images = count_classes(spill, indices, num_targets)
    lookup = np.full(NO_CLASS + 1, NO_CLASS, np.uint16)
    lookup[:num_targets] = np.where(sharing.group_of >= 0, sharing.group_of, NO_CLASS)
    fitter = _Fitter(spill, indices, alpha, unit, on_small_n)
    own, pooled = fitter.fit(lookup, sharing.num_groups)
    values = np.full(num_scored, pooled, np.float32)
    values[:num_targets] = np.append(own, pooled)[np.where(sharing.group_of >= 0, sharing.group_of, len(own))]
    if (sharing.group_of == FOREGROUND).any():
        lookup[:num_targets] = np.where(sharing.members(FOREGROUND), 0, NO_CLASS)
        foreground, _ = fitter.fit(lookup, 1)
        values[:num_targets][sharing.group_of == FOREGROUND] = foreground[0]
    if sharing.group == "position":
        if clusters is None:
            values = _position_thresholds(spill, indices, alpha, pooled, on_small_n)
        else:
            values = _clustered_thresholds(spill, indices, alpha, pooled, on_small_n, clusters)
    else:
        values[:num_targets][sharing.group_of == NEVER] = -np.inf
    if on_small_n == "refuse" and np.isposinf(values).any():
        sample_sizes = num_images if unit == "image" or sharing.group == "position" else num_pixels
        raise too_few(
            values, sample_sizes, len(indices), alpha, "pixels" if sample_sizes is num_pixels else "images", names
        )
    # a negative threshold is possible for scores that sum to more than 1; 0 is larger, so the coverage holds
    values = np.where(np.isneginf(values), values, np.maximum(values, 0)).astype(np.float32)
    return Thresholds(values=values, pooled=max(pooled, 0.0), num_pixels=num_pixels, num_images=num_images)


def too_few(
    values: NDArray[np.float32],
    sample_sizes: NDArray[np.int64],
    num_images: int,
    alpha: Fraction,
    what: str,
    names: Sequence[str] | None,
) -> CalibrationError:
    """Describe the class with the fewest samples, and the smallest alpha that they allow.

    ``values`` holds the thresholds of the classes, which are infinite if the ``sample_sizes`` (K,) are too small;
    ``what`` is "images" or "pixels", and ``num_images`` counts all images.
    """
    num = num_images if what == "images" else int(sample_sizes.sum())
    of_class = ""
    if values.ndim == 1 and not np.isposinf(values).all():
        infinite = np.flatnonzero(np.isposinf(values[: len(sample_sizes)])).tolist()
        target = min(infinite, key=lambda index: int(sample_sizes[index]))
        num = int(sample_sizes[target])
        of_class = f" of {names[target] if names else f'class {target}'}"
    about = f"there is 1 {what[:-1]}{of_class}" if num == 1 else f"there are {num} {what}{of_class}"
    return CalibrationError(
        f"alpha {float(alpha):g} needs at least {math.ceil(1 / alpha) - 1} {what} and {about}, so every "
        f"prediction set would hold every class; use --alpha {math.ceil(1e4 / (num + 1)) / 1e4:g} or more, label more "
        "images, leave --min-images at its default, or calibrate on the images with --on-small-n max"
    )


class _Fitter:
    """Fits exact thresholds of groups of classes, for one error rate and unit."""

    def __init__(
        self, spill: ScoreSpill, indices: Sequence[int], alpha: Fraction, unit: Unit, on_small_n: SmallSample
    ) -> None:
        self._spill, self._backend = spill, spill.backend
        self._indices = indices
        self._alpha = alpha
        self._unit = unit
        self._finite = on_small_n == "max"

    def fit(self, lookup: NDArray[np.uint16], num_groups: int) -> tuple[NDArray[np.float32], float]:
        """Fit the thresholds of groups (num_groups,) and of all pixels; ``lookup`` maps classes to groups."""
        own, pooled = np.full(num_groups, np.inf, np.float32), np.inf
        for start in range(0, max(num_groups, 1), _GROUPS_AT_ONCE):
            size = min(_GROUPS_AT_ONCE, num_groups - start)
            block = np.where(lookup == NO_CLASS, NO_CLASS, lookup - np.uint16(start)).astype(np.uint16)
            with self._backend.queue():
                block_thresholds = self._pixels(block, size) if self._unit == "pixel" else self._images(block, size)
            own[start : start + size], pooled = block_thresholds[:-1], float(block_thresholds[-1])
        return own, pooled

    def _images_of(self, lookup: NDArray[np.uint16]) -> Iterator[tuple[Any, Any, Any]]:
        group_of = self._backend.constant(lookup)
        for scores, classes in self._spill.images(self._indices):
            yield scores, group_of[classes], classes != NO_CLASS

    def _pixels(self, lookup: NDArray[np.uint16], size: int) -> NDArray[np.float32]:
        """Return the ceil((n + 1)(1 - alpha))-th smallest score of each group and of all pixels, or +inf."""

        def images() -> Iterator[tuple[Any, Any]]:
            return ((scores, groups) for scores, groups, _ in self._images_of(lookup))

        return _order_statistics(images, size, self._alpha, finite=self._finite, backend=self._backend)

    def _images(self, lookup: NDArray[np.uint16], size: int) -> NDArray[np.float32]:
        """Control the risk: return the smallest score q with (sum of the images' misses at q + 1) / (n + 1) <= alpha.

        An image's miss is the share of its pixels (of the group) whose score exceeds q; n counts images (with pixels
        of the group).
        """
        xp = self._backend.xp
        num_images = xp.zeros(size + 1, np.int64)

        def weighted() -> Iterator[tuple[Any, Any, Any]]:
            for scores, groups, valid in self._images_of(lookup):
                counts = xp.bincount(groups, minlength=NO_CLASS + 1)
                weights = xp.where(groups < size, 1.0 / xp.maximum(counts, 1)[groups], 0.0)
                num_images[:size] += counts[:size] > 0
                num_images[size:] += valid.any()
                yield scores, groups, (weights, valid / xp.maximum(valid.sum(), 1))

        def count(prefix: Any) -> Any:
            num_images[:] = 0
            own: Any = None
            pooled: Any = None
            for scores, groups, (weights, shares) in weighted():
                own = kernels.weighted_score_counts(
                    scores, weights, classes=groups, num_classes=size, prefix=prefix, out=own
                )
                last = None if prefix is None else prefix[-1:]
                pooled = kernels.weighted_score_counts(scores, shares, num_classes=0, prefix=last, out=pooled)
            if own is None:
                return None
            own[-1] = pooled[-1]
            return self._backend.download(own)[0]

        high = count(None)
        if high is None:
            return np.full(size + 1, np.inf, np.float32)
        (images,) = self._backend.download(num_images)
        budgets = np.array([float(self._alpha * (int(n) + 1) - 1) for n in images])
        if self._finite:
            budgets = np.maximum(budgets, 0)
        prefix, above = _tail_bucket(high, budgets)
        low = count(xp.asarray(prefix))
        bucket, _ = _tail_bucket(low, budgets - above)
        # kth_score reads the score from (prefix, position of rank 1 in a one-hot row)
        one_hot = np.zeros(low.shape, np.uint64)
        rows = np.flatnonzero((prefix >= 0) & (bucket >= 0))
        one_hot[rows, bucket[rows]] = 1
        usable_prefix = np.full_like(prefix, -1)
        usable_prefix[rows] = prefix[rows]
        return np.asarray(kernels.kth_score(one_hot, usable_prefix, np.ones(size + 1, np.int64)), np.float32)


def _order_statistics(
    images: Callable[[], Iterator[tuple[Any, Any]]], size: int, alpha: Fraction, *, finite: bool, backend: Backend
) -> NDArray[np.float32]:
    """Compute the ceil((n + 1)(1 - alpha))-th smallest score of each group (size,) and of all scores, in two passes.

    ``images`` yields scores and their groups. A rank above n gives +inf, or the largest score with ``finite``.
    """
    high = low = None
    for scores, groups in images():
        high = kernels.score_counts(scores, classes=groups, num_classes=size, out=high)
    if high is None:
        return np.full(size + 1, np.inf, np.float32)
    totals = backend.download(high.sum(axis=1))[0].astype(np.int64)
    ranks = np.array([kernels.conformal_rank(int(n), alpha) for n in totals], np.int64)
    if finite:
        ranks = np.minimum(ranks, np.maximum(totals, 1))
    prefix, within = kernels.select_prefix(high, backend.xp.asarray(ranks))
    for scores, groups in images():
        low = kernels.score_counts(scores, classes=groups, num_classes=size, prefix=prefix, out=low)
    assert low is not None, "the first pass saw images"
    return backend.download(kernels.kth_score(low, prefix, within))[0]


def _tail_bucket(counts: NDArray[np.float64], budgets: NDArray[np.float64]) -> tuple[Any, Any]:
    """Find per row the highest bucket at which the mass from there upward exceeds the budget, and the mass above it.

    -1 for a negative budget (no finite threshold). A row whose whole mass fits the budget gives its lowest bucket with
    mass: the smallest score already satisfies it.
    """
    # sums of 1/n differ from whole numbers by rounding alone; the slack is far below one pixel of any image
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
    spill: ScoreSpill, indices: Sequence[int], alpha: Fraction, fallback: float, on_small_n: SmallSample
) -> NDArray[np.float32]:
    """Fit one threshold per cell; a cell with too few images uses the pooled one, unless all cells have too few."""
    assert spill.grid is not None, "position thresholds need a grid"
    backend, (height, width) = spill.backend, spill.grid
    values = np.full((height, width), fallback, np.float32)
    rows = max(1, math.floor(_BAND_BYTES / (4 * max(1, len(indices)) * width)))
    for start in range(0, height, rows):
        with backend.queue():
            band = spill.rows(start, min(start + rows, height), indices)
            numbers = backend.xp.where(band == band, band, np.float32(-np.inf))  # NaN differs from itself
            band_thresholds, largest = backend.download(
                kernels.position_quantiles(band, alpha, fallback=fallback), numbers.max(axis=0)
            )
        if on_small_n == "max":
            band_thresholds = np.where(np.isposinf(band_thresholds) & np.isfinite(largest), largest, band_thresholds)
        values[start : start + rows] = band_thresholds
    if on_small_n == "refuse" and not np.isposinf(values).all():
        values[np.isposinf(values)] = fallback
    return values


def _clustered_thresholds(
    spill: ScoreSpill,
    indices: Sequence[int],
    alpha: Fraction,
    fallback: float,
    on_small_n: SmallSample,
    clusters: int,
) -> NDArray[np.float32]:
    """Fit one threshold per cluster of cells with similar scores; cells that no image covers use the pooled one.

    k-means over nine quantiles of the scores of a cell; the scores of all cells of a cluster are pooled. Source:
    Kandinsky Conformal Prediction (Brunekreef et al. 2024).
    """
    assert spill.grid is not None, "position thresholds need a grid"
    backend, (height, width) = spill.backend, spill.grid
    curves = np.full((height, width, len(_CURVE)), np.nan, np.float32)
    rows = max(1, math.floor(_BAND_BYTES / (4 * max(1, len(indices)) * width)))
    for start in range(0, height, rows):
        with backend.queue():
            (band,) = backend.download(spill.rows(start, min(start + rows, height), indices))
        last = (~np.isnan(band)).sum(axis=0) - 1
        ranks = np.rint(np.multiply.outer(_CURVE, np.maximum(last, 0))).astype(np.int64)
        quantiles = np.take_along_axis(np.sort(band, axis=0), ranks, axis=0)  # NaN is sorted to the end
        curves[start : start + rows] = np.where(last >= 0, quantiles, np.nan).transpose(1, 2, 0)
    has_curve = ~np.isnan(curves[..., 0])
    cluster_of = np.full((height, width), NO_CLASS, np.uint16)
    num = min(clusters, int(has_curve.sum()))
    if num:
        cv2.setRNGSeed(0)
        stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-4)
        start_labels: Any = None
        _, numbers, _ = cv2.kmeans(curves[has_curve], num, start_labels, stop, 3, cv2.KMEANS_PP_CENTERS)
        cluster_of[has_curve] = numbers[:, 0]

    def images() -> Iterator[tuple[Any, Any]]:
        groups = backend.constant(cluster_of.ravel())
        for scores, classes in spill.images(indices):
            valid = classes != NO_CLASS
            yield scores[valid], groups[valid]

    with backend.queue():
        cluster_thresholds = _order_statistics(images, num, alpha, finite=on_small_n == "max", backend=backend)[:-1]
    values = np.append(cluster_thresholds, np.float32(fallback))
    return values[np.minimum(cluster_of, num)].astype(np.float32)
