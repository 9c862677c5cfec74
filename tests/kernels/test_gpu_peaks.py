"""The CUDA form of the peaks, run on a CPU, against the specification: coordinates, order and counts are the same."""

import numpy as np
import pytest

from maskmill.errors import UsageError
from maskmill.kernels import reference
from maskmill.kernels.types import Peaks

from ..simt.harness import cuda


def random_maps(rng, count=2):
    """Maps with plateaus, ties, noise, extremes or bumps."""
    height, width = rng.integers(1, 26), rng.integers(1, 75)
    kind = rng.integers(5)
    if kind == 0:
        return rng.integers(0, 4, (count, height, width)).astype(np.float32)
    if kind == 1:
        return np.repeat(np.repeat(rng.integers(0, 3, (count, 13, 38)), 2, 1), 2, 2)[:, :height, :width].astype(
            np.float32
        )
    maps = rng.normal(size=(count, height, width)).astype(np.float32)
    if kind == 2:
        return np.round(maps, 1)
    if kind == 3:
        maps[rng.random(maps.shape) < 0.1] = rng.choice([np.inf, -np.inf, -0.0, 0.0, 1e-40, -1e-40])
        return maps
    rows, columns = np.mgrid[:height, :width]
    return np.stack([np.sin(rows / rng.uniform(1, 4)) * np.cos(columns / rng.uniform(1, 5))] * count).astype(np.float32)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_array_equal(found.overflow, expected.overflow)
    for mine, theirs, count in zip(found.coordinates, expected.coordinates, expected.count, strict=True):
        np.testing.assert_array_equal(mine[:count], theirs[:count])
        assert (mine[count:] == -1).all()
    assert (found.coordinates.dtype, found.count.dtype, found.overflow.dtype) == (np.int64, np.int64, bool)


@pytest.mark.parametrize("seed", range(60))
def test_peaks_equal_the_reference(seed):
    rng = np.random.default_rng(seed)
    maps = random_maps(rng)
    choice = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    options = {
        "min_distance": int(choice(1, 2, 3, 5, 12)),
        "threshold_abs": choice(None, 0.5, 0, -1.0),
        "threshold_rel": choice(None, 0.3, 0.9, -1.0),
        "exclude_border": choice(True, False, 0, 2, (1, 3)),
        "num_peaks": choice(None, 0, 1, 3),
    }
    found, expected = (form.peak_local_max(maps, **options) for form in (cuda, reference))
    assert not found.overflow.any()
    assert_same(found, expected)
    capacity = int(choice(1, 2, 6))
    assert_same(*(form.peak_local_max(maps, **options, capacity=capacity) for form in (cuda, reference)))


@pytest.mark.parametrize("min_distance", [2, 3, 7])
def test_a_plateau_is_thinned_in_raster_order(min_distance):
    # Every pixel but one is a candidate, and each waits for the ones before it.
    maps = np.ones((1, 23, 41), np.float32)
    maps[0, 11, 20] = 0
    options = {"min_distance": min_distance, "exclude_border": False}
    assert_same(*(form.peak_local_max(maps, **options) for form in (cuda, reference)))


def test_worked_plateau():
    maps = np.zeros((9, 9), np.float32)
    maps[3:6, 3:6] = 1
    found = {d: cuda.peak_local_max(maps, min_distance=d, exclude_border=False) for d in (1, 2, 3)}
    assert [int(peaks.count[0]) for peaks in found.values()] == [9, 4, 1]
    assert found[2].coordinates[0, :4].tolist() == [[3, 3], [3, 5], [5, 3], [5, 5]]
    assert found[3].coordinates[0, 0].tolist() == [3, 3]


def test_wide_windows_cross_warps():
    rng = np.random.default_rng(0)
    maps = rng.random((1, 50, 130)).astype(np.float32)
    options = {"min_distance": 40, "exclude_border": False}
    assert_same(*(form.peak_local_max(maps, **options) for form in (cuda, reference)))


@pytest.mark.parametrize("maps", [np.full((2, 5, 40), 3.0), np.full((1, 1, 1), 2.0), np.zeros((0, 5, 5))])
def test_constant_single_and_no_maps(maps):
    maps = maps.astype(np.float32)
    for threshold in (None, 1.0):
        options = {"threshold_abs": threshold, "exclude_border": False}
        assert_same(*(form.peak_local_max(maps, **options) for form in (cuda, reference)))


def test_a_map_with_nan_has_no_peaks():
    maps = np.random.default_rng(1).random((2, 20, 40)).astype(np.float32)
    clean = cuda.peak_local_max(maps, min_distance=3)
    maps[0, 19, 39] = np.nan
    found = cuda.peak_local_max(maps, min_distance=3)
    assert found.count.tolist() == [0, clean.count[1]]
    assert (found.coordinates[0] == -1).all()
    for mode in ("paper", "official"):
        peaks = cuda.cam_peaks(maps, mode=mode, min_distance=3, always_argmax=True)
        assert peaks.count[0] == 0
        assert peaks.count[1] > 0


@pytest.mark.parametrize("mode", ["paper", "official"])
@pytest.mark.parametrize("seed", range(12))
def test_cam_peaks_equal_the_reference(mode, seed):
    rng = np.random.default_rng(seed)
    cams = np.maximum(random_maps(rng, 3), 0)
    cams = np.minimum(cams / 3, 1) if seed % 2 else cams
    cams[0] *= seed % 3 > 0
    options = {"mode": mode, "threshold": float(rng.choice([0.5, 0.2])), "always_argmax": bool(seed % 2)}
    options |= {"min_distance": [None, 2, 4][seed % 3], "capacity": [256, 2][seed % 2]}
    assert_same(*(form.cam_peaks(cams, **options) for form in (cuda, reference)))


def test_a_bump_moves_under_the_official_filter_only():
    rows, columns = np.mgrid[:64, :64]
    cam = np.exp(-((rows - 30) ** 2 + (columns - 30) ** 2) / 50).astype(np.float32)
    cam[50, 50] = 1.5
    assert cuda.cam_peaks(cam).coordinates[0, :2].tolist() == [[50, 50], [30, 30]]
    assert cuda.cam_peaks(cam, mode="official").coordinates[0, :2].tolist() == [[50, 50], [-1, -1]]
    cam[50, 50] = 0
    assert cuda.cam_peaks(cam, mode="official").coordinates[0, :2].tolist() == [[30, 30], [-1, -1]]


def test_out_sets_the_capacity():
    maps = np.random.default_rng(2).random((2, 20, 40)).astype(np.float32)
    out = Peaks(np.empty((2, 4, 2), np.int64), np.empty(2, np.int64), np.empty(2, bool))
    found = cuda.peak_local_max(maps, out=out)
    assert found.coordinates is out.coordinates
    assert out.count.tolist() == [4, 4]
    assert out.overflow.all()


def test_misuse_is_refused():
    with pytest.raises(UsageError, match="mode must be 'paper' or 'official'"):
        cuda.cam_peaks(np.zeros((4, 4), np.float32), mode="best")
    with pytest.raises(UsageError, match="from 1 to"):
        cuda.peak_local_max(np.zeros((1, 0, 4), np.float32))
