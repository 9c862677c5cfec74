"""Labels that people reviewed, as true labels to calibrate on and to measure with."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ...errors import UsageError
from ..formats.base import LabelReader
from .label_store import LabelStore


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
