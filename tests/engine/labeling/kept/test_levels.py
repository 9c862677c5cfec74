"""Codes of scores: thresholds on boundaries decide exactly, others within half a cell."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.engine.calibration.scores.score_counts import UPPER
from maskmill.engine.labeling.kept.levels import EDGES, VALUES, ScoreLevels

SPLITS = np.array([0.3, 0.97, -np.inf, np.inf, 1e-3], np.float32)


def scores(num: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all sizes, and their classes."""
    rng = np.random.default_rng(0)
    logits = rng.uniform(-22, 16, num)
    return (1 / (1 + np.exp(-logits))).astype(np.float32), rng.integers(0, len(SPLITS), num)


def logit(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return np.log(values / (1 - values))


def accepted(thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decisions on codes, and on the scores themselves."""
    values, classes = scores()
    levels = ScoreLevels(SPLITS)
    codes = levels.codes(values, classes)
    return codes <= levels.limits(thresholds)[classes], values <= thresholds[classes]


def test_the_bins_of_calibration_are_boundaries_so_that_every_alpha_decides_as_on_scores() -> None:
    assert np.isin(UPPER, EDGES).all()
    assert (np.diff(EDGES) >= 0).all()
    assert (VALUES[1:-2] <= EDGES[1:-2]).all()


@pytest.mark.parametrize("place", range(0, len(EDGES), 97))
def test_a_threshold_on_a_boundary_decides_as_on_scores(place: int) -> None:
    by_code, by_score = accepted(np.full(len(SPLITS), EDGES[place]))
    np.testing.assert_array_equal(by_code, by_score)


def test_the_thresholds_of_the_store_decide_as_on_scores() -> None:
    by_code, by_score = accepted(SPLITS)
    np.testing.assert_array_equal(by_code, by_score)


def test_any_other_threshold_decides_within_half_a_cell() -> None:
    values, _ = scores()
    for threshold in (0.001234, 0.05, 0.3001, 0.61, 0.9876):
        by_code, by_score = accepted(np.full(len(SPLITS), threshold, np.float32))
        wrong = by_code != by_score
        distance = np.abs(logit(values[wrong]) - logit(np.float32(threshold)))
        assert distance.max(initial=0) <= 1 / 128 + 1e-3
