"""Weights of calibration images: what they restore, and when they are refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from maskmill.engine.calibration.drift.weights import effective_size, fit_weights


def images(rng: np.random.Generator, num: int, brightness: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Statistics (num, 9) and error rates (num,) that grow with the first statistic, of mean ``brightness``."""
    statistics = rng.normal(size=(num, 9))
    statistics[:, 0] += brightness
    return statistics, 0.3 / (1 + np.exp(-2 * statistics[:, 0]))


def test_weighted_means_are_those_of_a_corpus_with_other_frequencies() -> None:
    rng, errors = np.random.default_rng(0), []
    for _ in range(30):
        (calibration, losses), (corpus, truth) = images(rng, 300, 0.0), images(rng, 1000, 0.8)
        weights = fit_weights(calibration, corpus).values
        errors.append([losses.mean() - truth.mean(), np.average(losses, weights=weights) - truth.mean()])
    plain, weighted = np.mean(errors, axis=0)
    assert plain < -0.06
    assert abs(weighted) < 0.3 * abs(plain)


def test_equal_sets_keep_most_of_the_sample_and_are_not_told_apart() -> None:
    rng = np.random.default_rng(0)
    weights = fit_weights(rng.normal(size=(200, 9)), rng.normal(size=(800, 9)))
    assert weights.separation == pytest.approx(0.5, abs=0.08)
    assert weights.effective > 90
    assert weights.values.max() <= 1


def test_another_appearance_leaves_next_to_nothing() -> None:
    rng = np.random.default_rng(0)
    weights = fit_weights(rng.normal(size=(200, 9)), rng.normal(size=(800, 9)) - 5)
    assert weights.separation > 0.99
    assert weights.effective < 2


def test_the_effective_size_is_the_smaller_of_kishs_and_the_sum() -> None:
    assert effective_size(np.ones(50)) == 50
    assert effective_size(np.full(50, 0.1)) == pytest.approx(5)
    assert effective_size(np.append(np.ones(1), np.zeros(9))) == 1
    assert effective_size(np.zeros(3)) == 0
