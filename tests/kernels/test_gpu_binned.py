"""The CUDA form of the binned score counts, run on a CPU, against the specification."""

import numpy as np
import pytest

from maskmill.errors import UsageError
from maskmill.kernels import reference
from maskmill.kernels.gpu import binned as launcher

from ..simt.harness import cuda


def pixels(seed, shape, num_classes, num_bins, dtypes=(np.uint8, np.uint16)):
    """Scores, truth, top class, its scores and edges; ignored pixels, unknown classes and NaN among them."""
    rng = np.random.default_rng(seed)
    truth, top = (
        rng.choice([value for value in (0, 1, num_classes - 1, num_classes, 255) if value <= np.iinfo(kind).max], shape)
        for kind in dtypes
    )
    edges = np.sort(rng.random(num_bins, np.float32))
    values = [*edges[:2], edges[-1], 0, 1, np.nan, np.inf, 1e-42, *rng.random(5)]
    scores, best = (rng.choice(values, shape).astype(np.float32) for _ in range(2))
    return scores, truth.astype(dtypes[0]), top.astype(dtypes[1]), best, edges


@pytest.mark.parametrize("shape", [(0,), (1, 1), (13, 17), (2, 23, 31)])
@pytest.mark.parametrize(("num_classes", "num_bins"), [(1, 1), (3, 5), (150, 546), (2, 1024)])
def test_counts_equal_the_reference(shape, num_classes, num_bins):
    arguments = pixels(0, shape, num_classes, num_bins)
    found = cuda.binned_counts(*arguments, num_classes=num_classes)
    np.testing.assert_array_equal(found, reference.binned_counts(*arguments, num_classes=num_classes))


@pytest.mark.parametrize("dtypes", [(np.uint16, np.uint8), (np.int64, np.int32)])
def test_other_integers(dtypes):
    arguments = pixels(1, (9, 50), 5, 20, dtypes)
    for ignore in (255, 0):
        options = {"num_classes": 5, "ignore": ignore}
        np.testing.assert_array_equal(
            cuda.binned_counts(*arguments, **options), reference.binned_counts(*arguments, **options)
        )


def test_threads_stride_over_more_pixels_than_there_are(monkeypatch):
    monkeypatch.setattr(launcher, "MOST_BLOCKS", 2)
    arguments = pixels(2, (31, 41), 7, 30)
    found = cuda.binned_counts(*arguments, num_classes=7)
    np.testing.assert_array_equal(found, reference.binned_counts(*arguments, num_classes=7))


def test_what_cannot_be_counted_is_refused():
    scores, truth, top, best, edges = pixels(3, (4, 5), 3, 5)
    with pytest.raises(UsageError, match="truth must hold integers, got float32"):
        cuda.binned_counts(scores, best, top, best, edges, num_classes=3)
    with pytest.raises(UsageError, match=r"B from 1 to 1024, got \(1025,\)"):
        cuda.binned_counts(scores, truth, top, best, np.zeros(1025, np.float32), num_classes=3)
