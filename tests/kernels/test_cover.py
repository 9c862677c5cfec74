"""The perturbation cover: both conventions of nearest, and the CPU form against the specification."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskmill.errors import UsageError
from maskmill.kernels.cpu.cover import perturbation_cover as cpu
from maskmill.kernels.plans.cover import cell_of_pixel
from maskmill.kernels.reference.cover import perturbation_cover as reference

FORMS = pytest.mark.parametrize("form", [reference, cpu], ids=["reference", "cpu"])


def test_the_conventions_differ_at_seams():
    """The grid of 10 cells over the usual crop of 321 pixels."""
    differ = np.flatnonzero(cell_of_pixel(321, 10, "pil") != cell_of_pixel(321, 10, "torch"))
    assert differ.tolist() == [32, 64, 96, 128, 160]


@pytest.mark.parametrize(("size", "cells"), [(321, 10), (513, 16), (801, 25), (257, 8), (100, 7), (9, 9), (5, 8)])
def test_conventions_are_those_of_the_libraries(size, cells):
    grid = torch.arange(cells, dtype=torch.float32)[None, None]
    expected = torch.nn.functional.interpolate(grid, size=size, mode="nearest")[0, 0].numpy()
    np.testing.assert_array_equal(cell_of_pixel(size, cells, "torch"), expected)
    row = Image.fromarray(np.arange(cells, dtype=np.uint8)[None])
    on_a_seam = (2 * np.arange(size) + 1) * cells % (2 * size) == 0
    expected = np.asarray(row.resize((size, 1), Image.Resampling.NEAREST))[0]
    np.testing.assert_array_equal(cell_of_pixel(size, cells, "pil")[~on_a_seam], expected[~on_a_seam])


@FORMS
def test_cells_are_spread_over_the_pixels(form):
    cells = np.array([[True, False], [False, True]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert form(cells, (4, 4)).astype(int).tolist() == expected
    assert form(cells, (4, 4)).dtype == bool


@FORMS
def test_only_reliable_pixels_are_covered(form):
    reliable = np.array([[True, False, True, True]])
    assert form(np.array([[True, False]]), (1, 4), reliable).tolist() == [[True, False, False, False]]


@FORMS
def test_an_unknown_convention_is_refused(form):
    with pytest.raises(UsageError, match="nearest must be one of pil, torch, got 'cv2'"):
        form(np.ones((2, 2), bool), (4, 4), nearest="cv2")


@settings(deadline=None, max_examples=60)
@given(
    batch=st.sampled_from([(), (1,), (3,), (2, 2)]),
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    nearest=st.sampled_from(["pil", "torch"]),
    limited=st.booleans(),
    seed=st.integers(0, 999),
)
def test_cpu_form_is_the_reference(batch, grid, size, nearest, limited, seed):
    rng = np.random.default_rng(seed)
    cells = rng.random((*batch, *grid)) < 0.7
    reliable = rng.random((*batch, *size)) < 0.5 if limited else None
    out = np.empty((*batch, *size), bool)
    assert cpu(cells, size, reliable, nearest=nearest, out=out) is out
    np.testing.assert_array_equal(out, reference(cells, size, reliable, nearest=nearest))
