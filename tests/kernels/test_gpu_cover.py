"""The CUDA form of the perturbation cover, run on a CPU, against the specification."""

import numpy as np
import pytest

from maskmill.errors import UsageError
from maskmill.kernels import reference

from ..simt.harness import cuda, launched


@pytest.mark.parametrize("nearest", ["pil", "torch"])
@pytest.mark.parametrize(
    ("grid", "size"), [((10, 10), (321, 321)), ((3, 7), (40, 36)), ((1, 1), (5, 4)), ((9, 8), (4, 4))]
)
def test_cover_equals_the_reference(nearest, grid, size):
    rng = np.random.default_rng(0)
    cells = rng.random((2, *grid)) < 0.5
    launched.clear()
    for reliable in (None, rng.random((2, *size)) < 0.7, rng.random(size) < 0.7):
        found = cuda.perturbation_cover(cells, size, reliable, nearest=nearest)
        np.testing.assert_array_equal(found, reference.perturbation_cover(cells, size, reliable, nearest=nearest))
    assert set(launched) == {f"perturbation_cover<{4 if size[1] % 4 == 0 else 1}>"}


def test_one_grid_for_a_batch_of_maps():
    rng = np.random.default_rng(1)
    cells, reliable = rng.random((4, 4)) < 0.5, rng.random((3, 2, 9, 12)) < 0.5
    found = cuda.perturbation_cover(cells, (9, 12), reliable)
    np.testing.assert_array_equal(found, reference.perturbation_cover(cells, (9, 12), reliable))


def test_out_is_filled_and_returned():
    cells, out = np.eye(3, dtype=bool), np.zeros((6, 6), bool)
    assert cuda.perturbation_cover(cells, (6, 6), out=out) is out
    np.testing.assert_array_equal(out, np.kron(np.eye(3), np.ones((2, 2))).astype(bool))


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (np.ones((2, 2), bool), {"nearest": "up"}, "nearest must be one of pil, torch"),
        (np.ones((1, 2), bool), {"size": (4, 2**30)}, "is too fine"),
    ],
)
def test_misuse_is_refused(cells, options, message):
    with pytest.raises(UsageError, match=message):
        cuda.perturbation_cover(cells, **{"size": (4, 4), **options})
