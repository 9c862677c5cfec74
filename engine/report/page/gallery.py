"""Choose the images that the report shows, and encode them for the page.

A label map is sent as a gray PNG of positions in the image's own list of classes (255: no label), so that the page can
recolor it for any number of classes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ....errors import StoreError
from ...inputs.archives import split_member
from ...labeling.kept.encoding import decode_scores
from ...model.png import encode_png
from ...model.taxonomy import Taxonomy
from ...store.label_store import LabelStore
from ...store.table import REPAIR
from ..photos import PhotoReader
from .overview import Overview

PICTURES = 8
"""Images of each kind in the gallery."""
SIDE = 560
"""Longest side of a picture on the page, in pixels."""
_JPEG_QUALITY = 80
_WEIGHT_LEVELS = 24
_MOST_CLASSES = 255
_NO_LABEL = 255


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images that are shown together, by their numbers in the overview."""

    key: str
    """Short name, part of the page's address."""
    title: str
    """Name on the page."""
    note: str
    """Explanation of the choice, one sentence."""
    images: tuple[int, ...]
    """Numbers of the images, in order."""


class Reader:
    """Reads labels and photos of a store's images by id; any thread may call it."""

    def __init__(self, store: LabelStore, overview: Overview) -> None:
        self.store = store
        """The store."""
        self._overview = overview
        self._number = {id: number for number, id in enumerate(overview.ids)}
        self._photos = PhotoReader(store.run)

    def has(self, id: str) -> bool:
        """Return True if the store holds labels of this id."""
        return id in self._number

    def uri(self, id: str) -> str:
        """Return an input of the image."""
        return self._overview.uris[self._number[id]]

    def short(self, uri: str) -> str:
        """Return an input's name without the folder that all inputs of the store have in common."""
        return self._overview.short(uri)

    def counts(self, id: str) -> NDArray[np.int64]:
        """Return the pixels labeled with each class (K,), before reviews."""
        return self._overview.counts[self._number[id]]

    def maps(self, id: str, *, reviewed: bool = True) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return the label and weight map, (H, W) each. Raises :class:`StoreError`."""
        (row,) = self.store.take([id])
        return self.store.maps(row, reviewed=reviewed)

    def raw(self, id: str) -> NDArray[Any] | None:
        """Return the labels before selection (H, W), of a store that keeps scores; None for others."""
        (row,) = self.store.take([id], extras=True)
        if row.scores is None:
            return None
        taxonomy = Taxonomy.from_json(self.store.classes)
        try:
            top = decode_scores(row.scores, (row.height, row.width), taxonomy.num_scored).top
        except ValueError as error:
            raise StoreError(f"the scores of {id} in {self.store.path} cannot be read: {error}; {REPAIR}") from error
        return np.where(top < taxonomy.num_targets, top, taxonomy.ignore_index).astype(taxonomy.dtype)

    def photo(self, id: str) -> NDArray[np.uint8] | None:
        """Return the photo (H, W, 3); None if it is missing, cannot be read, or has changed."""
        (row,) = self.store.take([id])
        return self._photos.find(self.uri(id), (row.height, row.width))

    def model_image(self, id: str) -> NDArray[Any] | None:
        """Return the model's input image: the photo, or the bands (H, W, C) of its file; None as for :meth:`photo`."""
        (row,) = self.store.take([id])
        return self._photos.model_image(self.uri(id), (row.height, row.width))

    def picture(self, data: bytes) -> NDArray[np.uint8]:
        """Decode another image file to (H, W, 3) uint8 RGB, as the store's photos are."""
        return self._photos.picture(data)


def choose_groups(
    overview: Overview,
    taxonomy: Taxonomy,
    *,
    size: int,
    accuracy: Mapping[str, float] | None = None,
) -> list[Group]:
    """Choose up to ``size`` images for each kind, and two for each class.

    ``accuracy`` maps ids to the share of right labels, if the truth is known.
    """
    num = overview.num_images
    everything = np.arange(num)
    keys = [hashlib.blake2b(id.encode(), digest_size=8).digest() for id in overview.ids]
    groups = [
        Group(
            key="random",
            title="At random",
            note="A random sample of the whole store.",
            images=tuple(sorted(everything.tolist(), key=keys.__getitem__)[:size]),
        ),
        _ranked("doubtful", "Most doubtful", "The lowest mean score of the top class.", overview.top_score, size),
    ]
    if accuracy:
        values = np.array([accuracy.get(id, np.nan) for id in overview.ids])
        note = "The largest share of wrong labels, compared with the truth."
        groups.append(_ranked("worst", "Worst", note, values, size))
    else:
        note = "The smallest share of pixels with a label; with --labels, the largest share of wrong labels is shown."
        groups.append(_ranked("worst", "Worst", note, overview.kept, size))
    best = -overview.kept - 1e-3 * overview.top_score
    groups.append(_ranked("best", "Best", "The largest share of pixels with a label.", best, size))
    if not np.isnan(overview.distance).all():
        note = (
            "The largest distance from the calibration images, in brightness, sharpness, scores and other statistics."
        )
        groups.append(_ranked("unlike", "Least like calibration", note, -overview.distance, size))
    groups.append(_by_class(overview, taxonomy))
    return [group for group in groups if group.images]


