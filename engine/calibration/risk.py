"""Control an error rate per image by thresholds on the top class's score.

``false-label-rate``
    The share of an image's labeled pixels whose label is wrong (0 for an image without a label). One threshold for all
    classes. The loss does not fall monotonically with the threshold, so each image's loss is replaced by its running
    maximum from strict to loose thresholds, on which conformal risk control holds (Angelopoulos et al. 2024): on
    average over new images the share is at most alpha. With ``delta`` the bound is on the true mean instead, except
    with probability delta: Learn then Test (Angelopoulos et al. 2021), thresholds tested from strict to loose by the
    betting bound of Waudby-Smith and Ramdas (2023).
``miss-rate``
    The share of a class's true pixels that are not labeled as the class, on average over new images that show it. It
    decreases as the class's threshold grows only if the label is the top class (rule ``argmax``).

Both work on binned scores, so the guarantees hold for the final thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CalibrationError
from .intervals import blocks, held_out_weights, image_weights, share_interval
from .scores.score_counts import NUM_BINS, ScoreCounts

KEPT_ENOUGH = 0.01
"""Smallest kept share at which an image counts as labeled in the report."""

_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelLosses:
    """Losses of every image under every threshold, (n, B) each."""

    risk: NDArray[np.float64]
    """Share of kept pixels with a wrong label; 0 if none is kept."""
    kept: NDArray[np.float64]
    """Share of the image's pixels that are kept."""

    @classmethod
    def of_counts(cls, counts: ScoreCounts) -> LabelLosses:
        """Compute the losses of labels that keep the top class up to a threshold on its score."""
        num = counts.num_images
        right, wrong, pixels = np.zeros((num, NUM_BINS)), np.zeros((num, NUM_BINS)), np.zeros(num)
        np.add.at(right, counts.image, counts.hits)
        np.add.at(wrong, counts.image, counts.wrong)
        np.add.at(pixels, counts.image, counts.true.sum(axis=1))
        right, wrong = np.cumsum(right, axis=1), np.cumsum(wrong, axis=1)
        return cls(risk=wrong / np.maximum(right + wrong, 1), kept=(right + wrong) / np.maximum(pixels, 1)[:, None])

    @property
    def monotone(self) -> NDArray[np.float64]:
        """(n, B): running maximum of the risk from strict to loose thresholds."""
        return np.maximum.accumulate(self.risk, axis=1)


def control_false_labels(losses: LabelLosses, weights: NDArray[np.float64], alpha: float) -> NDArray[np.int64]:
    """Return the loosest bins (m,) whose risk is controlled, for weightings (m, n) of the images; -1 if none is.

    The bin satisfies (sum of the losses + 1) / (n + 1) <= alpha.
    """
    totals = weights @ losses.monotone
    num = weights.sum(axis=1, keepdims=True)
    return (totals + 1 <= alpha * (num + 1) + _SLACK).sum(axis=1) - 1


def accept_false_labels(losses: LabelLosses, alpha: float, delta: float) -> int:
    """Return the loosest bin that fixed-sequence testing accepts, from strict to loose; -1 if it accepts none.

    The mean risk at that bin is at most ``alpha``, except with probability ``delta``.
    """
    p_values = betting_p_values(losses.risk, alpha, delta)
    accepted_bins = p_values <= delta
    # bins without a kept pixel have no loss at all and are safe without a test
    accepted_bins |= ~losses.risk.any(axis=0) & ~losses.kept.any(axis=0)
    return int(np.argmin(accepted_bins)) - 1 if not accepted_bins.all() else NUM_BINS - 1


