"""The CUDA form of resize and normalize, run on a CPU, against the specification."""

import numpy as np
import pytest

from maskmill.errors import UsageError
from maskmill.kernels import reference

from ..simt.harness import cuda

PLAIN = {"scale": 1.0, "mean": 0.0, "std": 1.0}
IMAGENET = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def photo(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("filter", "antialias"),
    [("bilinear", True), ("bicubic", True), ("area", True), ("bilinear", False), ("bicubic", False)],
)
@pytest.mark.parametrize(
    ("source", "size"), [((40, 53), (13, 17)), ((9, 7), (20, 35)), ((6, 50), (6, 20)), ((1, 1), (3, 2))]
)
def test_pixels_equal_the_reference(filter, antialias, source, size):
    options = {"filter": filter, "antialias": antialias}
    image = photo(*source)
    found, expected = (form.resize_normalize(image, size, **options, **PLAIN) for form in (cuda, reference))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert (found.dtype, found.shape) == (np.float32, (3, *size))


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("pad_to", [None, (16, 40)])
def test_normalization_padding_and_layout(layout, channels, pad_to):
    options = {"layout": layout, "channels": channels, "pad_to": pad_to, "pad_value": (1, 128, 255), **IMAGENET}
    image = photo(21, 30)
    found, expected = (form.resize_normalize(image, (11, 33), **options) for form in (cuda, reference))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


def test_out_is_filled_and_returned():
    out = np.empty((4, 5, 3), np.float32)
    assert cuda.resize_normalize(photo(4, 5), (4, 5), layout="HWC", out=out, **PLAIN) is out
    np.testing.assert_array_equal(out, photo(4, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter": "area", "antialias": False}, "needs antialias"),
        ({"pad_to": (3, 9)}, "fit into pad_to"),
    ],
)
def test_misuse_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        cuda.resize_normalize(photo(4, 4), (4, 4), **PLAIN, **options)
