"""Measure the final thresholds out of sample: coverage, and the quality of the labels that the rule selects.

Every image is held out once. Its thresholds come from the other images, in the way the shipped ones came from all of
them: the same classes share a threshold or fall back to another, and the same share of misses is allowed. The coverage
of a class is the share of its pixels whose prediction set holds it. Intervals are for as many new images as were
calibrated on; they include the variation of the thresholds and of the new images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.types import Rule
from .binned import BinnedScores, bins_of
from .intervals import (
    blocks,
    column_variance,
    folds,
    held_out_weights,
    image_weights,
    ratio_variance,
    share_interval,
)
from .scores.pixel_samples import PixelSamples, Tally
from .scores.score_counts import UPPER
from .scores.score_spill import NO_CLASS, ScoreSpill
from .sharing import Sharing
from .thresholds import SmallSample, Thresholds, fit_thresholds

MOST_BLOCKS = 100
"""Folds of the report: one per image up to this number."""
POSITION_FOLDS = 5
"""Folds of the report for thresholds per position."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Pixels of n images and K classes under thresholds that were fitted without the image."""

    covered: NDArray[np.float64]
    """(n, K): pixels whose prediction set holds their class."""
    total: NDArray[np.float64]
    """(n, K): pixels of each class."""
    variance: NDArray[np.float64]
    """(K + 1,): variance of the coverage of each class, and of all pixels, over sets of images."""
    tally: Tally
    """Labels of the rule on the sampled pixels."""


def hold_out(
    scores: BinnedScores,
    samples: PixelSamples,
    fit: Callable[[NDArray[np.float64]], NDArray[np.int64]],
    thresholds: Thresholds,
    *,
    rule: Rule,
) -> HeldOut:
    """Measure thresholds per class image by image; fewer folds than images beyond ``MOST_BLOCKS``.

    ``fit`` returns bins (m, K) for weightings (m, n) of the images, as the shipped ``thresholds`` were fitted to all.
    """
    num, total = scores.num_targets, scores.pixels
    fold_of = blocks(scores.counts.ids, MOST_BLOCKS)
    bins = fit(held_out_weights(fold_of))
    all_images = np.ones((1, len(total)))
    optimism = scores.coverage(fit(all_images), all_images)[0]
    exact = scores.coverage(bins_of(thresholds.values[:num])[None], all_images)[0]
    covered = scores.held_out(bins, fold_of).astype(np.float64)
    # the bins lie above the exact thresholds: take their excess away, in the same share from every image
    sums = covered.sum(axis=0)
    covered *= np.where(sums > 0, np.clip(sums - (optimism - exact), 0, None) / np.maximum(sums, 1), 1)
    draws, test_draws = image_weights(len(total)), image_weights(len(total), seed=1)
    sampled = scores.coverage(fit(draws), test_draws)
    totals = test_draws @ total
    variance = column_variance(
        np.column_stack([sampled, sampled.sum(axis=1)]), np.column_stack([totals, totals.sum(axis=1)])
    )
    parts = []
    for fold, images in folds(fold_of):
        limits = np.where(bins[fold] >= 0, UPPER[bins[fold]], -np.inf)
        limits = np.append(limits, np.full(len(thresholds.values) - num, thresholds.pooled)).astype(np.float32)
        parts.append((images, samples.tally(images, limits, rule)))
    tally = Tally.gather(parts, len(total), num)
    return HeldOut(covered=covered, total=total.astype(np.float64), variance=variance, tally=tally)