def _ranked(key: str, title: str, note: str, values: NDArray[np.float64], size: int) -> Group:
    order = np.argsort(values, kind="stable")
    order = order[~np.isnan(values[order])]
    return Group(key=key, title=title, note=note, images=tuple(order[:size].tolist()))


def _by_class(overview: Overview, taxonomy: Taxonomy, per_class: int = 2, most_classes: int = 24) -> Group:
    """Choose the images with the most pixels of each class except the background."""
    shares = overview.counts / np.maximum(overview.pixels, 1)[:, None]
    common = [int(target) for target in np.argsort(-overview.counts.sum(axis=0)) if target != taxonomy.background]
    images: list[int] = []
    for target in common[:most_classes]:
        order = np.argsort(-shares[:, target], kind="stable")[:per_class]
        images += [int(number) for number in order if overview.counts[number, target] > 0]
    return Group(
        key="classes",
        title="By class",
        note="The images with the most pixels of each class.",
        images=tuple(dict.fromkeys(images)),
    )


def picture(
    reader: Reader,
    id: str,
    taxonomy: Taxonomy,
    *,
    raw: NDArray[Any] | None = None,
    accuracy: float | None = None,
    review: str | None = None,
    side: int = SIDE,
    every_class: bool = False,
) -> dict[str, Any]:
    """Encode one image as plain data for the page: photo, label maps, weights, and its figures.

    ``raw`` (H, W) is the label map before selection, by default that of the kept scores, if there are any. With
    ``every_class`` the maps hold the classes' own numbers, so that a page can add others. Raises :class:`StoreError`
    for damaged labels.
    """
    label, weight = reader.maps(id)
    uri, photo = reader.uri(id), reader.photo(id)
    raw = reader.raw(id) if raw is None else raw
    height, width = label.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    present = _classes_in([label] if raw is None else [label, raw], taxonomy)
    classes = list(range(taxonomy.num_targets)) if every_class else present
    steps = np.round(weight.astype(np.float32) / 255 * (_WEIGHT_LEVELS - 1)) * (255 / (_WEIGHT_LEVELS - 1))
    return {
        "id": id,
        "name": PurePosixPath((split_member(uri) or ("", uri))[1]).name or id[:12],
        "uri": reader.short(uri),
        "width": size[0],
        "height": size[1],
        "full": [width, height],
        "kept": float((label != taxonomy.ignore_index).mean()),
        "accuracy": accuracy,
        "review": review,
        "classes": classes,
        "present": present,
        "photo": None if photo is None else _data_url("jpeg", _jpeg(photo, size)),
        "label": _map_url(label, classes, size),
        "raw": None if raw is None else _map_url(raw, classes, size),
        "weight": _data_url("png", encode_png(_nearest(steps.round().astype(np.uint8), size))),
    }


def _classes_in(maps: Sequence[NDArray[Any]], taxonomy: Taxonomy) -> list[int]:
    """List the classes of the maps, those with the most pixels first, at most as many as a map can hold."""
    counts = sum(np.bincount(map.ravel(), minlength=taxonomy.num_targets)[: taxonomy.num_targets] for map in maps)
    order = np.argsort(-np.asarray(counts), kind="stable")
    return [int(target) for target in order if np.asarray(counts)[target] > 0][:_MOST_CLASSES]


def _map_url(map: NDArray[Any], classes: Sequence[int], size: tuple[int, int]) -> str:
    table = np.full(int(np.iinfo(map.dtype).max) + 1, _NO_LABEL, np.uint8)
    table[np.asarray(classes, np.int64)] = np.arange(len(classes))
    return _data_url("png", encode_png(table[_nearest(map, size)]))


def _nearest(map: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    return np.asarray(cv2.resize(map, size, interpolation=cv2.INTER_NEAREST_EXACT))


def _jpeg(photo: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA) if size != photo.shape[1::-1] else photo
    _, data = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return data.tobytes()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
