"""Reliability of a student: calibration of its confidence, and quality of the pseudo-labels that it selects.

::

    temperature = fit_temperature(logits, truth)                # (n, C) float, (n,) true classes
    selected = measure_selection(label, reliable, truth, num_classes=21)
    selected.sampling, selected.accuracy, selected.recall       # per class
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
"""Bins of the expected calibration error, of equal width."""
_TEMPERATURES = (0.05, 20.0)
"""Range of the search."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Agreement of confidence and accuracy; arrays have one entry per confidence bin."""

    counts: NDArray[np.int64]
    """(15,) number of pixels."""
    confidence_sums: NDArray[np.float64]
    """(15,) sum of their confidences."""
    right: NDArray[np.int64]
    """(15,) number of them whose label is the true class."""
    temperature: float
    """T > 0 that minimizes the negative log-likelihood of softmax(z / T); above 1 for an overconfident student. NaN if
    unknown."""

    @property
    def confidence(self) -> float:
        """Return the mean confidence."""
        return float(self.confidence_sums.sum() / max(self.counts.sum(), 1))

    @property
    def ece(self) -> float:
        """Return the expected calibration error: mean of |accuracy - confidence| over bins, weighted by pixels."""
        return float(np.abs(self.right - self.confidence_sums).sum() / max(self.counts.sum(), 1))


@dataclass(frozen=True, kw_only=True)
class SelectedLabels:
    """Quality of selected pseudo-labels, by predicted class; arrays are (K,) numbers of pixels.

    Source: CSL, table 9 of the supplement. These definitions are derived from its figures, which satisfy accuracy x
    sampling / recall = accuracy of all predictions, equal for both methods.
    """

    predicted: NDArray[np.int64]
    """Predictions of the class on pixels with a true class."""
    selected: NDArray[np.int64]
    """Predictions that are selected."""
    right: NDArray[np.int64]
    """Predictions that are the true class."""
    selected_right: NDArray[np.int64]
    """Selected predictions that are the true class."""

    @property
    def sampling(self) -> NDArray[np.float64]:
        """Return (K,) the share of predictions that are selected; NaN for a class without predictions."""
        return _ratio(self.selected, self.predicted)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Return (K,) the share of selected predictions that are right."""
        return _ratio(self.selected_right, self.selected)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Return (K,) the share of right predictions that are selected."""
        return _ratio(self.selected_right, self.right)

    def total(self) -> SelectedLabels:
        """Return the sums over all classes, as arrays of one entry."""
        sums = {name: np.array([values.sum()]) for name, values in vars(self).items()}
        return SelectedLabels(**sums)


def measure_selection(
    label: NDArray[np.integer], selected: NDArray[np.bool_], truth: NDArray[np.integer], num_classes: int
) -> SelectedLabels:
    """Count predictions by class over the pixels whose true class is below ``num_classes``; maps are (H, W)."""
    has_label = (truth < num_classes) & (label < num_classes)
    label, selected, right = label[has_label], selected[has_label], (label == truth)[has_label]

    def count(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(label[mask], minlength=num_classes).astype(np.int64)

    return SelectedLabels(
        predicted=count(np.ones_like(selected)), selected=count(selected), right=count(right),
        selected_right=count(selected & right),
    )  # fmt: skip


def bin_confidence(
    confidence: NDArray[np.floating], right: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return pixels, sum of confidences and right pixels of each confidence bin, each (15,)."""
    bins = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    sums = np.bincount(bins, weights=confidence, minlength=NUM_BINS).astype(np.float64)
    counts, hits = (np.bincount(values, minlength=NUM_BINS).astype(np.int64) for values in (bins, bins[right]))
    return counts, sums, hits


def fit_temperature(logits: NDArray[np.floating], truth: NDArray[np.integer]) -> float:
    """Return the temperature that minimizes the negative log-likelihood; logits (n, K), truth (n,) classes.

    NaN without pixels. Source: temperature scaling, Guo et al. 2017; a golden-section search on log T.
    """
    if not len(truth):
        return float("nan")
    logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    true_logits = logits[np.arange(len(truth)), truth]

    def loss(log_temperature: float) -> float:
        temperature = np.exp(log_temperature)
        return float((np.log(np.exp(logits / temperature).sum(axis=1)) - true_logits / temperature).mean())

    golden = (5**0.5 - 1) / 2
    low, high = np.log(_TEMPERATURES)
    left, right = high - golden * (high - low), low + golden * (high - low)
    left_loss, right_loss = loss(left), loss(right)
    while high - low > 1e-3:
        if left_loss <= right_loss:
            high, right, right_loss = right, left, left_loss
            left = high - golden * (high - low)
            left_loss = loss(left)
        else:
            low, left, left_loss = left, right, right_loss
            right = low + golden * (high - low)
            right_loss = loss(right)
    return float(np.exp((low + high) / 2))


def _ratio(part: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(total > 0, part / np.maximum(total, 1), np.nan)
