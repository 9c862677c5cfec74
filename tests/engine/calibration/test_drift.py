"""The watch against the laws of exchangeable streams, and against streams that change."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.engine.calibration.drift import DriftWatch, watch_images


def watch(calibration: np.ndarray, stream: np.ndarray, seed: int = 0) -> DriftWatch:
    watch = DriftWatch(calibration)
    for index, value in enumerate(stream):
        watch.update(float(value), f"{seed}/{index}")
    return watch


def test_p_values_of_exchangeable_images_are_uniform_and_independent() -> None:
    rng = np.random.default_rng(0)
    values = rng.beta(5, 2, 2050).round(2)  # with ties
    watch = DriftWatch(values[:50])
    p_values = np.array([watch.update(float(value), str(index)) for index, value in enumerate(values[50:])])
    deciles = np.bincount((p_values * 10).astype(int), minlength=10) / 2000
    np.testing.assert_allclose(deciles, 0.1, atol=4 * np.sqrt(0.09 / 2000))
    assert abs(np.corrcoef(p_values[1:], p_values[:-1])[0, 1]) < 0.08


def test_false_alarms_are_no_more_frequent_than_the_level() -> None:
    rng, alarms = np.random.default_rng(0), 0
    for seed in range(200):
        values = rng.beta(5, 2, 692)
        alarms += watch(values[:92], values[92:], seed).alarm is not None
    assert alarms <= 0.05 * 200


def test_a_change_is_noticed_soon_in_either_direction() -> None:
    rng = np.random.default_rng(0)
    calibration = rng.beta(5, 2, 200)
    for low, high in ((2, 2), (12, 1)):
        alarm = watch(calibration, rng.beta(low, high, 400)).alarm
        assert alarm is not None
        assert alarm < 100


def test_a_late_change_is_noticed_too() -> None:
    rng = np.random.default_rng(0)
    stream = np.concatenate([rng.beta(5, 2, 500), rng.beta(2, 3, 300)])
    alarm = watch(rng.beta(5, 2, 200), stream).alarm
    assert alarm is not None
    assert 500 < alarm < 650


def test_the_report_does_not_depend_on_the_order_of_the_run() -> None:
    rng = np.random.default_rng(0)
    images = [(f"{index}.jpg", float(value)) for index, value in enumerate(rng.beta(2, 2, 300))]
    calibration = rng.beta(5, 2, 100)
    forward, backward = watch_images(calibration, images), watch_images(calibration, images[::-1])
    assert forward == backward
    assert forward is not None
    assert forward.alarm is not None
    assert "do not look like the calibration images" in forward.sentence()
    alike = watch_images(calibration, [(name, float(rng.beta(5, 2))) for name, _ in images])
    assert alike is not None
    assert "no sign of drift in 300 images" in alike.sentence()
    assert watch_images(calibration, []) is None


def test_the_capital_starts_at_one() -> None:
    assert DriftWatch([0.5]).capital == pytest.approx(1.0)
