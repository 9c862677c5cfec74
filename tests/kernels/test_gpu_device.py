"""The CUDA form on a real device against the specification; skipped where there is none."""

import ml_dtypes
import numpy as np
import pytest

from maskmill.kernels.gpu.device import ACTIVATIONS
from maskmill.kernels.plans.class_stats import OUTPUTS

from .forms import gpu, reference

pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("size", [(130, 124), (30, 29)], ids=["enlarged", "reduced"])
def test_class_stats(cupy, dtype, layout, activation, grouped, size):
    rng = np.random.default_rng(0)
    shape = (2, 40, 33, 31) if layout == "CHW" else (2, 33, 31, 40)
    scores = (rng.random(shape) / 20 if activation == "none" else rng.normal(0, 3, shape)).astype(dtype)
    groups = rng.integers(-1, 12, 40) if grouped else None
    truth = rng.integers(0, 12, (2, *size)).astype(np.uint8)
    options = {"layout": layout, "activation": activation, "groups": groups, "rule": "foreground", "background": 0}
    options |= {"outputs": OUTPUTS, "thresholds": 0.7}
    found = gpu.class_stats(cupy.asarray(scores), size, truth=cupy.asarray(truth), **options)
    expected = reference.class_stats(scores, size, truth=truth, **options)
    for name in OUTPUTS:
        left, right = cupy.asnumpy(getattr(found, name)), getattr(expected, name)
        if right.dtype == np.float32:
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            assert (left != right).mean() < 1e-3, name


def test_a_true_score_is_the_smallest_threshold_that_holds_its_class(cupy):
    rng = np.random.default_rng(1)
    scores = cupy.asarray(rng.normal(0, 3, (21, 33, 33)).astype(np.float16))
    truth = cupy.asarray(rng.integers(0, 21, (321, 321)))
    own = gpu.class_stats(scores, truth.shape, truth=truth, outputs=("true_score",)).true_score
    below = cupy.nextafter(own, cupy.float32(-np.inf))
    sizes = [gpu.class_stats(scores, truth.shape, thresholds=t, outputs=("set_size",)).set_size for t in (own, below)]
    assert bool((sizes[0] > sizes[1]).all())


def test_exact_quantiles(cupy):
    rng = np.random.default_rng(2)
    scores = rng.random(3_000_001, dtype=np.float32)
    classes = rng.integers(0, 5, scores.size)
    options = {"classes": cupy.asarray(classes), "num_classes": 4}
    counts = gpu.score_counts(cupy.asarray(scores), **options)
    np.testing.assert_array_equal(cupy.asnumpy(counts), reference.score_counts(scores, classes=classes, num_classes=4))
    prefix, within = gpu.select_prefix(counts, 100_000)
    found = gpu.kth_score(gpu.score_counts(cupy.asarray(scores), **options, prefix=prefix), prefix, within)
    members = [*(scores[classes == k] for k in range(4)), scores]
    np.testing.assert_array_equal(cupy.asnumpy(found), [np.sort(m)[99_999] for m in members])
    maps = rng.random((50, 64, 70), dtype=np.float32)
    np.testing.assert_array_equal(
        cupy.asnumpy(gpu.position_quantiles(cupy.asarray(maps), 0.1)), reference.position_quantiles(maps, 0.1)
    )


def test_weighted_counts_are_the_same_bits_every_time(cupy):
    rng = np.random.default_rng(3)
    scores, weights = (
        cupy.asarray(rng.random(1_000_000, dtype=np.float32).round(2)),
        cupy.asarray(rng.random(1_000_000)),
    )
    runs = [cupy.asnumpy(gpu.weighted_score_counts(scores, weights)).tobytes() for _ in range(5)]
    assert set(runs) == {runs[0]}


def test_pcos(cupy):
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.full(21, 0.2), (2, 200, 301))
    stats = gpu.class_stats(
        cupy.asarray(p.astype(np.float32)), (200, 301), layout="HWC", activation="none", outputs=("share", "dispersion")
    )
    found = gpu.pcos(stats.share, stats.dispersion, want_cluster=True)
    expected = reference.pcos(cupy.asnumpy(stats.share), cupy.asnumpy(stats.dispersion), want_cluster=True)
    np.testing.assert_allclose(cupy.asnumpy(found.weight), expected.weight, atol=1e-5)
    np.testing.assert_allclose(cupy.asnumpy(found.statistics), expected.statistics, rtol=1e-9)
    again = gpu.pcos(stats.share, stats.dispersion, want_cluster=True)
    assert found.weight.tobytes() == again.weight.tobytes()


