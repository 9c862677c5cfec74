"""Thresholds and coverage from binned scores, for many weightings of the images at once.

A weighting (n,) holds how often each image counts: 1 for all, 0 for held-out images, multiplicities for a bootstrap.
Thresholds are bins of :data:`~maskmill.engine.calibration.scores.score_counts.UPPER`, so they are never below the
exact ones.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .drift.weights import effective_size
from .scores.score_counts import NUM_BINS, UPPER, ScoreCounts
from .sharing import CONFIDENT, NEVER, POOLED, SHRINKAGE, Sharing
from .thresholds import Unit

NEVER_BIN = -1
"""Bin of a class without a threshold: no score is below it."""

_SLACK = 1e-9  # sums of 1/n differ from whole numbers by rounding; far below one pixel of any image


class BinnedScores:
    """Cumulative counts of calibration images, ready for thresholds and coverage.

    Windows of one file count as one image: they resemble each other, so they are not independent draws.
    """

    def __init__(self, counts: ScoreCounts, num_targets: int) -> None:
        self.counts: ScoreCounts = counts.by_scene()
        self.num_targets = num_targets

    @cached_property
    def pixels(self) -> NDArray[np.int64]:
        """(n, K): pixels of each class in each image."""
        return self.counts.pixels(self.num_targets)

    @cached_property
    def covered(self) -> NDArray[np.int64]:
        """(R, B): pixels of each row's class whose score is at most the bin's upper edge."""
        return np.cumsum(self.counts.true, axis=1, dtype=np.int64)

    @cached_property
    def topped(self) -> NDArray[np.int64]:
        """(R, B): pixels whose top class is the row's and has a score of at most the bin's upper edge."""
        return np.cumsum(self.counts.hits.astype(np.int64) + self.counts.wrong, axis=1)

    def image_counts(self, members: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the pixels (n, B) of the ``members`` (K,) in each image, per bin."""
        rows = np.flatnonzero(members[self.counts.target])
        table = np.zeros((self.counts.num_images, NUM_BINS))
        if len(rows):
            # the rows are sorted by image
            images, starts = np.unique(self.counts.image[rows], return_index=True)
            table[images] = np.add.reduceat(self.counts.true[rows], starts, axis=0, dtype=np.float64)
        return table

    def too_small(
        self, sharing: Sharing, weights: NDArray[np.float64], *, alpha: Fraction, unit: Unit
    ) -> NDArray[np.bool_]:
        """Return the classes (K,) with scores from too few images (or pixels) for ``alpha``, weighted by (n,)."""
        result = np.zeros(self.num_targets, bool)
        for source in np.unique(sharing.group_of):
            if source == NEVER:
                continue
            pixels = self.pixels[:, sharing.members(POOLED if source == CONFIDENT else int(source))].sum(axis=1)
            size = int(pixels.sum()) if unit == "pixel" else int(effective_size(weights[pixels > 0]) + _SLACK)
            result |= (sharing.group_of == source) & (alpha * (size + 1) < 1)
        return result

    def thresholds(
        self,
        sharing: Sharing,
        weights: NDArray[np.float64],
        *,
        alpha: Fraction | float,
        unit: Unit,
        match_level: bool = False,
    ) -> NDArray[np.int64]:
        """Fit bins (m, K) for each of the weightings (m, n); ``NEVER_BIN`` for classes that are never emitted.

        With too few images for ``alpha`` the bin is that of the largest score (:meth:`too_small` returns these
        classes). With ``match_level`` the image unit allows the same share of misses as it does for all images
        together, so that folds measure the thresholds that all images give.
        """
        bins = np.full((len(weights), self.num_targets), NEVER_BIN, np.int64)
        for source in np.unique(sharing.group_of):
            if source in (NEVER, CONFIDENT):
                continue
            targets = np.flatnonzero(sharing.group_of == source)
            table = self.image_counts(sharing.members(int(source)))
            bins[:, targets] = _fit(table, weights, alpha, unit, match_level)[:, None]
        confident = sharing.group_of == CONFIDENT
        if sharing.group == "shrunk" or confident.any():
            constant = self.constant_bins(bins, weights)[:, None]
            if sharing.group == "shrunk":  # bins are equally wide in the logit
                shrunk = np.rint((1 - SHRINKAGE) * bins + SHRINKAGE * constant).astype(np.int64)
                bins = np.where(bins >= 0, shrunk, bins)
            bins[:, confident] = constant
        return bins

    def constant_bins(self, bins: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the bin (m,) for all classes at which the top class keeps as many pixels as at ``bins`` (m, K)."""
        kept_pixels, total = np.zeros(len(weights)), np.zeros((len(weights), NUM_BINS))
        for target in range(self.num_targets):
            rows = np.flatnonzero(self.counts.target == target)
            sums = weights[:, self.counts.image[rows]] @ self.topped[rows]
            target_bins = bins[:, target]
            kept_pixels += np.where(target_bins >= 0, sums[np.arange(len(sums)), np.maximum(target_bins, 0)], 0)
            total += sums
        return (total >= kept_pixels[:, None] - 1e-6).argmax(axis=1)

    def coverage(self, bins: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum the covered pixels (m, K) of the weighted images (m, n) under the thresholds ``bins`` (m, K)."""
        total = np.zeros(bins.shape)
        for target in range(self.num_targets):
            rows = np.flatnonzero(self.counts.target == target)
            last_bins = bins[:, target]
            covered = np.where(last_bins >= 0, self.covered[rows][:, np.maximum(last_bins, 0)], 0)
            total[:, target] = (weights[:, self.counts.image[rows]] * covered.T).sum(axis=1)
        return total

    def held_out(self, bins: NDArray[np.int64], fold_of: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the covered pixels (n, K) of each image under the thresholds (folds, K) of its own fold (n,)."""
        image, target = self.counts.image, self.counts.target
        last_bins = bins[fold_of[image], target]
        covered = np.where(last_bins >= 0, self.covered[np.arange(len(image)), np.maximum(last_bins, 0)], 0)
        return self.counts.table(covered, self.num_targets)


def bins_of(thresholds: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the last bin whose scores are all at most each threshold; ``NEVER_BIN`` if there is none."""
    return np.searchsorted(UPPER, thresholds, side="right") - 1


def _per_image(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return table / np.maximum(table.sum(axis=1, keepdims=True), 1e-300)


def _fit(
    table: NDArray[np.float64],
    weights: NDArray[np.float64],
    alpha: Fraction | float,
    unit: Unit,
    match: bool,
) -> NDArray[np.int64]:
    """Fit one bin (m,) per weighting (m, n) from counts (n, B)."""
    alpha = float(alpha)
    present = table.sum(axis=1) > 0
    num = weights @ present
    full = float(present.sum())
    if unit == "pixel":
        cumulative = np.cumsum(weights @ table, axis=1)
        total = cumulative[:, -1]
        rank = np.minimum(total + 1 - np.floor((total + 1) * alpha + _SLACK), total)
        reached = cumulative >= rank[:, None] - 1e-6
    else:
        shares = np.cumsum(_per_image(table), axis=1)
        missed_weights = weights @ (present[:, None] - shares)
        budget = num * (alpha * (full + 1) - 1) / max(full, 1.0) if match else alpha * (num + 1) - 1
        reached = missed_weights <= np.maximum(budget, 0)[:, None] + _SLACK
    return np.where(reached.any(axis=1), reached.argmax(axis=1), NUM_BINS - 1)
