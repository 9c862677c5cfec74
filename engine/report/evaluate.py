"""Measure labels against the truth: IoU, accuracy, and kept share.

``miou_kept`` is over kept pixels: the mean over the classes present in the truth of intersection over union, a class
with no kept pixel counting 0. ``miou_all`` counts ignored pixels as wrong: they enlarge the union of their true class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...errors import UsageError
from ..calibration.calibration import Calibration
from ..calibration.intervals import FEWEST_IMAGES, image_weights, ratio_variance, share_interval
from ..calibration.scores.observe import decode_labeled, true_scores
from ..calibration.scores.pixel_samples import Tally
from ..inputs.labeled_source import pair_images, pair_uris
from ..inputs.labels import LabelSource
from ..inputs.ordered_map import ordered_map
from ..inputs.sources import Item, Source
from ..inputs.summary import SourceSummary
from ..labeling.selection import Selection, select
from ..model.taxonomy import Taxonomy
from ..predictors.base import Predictor, ScoreMap
from ..predictors.resampling import resample_nearest
from ..reading.geotiff import files_of, split_window
from ..store.label_store import LabelStore


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Label quality over a set of images; shares and IoUs in [0, 1], NaN where undefined."""

    confusion: NDArray[np.int64]
    """(K, K + 1): pixels of true class (row) and label (column); the last column counts ignored pixels."""
    targets: tuple[str, ...]
    """Names of the K classes."""
    num_images: int
    """Number of images measured."""
    tally: Tally | None = None
    """Counts per image, for intervals over images; None if they are not known."""
    coverage: dict[str, Any] | None = None
    """Coverage of a calibration's prediction sets: overall and per class, with intervals; None without one."""
    source: SourceSummary | None = None
    """Files that were used and skipped, if labels were read."""
    uris: tuple[str, ...] = ()
    """(num_images,): inputs of the images of :attr:`tally`, in its order; empty if they are not known."""
    notes: tuple[str, ...] = ()
    """Limits of the figures in plain words."""

    @property
    def iou_kept(self) -> NDArray[np.float64]:
        """(K,): IoU over kept pixels; 0 for a class without a kept pixel, NaN for a class that is not in the truth."""
        kept = self.confusion[:, :-1]
        return self._iou(kept, kept.sum(axis=1))

    @property
    def iou_all(self) -> NDArray[np.float64]:
        """(K,): IoU over all pixels, ignored ones counting as wrong."""
        return self._iou(self.confusion[:, :-1], self.confusion.sum(axis=1))

    def _iou(self, kept: NDArray[np.int64], true: NDArray[np.int64]) -> NDArray[np.float64]:
        hit = np.diagonal(kept)
        union = true + kept.sum(axis=0) - hit
        present = self.confusion.sum(axis=1) > 0
        return np.where(present, hit / np.maximum(union, 1), np.nan)

    @property
    def miou_kept(self) -> float:
        """Mean of :attr:`iou_kept` over the classes in the truth."""
        return _mean(self.iou_kept)

    @property
    def miou_all(self) -> float:
        """Mean of :attr:`iou_all` over the classes in the truth."""
        return _mean(self.iou_all)

    @property
    def accuracy_kept(self) -> float:
        """Share of kept pixels whose label is the truth."""
        kept = int(self.confusion[:, :-1].sum())
        return int(np.trace(self.confusion[:, :-1])) / kept if kept else float("nan")

    @property
    def accuracy_all(self) -> float:
        """Share of all pixels with a true class whose label is the truth; ignored pixels count as wrong."""
        total = int(self.confusion.sum())
        return int(np.trace(self.confusion[:, :-1])) / total if total else float("nan")

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """(K,): share of the labels of each class that are right; NaN for a class without a label."""
        labels = self.confusion[:, :-1].sum(axis=0)
        return np.where(labels > 0, np.diagonal(self.confusion) / np.maximum(labels, 1), np.nan)

    @property
    def class_recall(self) -> NDArray[np.float64]:
        """(K,): share of the true pixels of each class that carry the right label; NaN for a class without any."""
        true = self.confusion.sum(axis=1)
        return np.where(true > 0, np.diagonal(self.confusion) / np.maximum(true, 1), np.nan)

    @property
    def kept(self) -> float:
        """Share of pixels with a true class that carry a label."""
        total = int(self.confusion.sum())
        return int(self.confusion[:, :-1].sum()) / total if total else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Return plain data; None for undefined figures."""
        iou_kept, iou_all, true = self.iou_kept, self.iou_all, self.confusion.sum(axis=1)
        accuracy, recall = self.class_accuracy, self.class_recall
        return {
            "num_images": self.num_images,
            "source": None if self.source is None else self.source.to_json(),
            "notes": list(self.notes),
            "num_pixels": int(true.sum()),
            "miou_kept": _plain(self.miou_kept),
            "accuracy_kept": _plain(self.accuracy_kept),
            "kept": _plain(self.kept),
            "miou_all": _plain(self.miou_all),
            "accuracy_all": _plain(self.accuracy_all),
            **({} if self.tally is None else _intervals(_by_file(self.tally, self.uris))),
            **({} if self.coverage is None else {"coverage": self.coverage}),
            "classes": [
                {
                    "class": name,
                    "pixels": int(true[index]),
                    "kept": _plain(self.confusion[index, :-1].sum() / true[index]) if true[index] else None,
                    "accuracy_kept": _plain(accuracy[index]),
                    "recall": _plain(recall[index]),
                    "iou_kept": _plain(iou_kept[index]),
                    "iou_all": _plain(iou_all[index]),
                }
                for index, name in enumerate(self.targets)
            ],
        }


def confusion(label: NDArray[Any], truth: NDArray[Any], taxonomy: Taxonomy) -> NDArray[np.int64]:
    """Count the pixels (K, K + 1) of one image; ``label``, ``truth`` (H, W) hold target indices or the ignore index."""
    return kernels.confusion_counts(label, truth, num_classes=taxonomy.num_targets, ignore=taxonomy.ignore_index)


def quality(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]], taxonomy: Taxonomy) -> Quality:
    """Measure the quality of (label, truth) pairs of target maps."""
    total = np.zeros((taxonomy.num_targets, taxonomy.num_targets + 1), np.int64)
    rows: list[NDArray[np.float64]] = []
    for label, truth in pairs:
        counts = confusion(label, truth, taxonomy)
        total += counts
        rows.append(np.array(_class_counts(counts), np.float64))
    return Quality(confusion=total, targets=taxonomy.targets, num_images=len(rows), tally=_tally(rows, taxonomy))


def _class_counts(confusion: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Return true, kept, right and labeled pixels (K,) each from a confusion matrix (K, K + 1)."""
    kept = confusion[:, :-1]
    return confusion.sum(axis=1), kept.sum(axis=1), np.diagonal(kept), kept.sum(axis=0)


