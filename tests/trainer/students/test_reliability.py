from __future__ import annotations

import numpy as np
import pytest

from maskmill.trainer.students.reliability import Reliability, bin_confidence, fit_temperature, measure_selection


def test_the_calibration_error_is_the_gap_of_each_bin() -> None:
    confidence = np.array([0.9, 0.92, 0.95, 0.5])
    right = np.array([True, False, False, True])
    counts, sums, hits = bin_confidence(confidence, right)
    found = Reliability(counts=counts, confidence_sums=sums, right=hits, temperature=1.0)
    assert found.confidence == pytest.approx(confidence.mean())
    # bins are 1/15 wide: .9 and .92 share one, .95 and .5 have their own
    assert found.ece == pytest.approx((abs(0.9 + 0.92 - 1) + 0.95 + 0.5) / 4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scale_of_calibrated_logits(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (shares.cumsum(axis=1) < rng.random((len(shares), 1))).sum(axis=1)
    assert fit_temperature(logits * temperature, truth) == pytest.approx(temperature, rel=0.05)


def test_selected_labels_are_counted_by_predicted_class() -> None:
    label = np.array([[0, 0, 0, 1], [1, 1, 2, 255]])
    truth = np.array([[0, 0, 1, 1], [1, 255, 2, 0]])
    selected = np.array([[True, False, True, True], [False, True, False, False]])
    found = measure_selection(label, selected, truth, 3)
    np.testing.assert_allclose(found.sampling, [2 / 3, 1 / 2, 0])
    np.testing.assert_allclose(found.accuracy, [1 / 2, 1, np.nan])
    np.testing.assert_allclose(found.recall, [1 / 2, 1 / 2, 0])
    total = found.total()
    assert (total.sampling[0], total.accuracy[0], total.recall[0]) == (3 / 6, 2 / 3, 2 / 5)


def test_the_figures_of_csl_s_table_9_fit_the_definitions() -> None:
    # accuracy x sampling / recall is the accuracy of all predictions, which both methods share
    for sampling, accuracy, recall, other in [
        (0.910, 0.824, 0.936, (0.876, 0.865, 0.946)), (0.820, 0.334, 0.818, (0.631, 0.425, 0.801)),
    ]:  # fmt: skip
        assert accuracy * sampling / recall == pytest.approx(other[1] * other[0] / other[2], abs=0.002)
