"""Resize and normalize: equal to torch in floating point, to Pillow and OpenCV within a gray level on photos."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskmill.errors import UsageError
from maskmill.kernels.cpu.pixels import resize_normalize as cpu
from maskmill.kernels.reference.pixels import resize_normalize as reference

FORMS = pytest.mark.parametrize("form", [reference, cpu], ids=["reference", "cpu"])
PLAIN = {"scale": 1, "mean": 0, "std": 1}
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "area": Image.Resampling.BOX}
PILLOW |= {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}
OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
SIZES = [(257, 257), (20, 33), (7, 90), (1, 1), (64, 48)]


def pillow(image, size, filter):
    """Across, then down. In one call Pillow 13 goes down first where height shrinks more, which shows where the cubic
    overshoots."""
    across = Image.fromarray(image).resize((size[1], image.shape[0]), PILLOW[filter])
    return np.asarray(across.resize(size[::-1], PILLOW[filter])).astype(int)


def photo(seed=0, size=(53, 71), low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (*size, 3), dtype=np.uint8)


@FORMS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_filters_are_torchs(form, filter, antialias, size):
    # A narrow range of gray, so that the cubic's overshoot, which torch keeps, is not cut.
    image = photo(low=100, high=140)
    tensor = torch.from_numpy(image).double().permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(
        tensor, size=size, mode=filter, antialias=antialias, align_corners=False
    )[0].numpy()
    result = form(image, size, filter=filter, antialias=antialias, **PLAIN)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-4)


@FORMS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("filter", PILLOW)
def test_antialiased_filters_are_pillows_to_the_gray_level(form, filter, size):
    image = photo()
    result = np.rint(form(image, size, filter=filter, layout="HWC", **PLAIN))
    assert np.abs(result - pillow(image, size, filter)).max() <= 1


@FORMS
def test_shrinking_by_two_with_area_averages_pairs(form):
    image = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    result = form(image, (1, 2), filter="area", layout="HWC", **PLAIN)
    np.testing.assert_allclose(result, image.reshape(1, 2, 2, 2, 3).mean(axis=(1, 3)))


@FORMS
@pytest.mark.parametrize("filter", PILLOW)
def test_the_same_size_changes_nothing_but_the_scale(form, filter):
    image = photo(size=(6, 5))
    result = form(image, (6, 5), filter=filter, layout="HWC", scale=1 / 127.5, mean=1, std=1)
    np.testing.assert_allclose(result, image / 127.5 - 1, atol=1e-6)


@FORMS
def test_channels_and_layout(form):
    image = np.array([[[10, 20, 30]]], np.uint8)
    options = {"scale": 0.1, "mean": (1, 2, 3), "std": (1, 2, 4)}
    np.testing.assert_allclose(form(image, (1, 1), **options)[:, 0, 0], [0, 0, 0], atol=1e-6)
    blue_first = form(image, (1, 1), channels="BGR", layout="HWC", **options)
    np.testing.assert_allclose(blue_first, [[[2, 0, -0.5]]], atol=1e-6)


@FORMS
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_padding_is_right_and_below_and_normalized_too(form, layout):
    image = np.full((2, 3, 3), 200, np.uint8)
    result = form(image, (2, 3), pad_to=(4, 5), pad_value=(50, 100, 150), scale=0.01, mean=1, std=0.5, layout=layout)
    planes = result if layout == "CHW" else result.transpose(2, 0, 1)
    assert planes.shape == (3, 4, 5)
    np.testing.assert_allclose(planes[:, :2, :3], 2, atol=1e-6)
    for plane, value in zip(planes, (-1, 0, 1), strict=True):
        np.testing.assert_allclose(plane[2:], value, atol=1e-6)
        np.testing.assert_allclose(plane[:, 3:], value, atol=1e-6)


@FORMS
def test_the_cubics_overshoot_is_cut(form):
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    for antialias in (True, False):
        result = form(image, (32, 32), filter="bicubic", antialias=antialias, **PLAIN)
        assert result.min() == 0
        assert result.max() == 255


@FORMS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter": "area", "antialias": False}, "area filter needs antialias"),
        ({"filter": "lanczos", "antialias": False}, "lanczos filter needs antialias"),
        ({"filter": "hamming"}, "nearest, bilinear, bicubic, lanczos, area, got 'hamming'"),
        ({"pad_to": (3, 9)}, "fit into pad_to"),
    ],
)
def test_impossible_options_are_refused(form, options, message):
    with pytest.raises(UsageError, match=message):
        form(photo(), (4, 4), **PLAIN, **options)


@settings(deadline=None, max_examples=60)
@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    margin=st.sampled_from([None, (0, 0), (3, 2)]),
    filter_antialias=st.sampled_from(
        [("bilinear", True), ("bilinear", False), ("bicubic", True), ("bicubic", False), ("area", True)]
        + [("lanczos", True), ("nearest", True), ("nearest", False)]
    ),
    layout=st.sampled_from(["CHW", "HWC"]),
    channels=st.sampled_from(["RGB", "BGR"]),
    seed=st.integers(0, 999),
)
def test_cpu_form_is_the_reference(source, size, margin, filter_antialias, layout, channels, seed):
    image = photo(seed, source)
    filter, antialias = filter_antialias
    padded = None if margin is None else (size[0] + margin[0], size[1] + margin[1])
    options = {
        "filter": filter,
        "antialias": antialias,
        "scale": 1 / 255,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "layout": layout,
        "channels": channels,
        "pad_to": padded,
        "pad_value": 114,
    }
    for view in (image, image[::-1, ::2]):
        expected = reference(view, size, **options)
        out = np.full(expected.shape, np.nan, np.float32)
        assert cpu(view, size, out=out, **options) is out
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_cpu_form_of_a_large_photo_in_threads():
    image = cv2.resize(photo(size=(60, 80)), (1300, 1000), interpolation=cv2.INTER_CUBIC)
    for size in ((211, 307), (1100, 1400)):
        np.testing.assert_allclose(cpu(image, size, **PLAIN), reference(image, size, **PLAIN), atol=1e-3)


@pytest.mark.data
def test_photos_are_as_pillow_and_opencv_resize_them(data):
    """Every photo to the input of a model; every eighth one with every filter to larger and smaller sizes too."""
    paths = sorted((data / "msrc" / "images").glob("*.jpg"))
    assert len(paths) > 200
    for index, path in enumerate(paths):
        with Image.open(path) as opened:
            image = np.asarray(opened.convert("RGB"))
        everything = index % 8 == 0
        for size in [(257, 257), (96, 128), (400, 500)] if everything else [(257, 257)]:
            for filter in PILLOW if everything else ["bilinear"]:
                result = np.rint(cpu(image, size, filter=filter, layout="HWC", **PLAIN))
                assert np.abs(result - pillow(image, size, filter)).max() <= 1, (path.name, size, filter)
            for filter in OPENCV if everything else ["bilinear"]:
                expected = cv2.resize(image, size[::-1], interpolation=OPENCV[filter]).astype(int)
                result = np.rint(cpu(image, size, filter=filter, antialias=False, layout="HWC", **PLAIN))
                assert np.abs(result - expected).max() <= 1, (path.name, size, filter)
