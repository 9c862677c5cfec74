"""Measure a student on labeled images.

::

    student = load_run("run")
    images = LabeledImages.open("held-out", run_taxonomy(student.run))
    scores = score_images(student.module, images, student.run, tile=320, overlap=107)
    scores.miou, scores.iou
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..engine.predictors.base import ScoreMap
from ..errors import TrainingError
from .data.parts import LabeledImages
from .methods import Consistency
from .objectives.pseudo_labels import select
from .run import Run, import_torch
from .students.prediction import decode_scores, predict_scores
from .students.reliability import (
    NUM_BINS,
    Reliability,
    SelectedLabels,
    bin_confidence,
    fit_temperature,
    measure_selection,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Agreement of labels with the truth over a set of images; undefined figures are NaN."""

    confusion: NDArray[np.int64]
    """(K, K) int64: number of pixels by true class (row) and label (column), without pixels of the ignore index."""
    classes: tuple[str, ...]
    """Names of the K classes."""
    num_images: int
    """Number of images."""
    reliability: Reliability
    """Calibration of the confidence."""
    selected: SelectedLabels | None = None
    """Quality of the pseudo-labels that the method of the run selects; None for a method without a selection."""

    @property
    def iou(self) -> NDArray[np.float64]:
        """Return (K,) in [0, 1], the intersection over union of each class; NaN for a class without a true pixel."""
        hit, true = np.diagonal(self.confusion), self.confusion.sum(axis=1)
        union = true + self.confusion.sum(axis=0) - hit
        return np.where(true > 0, hit / np.maximum(union, 1), np.nan)

    @property
    def miou(self) -> float:
        """Return the mean of :attr:`iou` over the classes with true pixels."""
        return float(np.nanmean(self.iou)) if self.confusion.any() else float("nan")

    @property
    def accuracy(self) -> float:
        """Return the share of pixels whose label is the true class."""
        return float(np.trace(self.confusion) / self.confusion.sum()) if self.confusion.any() else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with None for undefined figures."""
        figures = {
            "miou": self.miou,
            "accuracy": self.accuracy,
            "confidence": self.reliability.confidence if self.confusion.any() else float("nan"),
            "ece": self.reliability.ece if self.confusion.any() else float("nan"),
            "temperature": self.reliability.temperature,
        }
        document: dict[str, Any] = {
            "num_images": self.num_images,
            **{key: _plain(value) for key, value in figures.items()},
        }
        document["iou"] = {name: _plain(value) for name, value in zip(self.classes, self.iou, strict=True)}
        if self.selected is not None:
            document["pseudo_labels"] = {
                measure: {
                    "all": _plain(getattr(self.selected.total(), measure)[0]),
                    **{name: _plain(value) for name, value in zip(self.classes, values, strict=True)},
                }
                for measure in ("sampling", "accuracy", "recall")
                for values in [getattr(self.selected, measure)]
            }
        return document


def score_images(
    module: nn.Module,
    images: LabeledImages,
    run: Run,
    *,
    device: Any = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    thresholds: NDArray[np.floating] | None = None,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Label images with a student and compare the labels with the truth.

    Parameters
    ----------
    module, device
        The student in eval mode, and its device.
    images, run
        The labeled images, in the classes of the run.
    tile, overlap
        Side and overlap of square tiles, in image pixels; None labels whole images.
    thresholds
        (K,) thresholds of the student's prediction sets, for a method that selects pseudo-labels by them.
    share
        (rank, processes) of a process group: each process labels its part, and all get the scores over all images.
    progress
        Called with the number of finished images and the total.

    Raises :class:`TrainingError` if the logits of the student are not finite.
    """
    rank, world = share
    num_classes, method = len(run.classes), run.recipe.method
    indices = range(rank, len(images.uris), world)
    sums = _Sums(num_classes)
    for count, index in enumerate(indices, start=1):
        sample = images.read(index)
        scores = predict_scores(module, sample.image, run, device=device, tile=tile, overlap=overlap)
        stats = decode_scores(scores, ("label", "confidence"))
        label, confidence = np.asarray(stats.label), np.asarray(stats.confidence)
        if label.max(initial=0) >= num_classes:
            raise TrainingError(
                f"the student's logits of {images.uris[index]} are not finite; train it with a lower lr"
            )
        sums.add(label, confidence, sample.label)
        sums.add_logits(scores, sample.label)
        if isinstance(method, Consistency):
            sums.add_selection(scores, sample.label, method, run.ignore, thresholds)
        if progress is not None:
            progress(count, len(indices))
    sums = sums.over_processes(device) if world > 1 else sums
    return sums.scores(run.classes, len(images.uris), with_selection=isinstance(method, Consistency))


def search_background(module: nn.Module, images: LabeledImages, run: Run, *, device: Any = "cpu") -> float:
    """Find the background score of a classifier (``cam:`` models) with the highest mIoU, set it, and return it.

    Tries 0.00 to 0.49 in steps of 0.01, as the authors of S2C do; equal scores are background. ``module`` is in eval
    mode. Returns NaN, and changes nothing, if the classes have no background.
    """
    decoder: Any = module.decoder
    background, num_classes = decoder.background, len(run.classes)
    if background is None:
        return float("nan")
    candidates = np.arange(50) / 100
    confusion = np.zeros((len(candidates), num_classes, num_classes), np.int64)
    decoder.background_score.fill_(0.0)
    for index in range(len(images.uris)):
        sample = images.read(index)
        predicted = predict_scores(module, sample.image, run, device=device, tile=None, overlap=0)
        upsampled = _upsample(predicted.scores, sample.label.shape)
        upsampled[background] = -1
        best, label = upsampled.max(axis=0), upsampled.argmax(axis=0)
        has_label = sample.label < num_classes
        best, label, truth = best[has_label], label[has_label], sample.label[has_label].astype(np.int64)
        for number, score in enumerate(candidates):
            pairs = truth * num_classes + np.where(best <= score, background, label)
            confusion[number] += np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    hit, true = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
    union = np.maximum(true + confusion.sum(axis=1) - hit, 1)
    means = np.nanmean(np.where(true > 0, hit / union, np.nan), axis=1)
    score = float(candidates[int(np.argmax(means))])
    decoder.background_score.fill_(score)
    return score


