"""Local maxima: equal to scikit-image to the order, the S2C modes, and the CPU form against the specification."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.feature import peak_local_max as scikit_image

from maskmill.errors import UsageError
from maskmill.kernels.cpu.peaks import cam_peaks as cpu_cam_peaks
from maskmill.kernels.cpu.peaks import peak_local_max as cpu
from maskmill.kernels.reference.peaks import cam_peaks as reference_cam_peaks
from maskmill.kernels.reference.peaks import peak_local_max as reference
from maskmill.kernels.types import Peaks

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())["peaks"]
FORMS = pytest.mark.parametrize("form", [reference, cpu], ids=["reference", "cpu"])
CAM_FORMS = pytest.mark.parametrize("form", [reference_cam_peaks, cpu_cam_peaks], ids=["reference", "cpu"])


def listed(peaks, n=0):
    assert (peaks.coordinates[n, peaks.count[n] :] == -1).all()
    return peaks.coordinates[n, : peaks.count[n]].tolist()


def as_map(*rows):
    return np.array(rows, np.float32)


def bumps(size, *centers, width=3.0, height=1.0):
    rows, columns = np.mgrid[: size[0], : size[1]]
    total = [np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2)) * height for y, x in centers]
    return np.max(total, axis=0).astype(np.float32)


@FORMS
@pytest.mark.parametrize("index", range(len(VECTORS)))
def test_worked_vectors(form, index):
    vector = VECTORS[index]
    found = form(
        np.array(vector["image"], np.float32),
        min_distance=vector["min_distance"],
        exclude_border=vector["exclude_border"],
        threshold_abs=vector["threshold_abs"],
    )
    assert listed(found) == vector["expected"]


def random_case(rng):
    """A map and options: plateaus, ties, infinities, thin and tiny maps, every form of border and threshold."""
    height, width = rng.integers(1, 28, 2)
    kind = rng.integers(0, 5)
    if kind == 0:
        values = rng.normal(size=(height, width))
    elif kind == 1:
        values = rng.integers(0, rng.integers(2, 9), (height, width))
    elif kind == 2:
        values = np.round(ndimage.gaussian_filter(rng.normal(size=(height, width)), 1.5) * 20) / 4
    elif kind == 3:
        values = rng.choice([-np.inf, -1.0, -0.0, 0.0, 0.5, np.inf], (height, width), p=[0.1, 0.1, 0.3, 0.3, 0.1, 0.1])
    else:
        values = np.repeat(np.repeat(rng.integers(0, 5, (height // 3 + 1, width // 3 + 1)), 3, 0), 3, 1)
        values = values[:height, :width]
    if rng.random() < 0.1:
        values = values[:1]
    borders = [True, False, 0, 1, 3, (0, 2), (2, 1), 40]
    return values.astype(np.float32), {
        "min_distance": int(rng.choice([1, 2, 3, 4, 7, 12])),
        "exclude_border": borders[rng.integers(len(borders))],
        "threshold_abs": [None, None, 0.5, -0.7, 2.0, 1][rng.integers(6)],
        "threshold_rel": [None, None, 0.3, 0.9, -0.5, 0.0][rng.integers(6)],
        "num_peaks": [None, None, 0, 1, 5][rng.integers(5)],
    }


@FORMS
@pytest.mark.filterwarnings("ignore:invalid value encountered in scalar multiply:RuntimeWarning")
def test_two_thousand_random_maps_are_as_scikit_image_finds_them(form):
    rng = np.random.default_rng(2024)
    total = 0
    for _ in range(2000):
        values, options = random_case(rng)
        limit = np.inf if options["num_peaks"] is None else options["num_peaks"]
        expected = scikit_image(values, **{**options, "num_peaks": limit})
        assert listed(form(values, **options)) == expected.tolist(), (values, options)
        total += len(expected)
    assert total > 5000


@FORMS
def test_a_plateau_by_distance(form):
    values = np.zeros((9, 9), np.float32)
    values[3:6, 3:6] = 1
    assert len(listed(form(values, min_distance=1))) == 9
    assert listed(form(values, min_distance=2)) == [[3, 3], [3, 5], [5, 3], [5, 5]]
    assert listed(form(values, min_distance=3)) == [[3, 3]]


@FORMS
def test_a_chain_of_equals_keeps_every_second(form):
    row = as_map([0, 1, 0, 1, 0, 1, 0, 1, 0])
    assert listed(form(row, min_distance=3, exclude_border=False)) == [[0, 1], [0, 5]]
    assert len(listed(form(row, min_distance=2, exclude_border=False))) == 4


@FORMS
def test_a_pixel_at_the_threshold_is_no_peak(form):
    values = bumps((15, 15), (7, 7))
    assert listed(form(values, min_distance=2, threshold_abs=1.0)) == []
    assert listed(form(values, min_distance=2, threshold_abs=0.99)) == [[7, 7]]


@FORMS
def test_a_constant_map_has_no_peaks_but_a_single_pixel_may_be_one(form):
    assert listed(form(np.ones((5, 5), np.float32), threshold_abs=0.5, exclude_border=False)) == []
    assert listed(form(as_map([1]), threshold_abs=0.5, exclude_border=False)) == [[0, 0]]
    assert listed(form(as_map([1]), exclude_border=False)) == []


@FORMS
def test_a_maximum_in_the_border_hides_its_neighbors(form):
    values = np.zeros((20, 20), np.float32)
    values[2, 10], values[5, 10] = 2, 1
    assert listed(form(values, min_distance=4, exclude_border=3)) == []
    assert listed(form(values, min_distance=2, exclude_border=3)) == [[5, 10]]


@FORMS
@pytest.mark.parametrize("where", [(0, 0, 0), (1, 4, 6)])
def test_nan_is_refused(form, where):
    maps = np.zeros((2, 5, 7), np.float32)
    maps[where] = np.nan
    with pytest.raises(UsageError, match="NaN"):
        form(maps)


@FORMS
@pytest.mark.parametrize("options", [{"min_distance": 0}, {"exclude_border": -1}, {"exclude_border": (1, 2, 3)}])
def test_impossible_options_are_refused(form, options):
    with pytest.raises(UsageError, match="min_distance|exclude_border"):
        form(np.zeros((5, 5), np.float32), **options)


@FORMS
@pytest.mark.parametrize("shape", [(5,), (2, 2, 5, 5), (0, 5), (3, 5, 0)])
def test_what_is_not_a_map_is_refused(form, shape):
    with pytest.raises(UsageError, match="with at least one pixel, got shape"):
        form(np.zeros(shape, np.float32))


@FORMS
def test_an_empty_batch_has_no_rows(form):
    found = form(np.zeros((0, 5, 6), np.float32))
    assert (found.coordinates.shape, found.count.shape) == ((0, 0, 2), (0,))


@FORMS
def test_maps_of_a_batch_have_their_own_rows(form):
    maps = np.stack([bumps((40, 50), (10, 12), (25, 30)), np.zeros((40, 50)), bumps((40, 50), (20, 20))])
    found = form(maps.astype(np.float32), min_distance=5)
    assert found.coordinates.shape == (3, 2, 2)
    assert (found.coordinates.dtype, found.count.dtype, found.overflow.dtype) == (np.int64, np.int64, bool)
    assert [listed(found, n) for n in range(3)] == [[[10, 12], [25, 30]], [], [[20, 20]]]
    assert found.count.tolist() == [2, 0, 1]
    assert not found.overflow.any()


@FORMS
def test_more_peaks_than_the_capacity_set_the_flag(form):
    maps = np.stack([bumps((40, 50), (10, 12), (25, 30)), bumps((40, 50), (20, 20))])
    found = form(maps, min_distance=5, capacity=1)
    assert [listed(found, n) for n in range(2)] == [[[10, 12]], [[20, 20]]]
    assert found.overflow.tolist() == [True, False]
    # Those beyond num_peaks are not wanted, so they do not overflow.
    assert not form(maps, min_distance=5, capacity=1, num_peaks=1).overflow.any()
    assert form(maps, min_distance=5, capacity=4).coordinates.shape == (2, 4, 2)


@FORMS
def test_given_arrays_are_filled(form):
    out = Peaks(np.zeros((1, 3, 2), np.int64), np.zeros(1, np.int64), np.ones(1, bool))
    found = form(bumps((40, 50), (10, 12), (25, 30)), min_distance=5, out=out)
    for name in ("coordinates", "count", "overflow"):
        assert getattr(found, name) is getattr(out, name)
    assert out.coordinates.tolist() == [[[10, 12], [25, 30], [-1, -1]]]
    assert out.count.tolist() == [2]
    assert out.overflow.tolist() == [False]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), number=st.integers(1, 4), capacity=st.sampled_from([None, 0, 1, 3, 50]))
def test_cpu_form_is_the_reference(seed, number, capacity):
    rng = np.random.default_rng(seed)
    values, options = random_case(rng)
    options["threshold_rel"] = None if np.isinf(values).any() else options["threshold_rel"]
    maps = np.stack([rng.permutation(values.ravel()).reshape(values.shape) for _ in range(number)])
    for view in (maps, maps[:, ::-1, ::2]):
        result, expected = cpu(view, capacity=capacity, **options), reference(view, capacity=capacity, **options)
        for name in ("coordinates", "count", "overflow"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))


def test_cpu_form_in_threads():
    maps = ndimage.gaussian_filter(np.random.default_rng(0).random((5, 520, 530)), (0, 4, 4)).astype(np.float32)
    found = cpu(maps, min_distance=10)
    for n, values in enumerate(maps):
        assert listed(found, n) == scikit_image(values, min_distance=10).tolist()


def official_code(cam, threshold, min_distance=20):
    """What the authors' code does, with the libraries it uses."""
    filtered = ndimage.maximum_filter(cam, size=3, mode="constant")
    points = scikit_image(filtered, min_distance=min_distance)
    points = points[cam[points[:, 0], points[:, 1]] > np.float32(threshold)]
    argmax = np.array([np.unravel_index(cam.argmax(), cam.shape)])
    return np.concatenate([argmax, points[1:]]).tolist()


