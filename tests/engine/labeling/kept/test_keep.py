"""Scores kept from a map on a device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from maskmill.engine.backends.cuda import CudaBackend
from maskmill.engine.backends.host import HOST
from maskmill.engine.labeling.kept.encoding import decode_scores
from maskmill.engine.labeling.reselection.decide import KeptSelection
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.base import ScoreMap

from ....builders import score_keeper

TAXONOMY = Taxonomy(targets=("a", "b", "c"), background=None, model=(0, 1, 2))


SIZE = (23, 31)


def score_map(logits: np.ndarray, activation: Any, backend: Any) -> ScoreMap:
    with backend.queue():
        scores = backend.xp.asarray(logits)
    return ScoreMap(
        scores=scores, layout="HWC", activation=activation, size=SIZE, region=(0.0, 0.0, 6.0, 9.0), backend=backend
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_scores_kept_on_a_device_are_those_of_the_host(cupy: Any, activation: Any) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (6, 9, 3)).astype(np.float32)
    keeper = score_keeper(np.array([0.4, 0.6, 0.9], np.float32))
    found = keeper.keep(score_map(logits, activation, CudaBackend()), TAXONOMY)
    assert found == keeper.keep(score_map(logits, activation, HOST), TAXONOMY)


def test_the_tables_of_a_shape_are_uploaded_once(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (6, 9, 3)).astype(np.float32)
    keeper, uploads, asarray = score_keeper(np.array([0.4, 0.6, 0.9], np.float32)), [], cupy.asarray
    scores = score_map(logits, "softmax", CudaBackend())

    def counted(values: Any, *arguments: Any, **options: Any) -> Any:
        if type(values) is np.ndarray and values.ndim == 1 and len(values) in SIZE:
            uploads.append(values)
        return asarray(values, *arguments, **options)

    monkeypatch.setattr(cupy, "asarray", counted)
    for expected in (True, False):
        uploads.clear()
        keeper.keep(scores, TAXONOMY)
        assert bool(uploads) == expected


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "selection",
    [
        Selection.argmax(),
        Selection(method="conformal", thresholds=np.full(3, np.inf, np.float32), rule="argmax", weight="confidence"),
        Selection.threshold(1e-6, weight="pcos"),
    ],
    ids=["argmax", "infinite", "all but certain"],
)
def test_no_selection_labels_pixels_without_data(activation: Any, selection: Selection) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (6, 9, 3)).astype(np.float32)
    with_data = np.random.default_rng(1).random(SIZE) < 0.7
    keeper = score_keeper(np.array([0.4, np.inf, 0.9], np.float32))
    data = keeper.keep(replace(score_map(logits, activation, HOST), with_data=with_data), TAXONOMY)
    decide = KeptSelection(
        selection, keeper.levels, keeper.limits, background=None, ignore=TAXONOMY.ignore_index, names=TAXONOMY.targets
    )
    selected = decide.select(decode_scores(data, SIZE, TAXONOMY.num_scored))
    assert np.array_equal(selected.label != TAXONOMY.ignore_index, with_data)
    assert not selected.weight[~with_data].any()
    assert selected.kept == with_data.mean()
