"""Choose the lowest score of an object by class, so that few of the objects that are kept are wrong.

An object is right if it overlaps an object of its class in the truth, not matched by a better one, with an IoU of at
least one half. The loss of an image for a class is the share of its kept objects of that class that are wrong, 0 if
none is kept. It does not fall monotonically with the threshold, so each image's loss is replaced by its running maximum
from strict to loose thresholds, on which conformal risk control holds (Angelopoulos et al. 2024): on average over new
images in which the model finds the class, the share is at most alpha.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CalibrationError, UsageError
from ..formats.base import Instance
from ..formats.coco import CocoReader
from ..formats.open import open_reader
from ..formats.rle import runs_of_counts, string_to_counts
from ..model.publishing import write_atomically
from ..model.schema import read_json_object, read_value
from ..store.instances import decode_instances
from ..store.label_store import LabelStore

IOU = 0.5
"""IoU from which an object is right."""
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ObjectThresholds:
    """Lowest score of an object, by class."""

    alpha: str
    """Largest mean share of wrong objects, as given."""
    classes: tuple[str, ...]
    """Names of the target classes."""
    thresholds: Mapping[str, float | None]
    """Lowest score by class name; None keeps no object: the images are too few, or too many objects are wrong."""
    measured: Mapping[str, Mapping[str, float]]
    """By class name: ``images`` with the class, ``objects``, those of them that are ``right``, and those ``kept`` and
    ``wrong`` at the threshold."""

    def keep(self, objects: Sequence[Instance]) -> tuple[Instance, ...]:
        """Return the objects whose score reaches the threshold of their class."""
        lowest = [self.thresholds.get(name) for name in self.classes]
        return tuple(
            instance
            for instance in objects
            if (limit := lowest[instance.target]) is not None and instance.score >= limit
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {"format": _FORMAT, "iou": IOU, **vars(self), "classes": list(self.classes)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record."""
        write_atomically(Path(path), (json.dumps(self.to_json(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ObjectThresholds:
        """Read a record; raises :class:`CalibrationError` if it is none."""
        try:
            raw = read_json_object(Path(path))
            if raw.get("format") != _FORMAT:
                raise UsageError(f"{path} has format {raw.get('format')!r:.80}, expected {_FORMAT}")
            return read_value(cls, {name: value for name, value in raw.items() if name not in ("format", "iou")})
        except (OSError, UsageError) as error:
            raise CalibrationError(
                f"{path} holds no thresholds of objects ({error}); make them with `maskmill calibrate-objects`"
            ) from error


def calibrate_objects(store: LabelStore, labels: str | os.PathLike[str], *, alpha: str) -> ObjectThresholds:
    """Choose thresholds for the objects of a store from a COCO file with the true objects of some of its images.

    ``alpha`` is the largest mean share of wrong objects, in (0, 1). Label the images with a low ``--min-score``: what
    the store does not hold cannot be kept. Images are paired by name. Raises :class:`UsageError` for a store without
    objects, a file of another format, or images that do not pair.
    """
    try:
        level = Fraction(alpha)
    except (ValueError, ZeroDivisionError):
        level = Fraction(0)
    if not 0 < level < 1:
        raise UsageError(f"alpha must be a number between 0 and 1, got {alpha!r:.80}")
    if "instances" not in store.run:
        raise UsageError(f"{store.path} holds no objects; label the images with --instances")
    reader = open_reader(labels)
    if not isinstance(reader, CocoReader):
        raise UsageError(f"{labels} is of the format {reader.format}; the true objects are read from COCO files")
    names = tuple(store.classes["targets"])
    found: list[list[tuple[int, float, bool]]] = []
    for name, id in _pairs(store, reader):
        (row,) = store.take([id], extras=True)
        truth = [(names.index(label), runs) for label, runs in reader.read_objects(name) if label in names]
        objects = () if row.instances is None else decode_instances(row.instances)
        found.append(match(objects, truth, row.height * row.width))
    thresholds: dict[str, float | None] = {}
    measured: dict[str, dict[str, float]] = {}
    for target, name in enumerate(names):
        images = [[(score, right) for index, score, right in image if index == target] for image in found]
        images = [image for image in images if image]
        if images:
            limit = lowest_score(images, float(level))
            thresholds[name] = limit
            pairs = [pair for image in images for pair in image]
            kept = [right for score, right in pairs if limit is not None and score >= limit]
            measured[name] = {
                "images": len(images),
                "objects": len(pairs),
                "right": sum(right for _, right in pairs),
                "kept": len(kept),
                "wrong": len(kept) - sum(kept),
            }
        elif target != store.classes["background"]:
            thresholds[name] = None
    return ObjectThresholds(alpha=alpha, classes=names, thresholds=thresholds, measured=measured)


def match(
    objects: Sequence[Instance], truth: Sequence[tuple[int, NDArray[np.int64]]], size: int
) -> list[tuple[int, float, bool]]:
    """Tell right objects from wrong ones, best first: (target, score, right) of each.

    ``truth`` are target and runs of the true objects, ``size`` the pixels of the image.
    """
    masks = []
    for _, runs in truth:
        mask = np.zeros(size, np.bool_)
        for start, stop in runs.tolist():
            mask[start:stop] = True
        masks.append(mask)
    free = [True] * len(truth)
    results = []
    for instance in sorted(objects, key=lambda instance: -instance.score):
        runs = runs_of_counts(string_to_counts(instance.counts), size)
        best, place = 0.0, -1
        for index, (target, _) in enumerate(truth):
            if free[index] and target == instance.target:
                both = sum(int(masks[index][start:stop].sum()) for start, stop in runs.tolist())
                iou = both / (instance.area + int(masks[index].sum()) - both)
                if iou > best:
                    best, place = iou, index
        right = best >= IOU
        if right:
            free[place] = False
        results.append((instance.target, instance.score, right))
    return results


def lowest_score(images: Sequence[Sequence[tuple[float, bool]]], alpha: float) -> float | None:
    """Choose the lowest score that holds the mean share of wrong objects at ``alpha``; None if none does.

    ``images`` are the (score, right) of each image's objects of one class.
    """
    levels = np.unique([score for image in images for score, _ in image])[::-1]
    losses = np.zeros((len(images), len(levels)))
    for row, image in enumerate(images):
        scores, right = np.array([score for score, _ in image]), np.array([right for _, right in image])
        kept = scores[None] >= levels[:, None]
        losses[row] = (kept & ~right).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    totals = np.maximum.accumulate(losses, axis=1).sum(axis=0)
    controlled = totals + 1 <= alpha * (len(images) + 1) + 1e-9
    return float(levels[controlled.sum() - 1]) if controlled.any() else None


def _pairs(store: LabelStore, reader: CocoReader) -> list[tuple[str, str]]:
    """Pair the file's images with labels of the store: by the whole name, else by its last part."""
    by_name: dict[str, set[str]] = {}
    for row in store.inputs():
        if row.id is not None:
            for name in {row.uri, PurePosixPath(row.uri).name}:
                by_name.setdefault(name, set()).add(row.id)
    pairs = []
    for name in reader.names():
        ids = by_name.get(name) or by_name.get(PurePosixPath(name).name, set())
        if len(ids) > 1:
            raise UsageError(
                f"{name} of {reader.path} may be any of {len(ids)} images of {store.path}; name them apart"
            )
        pairs += [(name, id) for id in ids]
    if not pairs:
        raise UsageError(
            f"{store.path} holds none of the {len(reader)} images of {reader.path}; are the names the same?"
        )
    return pairs
