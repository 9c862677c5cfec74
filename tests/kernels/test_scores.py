"""Conformal ranks, score counts and exact quantiles: what they promise, in both forms."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from maskmill.errors import UsageError
from maskmill.kernels import reference
from maskmill.kernels.cpu import scores as cpu
from maskmill.kernels.plans.scores import order_key

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())["conformal"]
FORMS = pytest.mark.parametrize("form", [reference, cpu], ids=["reference", "cpu"])

# Table of the 5 %, 10 % and 1 % ranks for the usual sizes of the labeled set.
RANKS = {
    92: (89, 84, 93),
    183: (175, 166, 183),
    366: (349, 331, 364),
    732: (697, 660, 726),
    1464: (1392, 1319, 1451),
    158: (152, 144, 158),
    316: (302, 286, 314),
    632: (602, 570, 627),
    1263: (1201, 1138, 1252),
    2526: (2401, 2275, 2502),
}


def kth(form, scores, rank, **options):
    """The rank-th smallest of the scores, pooled, in two passes."""
    prefix, within = form.select_prefix(form.score_counts(scores, **options), rank)
    return form.kth_score(form.score_counts(scores, prefix=prefix, **options), prefix, within)


def as_scores(values):
    return np.array(values, np.float32)


AWKWARD = as_scores(
    [0.0, -0.0, 1e-45, -1e-45, 1e-40, -1e-40, 1.0, -1.0, np.inf, -np.inf, 3.4e38, -3.4e38, 1.0000001, 0.5, 1.2e-38]
)


@pytest.mark.parametrize(("n", "expected"), RANKS.items())
def test_ranks_of_the_usual_sizes(n, expected):
    assert tuple(reference.conformal_rank(n, alpha) for alpha in (0.05, 0.1, 0.01)) == expected


@pytest.mark.parametrize(("alpha", "smallest"), [(0.05, 19), (0.1, 9), (0.01, 99)])
def test_smallest_n_with_a_finite_threshold(alpha, smallest):
    assert reference.conformal_rank(smallest - 1, alpha) == smallest
    assert reference.conformal_rank(smallest, alpha) == smallest


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**12), st.integers(1, 999))
def test_rank_is_the_exact_ceiling(n, thousandths):
    alpha = Fraction(thousandths, 1000)
    expected = math.ceil((n + 1) * (1 - alpha))
    assert reference.conformal_rank(n, alpha) == expected
    assert reference.conformal_rank(n, float(alpha)) == expected
    assert reference.conformal_rank(n, str(float(alpha))) == expected


def test_rank_where_floating_point_is_wrong():
    # 0.7 and 0.3 are not what floats say they are: (1 - 0.7) * 10 = 3.0000000000000004.
    assert math.ceil(10 * (1 - 0.7)) == 4
    assert reference.conformal_rank(9, 0.7) == 3


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, "2"])
def test_alpha_outside_the_open_unit_interval_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        reference.conformal_rank(10, alpha)


def test_negative_n_is_refused():
    with pytest.raises(ValueError, match="negative"):
        reference.conformal_rank(-1, 0.1)


@FORMS
@pytest.mark.parametrize(
    "case", VECTORS["cases"], ids=lambda case: f"{case['mode']}-{case['alpha'][0]}/{case['alpha'][1]}"
)
def test_worked_thresholds_and_sets(form, case):
    scores, classes = as_scores(VECTORS["scores"]), np.array(VECTORS["labels"])
    sizes = form.score_counts(scores, classes=classes, num_classes=3).sum(axis=1)
    ranks = np.array([form.conformal_rank(int(n), Fraction(*case["alpha"])) for n in sizes])
    found = kth(form, scores, ranks, classes=classes, num_classes=3)
    found = found[:3] if case["mode"] == "mondrian" else found[[3, 3, 3]]
    np.testing.assert_array_equal(found, as_scores([np.inf if q is None else q for q in case["q"]]))
    for row in case["rows"]:
        assert np.flatnonzero(as_scores(1 - np.array(row["p"])) <= found).tolist() == row["set"]


@FORMS
def test_kth_score_is_that_of_a_sort_for_awkward_scores(form):
    scores = np.tile(AWKWARD, 3)
    expected = np.sort(scores)
    for rank in range(1, scores.size + 1):
        assert kth(form, scores, rank)[0] == expected[rank - 1]
    assert kth(form, scores, scores.size + 1)[0] == np.inf


any_scores = hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.one_of(
        st.floats(width=32, allow_nan=False), st.sampled_from(AWKWARD.tolist()), st.sampled_from([0.25, 0.5, 0.75])
    ),
)


@FORMS
@settings(deadline=None, max_examples=30)
@given(scores=any_scores, data=st.data())
def test_kth_score_is_that_of_a_sort(form, scores, data):
    rank = data.draw(st.integers(1, scores.size))
    assert kth(form, scores, rank)[0] == np.sort(scores)[rank - 1]


@FORMS
def test_nan_is_left_out_and_infinity_counts(form):
    payloads = np.array([0x7F800001, 0xFF800001, 0x7FC00000, 0xFFFFFFFF], np.uint32).view(np.float32)
    scores = np.concatenate([payloads, as_scores([np.inf, -np.inf, -0.0, 0.5])])
    counts = form.score_counts(scores)
    assert counts.sum() == 4
    assert [kth(form, scores, rank)[0] for rank in (1, 2, 3, 4, 5)] == [-np.inf, 0, 0.5, np.inf, np.inf]


@FORMS
def test_zeros_of_both_signs_are_one_score(form):
    counts = form.score_counts(as_scores([0.0, -0.0, -0.0]))
    assert counts.shape == (1, 65536)
    assert counts.dtype == np.uint64
    assert counts[0, 0x8000] == 3
    low = form.score_counts(as_scores([0.0, -0.0, -1e-45]), prefix=np.array([0x8000]))
    assert low[0, 0] == 2
    assert low.sum() == 2


@FORMS
def test_a_class_beyond_the_last_counts_in_the_pooled_row_only(form):
    counts = form.score_counts(as_scores([0.1, 0.2, 0.3, 0.4]), classes=np.array([0, 2, -1, 1]), num_classes=2)
    np.testing.assert_array_equal(counts.sum(axis=1), [1, 1, 4])


@FORMS
def test_a_negative_prefix_skips_its_row(form):
    scores, classes = as_scores([0.5, 0.5, 0.5]), np.array([0, 1, 1])
    high = int(order_key(scores)[0] >> 16)
    low = form.score_counts(scores, classes=classes, num_classes=2, prefix=np.array([-1, high, -1]))
    np.testing.assert_array_equal(low.sum(axis=1), [0, 2, 0])
    np.testing.assert_array_equal(
        form.kth_score(low, np.array([-1, high, -1]), np.array([9, 2, 9])), as_scores([np.inf, 0.5, np.inf])
    )


@FORMS
@settings(deadline=None, max_examples=30)
@given(scores=any_scores, cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 99))
def test_counts_of_parts_add_up_to_the_counts_of_all(form, scores, cuts, seed):
    classes = np.random.default_rng(seed).integers(-1, 4, scores.size)
    options = {"num_classes": 3}
    whole = form.score_counts(scores, classes=classes, **options)
    merged = None
    parts = zip(np.split(scores, sorted(cuts)), np.split(classes, sorted(cuts)), strict=True)
    for part, members in parts:
        merged = form.score_counts(part, classes=members, out=merged, **options)
    np.testing.assert_array_equal(merged, whole)
    ranks = np.maximum(1, whole.sum(axis=1).astype(np.int64) // 2)
    found = kth(form, scores, ranks, classes=classes, **options)
    for row, rank in enumerate(ranks):
        member = scores if row == 3 else scores[classes == row]
        assert found[row] == (np.sort(member)[rank - 1] if member.size else np.inf)


@settings(deadline=None, max_examples=30)
@given(scores=any_scores, nans=st.integers(0, 5), seed=st.integers(0, 99), dtype=st.sampled_from(["u1", "i2", "i8"]))
def test_cpu_counts_are_the_references(scores, nans, seed, dtype):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(np.concatenate([scores, np.full(nans, np.nan, np.float32)])).astype(np.float32)
    classes = rng.integers(0, 5, scores.size).astype(dtype)
    weights = rng.integers(0, 9, scores.size) / 8
    for options in ({}, {"classes": classes, "num_classes": 4}):
        high = reference.score_counts(scores, **options)
        np.testing.assert_array_equal(cpu.score_counts(scores, **options), high)
        prefix, _ = reference.select_prefix(high, np.maximum(high.sum(axis=1).astype(np.int64) // 3, 1))
        for prefixed in (options, {**options, "prefix": prefix}):
            expected = reference.score_counts(scores, **prefixed)
            np.testing.assert_array_equal(cpu.score_counts(scores, **prefixed), expected)
            expected = reference.weighted_score_counts(scores, weights, **prefixed)
            np.testing.assert_array_equal(cpu.weighted_score_counts(scores, weights, **prefixed), expected)


def test_cpu_counts_of_many_scores_in_threads_and_any_memory_layout():
    scores = np.random.default_rng(0).standard_normal((3, 1_500_000), dtype=np.float32)
    scores[0, ::1000] = np.nan
    scores[1, ::1000] = -0.0
    expected = reference.score_counts(scores)
    np.testing.assert_array_equal(cpu.score_counts(scores), expected)
    np.testing.assert_array_equal(cpu.score_counts(np.asfortranarray(scores)[:, ::-1]), expected)
    for prefix in (0x8000, 0x7FFF, int(np.argmax(expected[0]))):
        low = reference.score_counts(scores, prefix=np.array([prefix]))
        np.testing.assert_array_equal(cpu.score_counts(scores, prefix=np.array([prefix])), low)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": np.zeros(3, np.uint8), "num_classes": 2}, r"shape of the scores, \(4,\), got \(3,\)"),
        ({"prefix": np.zeros(2, np.int64)}, r"prefix must have shape \(1,\), one value per row, got \(2,\)"),
        ({"out": np.zeros((2, 65536), np.uint64)}, r"of shape \(1, 65536\), got uint64 of shape \(2, 65536\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        cpu.score_counts(np.zeros(4, np.float32), **options)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"weights must have the shape of the scores, \(4,\), got \(5,\)"):
        cpu.weighted_score_counts(np.zeros(4, np.float32), np.ones(5))


@FORMS
def test_weights_move_the_quantile(form):
    scores, weights = as_scores([0.1, 0.2, 0.3]), [0.5, 0.25, 0.25]

    def smallest_reaching(mass):
        prefix, within = form.select_prefix(form.weighted_score_counts(scores, weights), mass)
        low = form.weighted_score_counts(scores, weights, prefix=prefix)
        return form.kth_score(low, prefix, within)[0]

    found = [smallest_reaching(mass) for mass in (0.25, 0.5, 0.6, 0.75, 1.0, 1.01)]
    np.testing.assert_array_equal(as_scores(found), as_scores([0.1, 0.1, 0.2, 0.2, 0.3, np.inf]))


def test_ranks_count_from_one():
    with pytest.raises(ValueError, match="ranks count from 1, got 0"):
        reference.select_prefix(np.ones((1, 65536), np.uint64), 0)


def test_passes_over_different_scores_are_noticed():
    scores = as_scores([0.5, 0.5, 0.7])
    prefix, within = reference.select_prefix(reference.score_counts(scores), 2)
    low = reference.score_counts(scores[1:], prefix=prefix)
    with pytest.raises(ValueError, match="row 0 has 1 scores in the bin of rank 2"):
        reference.kth_score(low, prefix, within)


@FORMS
def test_position_quantiles_have_their_own_n(form):
    nan = np.nan
    scores = as_scores([[[0.3, nan, 0.1, nan]], [[0.1, nan, nan, nan]], [[0.2, 0.5, nan, nan]]])
    found = form.position_quantiles(scores, 0.5, fallback=0.9)
    # Ranks of 3, 1, 1 and 0 scores at alpha 1/2: 2, 1, 1, and none.
    np.testing.assert_array_equal(found, as_scores([[0.2, 0.5, 0.1, 0.9]]))
    np.testing.assert_array_equal(form.position_quantiles(scores, 0.25), as_scores([[0.3, np.inf, np.inf, np.inf]]))


@settings(deadline=None, max_examples=30)
@given(
    shape=hnp.array_shapes(min_dims=3, max_dims=3, max_side=12),
    alpha=st.sampled_from(["0.05", "0.1", "0.3", "0.5"]),
    seed=st.integers(0, 999),
)
def test_cpu_position_quantiles_are_the_references(shape, alpha, seed):
    rng = np.random.default_rng(seed)
    scores = rng.choice(np.concatenate([AWKWARD, rng.standard_normal(20, dtype=np.float32), [np.nan] * 5]), shape)
    scores = scores.astype(np.float32)
    expected = reference.position_quantiles(scores, alpha, fallback=0.125)
    out = np.empty(shape[1:], np.float32)
    assert cpu.position_quantiles(scores, alpha, fallback=0.125, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_cpu_position_quantiles_of_more_than_one_tile():
    scores = np.random.default_rng(1).random((300, 97, 151), dtype=np.float32)
    np.testing.assert_array_equal(
        cpu.position_quantiles(scores, 0.1), np.sort(scores, axis=0)[reference.conformal_rank(300, 0.1) - 1]
    )


def coverage_counts(n, alpha, num_trials, num_fresh, seed):
    """Fresh scores under the threshold, of ``num_fresh`` a trial; for the scores and for the same rounded to ties."""
    rng = np.random.default_rng(seed)
    plain, tied = [], []
    for _ in range(num_trials):
        scores = rng.standard_normal(n + num_fresh, dtype=np.float32)
        for values, covered in ((scores, plain), (np.round(scores * 4) / 4, tied)):
            threshold = kth(cpu, values[:n], cpu.conformal_rank(n, alpha))[0]
            covered.append(int(np.count_nonzero(values[n:] <= threshold)))
    return np.array(plain), np.array(tied)


@pytest.mark.parametrize("n", [19, 92, 1000])
def test_coverage_follows_its_law(n):
    """Coverage over fresh iid scores is Beta-binomial with parameters k and n + 1 - k (Vovk, 2012)."""
    num_fresh, alpha = 10_000, 0.1
    k = cpu.conformal_rank(n, alpha)
    plain, tied = coverage_counts(n, alpha, num_trials=200, num_fresh=num_fresh, seed=n)
    law = stats.betabinom(num_fresh, k, n + 1 - k)
    assert stats.kstest(plain, law.cdf).pvalue > 0.05
    assert (tied >= plain).all()
    assert stats.kstest(tied, law.cdf, alternative="greater").pvalue > 0.05


def test_a_rank_off_by_one_breaks_the_law():
    plain, _ = coverage_counts(19, 0.1, num_trials=200, num_fresh=10_000, seed=0)
    assert stats.kstest(plain, stats.betabinom(10_000, 18, 2).cdf).pvalue > 0.05
    assert stats.kstest(plain, stats.betabinom(10_000, 19, 1).cdf).pvalue < 1e-6
