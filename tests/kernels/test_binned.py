"""Counts of labeled pixels by class and bin of a score, and the CPU form against the specification."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill import kernels
from maskmill.errors import UsageError
from maskmill.kernels.cpu.binned import binned_counts as cpu
from maskmill.kernels.reference.binned import binned_counts as reference

FORMS = pytest.mark.parametrize("form", [reference, cpu], ids=["reference", "cpu"])

EDGES = np.array([0.25, 0.5, 1.0], np.float32)
NAN = np.float32("nan")


def maps(*rows: tuple[float, int, int, float]) -> tuple[np.ndarray, ...]:
    """Arguments for pixels of (score, truth, top, top score)."""
    scores, truth, top, best = zip(*rows, strict=True)
    return np.float32(scores), np.uint8(truth), np.uint16(top), np.float32(best), EDGES


@FORMS
def test_right_pixels_count_twice_and_wrong_ones_under_both_classes(form):
    pixels = maps((0.1, 0, 0, 0.1), (0.3, 0, 0, 0.3), (0.9, 0, 1, 0.2), (0.6, 1, 2, 0.4), (0.1, 255, 1, 0.1))
    true, hits, wrong = form(*pixels, num_classes=2)
    # the class 2 is not counted, and the last pixel has no true class
    assert true.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert hits.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert wrong.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert true.dtype == np.uint32


@FORMS
def test_a_score_is_in_the_first_bin_whose_edge_is_no_less(form):
    values = [-1, 0.25, np.nextafter(np.float32(0.25), np.float32(1)), 0.5, 1, 1.5, np.inf, NAN]
    pixels = maps(*((value, 0, 0, 0) for value in values))
    assert form(*pixels, num_classes=1)[0].tolist() == [[2, 2, 4]]


@FORMS
def test_subnormal_scores_and_zeros_with_a_sign(form):
    scores = np.array([-0.0, 0.0, 1e-42, -1e-42], np.float32)
    edges = np.array([-1e-42, 0.0, 1e-42, 1.0], np.float32)
    zeros = np.zeros(4, np.uint8)
    assert form(scores, zeros, zeros, scores, edges, num_classes=1)[0].tolist() == [[1, 2, 1, 0]]


@FORMS
def test_no_pixels(form):
    assert form(*(array[:0] for array in maps((0, 0, 0, 0))[:4]), EDGES, num_classes=2).tolist() == [[[0] * 3] * 2] * 3


@FORMS
def test_what_cannot_be_counted_is_refused(form):
    scores, truth, top, best, _ = maps((0.1, 0, 0, 0.1), (0.1, 0, 0, 0.1))
    for arguments, message in (
        ((scores, truth[:1], top, best, EDGES), r"truth must have the shape of the scores, \(2,\), got \(1,\)"),
        ((scores, truth, top, best[:1], EDGES), r"top_scores must have the shape of the scores"),
        ((scores, truth, best, best, EDGES), "top must hold integers, got float32"),
        ((scores, truth, top, best, EDGES[:0]), r"edges must have the shape \(B,\) with B from 1 to 1024, got \(0,\)"),
    ):
        with pytest.raises(UsageError, match=message):
            form(*arguments, num_classes=2)
    with pytest.raises(UsageError, match="num_classes must be at least 1, got 0"):
        form(scores, truth, top, best, EDGES, num_classes=0)


def test_tensors_give_a_tensor():
    import torch

    arrays = maps((0.1, 0, 0, 0.1), (0.9, 1, 0, 0.2))
    arrays = tuple(array.astype(np.int32) if array.dtype == np.uint16 else array for array in arrays)
    found = kernels.binned_counts(*map(torch.from_numpy, arrays), num_classes=2)
    np.testing.assert_array_equal(found.numpy(), reference(*arrays, num_classes=2))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.sampled_from([(1,), (7, 9), (2, 13, 17)]),
    num_classes=st.sampled_from([1, 3, 150]),
    num_bins=st.sampled_from([1, 2, 3, 546, 1024]),
    ignore=st.sampled_from([255, 65535, 0]),
    seed=st.integers(0, 999),
)
def test_cpu_form_is_the_reference(shape, num_classes, num_bins, ignore, seed):
    rng = np.random.default_rng(seed)
    values = np.unique([0, 1, num_classes - 1, num_classes, 255, 65535])
    truth, top = (rng.choice(values, shape).astype(np.uint16) for _ in range(2))
    edges = np.sort(rng.random(num_bins, np.float32))
    scores, best = (rng.choice([*edges[:3], 0, 1, NAN, *rng.random(9)], shape).astype(np.float32) for _ in range(2))
    arguments, options = (scores, truth, top, best, edges), {"num_classes": num_classes, "ignore": ignore}
    np.testing.assert_array_equal(cpu(*arguments, **options), reference(*arguments, **options))
