"""The CUDA form of score counts and quantiles, run on a CPU, against the specification."""

import numpy as np
import pytest

from maskmill.errors import UsageError
from maskmill.kernels import reference
from maskmill.kernels.gpu import scores as launchers

from ..simt.harness import cuda

AWKWARD = np.array(
    [
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        1e-40,
        -1e-40,
        1.0,
        -1.0,
        np.inf,
        -np.inf,
        3.4e38,
        1.0000001,
        0.5,
        0.5,
        np.nan,
        1.9999999,
        2.0,
        2.0**-63,
        2.0**-64,
    ],
    np.float32,
)


def many_scores(rng, count):
    """Scores that share bins, and every kind that an order could get wrong."""
    values = np.concatenate([AWKWARD, np.round(rng.random(20), 1), rng.normal(size=20)])
    return rng.choice(values, count).astype(np.float32)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "?"])
def test_counts_equal_the_reference(dtype):
    rng = np.random.default_rng(0)
    scores = many_scores(rng, 1111)
    classes = rng.integers(-1 if np.dtype(dtype).kind == "i" else 0, 5, scores.size).astype(dtype)
    options = {"classes": classes, "num_classes": 3}
    high = cuda.score_counts(scores, **options)
    np.testing.assert_array_equal(high, reference.score_counts(scores, **options))
    prefix, _ = reference.select_prefix(high, np.maximum(high.sum(axis=1).astype(np.int64) // 2, 1))
    low = cuda.score_counts(scores, **options, prefix=prefix)
    np.testing.assert_array_equal(low, reference.score_counts(scores, **options, prefix=prefix))


def test_threads_stride_over_more_scores_than_there_are_threads(monkeypatch):
    monkeypatch.setattr(launchers, "MOST_BLOCKS", 2)
    rng = np.random.default_rng(1)
    scores, weights = many_scores(rng, 7 * 377).reshape(7, 377), rng.random((7, 377))
    np.testing.assert_array_equal(cuda.score_counts(scores), reference.score_counts(scores))
    np.testing.assert_allclose(
        cuda.weighted_score_counts(scores, weights), reference.weighted_score_counts(scores, weights), atol=1e-12
    )


def test_counts_add_to_what_out_holds():
    rng = np.random.default_rng(2)
    scores, weights = many_scores(rng, 300), rng.integers(0, 9, 300) / 8
    counts, weighted = np.zeros((1, 65536), np.uint64), np.zeros((1, 65536))
    for part in (slice(0, 100), slice(100, 300)):
        assert cuda.score_counts(scores[part], out=counts) is counts
        assert cuda.weighted_score_counts(scores[part], weights[part], out=weighted) is weighted
    np.testing.assert_array_equal(counts, reference.score_counts(scores))
    np.testing.assert_array_equal(weighted, reference.weighted_score_counts(scores, weights))


@pytest.mark.parametrize(
    "weights", [np.zeros(4), np.array([1e-300, 3e-301, 0, 2e-300]), np.array([7e9, -3.5, 1, 0.25])]
)
def test_weights_of_any_size_are_summed_to_twelve_digits(weights):
    scores = np.array([0.5, 0.5, 0.75, 0.5], np.float32)
    found = cuda.weighted_score_counts(scores, weights)
    expected = reference.weighted_score_counts(scores, weights)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(weights).max())


def test_no_scores_count_nothing():
    nothing = np.zeros((0,), np.float32)
    assert cuda.score_counts(nothing).sum() == 0
    assert cuda.weighted_score_counts(nothing, np.zeros(0)).sum() == 0


def test_the_kth_score_of_each_row_is_that_of_a_sort():
    rng = np.random.default_rng(3)
    scores = many_scores(rng, 400)
    scores, classes = scores[~np.isnan(scores)], rng.integers(0, 4, (~np.isnan(scores)).sum())
    options = {"classes": classes, "num_classes": 3}
    high = cuda.score_counts(scores, **options)
    for ranks in (1, np.array([5, 40, 9, 200]), high.sum(axis=1).astype(np.int64) + np.array([0, 1, 0, 1])):
        prefix, within = cuda.select_prefix(high, ranks)
        expected_prefix, expected_within = reference.select_prefix(high, ranks)
        np.testing.assert_array_equal(prefix, expected_prefix)
        np.testing.assert_array_equal(within, expected_within)
        assert (prefix.dtype, within.dtype) == (np.int64, np.int64)
        found = cuda.kth_score(cuda.score_counts(scores, **options, prefix=prefix), prefix, within)
        for row, rank in enumerate(np.broadcast_to(ranks, 4)):
            member = np.sort(scores if row == 3 else scores[classes == row])
            assert found[row] == (member[rank - 1] if rank <= member.size else np.inf)


def test_weighted_ranks_fall_where_the_running_weight_reaches_them():
    rng = np.random.default_rng(4)
    scores, weights = many_scores(rng, 200), rng.integers(1, 9, 200) / 8
    high = reference.weighted_score_counts(scores, weights)
    for share in (0.01, 0.5, 0.93, 1.0, 1.01):
        mass = high.sum() * share
        prefix, within = cuda.select_prefix(high, mass)
        expected_prefix, expected_within = reference.select_prefix(high, mass)
        np.testing.assert_array_equal(prefix, expected_prefix)
        np.testing.assert_allclose(within, expected_within, rtol=1e-12)
        low = reference.weighted_score_counts(scores, weights, prefix=prefix)
        np.testing.assert_array_equal(cuda.kth_score(low, prefix, within), reference.kth_score(low, prefix, within))


def test_passes_over_different_scores_give_nan():
    scores = np.array([0.5, 0.5, 0.7], np.float32)
    prefix, within = cuda.select_prefix(cuda.score_counts(scores), 2)
    assert np.isnan(cuda.kth_score(cuda.score_counts(scores[1:], prefix=prefix), prefix, within)).all()


@pytest.mark.parametrize("alpha", ["0.05", "0.3", 0.5])
def test_position_quantiles_equal_the_reference(alpha):
    rng = np.random.default_rng(5)
    scores = many_scores(rng, 23 * 9 * 31).reshape(23, 9, 31)
    scores[:, :3][rng.random((23, 3, 31)) < 0.8] = np.nan
    out = np.empty((9, 31), np.float32)
    assert cuda.position_quantiles(scores, alpha, fallback=0.125, out=out) is out
    np.testing.assert_array_equal(out, reference.position_quantiles(scores, alpha, fallback=0.125))
    # A zero has no sign here, as it has none as a key.
    assert not np.signbit(out[out == 0]).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: cuda.score_counts(s, classes=np.zeros(3, int), num_classes=1), r"the shape of the scores, \(4,\)"),
        (lambda s: cuda.score_counts(s, prefix=np.zeros(3, int)), r"prefix must have shape \(1,\)"),
        (lambda s: cuda.weighted_score_counts(s, np.ones(3)), "weights must have the shape"),
        (lambda s: cuda.score_counts(s, out=np.zeros((1, 65536))), "out must be a C-contiguous uint64 array"),
        (lambda s: cuda.score_counts(s, classes=np.zeros(4), num_classes=1), "classes must hold integers, got float64"),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call(np.zeros(4, np.float32))
