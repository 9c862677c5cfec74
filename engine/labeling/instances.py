"""Find the objects of an image: filter by score, upsample masks, and give every pixel to one object.

Pixels are assigned to objects in the order of their scores. An object that keeps less than half of its own mask is
considered a duplicate of a better one, and is dropped; models that predict an object several times, such as YOLO
without suppression, need no further step. Source: Panoptic Segmentation (arXiv 1801.00868), appendix.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checks import check_count, check_number
from ...errors import UsageError
from ..formats.base import Instance
from ..formats.rle import encode_classes
from ..model.taxonomy import Taxonomy
from ..predictors.base import ScoreMap
from ..predictors.resampling import bilinear_matrix

_OFFSET = 1.0
"""Distance in logits from the border of a mask at which its stability is measured, as in Segment Anything."""


@dataclass(frozen=True, kw_only=True)
class InstanceSettings:
    """Limits for the objects that are kept."""

    min_score: float = 0.5
    """Lowest score of an object."""
    min_visible: float = 0.5
    """Smallest share of an object's mask that no better object covers."""
    min_area: int = 16
    """Smallest number of its pixels."""

    def __post_init__(self) -> None:
        for name in ("min_score", "min_visible"):
            check_number(name, getattr(self, name), least=0, most=1)
        check_count("min_area", self.min_area, least=1)

    def record(self) -> dict[str, Any]:
        """Return the settings as plain data for the run record."""
        return asdict(self)


def find_instances(score_map: ScoreMap, taxonomy: Taxonomy, settings: InstanceSettings) -> list[Instance]:
    """Return the objects of one image, best first; objects of dropped classes and of the background are left out.

    Raises :class:`UsageError` for a score map without objects.
    """
    objects = score_map.on_host().objects
    if objects is None:
        raise UsageError(
            "the model gave no single objects; export it with --instances, label without --tile, or leave --instances "
            "out"
        )
    targets = np.asarray(taxonomy.model)[np.asarray(objects.classes, np.int64)]
    scores = np.asarray(objects.scores, np.float64)
    is_candidate = (scores >= settings.min_score) & (targets >= 0)
    if taxonomy.background is not None:
        is_candidate &= targets != taxonomy.background
    qualities = _stability(np.asarray(objects.masks)) if objects.qualities is None else objects.qualities
    order = np.flatnonzero(is_candidate)[np.argsort(-scores[is_candidate], kind="stable")]
    painted = np.zeros(score_map.size, np.uint16)
    kept_masks: list[int] = []
    for index in order.tolist():
        window, mask = _upsampled(np.asarray(objects.masks[index], np.float32), score_map)
        area = int(mask.sum())
        free = mask & (painted[window] == 0)
        if area and free.sum() >= max(settings.min_area, settings.min_visible * area):
            kept_masks.append(index)
            painted[window][free] = len(kept_masks)
    masks = {mask.value: mask for mask in encode_classes(painted)}
    return [
        Instance(
            target=int(targets[index]),
            score=float(scores[index]),
            quality=float(np.clip(qualities[index], 0.0, 1.0)),
            box=masks[number].box,
            counts=masks[number].counts,
            area=masks[number].area,
        )
        for number, index in enumerate(kept_masks, start=1)
    ]


def _stability(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the stability (K,) of masks (K, h, w): their area at a logit of 1 over that at -1 (Segment Anything)."""
    inside, around = ((logits > limit).sum(axis=(1, 2)) for limit in (_OFFSET, -_OFFSET))
    return inside / np.maximum(around, 1)


def _upsampled(logits: NDArray[np.float32], score_map: ScoreMap) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Upsample a mask (h, w): return the window of the image in which it can be set, and the mask there."""
    top, left, bottom, right = score_map.region
    spans, matrices = [], []
    for axis, (start, stop, size) in enumerate(((top, bottom, score_map.size[0]), (left, right, score_map.size[1]))):
        cells = np.flatnonzero((logits > 0).any(axis=1 - axis))
        if not len(cells):
            return (slice(0, 0), slice(0, 0)), np.zeros((0, 0), np.bool_)
        step = (stop - start) / size
        # one more cell on each side, since interpolation can set pixels there
        first = max(0, int(np.floor((cells[0] - 0.5 - start) / step)))
        last = min(size, int(np.ceil((cells[-1] + 1.5 - start) / step)))
        span = slice(first, max(first, last))
        spans.append(span)
        positions = np.float64(start) + (np.arange(span.start, span.stop, dtype=np.float64) + 0.5) * step - 0.5
        matrices.append(bilinear_matrix(positions, logits.shape[axis]))
    return (spans[0], spans[1]), (matrices[0] @ logits @ matrices[1].T) > 0