@CAM_FORMS
def test_official_mode_is_the_authors_code(form):
    rng = np.random.default_rng(5)
    num_points = 0  # besides the maximum
    for index in range(40):
        shape = rng.integers(40, 110, 2)
        cam = ndimage.gaussian_filter(rng.random(shape), rng.uniform(2, 5))
        cam = ((cam - cam.min()) / (cam.max() - cam.min())).astype(np.float32)
        cam = cam if index % 3 else np.maximum(cam * 2 - 1, 0)
        for threshold in (0.5, 0.2):
            expected = official_code(cam, threshold)
            assert listed(form(cam, mode="official", threshold=threshold)) == expected
        expected = official_code(cam, 0.3, min_distance=5)
        assert listed(form(cam, mode="official", threshold=0.3, min_distance=5)) == expected
        num_points += len(expected) - 1
    assert num_points > 40


@CAM_FORMS
def test_negative_maps_meet_the_zero_border_of_the_official_filter(form):
    cam = -np.abs(np.random.default_rng(0).normal(size=(12, 13))).astype(np.float32)
    expected = official_code(cam, -2.0, min_distance=1)
    assert listed(form(cam, mode="official", threshold=-2.0, min_distance=1)) == expected


@CAM_FORMS
def test_the_modes_on_bumps(form):
    cam = np.maximum(bumps((64, 64), (30, 30)), bumps((64, 64), (40, 55), height=0.8))
    # The second bump lies in the border of 20 but not in that of 8; a bump after the official filter peaks one pixel
    # up and left, and the first one left is replaced by the maximum.
    assert listed(form(cam)) == [[30, 30]]
    assert listed(form(cam, min_distance=8)) == [[30, 30], [40, 55]]
    assert listed(form(cam, mode="official")) == [[30, 30]]
    assert listed(form(cam, mode="official", min_distance=8)) == [[30, 30], [39, 54]]


