"""PCOS weights: worked vectors, invariances, degenerate maps, and the CPU form against the specification."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.errors import UsageError
from maskmill.kernels.cpu.pcos import pcos as cpu
from maskmill.kernels.reference.pcos import pcos as reference
from maskmill.kernels.types import Pcos

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())["pcos"]
FORMS = pytest.mark.parametrize("form", [reference, cpu], ids=["reference", "cpu"])


def share_and_dispersion(probabilities):
    """x and the official v, float32, of class probabilities (K, H, W)."""
    k = len(probabilities)
    x = probabilities.max(axis=0)
    m = (1 - x) / (k - 1)
    rest = np.sort(probabilities, axis=0)[:-1]
    v = (((rest - m) ** 2).sum(axis=0) + m**2) / (k - 1)
    return x.astype(np.float32), v.astype(np.float32)


def softmax_map(seed, shape=(24, 31), num_classes=7, sharpness=3.0):
    logits = np.random.default_rng(seed).normal(size=(num_classes, *shape)) * sharpness
    exponentials = np.exp(logits - logits.max(axis=0))
    return share_and_dispersion(exponentials / exponentials.sum(axis=0))


def one_row(*values):
    return np.array([values], np.float32)


@FORMS
@pytest.mark.parametrize("name", ["A", "B"])
@pytest.mark.parametrize("denominator", [8, 64, 2])
def test_worked_vectors(form, name, denominator):
    expected = VECTORS[name]
    x, v = one_row(*expected["pmax"]), one_row(*expected["v_code"])
    result = form(x, v, denominator=denominator, want_cluster=True)
    np.testing.assert_allclose(result.weight[0], expected[f"w_den{denominator}"], rtol=2e-5, atol=1e-7)
    assert result.cluster[0].tolist() == expected["cluster"]
    assert result.reliable[0].tolist() == [w == 1 for w in expected[f"w_den{denominator}"]]
    statistics = [*expected["gram"], *expected["mu"], *expected["var_unbiased"], expected["reliable"]]
    np.testing.assert_allclose(result.statistics, statistics, rtol=1e-6)
    assert (result.weight.dtype, result.reliable.dtype, result.cluster.dtype) == (np.float32, bool, np.uint8)


@pytest.mark.parametrize("name", ["A", "B"])
def test_singular_values_of_the_worked_vectors(name):
    a, b, c = reference(one_row(*VECTORS[name]["pmax"]), one_row(*VECTORS[name]["v_code"])).statistics[:3]
    np.testing.assert_allclose(
        np.sqrt(np.linalg.eigvalsh([[a, b], [b, c]]))[::-1], VECTORS[name]["singular"], rtol=1e-6
    )


@FORMS
@pytest.mark.parametrize("num_classes", [2, 3, 21, 150])
def test_clusters_are_those_of_the_singular_vectors(form, num_classes):
    for seed in range(8):
        x, v = softmax_map(seed, num_classes=num_classes, sharpness=1 + seed)
        rows = np.stack([x.ravel(), v.ravel()]).astype(np.float64)
        vectors = np.abs(np.linalg.svd(rows, full_matrices=False)[2])
        expected = (vectors[1] > vectors[0]).reshape(x.shape)
        sure = np.abs(vectors[1] - vectors[0]).reshape(x.shape) > 1e-9 * vectors[0].reshape(x.shape)
        cluster = form(x, v, want_cluster=True).cluster
        assert sure.mean() > 0.99
        np.testing.assert_array_equal(cluster[sure], expected[sure])


@FORMS
def test_clusters_of_a_nearly_collinear_map_are_those_of_the_singular_vectors(form):
    rng = np.random.default_rng(3)
    x = rng.uniform(0.2, 1, (40, 50)).astype(np.float32)
    v = (0.5 * x * (1 + 1e-4 * rng.normal(size=x.shape))).astype(np.float32)
    vectors = np.abs(np.linalg.svd(np.stack([x.ravel(), v.ravel()]).astype(np.float64), full_matrices=False)[2])
    wrong = form(x, v, want_cluster=True).cluster.ravel() != (vectors[1] > vectors[0])
    assert 0.2 < (vectors[1] > vectors[0]).mean() < 0.8
    assert wrong.sum() == 0


@FORMS
def test_over_confident_maps_whose_squares_underflow_float32(form):
    rng = np.random.default_rng(4)
    x = (1 - 10.0 ** rng.uniform(-9, -1, (40, 50))).astype(np.float32)
    v = (10.0 ** rng.uniform(-22, -3, x.shape)).astype(np.float32)
    vectors = np.abs(np.linalg.svd(np.stack([x.ravel(), v.ravel()]).astype(np.float64), full_matrices=False)[2])
    result = form(x, v, want_cluster=True)
    assert (result.cluster.ravel() == (vectors[1] > vectors[0])).all()
    assert np.isfinite(result.statistics).all()


@FORMS
def test_negated_dispersion_gives_the_same_clusters(form):
    x, v = softmax_map(0)
    np.testing.assert_array_equal(form(x, v, want_cluster=True).cluster, form(x, -v, want_cluster=True).cluster)


@FORMS
def test_rescaled_dispersion_gives_other_clusters(form):
    x, v = softmax_map(0)
    assert (form(x, v, want_cluster=True).cluster != form(x, v * 1000, want_cluster=True).cluster).any()


@FORMS
def test_permuted_pixels_have_permuted_weights(form):
    x, v = softmax_map(1)
    order = np.random.default_rng(0).permutation(x.size)
    plain, permuted = (
        form(x, v, want_cluster=True),
        form(*(a.ravel()[order].reshape(x.shape) for a in (x, v)), want_cluster=True),
    )
    np.testing.assert_allclose(permuted.weight.ravel(), plain.weight.ravel()[order], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(permuted.cluster.ravel(), plain.cluster.ravel()[order])


@FORMS
def test_pixels_outside_the_mask_change_nothing(form):
    x, v = softmax_map(2)
    more = [np.concatenate([a, np.full((5, a.shape[1]), 0.7, np.float32)]) for a in (x, v)]
    mask = np.arange(len(x) + 5)[:, None] < np.full(x.shape[1], len(x))
    plain, masked = form(x, v, want_cluster=True), form(*more, mask=mask, want_cluster=True)
    for name in ("weight", "reliable", "cluster"):
        np.testing.assert_array_equal(getattr(masked, name)[: len(x)], getattr(plain, name))
    np.testing.assert_allclose(masked.statistics, plain.statistics, rtol=1e-13)
    assert (masked.weight[len(x) :] == 0).all()
    assert not masked.reliable[len(x) :].any()
    assert (masked.cluster[len(x) :] == 255).all()


@FORMS
@pytest.mark.parametrize("left_out", [0.0, -1.0, np.nan])
def test_pixels_without_a_share_are_left_out(form, left_out):
    x, v = one_row(0.9, 0.6, left_out, 0.5), one_row(0.01, 0.05, np.nan, 0.1)
    expected = form(x[:, [0, 1, 3]], v[:, [0, 1, 3]])
    result = form(x, v)
    np.testing.assert_array_equal(result.weight[:, [0, 1, 3]], expected.weight)
    assert result.weight[0, 2] == 0
    assert not result.reliable[0, 2]
    np.testing.assert_array_equal(result.statistics, expected.statistics)


def test_two_classes_have_a_dispersion_with_the_official_form_only():
    p = np.array([0.9, 0.6, 0.5])
    _, official = share_and_dispersion(np.stack([p, 1 - p])[:, None])
    np.testing.assert_allclose(official[0], [0.01, 0.16, 0.25], rtol=1e-6)


@FORMS
@pytest.mark.parametrize(("share", "dispersion"), [((0.7,) * 5, (0.02,) * 5), ((0.9, 0.6, 0.5, 0.8), (0.0,) * 4)])
def test_pixels_on_one_line_are_all_in_cluster_0(form, share, dispersion):
    result = form(one_row(*share), one_row(*dispersion), want_cluster=True)
    assert (result.cluster == 0).all()
    assert result.statistics[7] == 0


@FORMS
def test_one_pixel_is_reliable(form):
    result = form(one_row(0.4), one_row(0.1), want_cluster=True)
    assert result.weight.tolist() == [[1]]
    assert result.cluster.tolist() == [[0]]
    np.testing.assert_allclose(result.statistics[3:], [0.4, 0.1, 0, 0, 0], rtol=1e-6)


@FORMS
def test_a_map_without_pixels_has_the_stated_statistics(form):
    result = form(np.full((3, 4), 0.9, np.float32), np.zeros((3, 4), np.float32), mask=np.zeros((3, 4), bool))
    assert not result.weight.any()
    assert not result.reliable.any()
    assert result.statistics.tolist() == [0, 0, 0, 1, 0, 1, 1, 0]


@FORMS
def test_reliable_cluster_is_not_always_the_first(form):
    # The confident pixels have the larger dispersion: the cluster off the main direction has the larger mean share.
    x, v = one_row(0.9, 0.88, 0.5, 0.45, 0.4, 0.42, 0.48), one_row(0.9, 0.8, 0.05, 0.04, 0.06, 0.05, 0.03)
    result = form(x, np.where(x > 0.6, v * 2, v), want_cluster=True)
    best = int(result.statistics[7])
    means = [x[result.cluster == k].mean() for k in (0, 1)]
    assert best == int(np.argmax(means))
    np.testing.assert_allclose(result.statistics[3], max(means), rtol=1e-6)


@FORMS
def test_maps_of_a_batch_do_not_know_each_other(form):
    maps = [softmax_map(seed, shape=(9, 11), sharpness=1 + seed) for seed in range(3)]
    x, v = (np.stack(arrays) for arrays in zip(*maps, strict=True))
    mask = np.random.default_rng(0).random(x.shape) < 0.8
    batch = form(x, v, mask=mask, want_cluster=True)
    assert batch.statistics.shape == (3, 8)
    for n in range(3):
        single = form(x[n], v[n], mask=mask[n], want_cluster=True)
        for name in ("weight", "reliable", "cluster", "statistics"):
            np.testing.assert_array_equal(getattr(batch, name)[n], getattr(single, name))


@FORMS
def test_an_empty_batch_has_no_maps(form):
    empty = np.zeros((0, 4, 5), np.float32)
    assert form(empty, empty).weight.shape == (0, 4, 5)
    assert form(empty, empty).statistics.shape == (0, 8)


def test_maps_of_different_shapes_are_refused():
    with pytest.raises(UsageError, match=r"shape of the share, \(4, 5\), got \(5, 4\)"):
        cpu(np.zeros((4, 5), np.float32), np.zeros((5, 4), np.float32))


@FORMS
def test_given_arrays_are_filled(form):
    x, v = softmax_map(5)
    expected = form(x, v, want_cluster=True)
    out = Pcos(np.empty_like(x), np.empty(x.shape, bool), np.empty(x.shape, np.uint8), np.empty(8))
    result = form(x, v, want_cluster=True, out=out)
    for name in ("weight", "reliable", "cluster", "statistics"):
        assert getattr(result, name) is getattr(out, name)
        np.testing.assert_array_equal(getattr(out, name), getattr(expected, name))


@FORMS
def test_cluster_is_there_only_when_asked_for(form):
    assert form(*softmax_map(6)).cluster is None


def assert_alike(result, expected):
    """Weights within 1e-5; flags and clusters equal but where the specification itself sits on the edge."""
    np.testing.assert_allclose(result.weight, expected.weight, atol=1e-5)
    edge = np.abs(expected.weight - 1) < 1e-6
    np.testing.assert_array_equal(result.reliable[~edge], expected.reliable[~edge])
    np.testing.assert_array_equal(result.reliable, result.weight == 1)
    np.testing.assert_allclose(result.statistics, expected.statistics, rtol=1e-7, atol=1e-13)


def assert_maps_alike(result, expected, x, v):
    """Each map as :func:`assert_alike`, except maps in which rounding decides the cluster of a pixel."""
    for index in np.ndindex(x.shape[:-2]):
        edge = result.cluster[index] != expected.cluster[index]
        if edge.any():
            # Both sides of the comparison that assigns the pixel are equal but for rounding.
            a, b, c = expected.statistics[index][:3]
            values, directions = np.linalg.eigh([[a, b], [b, c]])
            points = np.stack([x[index][edge], v[index][edge]]).astype(np.float64)
            second, first = (np.abs(directions[:, k] @ points) for k in (0, 1))
            np.testing.assert_allclose(second * np.sqrt(values[1]), first * np.sqrt(values[0]), rtol=1e-6)
            continue
        names = [field.name for field in fields(Pcos)]
        assert_alike(*(Pcos(*(getattr(form, name)[index] for name in names)) for form in (result, expected)))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    num_classes=st.sampled_from([2, 3, 21, 150]),
    sharpness=st.sampled_from([0.3, 1.0, 3.0, 10.0]),
    masked=st.booleans(),
    denominator=st.sampled_from([2.0, 8.0, 64.0]),
    epsilon=st.sampled_from([1e-8, 1e-10]),
)
def test_cpu_form_is_the_reference(seed, shape, num_classes, sharpness, masked, denominator, epsilon):
    x, v = softmax_map(seed, shape, num_classes, sharpness)
    mask = np.random.default_rng(seed).random(shape) < 0.7 if masked else None
    options = {"mask": mask, "denominator": denominator, "epsilon": epsilon, "want_cluster": True}
    assert_maps_alike(cpu(x, v, **options), reference(x, v, **options), x, v)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), size=st.integers(1, 12))
def test_cpu_form_is_the_reference_for_few_values(data, size):
    """Ties, repeated pixels and maps on one line."""
    levels = st.sampled_from([0.0, 0.25, 0.5, 0.7, 0.9, 1.0])
    x = one_row(*data.draw(st.lists(levels, min_size=size, max_size=size)))
    v = one_row(*data.draw(st.lists(st.sampled_from([0.0, 1e-12, 0.01, 0.02, 0.25]), min_size=size, max_size=size)))
    assert_maps_alike(cpu(x, v, want_cluster=True), reference(x, v, want_cluster=True), x, v)


@FORMS
def test_a_tie_counts_in_the_cluster_that_it_is_said_to_be_in(form):
    x, v = one_row(0.9, 0.9), one_row(0.0, 1e-12)
    found = form(x, v, want_cluster=True)
    assert found.statistics[4] == pytest.approx(v[found.cluster == found.statistics[7]].mean(), rel=1e-6)


def test_cpu_form_of_views_and_large_batches():
    x, v = softmax_map(7, (6, 420, 430))
    expected = reference(x[:, ::-1, ::2], v[:, ::-1, ::2])
    assert_alike(cpu(x[:, ::-1, ::2], v[:, ::-1, ::2]), expected)
    assert_alike(
        cpu(np.concatenate([x, x]), np.concatenate([v, v])), reference(np.concatenate([x, x]), np.concatenate([v, v]))
    )
