from __future__ import annotations

import numpy as np
import pytest

from maskmill import kernels
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.base import ScoreMap
from maskmill.engine.predictors.resampling import resample_nearest
from maskmill.errors import UsageError

# Three model classes; the last is dropped, so it competes as "none of these".
TAXONOMY = Taxonomy(targets=("background", "cat"), background=0, model=(0, 1, -1))
PROBABILITIES = np.array(
    [
        [0.90, 0.05, 0.05],  # sure background
        [0.50, 0.45, 0.05],  # background or cat
        [0.20, 0.75, 0.05],  # cat
        [0.10, 0.20, 0.70],  # none of these
        [0.34, 0.33, 0.33],  # nobody knows
    ]
)


def score_map(probabilities: np.ndarray = PROBABILITIES) -> ScoreMap:
    logits = np.log(probabilities).astype(np.float32)[None]
    return ScoreMap(
        scores=logits, layout="HWC", activation="softmax", size=(1, len(probabilities)),
        region=(0.0, 0.0, 1.0, float(len(probabilities))),
    )  # fmt: skip


def labels(**options) -> list[int]:
    return select(score_map(), TAXONOMY, Selection(**options)).label[0].tolist()


def test_argmax_keeps_all_but_dropped_classes() -> None:
    assert labels() == [0, 0, 1, 255, 0]


def test_a_confidence_threshold_keeps_the_sure_ones() -> None:
    selection = Selection.threshold(0.6)
    assert select(score_map(), TAXONOMY, selection).label[0].tolist() == [0, 255, 1, 255, 255]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("argmax", [0, 0, 1, 255, 255]),
        ("foreground", [0, 1, 1, 255, 255]),
        ("single", [0, 255, 1, 255, 255]),
        ("agree", [0, 255, 1, 255, 255]),
    ],
)
def test_the_four_rules_on_prediction_sets(rule: str, expected: list[int]) -> None:
    # sets at 0.6: {bg}, {bg, cat}, {cat}, {none}, {}
    thresholds = np.full(3, 0.6, np.float32)
    assert labels(method="conformal", rule=rule, thresholds=thresholds) == expected


def test_the_single_member_may_differ_from_the_argmax() -> None:
    # With its own generous threshold only the cat is in the second pixel's set.
    thresholds = np.array([0.3, 0.6, 0.3], np.float32)
    assert labels(method="conformal", rule="single", thresholds=thresholds)[1] == 1
    assert labels(method="conformal", rule="agree", thresholds=thresholds)[1] == 255


def test_a_position_map_decides_cell_by_cell() -> None:
    thresholds = np.array([[0.0, 0.6, 0.6, 0.6, 0.6]], np.float32)
    assert labels(method="conformal", rule="argmax", thresholds=thresholds) == [255, 0, 1, 255, 255]


def test_a_coarser_grid_is_spread_over_the_image() -> None:
    wide = ScoreMap(
        scores=np.log(PROBABILITIES[[0, 2]]).astype(np.float32)[None], layout="HWC", activation="softmax",
        size=(2, 4), region=(0.0, 0.0, 1.0, 2.0),
    )  # fmt: skip
    selected = select(wide, TAXONOMY, Selection(method="conformal", thresholds=np.full((1, 2), 0.6, np.float32)))
    assert selected.label.tolist() == [[0, 0, 1, 1]] * 2
    assert selected.weight.shape == (2, 4)
    assert selected.counts.tolist() == [4, 4]


def test_counts_kept_share_and_confidence_are_of_kept_pixels() -> None:
    selected = select(score_map(), TAXONOMY, Selection.threshold(0.6))
    assert selected.counts.tolist() == [1, 1]
    assert selected.kept == pytest.approx(2 / 5)
    assert selected.confidence == pytest.approx((0.9 + 0.75) / 2, abs=1e-5)


def test_nothing_kept_has_no_confidence() -> None:
    selected = select(score_map(PROBABILITIES[3:4]), TAXONOMY, Selection())
    assert (selected.kept, selected.confidence) == (0.0, 0.0)


