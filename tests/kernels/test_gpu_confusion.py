"""The CUDA form of the confusion counts, run on a CPU, against the specification."""

import numpy as np
import pytest

from maskmill.errors import UsageError
from maskmill.kernels import reference
from maskmill.kernels.gpu import confusion as launcher

from ..simt.harness import cuda, launched


def maps(rng, shape, num_classes, dtype):
    """Label and truth with runs of equal pixels, values that are no class among them."""
    highest = np.iinfo(dtype).max
    values = [value for value in (0, 1, 2, num_classes - 1, num_classes, highest) if value <= highest]
    count = int(np.prod(shape))
    return (
        np.repeat(rng.choice(values, count), rng.integers(1, 6, count))[:count].astype(dtype).reshape(shape)
        for _ in "lt"
    )


@pytest.mark.parametrize("num_classes", [1, 21, 90, 91])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (13, 17), (2, 33, 41)])
def test_counts_equal_the_reference(num_classes, shape):
    label, truth = maps(np.random.default_rng(0), shape, num_classes, np.uint8)
    found = cuda.confusion_counts(label, truth, num_classes=num_classes)
    np.testing.assert_array_equal(found, reference.confusion_counts(label, truth, num_classes=num_classes))
    assert found.dtype == np.int64


def test_counts_are_in_shared_memory_where_they_fit():
    launched.clear()
    for num_classes in (90, 91):
        cuda.confusion_counts(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), num_classes=num_classes)
    assert launched == ["confusion_counts<true>"] * 3 + ["confusion_counts<false>"] * 3


@pytest.mark.parametrize("dtypes", [("u2", "u2"), ("u1", "u2"), ("i8", "i4")])
@pytest.mark.parametrize("num_classes", [5, 300])
def test_other_integers(dtypes, num_classes):
    rng = np.random.default_rng(1)
    label, truth = (next(maps(rng, (9, 50), num_classes, kind)) for kind in dtypes)
    if np.dtype(dtypes[0]).kind == "i":
        label[0], truth[1] = -1, -7
    for ignore in (255, 65535, 0, -7):
        options = {"num_classes": num_classes, "ignore": ignore}
        np.testing.assert_array_equal(
            cuda.confusion_counts(label, truth, **options), reference.confusion_counts(label, truth, **options)
        )


@pytest.mark.parametrize("num_classes", [4, 100])
def test_threads_stride_over_more_pixels_than_they_take_at_once(monkeypatch, num_classes):
    monkeypatch.setattr(launcher, "MOST_BLOCKS", 2)
    label, truth = maps(np.random.default_rng(2), (101, 107), num_classes, np.uint8)
    found = cuda.confusion_counts(label, truth, num_classes=num_classes)
    np.testing.assert_array_equal(found, reference.confusion_counts(label, truth, num_classes=num_classes))


@pytest.mark.parametrize("num_classes", [4, 100])
def test_counts_add_to_what_out_holds(num_classes):
    label, truth = maps(np.random.default_rng(3), (20, 30), num_classes, np.uint8)
    total = np.zeros((num_classes, num_classes + 1), np.int64)
    total[0, 0] = 2**40
    for part in (slice(0, 7), slice(7, 20)):
        assert cuda.confusion_counts(label[part], truth[part], num_classes=num_classes, out=total) is total
    total[0, 0] -= 2**40
    np.testing.assert_array_equal(total, reference.confusion_counts(label, truth, num_classes=num_classes))


def test_maps_in_another_order_of_memory():
    label, truth = maps(np.random.default_rng(4), (20, 30), 5, np.uint8)
    found = cuda.confusion_counts(label.T, truth.T, num_classes=5)
    np.testing.assert_array_equal(found, reference.confusion_counts(label, truth, num_classes=5))


def test_what_cannot_be_counted_is_refused():
    label = np.zeros((2, 3), np.uint8)
    with pytest.raises(UsageError, match=r"the same shape, got \(2, 3\) and \(3, 2\)"):
        cuda.confusion_counts(label, label.T, num_classes=2)
    with pytest.raises(UsageError, match="truth must hold integers, got float32"):
        cuda.confusion_counts(label, label.astype(np.float32), num_classes=2)
    with pytest.raises(UsageError, match=r"out must be a C-contiguous int64 array of shape \(2, 3\)"):
        cuda.confusion_counts(label, label, num_classes=2, out=np.zeros((2, 2), np.int64))
