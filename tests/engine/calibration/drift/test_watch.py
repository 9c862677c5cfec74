"""The watch against the laws of exchangeable streams, and against streams that change."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.engine.calibration.drift.report import STRETCH, Distance, survey, watch_images
from maskmill.engine.calibration.drift.statistics import STATISTICS
from maskmill.engine.calibration.drift.watch import DriftWatch, Sample, order_key


def watch(calibration: np.ndarray, stream: np.ndarray, seed: int = 0) -> DriftWatch:
    watch = DriftWatch(calibration)
    for index, statistics in enumerate(stream):
        watch.update(statistics, f"{seed}/{index}")
    return watch


def test_p_values_of_exchangeable_images_are_uniform_and_independent() -> None:
    rng = np.random.default_rng(0)
    values = rng.beta(5, 2, (2050, 1)).round(2)  # with ties
    watch = DriftWatch(values[:50])
    p_values = np.array([watch.update(row, str(index))[0] for index, row in enumerate(values[50:])])
    deciles = np.bincount((p_values * 10).astype(int), minlength=10) / 2000
    np.testing.assert_allclose(deciles, 0.1, atol=4 * np.sqrt(0.09 / 2000))
    assert abs(np.corrcoef(p_values[1:], p_values[:-1])[0, 1]) < 0.08


def test_every_bet_is_a_density() -> None:
    from maskmill.engine.calibration.drift import watch as module

    p_values = (np.arange(1_000_000) + 0.5) / 1_000_000
    np.testing.assert_allclose(module._bets(p_values).mean(axis=1), 1.0, atol=0.02)


def test_false_alarms_are_no_more_frequent_than_the_level() -> None:
    rng, alarms = np.random.default_rng(0), 0
    for seed in range(100):
        mixing = rng.normal(size=(9, 9))
        values = rng.normal(size=(292, 9)) @ mixing  # statistics that depend on each other
        alarms += watch(values[:92], values[92:], seed).alarm is not None
    assert alarms <= 0.05 * 100


@pytest.mark.parametrize("statistic", [0, 8])
@pytest.mark.parametrize("shift", [-2.0, 2.0])
def test_a_change_of_one_statistic_is_noticed_within_some_images(statistic: int, shift: float) -> None:
    rng = np.random.default_rng(0)
    stream = rng.normal(size=(100, 9))
    stream[:, statistic] += shift
    result = watch(rng.normal(size=(200, 9)), stream)
    assert [index for index, alarm in enumerate(result.alarms) if alarm is not None] == [statistic]
    assert result.alarm is not None
    assert result.alarm < 30


def test_a_late_change_is_noticed_too() -> None:
    rng = np.random.default_rng(0)
    stream = np.concatenate([rng.beta(5, 2, (500, 1)), rng.beta(2, 3, (300, 1))])
    alarm = watch(rng.beta(5, 2, (200, 1)), stream).alarm
    assert alarm is not None
    assert 500 < alarm < 550


def test_the_report_names_what_changed_in_plain_words() -> None:
    rng = np.random.default_rng(0)
    calibration = rng.normal(0.5, 0.1, (100, 9))
    stream = rng.normal(0.5, 0.1, (300, 9))
    alike = watch_images(calibration, [(str(index), row) for index, row in enumerate(stream)])
    assert alike is not None
    assert alike.sentence() == "no sign of drift in 300 images at level 0.05"
    stream[:, STATISTICS.index("brightness")] -= 0.3
    dark = watch_images(calibration, [(str(index), row) for index, row in enumerate(stream)])
    assert dark is not None
    assert [change.statistic for change in dark.changes] == ["brightness"]
    assert dark.changes[0].corpus == pytest.approx(0.2, abs=0.02)
    assert "do not look like the calibration images: alarm after" in dark.sentence()
    assert "(brightness 0.189, 0.499 in calibration)" in dark.sentence()
    assert watch_images(calibration, []) is None


def test_the_sample_holds_the_smallest_hashes_whatever_the_order() -> None:
    uris = [f"photos/{index}.jpg" for index in range(500)]
    expected = sorted(uris, key=order_key)[:50]
    for order in (uris, uris[::-1], uris + uris):
        sample = Sample(50)
        for uri in order:
            sample.add(uri)
        assert sample.uris() == expected


def test_a_stretch_of_far_images_is_found() -> None:
    rng = np.random.default_rng(0)
    distance = Distance(rng.normal(size=(300, 9)))
    rows = rng.normal(size=(2000, 9))
    rows[1200:1400] += 2
    distances = np.array([distance.of(row) for row in rows])
    assert (distances > distance.usual)[:1200].mean() == pytest.approx(0.05, abs=0.03)
    names = [f"{index:05d}.jpg" for index in range(2000)]
    surroundings = survey(names, distances, distance.usual)
    assert surroundings is not None
    assert surroundings.stretch > 0.95
    assert "01150.jpg" < surroundings.first < "01250.jpg"
    assert survey(names[: STRETCH + 1], distances[: STRETCH + 1], distance.usual) is None


def test_the_capital_starts_at_one() -> None:
    assert DriftWatch(np.zeros((1, 9))).log_capital.tolist() == [0.0] * 9
