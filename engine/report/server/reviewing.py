"""Corrections from the page: a map of the pixels that a person corrected becomes a review in the store."""

from __future__ import annotations

import base64
import binascii
import io
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ....errors import UsageError
from ...model.png import decode_png, encode_png
from ...model.taxonomy import Taxonomy
from ...store.label_store import LabelStore, ReviewRow
from ...store.schema import Verdict

MOST_CLASSES = 255
"""Classes that a map in the browser can hold."""
_PREFIX = "data:image/png;base64,"
_NO_LABEL = 255


def save_review(
    store: LabelStore,
    id: str,
    verdict: Verdict,
    *,
    reviewer: str,
    picture: str | None = None,
    origin: str | None = None,
) -> ReviewRow:
    """Save a decision on an image's labels as a review, and return it.

    ``picture`` is a PNG as a data URL, of the size of the label map, whose red channel holds classes (255: no label)
    and whose green channel is 255 at pixels that the person decided. Pixels of an earlier correction stay corrected.
    Raises :class:`UsageError` for a map of another size or with other values, :class:`StoreError` for an unknown id.
    """
    (row,) = store.take([id])
    label = region = None
    if verdict == "corrected":
        label, region = _corrected(store, row, picture)
    review = ReviewRow(
        id=id,
        reviewer=reviewer,
        time=time.time_ns() // 1000,
        verdict=verdict,
        label=None if label is None else encode_png(label),
        region=None if region is None else encode_png(region),
        origin=origin,
    )
    store.commit_reviews([review])
    return review


def _corrected(store: LabelStore, row: Any, picture: str | None) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    taxonomy = Taxonomy.from_json(store.classes)
    values, decided = _decode(picture)
    if values.shape != (row.height, row.width):
        raise UsageError(
            f"the corrected map is {values.shape[1]}x{values.shape[0]} px, the labels {row.width}x{row.height} px"
        )
    unknown = decided & (values != _NO_LABEL) & (values >= taxonomy.num_targets)
    if unknown.any():
        raise UsageError(f"the corrected map holds {int(values[unknown][0])}, which is no class")
    current = store.current_reviews().get(row.id)
    label, _ = store.maps(row, reviewed=current is None or current.verdict != "rejected")
    label = label.copy()
    label[decided] = np.where(values == _NO_LABEL, taxonomy.ignore_index, values)[decided]
    if current is not None and current.verdict == "corrected":
        earlier = None if current.region is None else decode_png(current.region) == 255
        decided = np.ones_like(decided) if earlier is None else decided | earlier
    return label, np.where(decided, np.uint8(255), np.uint8(0))


def _decode(picture: str | None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    try:
        if picture is None or not picture.startswith(_PREFIX):
            raise ValueError
        data = base64.b64decode(picture.removeprefix(_PREFIX), validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (ValueError, binascii.Error, UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UsageError("expected a corrected map as a PNG data URL with red classes and green decisions") from error
    return pixels[..., 0], pixels[..., 1] == 255
