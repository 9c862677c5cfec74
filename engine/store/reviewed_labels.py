"""Labels that people reviewed, as true labels to calibrate on and to measure with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from ...errors import UsageError
from ..formats.base import LabelReader
from ..inputs.archives import archives_of
from ..inputs.labels import LabelSet
from ..inputs.sources import Item, Source, open_source
from .label_store import LabelStore


class ReviewedLabels(LabelReader):
    """Labels that people corrected or accepted, as true labels: the format ``reviews``, its images named by uri.

    Values are the store's target classes. Raises :class:`UsageError` if nothing was reviewed.
    """

    format = "reviews"
    notes = ("labels that people corrected or accepted",)

    def __init__(self, store: LabelStore) -> None:
        self.path: str = str(store.path)
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
            raise UsageError(
                f"{store.path} holds no reviewed labels; correct some with `maskmill serve {store.path} --review`, or "
                "add them with `maskmill import-labels`"
            )

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Read the label map of an image, the review's pixels over the model's."""
        return self._store.read_id(self._ids[name])[0]


class ReviewedImages(Source):
    """The images of a store that people reviewed, as a source."""

    def __init__(self, store: LabelStore) -> None:
        super().__init__(str(store.path), windows=store.windows)
        self._uris = list(ReviewedLabels(store).names())

    def __iter__(self) -> Iterator[Item]:
        """Yield items in the store's order; members of archives have their offsets."""
        self.skipped = Counter()
        archives = archives_of(self._uris)
        members = {item.uri: item for archive in archives for item in open_source(archive)}
        for uri in self._uris:
            yield members.get(uri, Item(uri))


def open_reviewed(store: LabelStore) -> LabelSet:
    """Open the reviewed labels of a store as true labels, found by image; raises :class:`UsageError` without any.

    Their classes are the store's targets: read them with a taxonomy of :meth:`Taxonomy.for_own_labels`.
    """
    return LabelSet(ReviewedLabels(store))