def _tally(rows: Sequence[NDArray[np.float64]], taxonomy: Taxonomy) -> Tally:
    table = np.array(rows).reshape(len(rows), 4, taxonomy.num_targets).swapaxes(0, 1)
    zeros = np.zeros_like(table[0])
    return Tally(true=table[0], kept=table[1], hits=table[2], labeled=table[3], members=zeros, single=zeros)


def _by_file(tally: Tally, uris: Sequence[str]) -> Tally:
    """Add up the windows of each file, since only files are independent of each other."""
    if not uris:
        return tally
    file_of = files_of(uris)
    return Tally.gather([(file_of, tally)], int(file_of.max()) + 1, tally.true.shape[1])


def _intervals(tally: Tally) -> dict[str, Any]:
    """Return 95 % intervals over images of kept share, accuracies and mIoU; None over too few images."""
    intervals = {key: value for key, value in tally.summary().items() if key.endswith("_interval")}
    if (tally.true > 0).any(axis=1).sum() < FEWEST_IMAGES:
        return {**intervals, "miou_kept_interval": None}
    weights = image_weights(len(tally.true))
    true, kept_pixels, hits, labeled_pixels = (
        weights @ getattr(tally, name) for name in ("true", "kept", "hits", "labeled")
    )
    iou = np.where(true > 0, hits / np.maximum(kept_pixels + labeled_pixels - hits, 1), np.nan)
    means = np.nanmean(iou[(true > 0).any(axis=1)], axis=1)
    bounds = np.percentile(means, [2.5, 97.5]) if len(means) else np.array([0.0, 1.0])
    return {**intervals, "miou_kept_interval": bounds.tolist()}


def evaluate_store(
    store: LabelStore,
    labels: LabelSource,
    taxonomy: Taxonomy,
    *,
    ids: frozenset[str] | None = None,
    reviewed: bool = True,
    workers: int = 1,
) -> Quality:
    """Compare a store's labels with true labels; ``reviewed=False`` compares the model's labels, without reviews.

    Images are matched to label maps by name. Without ``ids`` every labeled image that has a label map counts; with
    ``ids`` a listed image without one is an error. Raises :class:`UsageError` if nothing matches or sizes differ.
    """
    image_of = {row.uri: row.id for row in store.current_inputs() if row.id is not None}
    if not image_of:
        raise UsageError(f"{store.path} holds no labeled image yet; label images into it first")
    labeled_source = pair_uris(sorted(image_of), labels, taxonomy, ids=ids)

    def load(uri: str) -> tuple[NDArray[Any], NDArray[Any]]:
        truth = labeled_source.read(uri)
        (row,) = store.take([image_of[uri]])
        label, _ = store.maps(row, reviewed=reviewed)
        if truth.shape != label.shape:
            raise UsageError(
                f"{labeled_source.name_of(uri)} is {truth.shape[1]}x{truth.shape[0]} px and the labels of {uri} are "
                f"{label.shape[1]}x{label.shape[0]} px; {labeled_source.size_hint(uri)}"
            )
        return label, truth

    measured = quality(ordered_map(load, labeled_source.uris, workers), taxonomy)
    return replace(
        measured, source=labeled_source.summary, uris=tuple(labeled_source.uris), notes=_notes(labeled_source.uris)
    )


