"""Reviews of labels: the current one of each image, and the resulting maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.png import decode_png
from ..model.taxonomy import Taxonomy
from .rows import LabelRow, ReviewRow

FULL_WEIGHT = 255
"""Weight of a pixel that a person labeled."""


def latest_reviews(reviews: Iterable[ReviewRow]) -> dict[str, ReviewRow]:
    """Return the latest review of each id, withdrawals included."""
    return {row.id: row for row in sorted(reviews, key=lambda row: (row.time, row.reviewer))}


def current(reviews: Iterable[ReviewRow]) -> dict[str, ReviewRow]:
    """Return the current review of each reviewed id: the latest, unless it withdraws the earlier ones."""
    return {id: row for id, row in latest_reviews(reviews).items() if row.verdict != "withdrawn"}


def reviewed_maps(
    row: LabelRow, review: ReviewRow | None, classes: Mapping[str, Any] | None
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Decode a row's label and weight map and put the review's pixels over them.

    Corrected pixels get full weight, or none if the reviewer left them without a label. Of a rejected image every pixel
    is ignored. ``classes`` is the store's own record. Raises :class:`ValueError` for damaged maps.
    """
    label, weight = decode_png(row.label), decode_png(row.weight)
    if review is None or classes is None or review.verdict == "accepted":
        return label, weight
    ignore = Taxonomy.from_json(classes).ignore_index
    if review.verdict == "rejected":
        return np.full_like(label, ignore), np.zeros_like(weight)
    corrected = decode_png(review.label or b"")
    full = np.where(corrected == ignore, 0, FULL_WEIGHT).astype(np.uint8)
    if review.region is None:
        return corrected, full
    region = decode_png(review.region) == 255
    return np.where(region, corrected, label), np.where(region, full, weight)
