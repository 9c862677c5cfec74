"""The CUDA form of PCOS, run on a CPU, against the specification."""

import importlib

import numpy as np
import pytest

from maskmill.kernels import reference
from maskmill.kernels.types import Pcos

from ..simt.harness import cuda, launched


def softmax_maps(seed, shape, num_classes=7, sharpness=3.0):
    """Share and official dispersion, float32, of random class probabilities."""
    logits = np.random.default_rng(seed).normal(size=(num_classes, *shape)) * sharpness
    p = np.exp(logits - logits.max(axis=0))
    p = np.sort(p / p.sum(axis=0), axis=0)
    x, rest = p[-1], p[:-1]
    m = (1 - x) / (num_classes - 1)
    return x.astype(np.float32), ((((rest - m) ** 2).sum(axis=0) + m**2) / (num_classes - 1)).astype(np.float32)


def assert_equals_reference(x, v, **options):
    found, expected = (form.pcos(x, v, want_cluster=True, **options) for form in (cuda, reference))
    np.testing.assert_allclose(found.weight, expected.weight, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.statistics, expected.statistics, rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(found.cluster, expected.cluster)
    # A weight that rounds to 1 in one form may be the float below it in the other.
    unsure = np.abs(expected.weight - 1) < 1e-6
    np.testing.assert_array_equal(found.reliable[~unsure], expected.reliable[~unsure])
    assert (found.reliable == (found.weight == 1)).all()
    return found


@pytest.mark.parametrize(
    ("shape", "pack"),
    # One part, several parts, and maps that are no multiple of four pixels: their packs overlap the maps' ends.
    [((5, 8), 4), ((3, 40, 61), 4), ((2, 45, 47), 4), ((3, 7, 5), 4), ((1, 1), 4), ((3, 1, 1), 4), ((2, 45, 47), 1)],
)
def test_weights_equal_the_reference(shape, pack):
    launched.clear()
    x, v = softmax_maps(0, shape)
    if pack == 1:
        x = np.concatenate([[0], x.reshape(-1)]).astype(np.float32)[1:].reshape(shape)
    assert_equals_reference(x, v)
    assert set(launched) == {f"pcos_{step}<{pack}>" for step in ("gram", "clusters", "weights")}


@pytest.mark.parametrize("shape", [(2, 60, 62), (2, 60, 61)])
def test_threads_stride_over_maps_of_more_pixels_than_the_parts_hold(shape, monkeypatch):
    monkeypatch.setattr(importlib.import_module("maskmill.kernels.gpu.pcos"), "MOST_PARTS", 2)
    assert_equals_reference(*softmax_maps(8, shape))


@pytest.mark.parametrize("num_classes", [2, 21, 150])
@pytest.mark.parametrize(("denominator", "epsilon"), [(8.0, 1e-8), (64.0, 1e-8), (2.0, 1e-6)])
def test_parameters(num_classes, denominator, epsilon):
    x, v = softmax_maps(1, (2, 20, 33), num_classes)
    assert_equals_reference(x, v, denominator=denominator, epsilon=epsilon)


@pytest.mark.parametrize("width", [32, 31])
def test_pixels_outside_the_mask_take_no_part(width):
    x, v = softmax_maps(2, (3, 20, width))
    mask = np.random.default_rng(3).random(x.shape) < 0.6
    x[1, :4], mask[2] = 0, False
    found = assert_equals_reference(x, v, mask=mask)
    assert (found.weight[~mask] == 0).all()
    assert (found.cluster[1, :4] == 255).all()
    assert found.statistics[2].tolist() == [0, 0, 0, 1, 0, 1, 1, 0]


def test_one_mask_for_a_batch():
    x, v = softmax_maps(4, (2, 9, 12))
    mask = np.random.default_rng(5).random((9, 12)) < 0.5
    assert_equals_reference(x, v, mask=np.broadcast_to(mask, x.shape))


def test_maps_on_one_line_are_one_cluster():
    flat = np.full((4, 9), 0.7, np.float32)
    for v in (np.full_like(flat, 0.02), np.zeros_like(flat)):
        assert (assert_equals_reference(flat, v).cluster == 0).all()


def test_squares_below_the_range_of_float32():
    rng = np.random.default_rng(6)
    x = (1 - 10.0 ** rng.uniform(-9, -1, (40, 50))).astype(np.float32)
    v = (10.0 ** rng.uniform(-22, -3, x.shape)).astype(np.float32)
    assert_equals_reference(x, v)


def test_out_is_filled_and_its_cluster_left_alone_unless_wanted():
    x, v = softmax_maps(7, (6, 8))
    out = Pcos(np.empty((6, 8), np.float32), np.empty((6, 8), bool), np.full((6, 8), 77, np.uint8), np.empty(8))
    found = cuda.pcos(x, v, out=out)
    assert found.weight is out.weight
    assert found.statistics is out.statistics
    assert found.cluster is None
    assert (out.cluster == 77).all()
    np.testing.assert_array_equal(out.weight, cuda.pcos(x, v).weight)