def evaluate_predictor(
    predictor: Predictor,
    source: Source,
    labels: LabelSource,
    taxonomy: Taxonomy,
    selection: Selection,
    *,
    ids: frozenset[str] | None = None,
    workers: int = 1,
) -> Quality:
    """Label images with a predictor and compare the labels with a folder of label maps; nothing is stored.

    With a calibration in ``selection`` the coverage of its prediction sets is measured as well. Pixels without data are
    ignored, and images without any are skipped and counted. Images are matched to label maps by name; with ``ids``
    a listed image without one is an error. Raises :class:`UsageError` if nothing matches or sizes differ,
    :class:`ImageError` if an image cannot be decoded, :class:`CalibrationMismatch` if the
    calibration was made under other conditions.
    """
    selection.check(predictor, taxonomy, source.windows)
    labeled_source = pair_images(source, labels, taxonomy, ids=ids)

    def load(item: Item) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]] | None:
        photo = source.read(item)
        image = decode_labeled(predictor, labeled_source, item, photo)
        if image is None:
            return None
        (score_map,) = predictor.run([predictor.prepare(image, item.uri)])
        label = select(score_map, taxonomy, selection).label
        truth = labeled_source.read(item.uri, photo)
        if truth.shape != label.shape:
            raise UsageError(
                f"{labeled_source.name_of(item.uri)} is {truth.shape[1]}x{truth.shape[0]} px and {item.uri} is "
                f"{label.shape[1]}x{label.shape[0]} px; {labeled_source.size_hint(item.uri, photo)}"
            )
        truth = labeled_source.on_data(truth, score_map.with_data)
        return label, truth, _covered(score_map, truth, taxonomy, selection)

    sets: list[NDArray[np.int64]] = []
    used_uris: list[str] = []

    def pairs() -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        results = ordered_map(load, labeled_source.items, workers)
        for item, result in zip(labeled_source.items, results, strict=True):
            if result is None:
                labeled_source.summary.without_data += 1
                continue
            label, truth, covered = result
            used_uris.append(item.uri)
            sets.append(covered)
            yield label, truth

    measured = quality(pairs(), taxonomy)
    if not used_uris:
        raise UsageError("no pixel of the labeled images has data; measure other images")
    uris = tuple(used_uris)
    result = replace(measured, source=labeled_source.summary, uris=uris, notes=_notes(uris))
    if selection.calibration is None:
        return result
    file_of = files_of(uris)
    counts = np.zeros((int(file_of.max()) + 1, 2, taxonomy.num_targets), np.int64)
    np.add.at(counts, file_of, np.array(sets))
    return replace(result, coverage=_coverage(counts, selection.calibration))


def _notes(uris: Sequence[str]) -> tuple[str, ...]:
    """Describe in plain words how windows of files count in the intervals; empty without windows."""
    files = [part[0] for uri in uris if (part := split_window(uri)) is not None]
    if not files:
        return ()
    num_files = len(set(files))
    amount = f"{len(files)} windows of {num_files} file{'s' * (num_files > 1)}"
    return (f"{amount}: intervals are over files, since windows of one file resemble each other",)


def _covered(score_map: ScoreMap, truth: NDArray[Any], taxonomy: Taxonomy, selection: Selection) -> NDArray[np.int64]:
    """Count the pixels (2, K) of each class in one image: those whose prediction set holds the class, and all."""
    thresholds, num = selection.thresholds, taxonomy.num_targets
    if selection.calibration is None or thresholds is None:
        return np.zeros((2, num), np.int64)
    if thresholds.ndim == 2:
        truth = resample_nearest(truth, (thresholds.shape[0], thresholds.shape[1]))
    scores, valid = true_scores(score_map, truth, taxonomy), truth != taxonomy.ignore_index
    limits = thresholds[valid] if thresholds.ndim == 2 else thresholds[truth[valid]]
    inside = scores[valid] <= limits
    return np.array([np.bincount(truth[valid][mask], minlength=num) for mask in (inside, slice(None))])


def _coverage(sets: NDArray[np.int64], calibration: Calibration) -> dict[str, Any]:
    """Report coverage from pixel counts (n, 2, K) of images, or of all windows of a file, beside its target."""
    covered, total = (
        np.column_stack([table, table.sum(axis=1)]).astype(np.float64) for table in (sets[:, 0], sets[:, 1])
    )
    variance, has_pixels = ratio_variance(covered, total), total > 0
    rows: list[dict[str, Any]] = []
    for index, name in enumerate((*calibration.targets, "all")):
        if not has_pixels[:, index].any():
            continue
        share = float(covered[:, index].sum() / total[:, index].sum())
        interval = share_interval(share, float(variance[index]), int(has_pixels[:, index].sum()), rare_misses=True)
        rows.append({"class": name, "coverage": share, "interval": interval, "images": int(has_pixels[:, index].sum())})
    images = has_pixels[:, -1]
    return {
        "target": 1 - float(calibration.level),
        "unit": calibration.unit,
        "image_mean": float((covered[images, -1] / total[images, -1]).mean()) if images.any() else None,
        "rows": rows,
    }


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
