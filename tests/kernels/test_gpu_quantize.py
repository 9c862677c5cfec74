"""The CUDA form of the weight levels, run on a CPU, against the specification."""

import numpy as np
import pytest

from maskmill.errors import UsageError
from maskmill.kernels import reference

from ..simt.harness import cuda, launched

TIES = np.arange(1021, dtype=np.float32) / 510
AWKWARD = np.array([np.nan, np.inf, -np.inf, -1, 0, -0.0, 1e-40, 1e-9, 0.9999999, 1, 1.0000001, 7], np.float32)


@pytest.mark.parametrize("levels", [3, 4, 16, 255, 256])
@pytest.mark.parametrize("count", [0, 1, 4, 1030])
def test_levels_equal_the_reference(levels, count):
    rng = np.random.default_rng(0)
    weight = rng.permutation(np.concatenate([TIES, AWKWARD, rng.random(50)])).astype(np.float32)[:count]
    reliable, label = rng.random(count) < 0.2, rng.choice([0, 3, 255], count)
    for given in ({}, {"reliable": reliable}, {"label": label.astype(np.uint8)}, {"label": label, "ignore": 3}):
        found = cuda.quantize_weights(weight, **given, levels=levels)
        np.testing.assert_array_equal(found, reference.quantize_weights(weight, **given, levels=levels))


def test_arrays_that_start_between_packs_are_read_one_by_one():
    weight = np.random.default_rng(1).random(101).astype(np.float32)
    launched.clear()
    for part in (weight[:100], weight[1:]):
        np.testing.assert_array_equal(cuda.quantize_weights(part), reference.quantize_weights(part))
    assert launched == ["quantize_weights<4>"] * 3 + ["quantize_weights<1>"] * 3


def test_out_and_shape():
    weight = np.random.default_rng(2).random((3, 5, 7)).astype(np.float32)
    out = np.empty(weight.shape, np.uint8)
    assert cuda.quantize_weights(weight, out=out) is out
    np.testing.assert_array_equal(out, reference.quantize_weights(weight))


def test_too_few_levels_are_refused():
    with pytest.raises(UsageError, match=r"levels must be a whole number from 3 to 256, got 2"):
        cuda.quantize_weights(np.ones(3, np.float32), levels=2)