def _upsample(scores: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Upsample scores (K, h, w) to (K, H, W), bilinear."""
    torch = import_torch()
    maps = torch.from_numpy(np.array(scores, np.float32))[None]
    return torch.nn.functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)[0].numpy()


class _Sums:
    """Sums over the images of a process."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.arrays: dict[str, NDArray[Any]] = {
            "confusion": np.zeros((num_classes, num_classes), np.int64),
            **{name: np.zeros(NUM_BINS, np.int64) for name in ("counts", "right_pixels")},
            "confidence_sums": np.zeros(NUM_BINS),
            **{name: np.zeros(num_classes, np.int64) for name in _SELECTION},
        }
        self.logits: list[NDArray[np.float32]] = []
        self.truth: list[NDArray[np.int64]] = []

    def add(self, label: NDArray[Any], confidence: NDArray[Any], truth: NDArray[Any]) -> None:
        has_label = truth < self.num_classes
        pairs = truth[has_label].astype(np.int64) * self.num_classes + label[has_label]
        counts = np.bincount(pairs, minlength=self.num_classes**2)
        self.arrays["confusion"] += counts.reshape(self.num_classes, -1)
        bins = bin_confidence(confidence[has_label].astype(np.float64), (label == truth)[has_label])
        for name, values in zip(("counts", "confidence_sums", "right_pixels"), bins, strict=True):
            self.arrays[name] += values

    def add_logits(self, scores: ScoreMap, truth: NDArray[Any]) -> None:
        """Keep the logits of some pixels of the score map, each with the true class of the nearest image pixel."""
        logits = np.moveaxis(scores.scores, 0, -1) if scores.layout == "CHW" else scores.scores
        (top, left, bottom, right), (height, width) = scores.region, logits.shape[:2]
        rows = np.arange(int(np.ceil(top)), min(int(bottom), height))
        columns = np.arange(int(np.ceil(left)), min(int(right), width))
        step = max(1, round((len(rows) * len(columns) / _TEMPERATURE_PIXELS) ** 0.5))
        rows, columns = rows[step // 2 :: step], columns[step // 2 :: step]
        y = ((rows + 0.5 - top) / (bottom - top) * truth.shape[0]).astype(np.int64)
        x = ((columns + 0.5 - left) / (right - left) * truth.shape[1]).astype(np.int64)
        sampled = truth[y[:, None], x]
        has_label = sampled < self.num_classes
        self.logits.append(np.asarray(logits[rows[:, None], columns][has_label], np.float32))
        self.truth.append(sampled[has_label].astype(np.int64))

    def add_selection(
        self,
        scores: ScoreMap,
        truth: NDArray[Any],
        method: Consistency,
        ignore: int,
        thresholds: NDArray[np.floating] | None,
    ) -> None:
        """Select pseudo-labels on the score map enlarged to the image, as in training."""
        torch = import_torch()
        logits = scores.scores if scores.layout == "CHW" else np.moveaxis(scores.scores, -1, 0)
        real = torch.ones((1, *truth.shape), dtype=torch.bool)
        limits = None if thresholds is None else torch.from_numpy(np.asarray(thresholds, np.float64))
        maps = torch.from_numpy(np.array(logits, np.float32))[None]
        pseudo_labels = select(maps, real, method, ignore=ignore, thresholds=limits)
        quality = measure_selection(
            pseudo_labels.label[0].numpy(), pseudo_labels.reliable[0].numpy(), truth, self.num_classes
        )
        for name in _SELECTION:
            self.arrays[name] += getattr(quality, name)

    def over_processes(self, device: Any) -> _Sums:
        """Return the sums over all processes; the logits of all processes are concatenated."""
        torch, total = import_torch(), _Sums(self.num_classes)
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        packed = torch.tensor(np.concatenate([values.ravel() for values in self.arrays.values()]), device=device)
        torch.distributed.all_reduce(packed)
        values, start = packed.cpu().numpy(), 0
        for name, array in self.arrays.items():
            total.arrays[name] = values[start : start + array.size].reshape(array.shape).astype(array.dtype)
            start += array.size
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (self.logits, self.truth))
        total.logits = [logits for part, _ in parts for logits in part]
        total.truth = [truth for _, part in parts for truth in part]
        return total

    def scores(self, classes: tuple[str, ...], num_images: int, *, with_selection: bool) -> Scores:
        arrays = self.arrays
        logits = np.concatenate(self.logits) if self.logits else np.zeros((0, self.num_classes), np.float32)
        truth = np.concatenate(self.truth) if self.truth else np.zeros(0, np.int64)
        return Scores(
            confusion=arrays["confusion"],
            classes=classes,
            num_images=num_images,
            reliability=Reliability(
                counts=arrays["counts"], confidence_sums=arrays["confidence_sums"], right=arrays["right_pixels"],
                temperature=fit_temperature(logits, truth),
            ),
            selected=SelectedLabels(**{name: arrays[name] for name in _SELECTION}) if with_selection else None,
        )  # fmt: skip


_SELECTION = ("predicted", "selected", "right", "selected_right")
_TEMPERATURE_PIXELS = 2000
"""Pixels per image, at most, that the temperature is fitted on."""


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