def hold_out_positions(
    spill: ScoreSpill,
    samples: PixelSamples,
    sharing: Sharing,
    *,
    ids: tuple[str, ...],
    num_scored: int,
    alpha: Fraction,
    rule: Rule,
    on_small_n: SmallSample,
    clusters: int | None = None,
) -> HeldOut:
    """Measure thresholds per position in ``POSITION_FOLDS`` folds, each fitted without the fold's images."""
    num = len(sharing.group_of)
    covered, total = np.zeros((len(ids), num)), np.zeros((len(ids), num))
    fold_of, parts = blocks(ids, POSITION_FOLDS), []
    for fold, images in folds(fold_of):
        fitting_images: Sequence[int] = np.flatnonzero(fold_of != fold).tolist()
        # a fold has fewer images than the final calibration: use the largest score rather than an infinite threshold
        small: SmallSample = "inf" if on_small_n == "inf" else "max"
        fold_thresholds = fit_thresholds(
            spill,
            fitting_images,
            sharing,
            num_scored=num_scored,
            alpha=alpha,
            unit="pixel",
            on_small_n=small,
            clusters=clusters,
        )
        limits = fold_thresholds.values.ravel()
        for index in images:
            scores, classes = spill.backend.download(*spill.image(int(index)))
            valid = classes != NO_CLASS
            total[index] = np.bincount(classes[valid], minlength=num)
            covered[index] = np.bincount(classes[valid & (scores <= limits)], minlength=num)
        parts.append((images, samples.tally(images, fold_thresholds.values, rule)))
    columns = (np.column_stack([table, table.sum(axis=1)]) for table in (covered, total))
    variance = 2 * ratio_variance(*columns)  # variation of the images that decide the thresholds, and of new images
    return HeldOut(covered=covered, total=total, variance=variance, tally=Tally.gather(parts, len(ids), num))


def coverage_rows(held_out: HeldOut, target: float) -> list[dict[str, Any] | None]:
    """Report each class, then all pixels: coverage with interval, set size, and the labels of the rule.

    ``missed`` marks a class whose coverage is below ``target`` by more than the interval, which is None for a class in
    too few images. A row is None for unseen classes.
    """
    covered, total, tally = held_out.covered, held_out.total, held_out.tally
    rows: list[dict[str, Any] | None] = []
    iou = tally.iou
    for index in range(total.shape[1] + 1):
        columns = slice(None) if index == total.shape[1] else slice(index, index + 1)
        pixels = float(total[:, columns].sum())
        if pixels == 0:
            rows.append(None)
            continue
        sums = {name: float(getattr(tally, name)[:, columns].sum()) for name in tally.__dataclass_fields__}
        share = float(covered[:, columns].sum() / pixels)
        num_images = int((total[:, columns].sum(axis=1) > 0).sum())
        interval = share_interval(share, float(held_out.variance[index]), num_images, rare_misses=True)
        row: dict[str, Any] = {
            "coverage": share,
            "interval": interval,
            "missed": interval is not None and interval[1] < target,
            "mean_set_size": sums["members"] / sums["true"],
            "singleton_share": sums["single"] / sums["true"],
            "kept": sums["kept"] / sums["true"],
            "accuracy_kept": sums["hits"] / sums["kept"] if sums["kept"] else None,
        }
        if index < total.shape[1]:
            row["iou_kept"] = float(iou[index])
        rows.append(row)
    return rows


def argmax_rows(tally: Tally) -> tuple[dict[str, Any], list[dict[str, Any] | None]]:
    """Report accuracy and IoU of the top class from its tally: overall, and for each class of the truth.

    The labels are those without a selection: a pixel whose top class is a dropped one has none. All figures are over
    the pixels with a label, whose share is ``kept``, as they are for the labels of a selection.
    """
    summary, iou = tally.summary(), tally.iou
    sums = {name: getattr(tally, name).sum(axis=0) for name in ("true", "kept", "hits")}
    rows: list[dict[str, Any] | None] = []
    for index, share in enumerate(iou.tolist()):
        kept_share = float(sums["kept"][index])
        accuracy = float(sums["hits"][index]) / kept_share if kept_share else None
        rows.append({"accuracy": accuracy, "iou": share} if sums["true"][index] else None)
    overall = {
        "accuracy": summary["accuracy_kept"] or 0.0,
        "kept": summary["kept"] or 0.0,
        "miou": summary["miou_kept"] or 0.0,
    }
    return overall, rows
