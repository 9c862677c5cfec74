"""The worked vectors of the specification on the CUDA form, run on a CPU."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ..simt.harness import cuda

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())


@pytest.mark.parametrize("name", ["A", "B"])
@pytest.mark.parametrize("denominator", [8, 64, 2])
def test_pcos(name, denominator):
    expected = VECTORS["pcos"][name]
    x, v = (np.array([expected[key]], np.float32) for key in ("pmax", "v_code"))
    found = cuda.pcos(x, v, denominator=denominator, want_cluster=True)
    np.testing.assert_allclose(found.weight[0], expected[f"w_den{denominator}"], rtol=2e-5, atol=1e-7)
    assert found.cluster[0].tolist() == expected["cluster"]
    statistics = [*expected["gram"], *expected["mu"], *expected["var_unbiased"], expected["reliable"]]
    np.testing.assert_allclose(found.statistics, statistics, rtol=1e-6)


def test_dispersion_of_the_pcos_vectors():
    for expected in VECTORS["pcos"].values():
        scores = np.array(expected["probs"], np.float32)[:, None]
        for dispersion, key in (("official", "v_code"), ("exact", "v_true")):
            found = cuda.class_stats(
                scores, scores.shape[1:], activation="none", dispersion=dispersion, outputs=("share", "dispersion")
            )
            np.testing.assert_allclose(found.share[0], expected["pmax"], rtol=1e-6)
            np.testing.assert_allclose(found.dispersion[0], expected[key], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("case", range(len(VECTORS["conformal"]["cases"])))
def test_conformal(case):
    conformal = VECTORS["conformal"]
    case = conformal["cases"][case]
    scores, classes = np.array(conformal["scores"], np.float32), np.array(conformal["labels"])
    high = cuda.score_counts(scores, classes=classes, num_classes=3)
    ranks = np.array([cuda.conformal_rank(int(n), Fraction(*case["alpha"])) for n in high.sum(axis=1)])
    prefix, within = cuda.select_prefix(high, ranks)
    low = cuda.score_counts(scores, classes=classes, num_classes=3, prefix=prefix)
    limits = cuda.kth_score(low, prefix, within)[[0, 1, 2] if case["mode"] == "mondrian" else [3, 3, 3]]
    np.testing.assert_array_equal(limits, np.array([np.inf if q is None else q for q in case["q"]], np.float32))

    # Float32 rounds these decimals either way; no other score is that near to a limit.
    limits = limits + np.float32(1e-4)
    pixels = np.array([row["p"] for row in case["rows"]], np.float32).T[:, None]
    for background, key in ((0, "label_fg"), (None, "label_plain")):
        found = cuda.class_stats(
            pixels,
            pixels.shape[1:],
            activation="none",
            thresholds=limits,
            rule="foreground",
            background=background,
            outputs=("label", "set_size"),
        )
        assert found.set_size[0].tolist() == [len(row["set"]) for row in case["rows"]]
        assert found.label[0].tolist() == [row[key] for row in case["rows"]]


@pytest.mark.parametrize("index", range(len(VECTORS["peaks"])))
def test_peaks(index):
    vector = VECTORS["peaks"][index]
    options = {key: vector[key] for key in ("min_distance", "exclude_border", "threshold_abs")}
    found = cuda.peak_local_max(np.array(vector["image"], np.float32), **options)
    assert found.coordinates[0, : found.count[0]].tolist() == vector["expected"]
