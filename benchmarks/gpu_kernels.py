"""Cases for every kernel of a GPU session: random ones, compared with the specification, and one large one, timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from maskmill import kernels
from maskmill.kernels import reference
from maskmill.kernels.plans.class_stats import DecodeOptions

Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of a kernel's public function, its arrays on the host."""

    kernel: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0
    """Largest difference of floating-point results, absolute and relative."""
    differing: float = 0.0
    """Largest share of integer results that may differ, where the tolerance decides between classes."""

    def on_device(self, cupy: Any) -> Callable[[], Any]:
        """Upload the arrays; returns a function that queues one call on them."""
        function = getattr(kernels, self.kernel)
        arguments = [cupy.asarray(value) if isinstance(value, np.ndarray) else value for value in self.arguments]
        options = {
            key: cupy.asarray(value) if isinstance(value, np.ndarray) and key != "groups" else value
            for key, value in self.options.items()
        }
        cupy.cuda.Device().synchronize()
        return lambda: function(*arguments, **options)

    def expected(self) -> Any:
        """Compute the result with the specification in NumPy."""
        function = getattr(reference, self.kernel)
        if self.kernel != "class_stats":
            return function(*self.arguments, **self.options)
        others = {key: value for key, value in self.options.items() if key in ("truth", "thresholds")}
        decoding = {key: value for key, value in self.options.items() if key not in others}
        return function(*self.arguments, DecodeOptions(**decoding), **others)

    def num_bytes(self, result: Any) -> int:
        """Count the bytes of inputs and outputs, each once."""
        values = (*self.arguments, *self.options.values(), *(array for _, array in arrays_of(result)))
        return sum(value.nbytes for value in values if hasattr(value, "nbytes") and getattr(value, "ndim", 0))


def arrays_of(result: Any) -> list[tuple[str, Any]]:
    """Name the arrays of a result: an array, a tuple of arrays, or a dataclass of arrays and None."""
    if is_dataclass(result):
        pairs = [(item.name, getattr(result, item.name)) for item in fields(result)]
    else:
        pairs = [(str(index), array) for index, array in enumerate(result if isinstance(result, tuple) else (result,))]
    return [(name, array) for name, array in pairs if array is not None]


def difference(case: Case, found: Any, expected: Any) -> str:
    """Describe the first difference between two results on the host; empty if they agree."""
    for (name, left), (_, right) in zip(arrays_of(found), arrays_of(expected), strict=True):
        left, right = np.asarray(left), np.asarray(right)
        if name == "coordinates":  # rows after the number of peaks are undefined
            counts = np.atleast_1d(np.asarray(expected.count))
            width = min(left.shape[-2], right.shape[-2])
            known = np.arange(width) < counts[:, None]
            left, right = (array.reshape(len(counts), -1, 2)[:, :width][known] for array in (left, right))
        if left.shape != right.shape:
            return f"{name}: shape {left.shape}, expected {right.shape}"
        if right.dtype.kind == "f":
            close = np.isclose(left, right, rtol=case.tolerance, atol=case.tolerance, equal_nan=True)
            if not close.all():
                worst = np.abs(left.astype(np.float64) - right)[~close].max()
                return f"{name}: {(~close).sum()} of {close.size} values differ by up to {worst:.3g}"
        elif (num := int((left != right).sum())) > max(case.differing * right.size, 2 if case.differing else 0):
            return f"{name}: {num} of {right.size} values differ"
    return ""