def betting_p_values(losses: NDArray[np.float64], alpha: float, delta: float) -> NDArray[np.float64]:
    """Test for each column of losses (n, B) in [0, 1] the hypothesis that its mean exceeds ``alpha``; returns p-values.

    The capital of a bettor on small losses, whose stakes depend on earlier images alone, exceeds 1 / p with probability
    at most p if the mean is above alpha (Ville's inequality). The images are processed in a fixed random order.
    """
    num = len(losses)
    sequence = losses[np.random.default_rng(0).permutation(num)]
    steps = np.arange(1, num + 1)[:, None]
    means = (0.5 + np.cumsum(sequence, axis=0)) / (steps + 1)
    variances = (0.25 + np.cumsum((sequence - means) ** 2, axis=0)) / (steps + 1)
    earlier = np.vstack([np.full((1, losses.shape[1]), 0.25), variances[:-1]])
    stakes = np.minimum(1 / (1 - alpha) * 0.99, np.sqrt(2 * np.log(1 / delta) / (num * earlier)))
    capital = np.cumsum(np.log1p(-stakes * (sequence - alpha)), axis=0)
    return np.exp(-np.maximum(capital.max(axis=0), 0))


def control_misses(
    counts: ScoreCounts, target: int, weights: NDArray[np.float64], alpha: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the strictest bins (m,) that control a class's miss rate, and the rates (m,) that they guarantee.

    ``weights`` (m, n) are how often each image counts. If no threshold reaches ``alpha``, because the class's images
    are few or the top class is often wrong, the rate is the smallest that they support, and the bin the strictest that
    reaches it.
    """
    rows = np.flatnonzero((counts.target == target) & (counts.true.sum(axis=1) > 0))
    true = counts.true[rows].sum(axis=1)
    missed_shares = 1 - np.cumsum(counts.hits[rows], axis=1) / np.maximum(true, 1)[:, None]
    row_weights = weights[:, counts.image[rows]]
    rates = (row_weights @ missed_shares + 1) / (row_weights.sum(axis=1) + 1)[:, None]
    guaranteed = np.maximum(rates.min(axis=1), alpha)
    return (rates <= guaranteed[:, None] + _SLACK).argmax(axis=1), guaranteed


def false_label_report(
    counts: ScoreCounts, losses: LabelLosses, alpha: float, last_bin: int, *, delta: float | None = None
) -> dict[str, Any]:
    """Measure the controlled threshold out of sample: risk, kept share, and images without any label.

    Each image is measured at the threshold of the others; with ``delta`` at the chosen bin.
    """
    fold_of = blocks(counts.ids, 100)
    if delta is None:
        bins = control_false_labels(losses, held_out_weights(fold_of), alpha)[fold_of]
    else:
        bins = np.full(len(fold_of), last_bin)
    image = np.arange(len(fold_of))
    risk = np.where(bins >= 0, losses.risk[image, np.maximum(bins, 0)], 0.0)
    kept_share = np.where(bins >= 0, losses.kept[image, np.maximum(bins, 0)], 0.0)
    is_labeled = kept_share >= KEPT_ENOUGH
    spread = image_weights(len(risk)) @ risk / max(len(risk), 1)
    return {
        "risk": float(risk.mean()),
        "risk_interval": share_interval(float(risk.mean()), 2 * float(spread.var()), len(risk)),
        "risk_of_labeled_images": float(risk[is_labeled].mean()) if is_labeled.any() else None,
        "empty_images": float(1 - is_labeled.mean()),
        "kept": float(kept_share.mean()),
    }


def false_label_threshold(losses: LabelLosses, alpha: Fraction, delta: float | None) -> int:
    """Choose the bin for ``alpha``; raises :class:`CalibrationError` if no threshold controls the risk."""
    num, level = len(losses.risk), float(alpha)
    if delta is None:
        last_bin = int(control_false_labels(losses, np.ones((1, num)), level)[0])
    else:
        last_bin = accept_false_labels(losses, level, delta)
    if last_bin < 0 or not losses.kept[:, last_bin].any():
        smallest = (losses.monotone[:, 0].sum() + 1) / (num + 1)
        raise CalibrationError(
            f"no threshold holds the false-label rate at {level:g} with {num} images; use --alpha "
            f"{np.ceil(smallest * 1e3) / 1e3:g} or more, or label more images"
        )
    return last_bin
