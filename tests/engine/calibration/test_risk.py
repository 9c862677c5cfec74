"""Rates per image against brute force and against the laws that they promise."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.engine.calibration.risk import (
    LabelLosses,
    accept_false_labels,
    betting_p_values,
    control_false_labels,
    control_misses,
    false_label_report,
    false_label_threshold,
)
from maskmill.engine.calibration.scores.score_counts import NUM_BINS, ScoreCounts
from maskmill.errors import CalibrationError


def counts_of(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> ScoreCounts:
    """Counts of one class from (true, hits, wrong) per image, each a histogram over the first bins."""
    tables = np.zeros((3, len(images), NUM_BINS), np.uint32)
    for index, parts in enumerate(images):
        for table, part in zip(tables, parts, strict=True):
            table[index, : len(part)] = part
    rows = np.arange(len(images))
    classes = np.zeros(len(images), np.int64)
    return ScoreCounts(tuple(map(str, rows)), np.zeros((len(images), 9)), rows, classes, *tables)


def random_counts(num: int, seed: int, error: float = 0.3) -> ScoreCounts:
    """Images whose wrong labels have higher scores, more of them in hard images."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(num):
        hard = rng.random() ** 2
        hits = rng.multinomial(200, np.linspace(2, 0.2, 40) / np.linspace(2, 0.2, 40).sum())
        wrong = rng.multinomial(int(200 * error * hard), np.linspace(0.1, 2, 40) / np.linspace(0.1, 2, 40).sum())
        images.append((hits, hits, wrong))
    return counts_of(images)


def test_the_loss_is_the_wrong_share_of_kept_pixels_and_its_running_maximum() -> None:
    losses = LabelLosses.of_counts(counts_of([(np.array([4, 4]), np.array([0, 4, 4, 0]), np.array([1, 0, 0, 8]))]))
    assert losses.risk[0, :4].tolist() == [1.0, 0.2, pytest.approx(1 / 9), pytest.approx(9 / 17)]
    assert losses.monotone[0, :4].tolist() == [1.0] * 4
    assert losses.kept[0, :2].tolist() == [1 / 8, 5 / 8]


def test_the_threshold_is_the_loosest_that_satisfies_the_bound() -> None:
    losses = LabelLosses.of_counts(random_counts(60, seed=0))
    chosen = int(control_false_labels(losses, np.ones((1, 60)), 0.05)[0])
    bounds = [(losses.risk[:, : index + 1].max(axis=1).sum() + 1) / 61 for index in range(40)]
    assert chosen == max(index for index, bound in enumerate(bounds) if bound <= 0.05)


def test_the_rate_holds_on_average_over_new_images() -> None:
    risks = []
    for seed in range(300):
        losses = LabelLosses.of_counts(random_counts(41, seed=seed))
        weights = np.append(np.ones(40), 0.0)[None]
        chosen = int(control_false_labels(losses, weights, 0.08)[0])
        risks.append(losses.risk[40, chosen] if chosen >= 0 else 0.0)
    assert np.mean(risks) <= 0.08 + 2 * np.std(risks) / np.sqrt(300)
    assert np.mean(risks) > 0.03  # and not by keeping nothing


def test_the_tested_rate_is_exceeded_no_more_often_than_delta() -> None:
    population = LabelLosses.of_counts(random_counts(4000, seed=1))
    rng, exceeded = np.random.default_rng(0), 0
    for _ in range(200):
        images = rng.choice(4000, 80, replace=False)
        sample = LabelLosses(risk=population.risk[images], kept=population.kept[images])
        chosen = accept_false_labels(sample, 0.08, 0.1)
        exceeded += chosen >= 0 and population.risk[:, chosen].mean() > 0.08
    assert exceeded <= 0.1 * 200 + 2 * np.sqrt(200 * 0.1 * 0.9)


def test_betting_p_values_are_valid_at_the_boundary() -> None:
    rng = np.random.default_rng(0)
    losses = (rng.random((100, 4000)) < 0.1).astype(float)  # mean .1, the hardest case for alpha .1
    p_values = betting_p_values(losses, 0.1, 0.1)
    for level in (0.05, 0.1, 0.2):
        assert (p_values <= level).mean() <= level + 3 * np.sqrt(level / 4000)
    assert np.median(betting_p_values(losses, 0.3, 0.1)) < 1e-3


def test_a_rate_out_of_reach_is_refused_with_one_that_is_not() -> None:
    losses = LabelLosses.of_counts(random_counts(9, seed=0))
    from fractions import Fraction

    with pytest.raises(CalibrationError, match=r"with 9 images; use --alpha 0\.1"):
        false_label_threshold(losses, Fraction(1, 20), None)


def test_the_report_shows_empty_images() -> None:
    counts = counts_of([(np.array([5, 5]), np.array([5, 5]), np.array([0, 0]))] * 30
                       + [(np.array([0, 0, 0, 9]), np.array([0, 0, 0, 9]), np.array([0, 0, 0, 9]))] * 10)  # fmt: skip
    losses = LabelLosses.of_counts(counts)
    chosen = int(control_false_labels(losses, np.ones((1, 40)), 0.05)[0])
    report = false_label_report(counts, losses, 0.05, chosen)
    assert report["risk"] == 0.0
    assert report["empty_images"] == pytest.approx(0.25)
    assert report["kept"] == pytest.approx(0.75)
    assert report["risk_interval"][1] > 0


def test_misses_are_controlled_or_the_smallest_supported_rate_is_given() -> None:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(50):
        hits = rng.multinomial(90, np.ones(30) / 30)
        images.append((hits + (np.arange(30) < 10), hits, np.zeros(30, np.int64)))
    counts = counts_of(images)
    weights = np.ones((1, 50))
    (chosen,), (rate,) = control_misses(counts, 0, weights, 0.3)
    assert rate == 0.3
    missed = [1 - hits[: chosen + 1].sum() / true.sum() for true, hits, _ in images]
    stricter = [1 - hits[:chosen].sum() / true.sum() for true, hits, _ in images]
    assert (sum(missed) + 1) / 51 <= 0.3 < (sum(stricter) + 1) / 51
    (loosest,), (supported,) = control_misses(counts, 0, weights, 0.05)  # one in ten is never labeled right
    assert supported == pytest.approx((50 * 0.1 + 1) / 51)
    assert loosest == 29