@pytest.mark.parametrize("weight", ["none", "confidence", "pcos"])
def test_weights_are_zero_exactly_where_nothing_is_labeled(weight: str) -> None:
    selected = select(score_map(), TAXONOMY, Selection(weight=weight))
    assert selected.weight.dtype == np.uint8
    np.testing.assert_array_equal(selected.weight == 0, selected.label == 255)


def test_without_weighting_every_label_counts_fully() -> None:
    assert select(score_map(), TAXONOMY, Selection()).weight[0].tolist() == [255, 255, 255, 0, 255]


def test_confidence_weights_follow_the_top_score() -> None:
    weight = select(score_map(), TAXONOMY, Selection(weight="confidence")).weight[0]
    np.testing.assert_allclose(weight[[0, 1, 2]], [0.9 * 255, 0.5 * 255, 0.75 * 255], atol=1)
    assert weight.max() < 255


def test_fewer_weight_levels_give_fewer_values() -> None:
    rng = np.random.default_rng(0)
    many = rng.dirichlet(np.ones(3), 500)
    weight = select(score_map(many), TAXONOMY, Selection(weight="confidence", weight_levels=8)).weight
    assert len(np.unique(weight)) <= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "median"}, "method must be one of"),
        ({"rule": "majority"}, "rule must be one of"),
        ({"weight": "heavy"}, "weight must be one of"),
        ({"method": "conformal"}, "need them"),
        ({"thresholds": np.zeros(3, np.float32)}, "argmax takes no thresholds"),
        ({"weight_levels": 2}, r"levels must be a whole number from 3 to 256, got 2"),
    ],
)
def test_a_contradictory_selection_is_refused(options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Selection(**options)


@pytest.mark.parametrize("confidence", [0.0, 1.5, -1.0])
def test_a_threshold_outside_its_range_is_refused(confidence: float) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        Selection.threshold(confidence)


def test_nearest_resampling_uses_half_pixel_centers() -> None:
    assert resample_nearest(np.arange(4)[None], (1, 8))[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert resample_nearest(np.arange(9)[None], (1, 3))[0].tolist() == [1, 4, 7]


def test_two_selections_with_different_thresholds_have_different_records() -> None:
    records = [
        Selection(method="conformal", thresholds=np.array([0.5, *rest], np.float32)).record()
        for rest in ([0.2, 0.3], [0.2, 0.4])
    ]
    assert records[0] != records[1]
    assert Selection.threshold(0.7).record()["threshold"] == 0.7


@pytest.mark.parametrize("value", [np.nan, -0.1])
def test_thresholds_that_are_no_scores_are_refused(value: float) -> None:
    with pytest.raises(UsageError, match="thresholds are nonconformity scores of at least 0"):
        Selection(method="conformal", thresholds=np.array([0.5, value, 0.5], np.float32))


def test_a_class_with_a_threshold_below_every_score_is_never_emitted() -> None:
    assert labels(method="conformal", thresholds=np.array([1, -np.inf, 1], np.float32)) == [0, 0, 255, 255, 0]


def test_pcos_as_in_the_supplement_is_the_kernel_with_its_constants() -> None:
    rng = np.random.default_rng(5)
    scores = rng.normal(0, 2, (4, 9, 11)).astype(np.float32)
    taxonomy = Taxonomy(targets=("a", "b", "c", "d"), background=None, model=(0, 1, 2, 3), labels={})
    score_map = ScoreMap(scores=scores, layout="CHW", activation="softmax", size=(9, 11), region=(0, 0, 9, 11))
    stats = kernels.class_stats(scores, (9, 11), outputs=("label", "share", "dispersion"), dispersion="exact")
    pcos = kernels.pcos(stats.share, stats.dispersion, denominator=64, epsilon=0)
    expected = kernels.quantize_weights(pcos.weight, pcos.reliable, label=stats.label)
    found = select(score_map, taxonomy, Selection(weight="pcos-supplement")).weight
    np.testing.assert_array_equal(found, expected)
    assert (found != select(score_map, taxonomy, Selection(weight="pcos")).weight).any()