@CAM_FORMS
def test_the_threshold_is_strict(form):
    cam = bumps((40, 40), (20, 20), height=0.5)
    assert listed(form(cam)) == []
    assert listed(form(cam, threshold=0.49)) == [[20, 20]]


@CAM_FORMS
def test_the_argmax_can_always_be_added(form):
    cam = np.maximum(bumps((40, 40), (2, 3)), bumps((40, 40), (20, 20), height=0.9))
    assert listed(form(cam)) == [[20, 20]]
    assert listed(form(cam, always_argmax=True)) == [[20, 20], [2, 3]]
    assert listed(form(bumps((40, 40), (20, 20)), always_argmax=True)) == [[20, 20]]
    assert listed(form(np.zeros((40, 40), np.float32), always_argmax=True)) == [[0, 0]]
    assert listed(form(np.zeros((40, 40), np.float32), mode="official")) == [[0, 0]]


@CAM_FORMS
def test_prompts_have_a_fixed_capacity(form):
    cams = np.stack([bumps((60, 60), (20, 20), (40, 40)), bumps((60, 60), (30, 30))])
    found = form(cams)
    assert found.coordinates.shape == (2, 256, 2)
    assert found.count.tolist() == [2, 1]
    assert form(cams, capacity=1).overflow.tolist() == [True, False]


@CAM_FORMS
def test_an_unknown_mode_is_refused(form):
    with pytest.raises(UsageError, match="mode must be 'paper' or 'official', got 'both'"):
        form(np.zeros((4, 4), np.float32), mode="both")


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    mode=st.sampled_from(["paper", "official"]),
    min_distance=st.sampled_from([None, 1, 4]),
    always_argmax=st.booleans(),
)
def test_cpu_prompts_are_the_references(seed, mode, min_distance, always_argmax):
    rng = np.random.default_rng(seed)
    cams = np.round(ndimage.gaussian_filter(rng.random((2, *rng.integers(1, 50, 2))), (0, 2, 2)) * 40) / 40
    options = {"mode": mode, "min_distance": min_distance, "always_argmax": always_argmax, "capacity": 6}
    result = cpu_cam_peaks(cams.astype(np.float32), **options)
    expected = reference_cam_peaks(cams.astype(np.float32), **options)
    for name in ("coordinates", "count", "overflow"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