@pytest.mark.parametrize("min_distance", [1, 2, 10])
def test_peaks(cupy, min_distance):
    rng = np.random.default_rng(5)
    maps = np.concatenate([rng.random((2, 130, 200)), rng.integers(0, 4, (2, 130, 200))]).astype(np.float32)
    found = gpu.peak_local_max(cupy.asarray(maps), min_distance=min_distance)
    expected = reference.peak_local_max(maps, min_distance=min_distance)
    np.testing.assert_array_equal(cupy.asnumpy(found.count), expected.count)
    coordinates = cupy.asnumpy(found.coordinates)
    for mine, theirs, count in zip(coordinates, expected.coordinates, expected.count, strict=True):
        np.testing.assert_array_equal(mine[:count], theirs[:count])
    for mode in ("paper", "official"):
        found, expected = gpu.cam_peaks(cupy.asarray(maps), mode=mode), reference.cam_peaks(maps, mode=mode)
        np.testing.assert_array_equal(cupy.asnumpy(found.coordinates), expected.coordinates)


def test_pixels_cover_and_levels(cupy):
    rng = np.random.default_rng(6)
    image = rng.integers(0, 256, (213, 320, 3), dtype=np.uint8)
    options = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    np.testing.assert_allclose(
        cupy.asnumpy(gpu.resize_normalize(cupy.asarray(image), (128, 171), **options)),
        reference.resize_normalize(image, (128, 171), **options),
        atol=2e-5,
    )
    cells, weight = rng.random((3, 10, 10)) < 0.5, rng.random((3, 321, 321), dtype=np.float32)
    np.testing.assert_array_equal(
        cupy.asnumpy(gpu.perturbation_cover(cupy.asarray(cells), (321, 321))),
        reference.perturbation_cover(cells, (321, 321)),
    )
    np.testing.assert_array_equal(
        cupy.asnumpy(gpu.quantize_weights(cupy.asarray(weight), levels=16)),
        reference.quantize_weights(weight, levels=16),
    )


@pytest.mark.parametrize("num_classes", [21, 150])
def test_confusion_counts(cupy, num_classes):
    rng = np.random.default_rng(8)
    truth = np.repeat(rng.choice([*range(num_classes), 255], (3, 500, 25)), 20, axis=2).astype(np.uint8)
    label = np.where(rng.random(truth.shape) < 0.1, 255, np.roll(truth, 3, axis=2)).astype(np.uint8)
    total = cupy.zeros((num_classes, num_classes + 1), np.int64)
    for _ in range(2):
        gpu.confusion_counts(cupy.asarray(label), cupy.asarray(truth), num_classes=num_classes, out=total)
    expected = reference.confusion_counts(label, truth, num_classes=num_classes)
    np.testing.assert_array_equal(cupy.asnumpy(total), 2 * expected)


def test_binned_counts(cupy):
    rng = np.random.default_rng(9)
    truth, top = (rng.choice([*range(21), 255], (3, 400, 500)).astype(np.uint8) for _ in range(2))
    scores, best = (rng.random(truth.shape, np.float32) ** 4 for _ in range(2))
    arguments = (scores, truth, top, best, np.linspace(0, 1, 546, dtype=np.float32))
    found = gpu.binned_counts(*map(cupy.asarray, arguments), num_classes=21)
    np.testing.assert_array_equal(cupy.asnumpy(found), reference.binned_counts(*arguments, num_classes=21))


def test_nothing_waits_for_the_device(cupy):
    """A stream that is busy for long does not hold up the calls queued on it."""
    import time

    scores = cupy.zeros((21, 65, 65), cupy.float16)
    maps = cupy.asarray(np.random.default_rng(7).random((2, 256, 256), dtype=np.float32))
    edges = cupy.linspace(0, 1, 500, dtype=np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)

    def everything():
        stats = gpu.class_stats(scores, (256, 256), outputs=("label", "share", "dispersion"))
        weights = gpu.pcos(stats.share, stats.dispersion)
        gpu.quantize_weights(weights.weight, weights.reliable, label=stats.label)
        gpu.confusion_counts(stats.label, stats.label, num_classes=21)
        gpu.binned_counts(stats.share, stats.label, stats.label, stats.share, edges, num_classes=21)
        gpu.cam_peaks(maps, mode="official")
        prefix, within = gpu.select_prefix(gpu.score_counts(stats.share), 100)
        gpu.kth_score(gpu.score_counts(stats.share, prefix=prefix), prefix, within)

    with stream:
        everything()
        stream.synchronize()  # synchronize: compiled and its memory pooled
        spin = cupy.RawKernel(
            'extern "C" __global__ void spin(long long n) { long long t = clock64(); while (clock64() - t < n); }',
            "spin",
        )
        spin((1,), (1,), (np.int64(2_000_000_000),))
        start = time.perf_counter()
        everything()
        queued = time.perf_counter() - start
        done = stream.done
        stream.synchronize()  # synchronize: the test is over
    assert not done
    assert queued < 0.5