def _between(rng: Random, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def class_stats(rng: Random, large: bool) -> Case:
    """Make softmax, sigmoid or plain scores in both layouts, grouped or not; large: 150 classes, 128² to 512²."""
    classes, height, width = (150, 128, 128) if large else (_between(rng, 2, 40), *map(int, rng.integers(3, 40, 2)))
    size = (512, 512) if large else tuple(map(int, rng.integers(4, 120, 2)))
    layout = "CHW" if large else str(rng.choice(["CHW", "HWC"]))
    activation = "softmax" if large else str(rng.choice(["softmax", "sigmoid", "none"]))
    shape = (classes, height, width) if layout == "CHW" else (height, width, classes)
    scores = rng.random(shape) / classes if activation == "none" else rng.normal(0, 3, shape)
    options: dict[str, Any] = {"layout": layout, "activation": activation, "outputs": ("label", "share", "dispersion")}
    if not large and rng.random() < 0.5:
        options["groups"] = rng.integers(-1, max(2, classes // 2), classes)
        options["num_targets"] = max(2, classes // 2)
    if not large and rng.random() < 0.5:
        options |= {"thresholds": 0.7, "rule": str(rng.choice(["argmax", "single", "agree"]))}
    return Case(
        kernel="class_stats",
        arguments=(scores.astype(np.float16 if large or rng.random() < 0.5 else np.float32), size),
        options=options,
        tolerance=1e-4,
        differing=2e-3,
    )


def pcos(rng: Random, large: bool) -> Case:
    """Make shares and dispersions of pixels; large: 512²."""
    shape = (512, 512) if large else (_between(rng, 1, 3), *map(int, rng.integers(4, 150, 2)))
    share = (rng.random(shape) ** 0.4).astype(np.float32)
    dispersion = (rng.random(shape) * (1 - share)).astype(np.float32)
    return Case(kernel="pcos", arguments=(share, dispersion), tolerance=1e-3, differing=2e-3)


def _maps(rng: Random, large: bool) -> np.ndarray:
    shape = (20, 512, 512) if large else (_between(rng, 1, 3), *map(int, rng.integers(8, 150, 2)))
    return rng.random(shape, dtype=np.float32)


def cam_peaks(rng: Random, large: bool) -> Case:
    """Make activation maps of noise; large: 20 maps of 512²."""
    return Case(kernel="cam_peaks", arguments=(_maps(rng, large),), options={"mode": "official"})


def peak_local_max(rng: Random, large: bool) -> Case:
    """Make maps of noise; large: 20 maps of 512²."""
    distance = 10 if large else _between(rng, 1, 8)
    return Case(kernel="peak_local_max", arguments=(_maps(rng, large),), options={"min_distance": distance})


def quantize_weights(rng: Random, large: bool) -> Case:
    """Make weights, some of them 1, with ignored pixels; large: 512²."""
    shape = (512, 512) if large else tuple(map(int, rng.integers(1, 200, 2)))
    weight = np.where(rng.random(shape) < 0.3, 1, rng.random(shape)).astype(np.float32)
    label = rng.choice(np.array([0, 1, 255], np.uint8), shape)
    options = {"levels": 256 if large else _between(rng, 3, 256), "label": label}
    return Case(kernel="quantize_weights", arguments=(weight,), options=options)


def resize_normalize(rng: Random, large: bool) -> Case:
    """Make images larger and smaller than the input; large: 768 x 1024 to 384 x 512."""
    source = (768, 1024) if large else tuple(map(int, rng.integers(4, 200, 2)))
    size = (384, 512) if large else tuple(map(int, rng.integers(4, 120, 2)))
    image = rng.integers(0, 256, (*source, 3), dtype=np.uint8)
    options = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return Case(kernel="resize_normalize", arguments=(image, size), options=options, tolerance=1e-4)


def confusion_counts(rng: Random, large: bool) -> Case:
    """Make label maps with runs of equal pixels; large: 16 maps of 512²."""
    classes = 21 if large else _between(rng, 2, 160)
    shape = (16, 512, 512) if large else tuple(map(int, rng.integers(1, 200, 2)))
    truth = rng.choice(np.array([*range(classes), 255], np.uint8), shape)
    label = np.where(rng.random(shape) < 0.2, 255, truth).astype(np.uint8)
    return Case(kernel="confusion_counts", arguments=(label, truth), options={"num_classes": classes})


def binned_counts(rng: Random, large: bool) -> Case:
    """Make scores of labeled pixels in 546 bins; large: 16 maps of 512²."""
    classes, shape = 21, (16, 512, 512) if large else tuple(map(int, rng.integers(1, 200, 2)))
    truth = rng.choice(np.array([*range(classes), 255], np.uint8), shape)
    top = np.where(rng.random(shape) < 0.2, rng.integers(0, classes + 1, shape), truth).astype(np.uint16)
    scores, best = (rng.random(shape, np.float32) ** 4 for _ in range(2))
    edges = np.linspace(0, 1, 546, dtype=np.float32)
    return Case(kernel="binned_counts", arguments=(scores, truth, top, best, edges), options={"num_classes": classes})


def perturbation_cover(rng: Random, large: bool) -> Case:
    """Make grids of cells; large: 16 covers of 512²."""
    size = (512, 512) if large else tuple(map(int, rng.integers(8, 150, 2)))
    cells = rng.random((16 if large else _between(rng, 1, 4), 16, 16)) < 0.5
    return Case(kernel="perturbation_cover", arguments=(cells, size))


def _scores(rng: Random, large: bool) -> np.ndarray:
    return rng.random(10**7 if large else _between(rng, 1, 20_000), dtype=np.float32)


def score_counts(rng: Random, large: bool) -> Case:
    """Make scores with classes; large: 10⁷ scores of 21 classes."""
    scores, classes = _scores(rng, large), 21
    options = {"classes": rng.integers(0, classes + 1, scores.size, dtype=np.uint8), "num_classes": classes}
    return Case(kernel="score_counts", arguments=(scores,), options=options)


def weighted_score_counts(rng: Random, large: bool) -> Case:
    """Make scores with weights; large: 10⁷."""
    scores = _scores(rng, large)
    return Case(kernel="weighted_score_counts", arguments=(scores, rng.random(scores.size)), tolerance=1e-9)


def select_prefix(rng: Random, large: bool) -> Case:
    """Make counts of random scores, and ranks to find."""
    scores = _scores(rng, False)
    counts = reference.score_counts(scores)
    return Case(kernel="select_prefix", arguments=(counts, _between(rng, 1, scores.size)))


def kth_score(rng: Random, large: bool) -> Case:
    """Make the counts of both passes over random scores, and ranks."""
    scores = _scores(rng, False)
    prefix, within = reference.select_prefix(reference.score_counts(scores), _between(rng, 1, scores.size))
    return Case(kernel="kth_score", arguments=(reference.score_counts(scores, prefix=prefix), prefix, within))


def position_quantiles(rng: Random, large: bool) -> Case:
    """Make maps of scores; large: 100 maps of 128²."""
    shape = (100, 128, 128) if large else (_between(rng, 2, 40), *map(int, rng.integers(1, 40, 2)))
    return Case(kernel="position_quantiles", arguments=(rng.random(shape, dtype=np.float32), 0.1))


CASES: dict[str, Callable[[Random, bool], Case]] = {
    function.__name__: function
    for function in (
        class_stats, pcos, cam_peaks, peak_local_max, quantize_weights, resize_normalize, confusion_counts,
        binned_counts, perturbation_cover, score_counts, weighted_score_counts, select_prefix, kth_score,
        position_quantiles,
    )
}  # fmt: skip
"""Every kernel's maker of cases: ``CASES[name](rng, large)``."""
