"""Weights as 8-bit maps: what 0 and 255 mean, the levels between, and the CPU form against the specification."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskmill.errors import UsageError
from maskmill.kernels.cpu.quantize import quantize_weights as cpu
from maskmill.kernels.reference.quantize import quantize_weights as reference

FORMS = pytest.mark.parametrize("form", [reference, cpu], ids=["reference", "cpu"])


def weights(*values):
    return np.array([values], np.float32)


@FORMS
def test_only_reliable_pixels_are_255_and_only_weightless_ones_0(form):
    weight = weights(1.0, 0.99999994, 1e-30, 0.0, -0.5, np.nan, 0.5, 2.0)
    assert form(weight).tolist() == [[255, 254, 1, 0, 0, 0, 128, 255]]
    assert form(weight).dtype == np.uint8


@FORMS
def test_a_given_flag_decides_about_255_instead_of_the_weight(form):
    weight, reliable = weights(1.0, 1.0, 0.3, 0.0), np.array([[True, False, True, True]])
    assert form(weight, reliable).tolist() == [[255, 254, 255, 0]]


@FORMS
def test_pixels_without_a_label_have_no_weight(form):
    weight, label = weights(1.0, 0.5, 0.5), np.array([[255, 3, 255]], np.uint8)
    assert form(weight, label=label).tolist() == [[0, 128, 0]]
    assert form(weight, label=label, ignore=3).tolist() == [[255, 0, 128]]
    wide = np.array([[65535, 255, 0]], np.uint16)
    assert form(weight, label=wide, ignore=65535).tolist() == [[0, 128, 128]]


@FORMS
def test_few_levels_give_few_values(form):
    weight = np.linspace(0.001, 0.999, 1000, dtype=np.float32).reshape(20, 50)
    assert np.unique(form(weight, levels=16)).tolist() == [17 * level for level in range(1, 15)]
    assert np.unique(form(weight, levels=3)).tolist() == [128]
    assert np.unique(form(weight, levels=256)).tolist() == list(range(1, 255))


@FORMS
def test_rounding_is_of_the_exact_product(form):
    # 255 w lies just above 100.5; in float32 the product is 100.5, whose even neighbor is 100.
    weight = np.float32(100.5 / 255)
    assert weight * np.float32(255) == np.float32(100.5)
    assert form(weights(weight, np.nextafter(weight, np.float32(0)))).tolist() == [[101, 100]]


@FORMS
@pytest.mark.parametrize("levels", [2, 257, 0])
def test_impossible_numbers_of_levels_are_refused(form, levels):
    with pytest.raises(UsageError, match=f"levels must be a whole number from 3 to 256, got {levels}"):
        form(weights(0.5), levels=levels)


@FORMS
def test_a_label_of_another_shape_is_refused(form):
    with pytest.raises(ValueError, match="broadcast|match"):
        form(weights(0.5, 0.5, 0.5), label=np.zeros((1, 2), np.uint8))


@settings(deadline=None, max_examples=80)
@given(
    weight=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=9),
        elements=st.one_of(
            st.floats(0, 1, width=32),
            st.floats(width=32),
            st.integers(0, 511).map(lambda i: float(np.float32(i / 510))),
        ),
    ),
    levels=st.sampled_from([3, 4, 16, 17, 100, 255, 256]),
    flagged=st.booleans(),
    labeled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_cpu_form_is_the_reference(weight, levels, flagged, labeled, seed):
    rng = np.random.default_rng(seed)
    reliable = rng.random(weight.shape) < 0.5 if flagged else None
    label = rng.choice(np.array([0, 1, 255], np.uint8), weight.shape) if labeled else None
    expected = reference(weight, reliable, levels=levels, label=label)
    out = np.empty(weight.shape, np.uint8)
    assert cpu(weight, reliable, levels=levels, label=label, out=out) is out
    np.testing.assert_array_equal(out, expected)
    turned = cpu(
        weight.T, None if reliable is None else reliable.T, levels=levels, label=None if label is None else label.T
    )
    np.testing.assert_array_equal(turned, expected.T)
