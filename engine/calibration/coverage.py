"""What thresholds do on images they were not computed from: coverage with intervals over images, set sizes.

Coverage of a class is the share of its pixels whose prediction set holds it. Intervals come from a bootstrap over
images, since pixels of one image depend on each other. Set sizes are measured on pixels sampled from every image and
class, weighted back to the number they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...kernels.types import Activation
from ..model.taxonomy import Taxonomy
from ..predictors.base import ScoreMap
from ..predictors.resampling import sample_pixels
from .score_spill import NO_CLASS, ScoreSpill
from .thresholds import Thresholds

_SAMPLES_PER_IMAGE = 256
_BOOTSTRAP_ROUNDS = 1000


class SampleSpill:
    """Interpolated class scores of a few pixels of every image, in a file."""

    def __init__(self, folder: Path, num_classes: int) -> None:
        self._path = folder / "samples.f32"
        self._stream = self._path.open("wb")
        self._num_classes = num_classes
        self._cells: list[NDArray[np.int64]] = []
        self._classes: list[NDArray[np.uint16]] = []
        self._weights: list[NDArray[np.float64]] = []
        self._ends = [0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def append(self, score_map: ScoreMap, size: tuple[int, int], truth: NDArray[Any], ignore: int) -> None:
        """Sample pixels of one image, about equally many of each class in ``truth`` (H, W)."""
        rng = np.random.default_rng(len(self._cells))
        flat = truth.ravel()
        present, counts = np.unique(flat[flat != ignore], return_counts=True)
        cells, weights = [], []
        for target, count in zip(present, counts, strict=True):
            share = min(int(count), max(1, _SAMPLES_PER_IMAGE // len(present)))
            cells.append(rng.choice(np.flatnonzero(flat == target), share, replace=False))
            weights.append(np.full(share, count / share))
        chosen = np.concatenate([np.empty(0, np.int64), *cells])
        scores = score_map.scores if score_map.layout == "HWC" else np.moveaxis(score_map.scores, 0, -1)
        values = sample_pixels(scores, size, score_map.region, chosen)
        self._stream.write(np.ascontiguousarray(values, np.float32).tobytes())
        self._cells.append(chosen)
        self._classes.append(flat[chosen].astype(np.uint16))
        self._weights.append(np.concatenate([np.empty(0), *weights]))
        self._ends.append(self._ends[-1] + len(chosen))

    def finish(self) -> None:
        """Close the file for writing."""
        self._stream.close()

    def images(self, indices: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Scores (S, C), cells (S,), classes (S,) and weights (S,) of several images' samples."""
        if self._ends[-1] == 0 or not len(indices):
            none = np.empty((0, self._num_classes), np.float32)
            return none, np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0)
        stored = np.memmap(self._path, np.float32, mode="r").reshape(-1, self._num_classes)
        return (
            np.concatenate([stored[self._ends[index] : self._ends[index + 1]] for index in indices]),
            np.concatenate([self._cells[index] for index in indices]),
            np.concatenate([self._classes[index] for index in indices]),
            np.concatenate([self._weights[index] for index in indices]),
        )


class CoverageReport:
    """Adds up, fold by fold, how thresholds do on the images they were not computed from."""

    def __init__(self, taxonomy: Taxonomy, activation: Activation, num_images: int) -> None:
        self._taxonomy = taxonomy
        self._activation: Activation = activation
        num = taxonomy.num_targets
        self._covered = np.zeros((num_images, num))
        self._total = np.zeros((num_images, num))
        self._size_sum, self._single_sum, self._weight_sum = np.zeros(num), np.zeros(num), np.zeros(num)

    def add(self, thresholds: Thresholds, spill: ScoreSpill, samples: SampleSpill, held_out: Sequence[int]) -> None:
        """Score the held-out images with thresholds that were computed without them."""
        num = self._taxonomy.num_targets
        lookup = np.append(thresholds.values[:num], np.zeros(NO_CLASS + 1 - num)).astype(np.float32)
        for index in held_out:
            scores, classes = spill.image(index)
            limits = lookup[classes] if spill.grid is None else thresholds.values.ravel()
            valid = classes != NO_CLASS
            self._total[index] = np.bincount(classes[valid], minlength=num)
            self._covered[index] = np.bincount(classes[valid & (scores <= limits)], minlength=num)
        values, cells, classes, weights = samples.images(held_out)
        if len(values) == 0:
            return
        limits = thresholds.values if spill.grid is None else thresholds.values.ravel()[cells][:, None]
        sizes = kernels.class_stats(
            values[:, None, :],
            (len(values), 1),
            layout="HWC",
            activation=self._activation,
            groups=self._taxonomy.groups,
            num_targets=num,
            thresholds=limits,
            outputs=("set_size",),
        ).set_size.ravel()
        self._weight_sum += np.bincount(classes, weights, num)
        self._size_sum += np.bincount(classes, weights * sizes, num)
        self._single_sum += np.bincount(classes, weights * (sizes == 1), num)

    def to_json(self) -> dict[str, Any]:
        """Coverage, interval, mean set size and singleton share, overall and for each target seen."""
        covered = np.column_stack([self._covered, self._covered.sum(axis=1)])
        total = np.column_stack([self._total, self._total.sum(axis=1)])
        low, high = _bootstrap(covered, total)
        size, single, weight = (
            np.append(sums, sums.sum()) for sums in (self._size_sum, self._single_sum, self._weight_sum)
        )
        rows = [
            {
                "coverage": float(covered[:, row].sum() / pixels),
                "interval": [float(low[row]), float(high[row])],
                "mean_set_size": float(size[row] / weight[row]),
                "singleton_share": float(single[row] / weight[row]),
            }
            if (pixels := total[:, row].sum()) > 0
            else None
            for row in range(total.shape[1])
        ]
        seen = total.sum(axis=1) > 0
        per_image = covered[seen, -1] / total[seen, -1]
        return {
            "overall": rows[-1],
            "image_mean_coverage": float(per_image.mean()) if seen.any() else None,
            "classes": rows[:-1],
        }


def _bootstrap(covered: NDArray[np.float64], total: NDArray[np.float64]) -> tuple[Any, Any]:
    """Percentile interval (95 %) of sum(covered) / sum(total) over resampled images, for each column."""
    rng = np.random.default_rng(0)
    num_images = len(total)
    ratios = []
    for _ in range(_BOOTSTRAP_ROUNDS // 50):
        draws = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=50).astype(np.float64)
        sums = draws @ total
        ratios.append(np.divide(draws @ covered, sums, out=np.full_like(sums, np.nan), where=sums > 0))
    stacked = np.concatenate(ratios)
    empty = np.isnan(stacked).all(axis=0)
    stacked[:, empty] = 0.0
    low, high = np.nanpercentile(stacked, [2.5, 97.5], axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)
