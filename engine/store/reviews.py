"""Reviews of labels: which one holds, and the maps that result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..formats.base import LabelReader
from ..model.png import decode_png
from ..model.taxonomy import Taxonomy
from .rows import LabelRow, ReviewRow

if TYPE_CHECKING:
    from .label_store import LabelStore

FULL_WEIGHT = 255
"""Weight of a pixel that a person labeled."""


def current(reviews: Iterable[ReviewRow]) -> dict[str, ReviewRow]:
    """Return the review that holds for each reviewed id: the latest, unless it withdraws the earlier ones."""
    latest: dict[str, ReviewRow] = {}
    for row in sorted(reviews, key=lambda row: (row.time, row.reviewer)):
        latest[row.id] = row
    return {id: row for id, row in latest.items() if row.verdict != "withdrawn"}


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


class ReviewedLabels(LabelReader):
    """Labels that people corrected or accepted, as true labels: the format ``reviews``, its images named by uri.

    Values are the store's target classes. Raises :class:`UsageError` if nothing was reviewed.
    """

    format = "reviews"
    notes = ("labels that people corrected or accepted",)

    def __init__(self, store: LabelStore) -> None:
        self.path = str(store.path)
        self._store = store
        self.class_names = dict(enumerate(store.classes["targets"]))
        reviews = store.current_reviews()
        self._ids = {
            row.uri: row.id
            for row in store.inputs()
            if row.id is not None and row.id in reviews and reviews[row.id].verdict != "rejected"
        }
        self.image_names = list(self._ids)
        if not self._ids:
            raise UsageError(f"{store.path} holds no reviewed labels; add them with `maskmill import-labels`")

    def read_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Read the label map of an image, the review's pixels over the model's."""
        return self._store.read_id(self._ids[name])[0]
