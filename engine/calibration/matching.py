"""Compare the objects of an image with the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..formats.base import Instance
from ..formats.coco import TrueObject
from ..formats.rle import runs_of_counts, string_to_counts


@dataclass(frozen=True)
class Match:
    """An object of a store and the best true object of its class that no better object has taken."""

    instance: Instance
    """The object."""
    iou: float
    """IoU with the true object, 0 if there is none."""


def match(objects: Sequence[Instance], truth: Sequence[TrueObject], size: int, iou: float) -> list[Match]:
    """Match the objects of an image, in the order of their scores, with the true ones.

    An object takes the free true object of its class that it overlaps most, if the IoU is at least ``iou``. One that
    takes none, and has at least half of its pixels in an ``iscrowd`` region of its class, is neither right nor wrong
    and left out, as in COCO's evaluation. ``size`` is the number of pixels of the image.
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
