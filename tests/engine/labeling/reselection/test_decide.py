"""Labels from kept scores are those of the decode kernel, for every rule, activation and class mapping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskmill.engine.labeling.kept.encoding import decode_scores
from maskmill.engine.labeling.kept.levels import EDGES, ScoreLevels
from maskmill.engine.labeling.reselection.decide import KeptSelection
from maskmill.engine.labeling.selection import Selected, Selection, select
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.base import ScoreMap
from maskmill.errors import UsageError

from ....builders import score_keeper

PLAIN = Taxonomy(targets=("sky", "cat", "dog", "cow"), background=0, model=(0, 1, 2, 3))
GROUPED = Taxonomy(targets=("sky", "cat", "dog"), background=0, model=(0, 1, -1, 2))
NO_BACKGROUND = Taxonomy(targets=("cat", "dog", "cow"), background=None, model=(2, 0, 1, -1))
MAPPINGS = {"plain": PLAIN, "grouped": GROUPED, "no background": NO_BACKGROUND}
SIZE = (33, 41)


def score_map(activation: Any, seed: int = 0) -> ScoreMap:
    """Scores at a third of the size; many pixels have several likely classes."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1.5, (4, 11, 14)).astype(np.float32)
    if activation == "none":
        values = (np.abs(values) / 10).astype(np.float32)
    return ScoreMap(
        scores=values, layout="CHW", activation=activation, size=SIZE, region=(0.0, 0.0, 10.5, 13.7)
    )  # fmt: skip


def boundaries(taxonomy: Taxonomy, least: float, seed: int = 1) -> np.ndarray:
    """Different thresholds per class, all of them boundaries of the quantization."""
    rng = np.random.default_rng(seed)
    chosen = rng.uniform(least, 0.95, taxonomy.num_scored).astype(np.float32)
    return EDGES[np.searchsorted(EDGES, chosen)]


def both(taxonomy: Taxonomy, activation: Any, limits: np.ndarray, **options: Any) -> tuple[Selected, Selected]:
    """Labels from kept scores, and from the scores themselves."""
    scores, selection = score_map(activation), Selection(**options)
    keeper = score_keeper(limits)
    kept = decode_scores(keeper.keep(scores, taxonomy), SIZE, taxonomy.num_scored)
    decide = KeptSelection(
        selection, ScoreLevels(keeper.calibration.thresholds), limits, background=taxonomy.background,
        ignore=taxonomy.ignore_index, names=taxonomy.targets,
    )  # fmt: skip
    return decide.select(kept), select(scores, taxonomy, selection)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("rule", ["argmax", "foreground", "single", "agree"])
def test_labels_are_those_of_the_decode_kernel(mapping: str, activation: str, rule: Any) -> None:
    taxonomy = MAPPINGS[mapping]
    thresholds = boundaries(taxonomy, 0.3)
    kept, fresh = both(
        taxonomy, activation, np.maximum(thresholds, 0.96), method="conformal", rule=rule, thresholds=thresholds
    )
    np.testing.assert_array_equal(kept.label, fresh.label)
    np.testing.assert_array_equal(kept.weight, fresh.weight)
    np.testing.assert_array_equal(kept.counts, fresh.counts)
    assert kept.kept == fresh.kept
    assert kept.confidence == pytest.approx(fresh.confidence, abs=2e-3)
    assert fresh.kept > 0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("weight", ["confidence", "pcos", "pcos-supplement"])
def test_weights_are_within_a_few_levels_of_a_fresh_run(activation: str, weight: Any) -> None:
    limits = np.full(PLAIN.num_scored, 0.96, np.float32)
    kept, fresh = both(PLAIN, activation, limits, weight=weight)
    difference = np.abs(kept.weight.astype(int) - fresh.weight)
    np.testing.assert_array_equal(kept.label, fresh.label)
    # a pixel that changes its cluster moves the statistics of so small an image, and with them every weight
    assert difference.mean() < 4


def test_a_selection_that_needs_other_scores_is_refused_by_name() -> None:
    limits = np.full(4, 0.5, np.float32)
    thresholds = np.array([0.5, 0.5, 0.8, 0.6], np.float32)
    with pytest.raises(UsageError, match="the threshold of dog is 0.8, and scores up to 0.5 were kept"):
        both(PLAIN, "softmax", limits, method="conformal", rule="agree", thresholds=thresholds)


def test_the_top_class_alone_needs_no_limit() -> None:
    limits = np.zeros(4, np.float32)
    thresholds = boundaries(PLAIN, 0.3)
    kept, fresh = both(PLAIN, "softmax", limits, method="conformal", rule="argmax", thresholds=thresholds)
    np.testing.assert_array_equal(kept.label, fresh.label)


def test_classes_that_were_never_emitted_stay_so() -> None:
    limits = np.array([0.9, -np.inf, 0.9, 0.9], np.float32)
    kept, fresh = both(PLAIN, "softmax", limits, method="conformal", rule="single", thresholds=limits)
    np.testing.assert_array_equal(kept.label, fresh.label)
    assert kept.counts[1] == 0
