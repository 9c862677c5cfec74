"""Measure labels against the truth: IoU, accuracy, and how much was kept.

``miou_kept`` is over kept pixels: the mean over the classes present in the truth of intersection over union, a class
with no kept pixel counting 0. ``miou_all`` counts ignored pixels as wrong: they enlarge the union of their true class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...errors import UsageError
from ..inputs.labeled_source import pair_images, pair_uris
from ..inputs.labels import LabelSource
from ..inputs.ordered_map import ordered_map
from ..inputs.sources import Item, Source
from ..inputs.summary import SourceSummary
from ..labeling.selection import Selection, select
from ..model.taxonomy import Taxonomy
from ..predictors.base import Predictor
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
    source: SourceSummary | None = None
    """Files that were used and passed over, if labels were read."""

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
    def kept(self) -> float:
        """Share of pixels with a true class that carry a label."""
        total = int(self.confusion.sum())
        return int(self.confusion[:, :-1].sum()) / total if total else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Return plain data; None for undefined figures."""
        iou_kept, iou_all, true = self.iou_kept, self.iou_all, self.confusion.sum(axis=1)
        return {
            "num_images": self.num_images,
            "source": None if self.source is None else self.source.to_json(),
            "num_pixels": int(true.sum()),
            "miou_kept": _plain(self.miou_kept),
            "accuracy_kept": _plain(self.accuracy_kept),
            "kept": _plain(self.kept),
            "miou_all": _plain(self.miou_all),
            "classes": [
                {
                    "class": name,
                    "pixels": int(true[index]),
                    "kept": _plain(self.confusion[index, :-1].sum() / true[index]) if true[index] else None,
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
    total, num_images = np.zeros((taxonomy.num_targets, taxonomy.num_targets + 1), np.int64), 0
    for label, truth in pairs:
        total += confusion(label, truth, taxonomy)
        num_images += 1
    return Quality(confusion=total, targets=taxonomy.targets, num_images=num_images)


def evaluate_store(
    store: LabelStore,
    labels: LabelSource,
    taxonomy: Taxonomy,
    *,
    ids: frozenset[str] | None = None,
    workers: int = 1,
) -> Quality:
    """Compare a store's labels with a folder of label maps.

    Images are matched to label maps by name. Without ``ids`` every labeled image that has a label map counts; with
    ``ids`` a listed image without one is an error. Raises :class:`UsageError` if nothing matches or sizes differ.
    """
    image_of = {row.uri: row.id for row in store.inputs() if row.id is not None}
    labeled = pair_uris(sorted(image_of), labels, taxonomy, ids=ids)

    def load(uri: str) -> tuple[NDArray[Any], NDArray[Any]]:
        truth = labeled.read(uri)
        label, _ = store.read_id(image_of[uri])
        if truth.shape != label.shape:
            raise UsageError(
                f"{labeled.name_of(uri)} is {truth.shape[1]}x{truth.shape[0]} px and the labels of {uri} are "
                f"{label.shape[1]}x{label.shape[0]} px; {labeled.size_hint(uri)}"
            )
        return label, truth

    return replace(quality(ordered_map(load, labeled.uris, workers), taxonomy), source=labeled.summary)


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

    Images are matched to label maps by name; with ``ids`` a listed image without one is an error. Raises
    :class:`UsageError` if nothing matches or sizes differ, :class:`ImageError` if an image cannot be decoded.
    """
    labeled = pair_images(source, labels, taxonomy, ids=ids)

    def load(item: Item) -> tuple[NDArray[Any], NDArray[Any]]:
        photo = source.read(item)
        image = predictor.backend.decode(photo)
        (score_map,) = predictor.run([predictor.prepare(image, item.uri)])
        label = select(score_map, taxonomy, selection).label
        truth = labeled.read(item.uri, photo)
        if truth.shape != label.shape:
            raise UsageError(
                f"{labeled.name_of(item.uri)} is {truth.shape[1]}x{truth.shape[0]} px and {item.uri} is "
                f"{label.shape[1]}x{label.shape[0]} px; {labeled.size_hint(item.uri, photo)}"
            )
        return label, truth

    return replace(quality(ordered_map(load, labeled.items, workers), taxonomy), source=labeled.summary)


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
