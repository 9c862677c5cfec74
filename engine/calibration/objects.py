"""Choose the lowest score and mask quality of an object by class, so that few of the objects that are kept are wrong.

An object is right if its IoU with a true object of its class is at least 0.5, or another limit, and no better object
matches that true object. Objects are ranked by their score, by the quality of their mask (the IoU that the model
predicts for it, or its stability), or by the product of both.

The loss of an image for a class is the share of its kept objects of that class that are wrong, 0 if none is kept. It
does not fall monotonically with the threshold, so each image's loss is replaced by its running maximum from strict to
loose thresholds, on which conformal risk control holds (Angelopoulos et al. 2024): on average over new images in which
the model finds the class, the share is at most alpha.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...checks import check_choice, check_count, check_number
from ...errors import CalibrationError, UsageError
from ..formats.base import Instance
from ..formats.coco import CocoReader, TrueObject
from ..formats.open import open_reader
from ..formats.rle import runs_of_counts, string_to_counts
from ..model.publishing import write_atomically
from ..model.schema import read_json_object, read_value
from ..model.storage import location_of
from ..store.instances import decode_instances
from ..store.label_store import LabelStore
from .thresholds import parse_alpha

Ranking = Literal["score", "quality", "both"]
"""Value of an object that is compared with a threshold: its score, the quality of its mask, or their product."""
_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class ObjectThresholds:
    """Lowest score of an object, by class."""

    alpha: str
    """Largest mean share of wrong objects per image, as the caller wrote it."""
    iou: float
    """Smallest IoU with a true object of its class for an object to be right."""
    by: Ranking
    """Value that is compared with the thresholds."""
    classes: tuple[str, ...]
    """Names of the target classes."""
    thresholds: Mapping[str, float | None]
    """Lowest value by class name; None keeps no object: the images are too few, or too many objects are wrong."""
    measured: Mapping[str, Mapping[str, float]]
    """By class name: ``images`` with the class, ``objects``, those of them that are ``right``, those ``kept`` and
    ``wrong`` at the threshold, and what :func:`held_out` measures."""

    def keep(self, objects: Sequence[Instance]) -> tuple[Instance, ...]:
        """Return the objects whose value reaches the threshold of their class."""
        lowest = [self.thresholds.get(name) for name in self.classes]
        return tuple(
            instance
            for instance in objects
            if (limit := lowest[instance.target]) is not None and value_of(instance, self.by) >= limit
        )

    @property
    def keeps_any(self) -> bool:
        """True if objects of at least one class can be kept."""
        return any(limit is not None for limit in self.thresholds.values())

    def reason(self, name: str) -> str:
        """Explain why no object of a class with measured objects is kept."""
        num_images = int(self.measured[name]["images"])
        least = 1 / (num_images + 1)
        if parse_alpha(self.alpha) < least - 1e-9:
            return f"as alpha must be at least {math.ceil(least * 1e4) / 1e4:g} with {num_images} images"
        value = "score x quality" if self.by == "both" else self.by
        return f"no {value} holds the share"

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {"format": _FORMAT, **vars(self), "classes": list(self.classes)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record."""
        write_atomically(Path(path), (json.dumps(self.to_json(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ObjectThresholds:
        """Read a record; raises :class:`CalibrationError` if the file holds no thresholds of objects."""
        try:
            raw = read_json_object(location_of(path))
            if raw.get("format") != _FORMAT:
                raise UsageError(f"{path} has format {raw.get('format')!r:.80}, expected {_FORMAT}")
            return read_value(cls, {name: value for name, value in raw.items() if name != "format"})
        except (OSError, UsageError) as error:
            raise CalibrationError(
                f"{path} holds no thresholds of objects ({error}); make them with `maskmill calibrate-objects`"
            ) from error


def calibrate_objects(
    store: LabelStore,
    labels: str | os.PathLike[str],
    *,
    alpha: str,
    iou: float = 0.5,
    by: Ranking = "both",
    splits: int = 20,
) -> ObjectThresholds:
    """Choose thresholds for the objects of a store from a COCO file with the true objects of some of its images.

    Parameters
    ----------
    store
        A store with objects. Label with a low ``--min-score``, since objects that it does not hold cannot be kept.
    labels
        The COCO file; images are paired by name.
    alpha
        Largest mean share of wrong objects, in (0, 1).
    iou
        Smallest IoU with a true object of its class for an object to be right, in (0, 1].
    by
        Value of an object that is compared with the threshold: ``score``, ``quality`` of the mask, or ``both``, their
        product.
    splits
        Number of random halves of the images on which thresholds from the other half are measured.

    Raises :class:`UsageError` for a store without objects, a file of another format, or images that do not pair.
    """
    level = float(parse_alpha(alpha))
    check_number("iou", iou, above=0, most=1)
    check_choice("by", by, Ranking)
    check_count("splits", splits, least=1)
    if "instances" not in store.run:
        raise UsageError(f"{store.path} holds no objects; label the images with --instances")
    names = tuple(store.classes["targets"])
    images = matched_objects(store, labels, names, iou)
    thresholds: dict[str, float | None] = {}
    figures: dict[str, dict[str, float]] = {}
    for target, name in enumerate(names):
        groups = [
            [(value_of(m.instance, by), m.iou >= iou) for m in image if m.instance.target == target] for image in images
        ]
        groups = [group for group in groups if group]
        if groups:
            thresholds[name] = limit = lowest_value(groups, level)
            pairs = [pair for group in groups for pair in group]
            outcomes = [right for value, right in pairs if limit is not None and value >= limit]
            figures[name] = {
                "images": len(groups),
                "objects": len(pairs),
                "right": sum(right for _, right in pairs),
                "kept": len(outcomes),
                "wrong": len(outcomes) - sum(outcomes),
                **held_out(groups, level, splits),
            }
        elif target != store.classes["background"]:
            thresholds[name] = None
    return ObjectThresholds(alpha=alpha, iou=iou, by=by, classes=names, thresholds=thresholds, measured=figures)


def matched_objects(
    store: LabelStore, labels: str | os.PathLike[str], names: Sequence[str], iou: float
) -> list[list[Match]]:
    """Match the objects of every image of a store that a COCO file names; raises as :func:`calibrate_objects`."""
    reader = open_reader(labels)
    if not isinstance(reader, CocoReader):
        raise UsageError(f"{labels} is of the format {reader.format}; the true objects are read from COCO files")
    images = []
    for name, id in _pairs(store, reader):
        (row,) = store.take([id], extras=True)
        objects = decode_instances(row, len(names))
        images.append(match(objects, reader.read_objects(name, names), row.height * row.width, iou))
    return images


def value_of(instance: Instance, by: Ranking) -> float:
    """Return the value of an object that is compared with a threshold."""
    return {"score": instance.score, "quality": instance.quality, "both": instance.score * instance.quality}[by]


def lowest_value(images: Sequence[Sequence[tuple[float, bool]]], alpha: float) -> float | None:
    """Choose the lowest value that keeps the mean share of wrong objects at ``alpha`` or less; None if none does.

    ``images`` are the (value, right) of each image's objects of one class.
    """
    levels = np.unique([value for image in images for value, _ in image])[::-1]
    losses = np.zeros((len(images), len(levels)))
    for row, image in enumerate(images):
        values, right = np.array([value for value, _ in image]), np.array([right for _, right in image])
        is_kept = values[None] >= levels[:, None]
        losses[row] = (is_kept & ~right).sum(axis=1) / np.maximum(is_kept.sum(axis=1), 1)
    totals = np.maximum.accumulate(losses, axis=1).sum(axis=0)
    controlled = totals + 1 <= alpha * (len(images) + 1) + 1e-9
    return float(levels[controlled.sum() - 1]) if controlled.any() else None


def held_out(images: Sequence[Sequence[tuple[float, bool]]], alpha: float, splits: int) -> dict[str, float]:
    """Measure thresholds of one random half of the images on the other half, on average over ``splits`` draws.

    Returns ``held_out_wrong``, the mean share of wrong objects per image; ``held_out_spread``, its standard deviation
    over the draws; and ``held_out_kept``, the share of the right objects that is kept.
    """
    rng, shares, kept_shares = np.random.default_rng(0), [], []
    for _ in range(splits if len(images) > 1 else 0):
        order = rng.permutation(len(images))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        limit = lowest_value([images[index] for index in first], alpha)
        outcomes = [
            [right for value, right in images[index] if limit is not None and value >= limit] for index in second
        ]
        shares.append(np.mean([1 - float(np.mean(rights)) if rights else 0.0 for rights in outcomes]))
        total = sum(right for index in second for _, right in images[index])
        kept_shares.append(sum(map(sum, outcomes)) / total if total else 0.0)
    if not shares:
        return {}
    values = np.mean(shares), np.std(shares), np.mean(kept_shares)
    names = ("held_out_wrong", "held_out_spread", "held_out_kept")
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def _pairs(store: LabelStore, reader: CocoReader) -> list[tuple[str, str]]:
    """Pair the file's images with labels of the store: by the whole name, otherwise by its last part."""
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
                f"{name} of {reader.path} matches {len(ids)} images of {store.path}; give it a longer path"
            )
        pairs += [(name, id) for id in ids]
    if not pairs:
        raise UsageError(
            f"{store.path} holds none of the {len(reader)} images of {reader.path}; are the names the same?"
        )
    return pairs


@dataclass(frozen=True)
class Match:
    """An object of a store and the best true object of its class that no better object has taken."""

    instance: Instance
    """The object."""
    iou: float
    """IoU with the true object, 0 if there is none."""


def match(objects: Sequence[Instance], truth: Sequence[TrueObject], size: int, iou: float) -> list[Match]:
    """Match the objects of an image, in the order of their scores, with the true ones.

    An object is matched with the unmatched true object of its class that it overlaps most, if the IoU is at least
    ``iou``. An unmatched object with at least half of its pixels in an ``iscrowd`` region of its class is neither right
    nor wrong and is left out, as in COCO's evaluation. ``size`` is the number of pixels of the image.
    """
    masks = [_mask(entry.runs, size) for entry in truth]
    areas = [int(mask.sum()) for mask in masks]
    free = [not entry.crowd for entry in truth]
    results = []
    for instance in sorted(objects, key=lambda instance: -instance.score):
        runs = runs_of_counts(string_to_counts(instance.counts), size)
        best, place, crowded = 0.0, -1, False
        for index, entry in enumerate(truth):
            if entry.target != instance.target or not (free[index] or entry.crowd):
                continue
            both = sum(int(masks[index][start:stop].sum()) for start, stop in runs.tolist())
            if entry.crowd:
                crowded |= 2 * both >= instance.area
            elif (overlap := both / (instance.area + areas[index] - both)) > best:
                best, place = overlap, index
        if best >= iou:
            free[place] = False
        elif crowded:
            continue
        results.append(Match(instance, best))
    return results


def _mask(runs: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, np.bool_)
    for start, stop in runs.tolist():
        mask[start:stop] = True
    return mask
