"""Weigh calibration images so that they resemble another corpus, without labels of it (weighted conformal prediction).

A classifier learns to tell the calibration images from the corpus by their statistics; an image's weight is the odds,
according to the classifier, that it is from the corpus (Tibshirani et al. 2019). Thresholds from weighted images are
valid for the corpus if the two differ only in how often kinds of images occur, and the weights are right. They are not
valid if the images themselves changed: errors on dark photos cannot be learned from bright photos, whatever their
weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FOLDS = 5
_RIDGE = 10.0
_STEPS = 25
_LARGEST_LOGIT = 10.0
_QUANTILE = 0.95  # of the corpus weights; larger weights are cut off there


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """Weights of n calibration images, in units of the weight of a new image."""

    values: NDArray[np.float64]
    """(n,): weights; at most 1."""
    separation: float
    """Share of (calibration image, corpus image) pairs that the classifier ranks correctly; 0.5 is chance."""

    @property
    def effective(self) -> float:
        """Effective sample size: number of equally weighted images with the same information about the corpus."""
        return effective_size(self.values)


def effective_size(weights: NDArray[np.float64]) -> float:
    """Return the effective sample size of weights (n,) in units of a new image's weight.

    It is the smaller of Kish's (sum w)² / sum w² and sum w: n images of weight w count as n·w new ones.
    """
    total = float(weights.sum())
    return min(total**2 / float((weights**2).sum()), total) if total > 0 else 0.0


def fit_weights(calibration: NDArray[np.float64], corpus: NDArray[np.float64]) -> Weights:
    """Fit the weights of calibration images (n, J) to a corpus (m, J), given the statistics of both.

    Each image is weighted by a classifier that was fitted without it, since a classifier fitted with it underestimates
    how much it resembles the other set. Weights are cut off at the 95 % quantile of the corpus images' weights.
    """
    num, both = len(calibration), np.concatenate([calibration, corpus])
    center, scale = both.mean(axis=0), np.maximum(both.std(axis=0), 1e-9)
    standard = np.clip((both - center) / scale, -4, 4)
    features = np.concatenate([np.ones((len(both), 1)), standard, standard**2 - 1], axis=1)
    is_corpus = np.arange(len(both)) >= num
    logits = np.zeros(len(both))
    fold_of = np.random.default_rng(0).permutation(len(both)) % _FOLDS
    for fold in range(_FOLDS):
        held_out = fold_of == fold
        logits[held_out] = features[held_out] @ _fit(features[~held_out], is_corpus[~held_out])
    odds = np.exp(np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT))
    cap = float(np.quantile(odds[num:], _QUANTILE))
    ranks = np.argsort(np.argsort(logits))
    separation = (ranks[num:].mean() - (len(corpus) - 1) / 2) / num
    return Weights(values=np.minimum(odds[:num] / cap, 1.0), separation=float(separation))


def _fit(features: NDArray[np.float64], is_corpus: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fit a logistic regression with a ridge by Newton's method; both sets have the same total weight."""
    share = is_corpus.mean()
    if share in (0.0, 1.0):
        return np.zeros(features.shape[1])
    weight = np.where(is_corpus, 0.5 / share, 0.5 / (1 - share)) * min(share, 1 - share) * 2
    ridge = np.full(features.shape[1], _RIDGE)
    ridge[0] = 1e-6
    coefficients = np.zeros(features.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(features @ coefficients, -30, 30)))
        gradient = features.T @ (weight * (chance - is_corpus)) + ridge * coefficients
        curvature = (features * (weight * chance * (1 - chance))[:, None]).T @ features + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        coefficients -= step
        if np.abs(step).max() < 1e-8:
            break
    return coefficients
