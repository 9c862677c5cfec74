"""Weak labels of an image for S2C: segments without classes, and the classes that the image contains.

::

    weak = WeakLabels.open("segments", taxonomy, image_labels="labels.csv")
    segments, present = weak.read(uri, label)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.inputs.image_labels import ImageLabels
from ...engine.inputs.labels import LabelSource, open_labels
from ...engine.model.taxonomy import Taxonomy
from ...engine.store.label_store import LabelStore
from ...engine.store.run_record import is_store
from ...errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class WeakLabels:
    """Segment maps and image-level labels, found by the uri of an image; pickles without an open file."""

    maps: LabelStore | LabelSource
    """Source of the segment maps."""
    image_labels: ImageLabels | None
    """The classes of each image; None: the classes in its label map."""
    taxonomy: Taxonomy
    """The classes."""
    compat: bool = False
    """Number the segments of a map from 0, as the authors' code does; if every pixel is in a segment, the one with the
    smallest id then becomes 0, which the contrast loss ignores."""

    @classmethod
    def open(
        cls,
        segments: str | os.PathLike[str],
        taxonomy: Taxonomy,
        *,
        image_labels: str | os.PathLike[str] | None = None,
        pin: str | None = None,
    ) -> WeakLabels:
        """Open the segment maps of a store that ``maskmill segment`` made, or of a folder of PNG files.

        In the maps, 0 is no segment. ``pin`` keeps the moment of the store that is read; see :meth:`StoredImages.open`.

        Raises :class:`UsageError` if there is neither, or if the image-level labels name unknown classes.
        """
        labels = None if image_labels is None else ImageLabels.load(image_labels)
        if labels is not None:
            labels.check(taxonomy.targets)
        maps = LabelStore.open(segments) if is_store(segments) else open_labels(segments)
        if isinstance(maps, LabelStore) and pin is not None:
            maps = maps.pin(pin)
        return cls(maps=maps, image_labels=labels, taxonomy=taxonomy)

    def read(self, uri: str, label: NDArray[Any]) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Return segments (H, W) uint16, ids from 1 without a gap and 0 for none, and (K,) bool, the classes of the
        image.

        ``label`` (H, W) is the label map of the image. Raises :class:`TrainingError` if the segment map is missing or
        has another size, and :class:`ImageError` if the image-level labels do not list the image.
        """
        segment_map = self._map(uri)
        if segment_map.shape != label.shape:
            raise TrainingError(
                f"its segment map is {segment_map.shape[1]}x{segment_map.shape[0]} px, but the image is "
                f"{label.shape[1]}x{label.shape[0]}; "
                "make the segments from the same images"
            )
        ids, numbers = np.unique(segment_map, return_inverse=True)
        first = 0 if self.compat or ids[0] == 0 else 1
        targets = self.taxonomy.targets
        class_flags = np.zeros(len(targets), np.bool_)
        if self.image_labels is None:
            classes = np.unique(label)
            class_flags[classes[classes < len(targets)]] = True
        else:
            class_flags[self.image_labels.classes_of(uri, targets)] = True
        return (numbers.reshape(segment_map.shape) + first).astype(np.uint16), class_flags

    def _map(self, uri: str) -> NDArray[Any]:
        """Return segment ids (H, W), 0 on pixels without a segment."""
        if isinstance(self.maps, LabelStore):
            return self.maps.read(uri)[0]
        entry = self.maps.find(uri)
        if entry is None:
            raise TrainingError(f"{self.maps.path} holds no segment map of it; make one with `maskmill label --sam`")
        return self.maps.read(entry)
