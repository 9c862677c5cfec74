"""Sampled pixels of labeled images with all their class scores, to try rules and thresholds without the model.

Up to ``PIXELS`` pixels per image are drawn, about equally many of each class, and weighted by the number of pixels that
each represents. Set sizes, and the kept share, accuracy and IoU of a rule's labels, are computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ....kernels.types import Activation, BackendArray, Rule
from ...model.taxonomy import Taxonomy
from ...predictors.base import ScoreMap
from ...predictors.class_scores import class_scores
from ...predictors.resampling import sample_pixels
from ..intervals import ratio_variance, share_interval

PIXELS = 1024
"""Pixels per image."""

_IMAGES_AT_ONCE = 64  # images whose samples and class scores are in memory together


@dataclass(frozen=True, eq=False)
class Draw:
    """Pixels drawn from an image, (S,) each."""

    cells: NDArray[np.int64]
    """Flat indices of the pixels."""
    classes: NDArray[np.int64]
    """Their true classes."""
    weights: NDArray[np.float64]
    """Number of pixels that each represents."""


def draw_pixels(truth: NDArray[Any], ignore: int, number: int) -> Draw:
    """Draw pixels with a class from image ``number``; ``truth`` (H, W) holds target indices."""
    rng = np.random.default_rng(number)
    flat = truth.ravel()
    present, counts = np.unique(flat[flat != ignore], return_counts=True)
    cells, weights = [np.empty(0, np.int64)], [np.empty(0)]
    for target, count in zip(present, counts, strict=True):
        share = min(int(count), max(1, PIXELS // len(present)))
        cells.append(rng.choice(np.flatnonzero(flat == target), share, replace=False))
        weights.append(np.full(share, count / share))
    positions = np.concatenate(cells)
    return Draw(positions, flat[positions].astype(np.int64), np.concatenate(weights))


def class_values(score_map: ScoreMap, size: tuple[int, int], draw: Draw) -> BackendArray:
    """Interpolate the values of all model classes, (S, C) float32, at the pixels drawn from a map decoded to ``size``.

    The result is on the backend of the map; call it inside its ``queue()``.
    """
    backend = score_map.backend
    scores = score_map.scores if score_map.layout == "HWC" else backend.xp.moveaxis(score_map.scores, 0, -1)
    return sample_pixels(scores, size, score_map.region, backend.xp.asarray(draw.cells), backend)


class PixelSamples:
    """Class scores of sampled pixels, in a file of ``folder``; images are added in order."""

    def __init__(self, folder: Path, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self._path = folder / "samples.f32"
        self._stream = self._path.open("wb")
        self._activation: Activation = "softmax"
        self._parts: list[list[int]] = []  # draws of each image, or of all windows of one file
        self._cells: list[NDArray[np.int64]] = []
        self._classes: list[NDArray[np.int64]] = []
        self._weights: list[NDArray[np.float64]] = []
        self._starts: list[int] = []
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __len__(self) -> int:
        return len(self._parts)

    def append(self, draw: Draw, values: NDArray[np.float32], activation: Activation, *, joined: bool = False) -> None:
        """Add the pixels drawn from one image, with their values of :func:`class_values` on the host.

        With ``joined`` they belong to the previous image, as another window of its file.
        """
        if not joined:
            self._parts.append([])
        self._parts[-1].append(len(self._cells))
        self._activation = activation
        self._stream.write(np.ascontiguousarray(values, np.float32).tobytes())
        self._cells.append(draw.cells)
        self._classes.append(draw.classes)
        self._weights.append(draw.weights)
        self._starts.append(self._end)
        self._end += len(draw.cells)

    def finish(self) -> None:
        """Close the file for writing."""
        self._stream.close()

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> PixelSamples:
        """Select images by index, in the order given; the view reads the same file."""
        view = copy(self)
        view._parts = [self._parts[index] for index in indices]
        return view

    def tally(self, indices: Sequence[int] | NDArray[np.int64], thresholds: Any, rule: Rule) -> Tally:
        """Label the samples of some images; parameters as in :meth:`SampledScores.tally`."""
        draws = [(place, part) for place, index in enumerate(indices) for part in self._parts[index]]
        tallies = []
        for start in range(0, len(draws), _IMAGES_AT_ONCE):
            places, parts = zip(*draws[start : start + _IMAGES_AT_ONCE], strict=True)
            tallies.append((np.array(places), self._read(parts, np.arange(len(parts))).tally(thresholds, rule)))
        return Tally.gather(tallies, len(indices), self.taxonomy.num_targets)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> SampledScores:
        """Compute the class scores of the samples of some images."""
        draws = [(place, part) for place, index in enumerate(indices) for part in self._parts[index]]
        places = np.array([place for place, _ in draws], np.int64)
        return self._read([part for _, part in draws], places, len(indices))

    def _read(self, indices: Sequence[int], places: NDArray[np.int64], num_images: int | None = None) -> SampledScores:
        """Compute the class scores of draws; ``places`` (n,) are the images that they belong to."""
        sizes = [len(self._cells[index]) for index in indices]
        values = np.empty((0, len(self.taxonomy.model)), np.float32)
        if sum(sizes):
            stored_values = np.memmap(self._path, np.float32, mode="r").reshape(-1, len(self.taxonomy.model))
            spans = [slice(self._starts[index], self._starts[index] + len(self._cells[index])) for index in indices]
            values = np.concatenate([stored_values[span] for span in spans])
        rank, scores = class_scores(values, self.taxonomy, self._activation)
        nothing = [np.empty(0, np.int64)]
        return SampledScores(
            taxonomy=self.taxonomy,
            num_images=len(indices) if num_images is None else num_images,
            image=np.repeat(places, sizes),
            cells=np.concatenate(nothing + [self._cells[index] for index in indices]),
            classes=np.concatenate(nothing + [self._classes[index] for index in indices]),
            weights=np.concatenate([np.empty(0), *(self._weights[index] for index in indices)]),
            rank=np.ascontiguousarray(rank.T),
            scores=np.ascontiguousarray(scores.T),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledScores:
    """Class scores of the sampled pixels of n images, to try many thresholds and rules on."""

    taxonomy: Taxonomy
    """The target classes."""
    num_images: int
    """Number of images, n."""
    image: NDArray[np.int64]
    """(S,): index of each pixel's image."""
    cells: NDArray[np.int64]
    """(S,): index of each pixel in its image."""
    classes: NDArray[np.int64]
    """(S,): true target class."""
    weights: NDArray[np.float64]
    """(S,): number of pixels that the sample represents."""
    rank: NDArray[np.float64]
    """(Ke, S): values that order the classes as their scores do."""
    scores: NDArray[np.float32]
    """(Ke, S): nonconformity scores."""

    @cached_property
    def top(self) -> NDArray[np.int64]:
        """(S,): scored class of the highest score."""
        return self.rank.argmax(axis=0)

    @cached_property
    def _top_score(self) -> NDArray[np.float32]:
        return np.take_along_axis(self.scores, self.top[None], axis=0)[0]

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """(S,): place of each pixel's image in a table (n, K)."""
        return self.image * self.taxonomy.num_targets

    @cached_property
    def true(self) -> NDArray[np.float64]:
        """(n, K): pixels of each class."""
        return self._total(self.weights, self.classes)

    def tally(self, thresholds: Any, rule: Rule) -> Tally:
        """Label the samples with ``thresholds``: a scalar, one per scored class (Ke,), or a map over a grid that the
        images were sampled on; None: the top class.
        """
        num = self.taxonomy.num_targets
        if thresholds is None:
            label, size = self.top, np.ones(len(self.classes), np.uint16)
        else:
            limits = np.asarray(thresholds, np.float32)
            if limits.ndim == 2:
                limits = np.broadcast_to(limits.ravel()[self.cells], self.scores.shape)
            limits = np.broadcast_to(limits, len(self.scores)) if limits.ndim < 2 else limits
            label, size = self._label(limits, rule)
        kept_weights = np.where((label >= 0) & (label < num), self.weights, 0)
        return Tally(
            true=self.true,
            kept=self._total(kept_weights, self.classes),
            hits=self._total(np.where(label == self.classes, kept_weights, 0), self.classes),
            labeled=self._total(kept_weights, np.clip(label, 0, num - 1)),
            members=self._total(self.weights * size, self.classes),
            single=self._total(np.where(size == 1, self.weights, 0), self.classes),
        )

    def _label(self, limits: NDArray[np.float32], rule: Rule) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """Return the scored class (S,) that the rule selects, -1 for none, and the size of the prediction set.

        ``limits`` (Ke,) or (Ke, S) are the thresholds. One class at a time, since sums over adjacent classes are slow.
        """
        size, only_member = np.zeros(len(self.classes), np.uint16), np.full(len(self.classes), -1)
        best, winner = np.full(len(self.classes), -np.inf), np.full(len(self.classes), -1)
        background = self.taxonomy.background
        for target, (score, rank, limit) in enumerate(zip(self.scores, self.rank, limits, strict=True)):
            member = score <= limit
            size += member
            if rule == "single" or (rule == "foreground" and target == background):
                only_member[member] = target
            if rule == "foreground" and target != background:
                better = member & (rank > best)
                best[better], winner[better] = rank[better], target
        if rule == "foreground":
            return np.where(winner >= 0, winner, only_member), size
        if rule == "single":
            return np.where(size == 1, only_member, -1), size
        top_limit = limits[self.top] if limits.ndim == 1 else np.take_along_axis(limits, self.top[None], axis=0)[0]
        in_set = self._top_score <= top_limit
        return np.where(in_set & (size == 1) if rule == "agree" else in_set, self.top, -1), size

    def _total(self, weights: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sum weights (S,) by image and target, (n, K)."""
        num = self.taxonomy.num_targets
        sums = np.bincount(self._places + targets, weights, self.num_images * num)
        return sums.reshape(-1, num).astype(np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tally:
    """Weighted pixel counts of n images and K classes under one selection, (n, K) float64 each."""

    true: NDArray[np.float64]
    """Pixels of each class."""
    kept: NDArray[np.float64]
    """Those of them with a label."""
    hits: NDArray[np.float64]
    """Those of them with the right label."""
    labeled: NDArray[np.float64]
    """Pixels labeled as each class."""
    members: NDArray[np.float64]
    """Pixels of each class times the size of their prediction set."""
    single: NDArray[np.float64]
    """Pixels of each class whose prediction set has one member."""

    @classmethod
    def gather(cls, parts: Sequence[tuple[NDArray[np.int64], Tally]], num_images: int, num_targets: int) -> Tally:
        """Combine tallies of several groups of images by image index; the windows of one image are added up."""
        tables = {name: np.zeros((num_images, num_targets)) for name in cls.__dataclass_fields__}
        for indices, part in parts:
            for name, table in tables.items():
                np.add.at(table, indices, getattr(part, name))
        return cls(**tables)

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,): IoU over kept pixels; NaN for a class that is not in the truth."""
        hits = self.hits.sum(axis=0)
        union = self.kept.sum(axis=0) + self.labeled.sum(axis=0) - hits
        return np.where(self.true.sum(axis=0) > 0, hits / np.maximum(union, 1e-9), np.nan)

    def summary(self, *, sets: int = 1) -> dict[str, Any]:
        """Return kept share, accuracy and mIoU of kept pixels with 95 % intervals over images; None if undefined.

        An interval is also None over too few images; see :func:`maskmill.engine.calibration.intervals.share_interval`.

        ``sets`` is 2 if the thresholds come from another set of as many images, whose variation is added.
        """
        sums = {name: getattr(self, name).sum(axis=1) for name in ("true", "kept", "hits")}
        has_pixels = sums["true"] > 0
        iou = self.iou
        summary: dict[str, Any] = {"miou_kept": float(np.nanmean(iou)) if not np.isnan(iou).all() else None}
        for key, top, bottom in (
            ("kept", "kept", "true"),
            ("accuracy_kept", "hits", "kept"),
            ("accuracy_all", "hits", "true"),
        ):
            total = sums[bottom].sum()
            if total == 0:
                summary[key] = summary[f"{key}_interval"] = None
                continue
            share = float(sums[top].sum() / total)
            variance = sets * ratio_variance(sums[top][has_pixels, None], sums[bottom][has_pixels, None])[0]
            summary[key] = share
            summary[f"{key}_interval"] = share_interval(share, float(variance), int(has_pixels.sum()))
        return summary
