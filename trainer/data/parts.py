"""Lists of images that training draws from: labeled images, the images of label stores, and images without labels.

::

    labeled = LabeledImages.open("labeled", taxonomy)          # labeled/images, labeled/labels
    stored = StoredImages.open("labels", skip=set(labeled.uris))
    image, label, weight = labeled.read(0)

Lists hold no open file: they pickle to worker processes, which open the stores when they first read.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...engine.formats.open import InputFormat, detect
from ...engine.inputs.archives import archives_of
from ...engine.inputs.identity import labels_id
from ...engine.inputs.labeled_source import LabeledSource, pair_images
from ...engine.inputs.labels import LabelSource, open_labels
from ...engine.inputs.sources import Item, Source, open_source
from ...engine.inputs.summary import SourceSummary
from ...engine.model.taxonomy import Taxonomy
from ...engine.reading.geotiff import Windows
from ...engine.store.label_store import InputRow, LabelStore
from ...errors import TrainingError, UsageError
from .bands import PHOTOS, Pixels, decode_filled, pixels_of


class AnnotatedImage(NamedTuple):
    """One image with its label and weight maps, before augmentation."""

    image: NDArray[Any]
    """(H, W, 3) uint8 RGB, or (H, W, C) bands in their sample type."""
    label: NDArray[Any]
    """(H, W) uint8 or uint16: class, or the ignore index; an image without labels is all ignore index."""
    weight: NDArray[np.uint8]
    """(H, W) uint8: weight of each pixel's loss, from 0 (no loss) to 255 (full weight)."""


class Part(Protocol):
    """A list of images of one kind, read by index."""

    uris: list[str]
    """Names of the images, in order."""

    def read(self, index: int) -> AnnotatedImage:
        """Read one image with its maps; raises :class:`MaskmillError`."""
        ...

    def read_all(self, indices: Sequence[int]) -> Iterator[AnnotatedImage]:
        """Yield several images in order; an error is raised when the iterator reaches its image."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the labels of a folder are read; see :func:`maskmill.engine.inputs.labels.open_labels`."""

    pairing: str | None = None
    """Names of label maps with ``*`` for the part that they share with their image, such as ``*=*_gt``."""
    as_stored: bool = False
    """True if label maps show photos as stored, before their EXIF orientation is used."""
    format: InputFormat | None = None
    """Format of the labels; detected if None."""


class _SequentialReads:
    """Mixin for parts that read one image at a time."""

    def read_all(self: Part, indices: Sequence[int]) -> Iterator[AnnotatedImage]:
        """See :class:`Part`."""
        return map(self.read, indices)


class LabeledImages(_SequentialReads):
    """Images with true label maps, whose indices a taxonomy maps to classes."""

    def __init__(
        self,
        source: Source,
        labeled_source: LabeledSource,
        taxonomy: Taxonomy,
        *,
        skip: Collection[str] = (),
        pixels: Pixels = PHOTOS,
    ) -> None:
        self._source = source
        self._pixels = pixels
        self._labeled = labeled_source
        self._taxonomy = taxonomy
        self._items = [item for item in labeled_source.items if item.uri not in skip]
        self.uris: list[str] = [item.uri for item in self._items]
        """Names of the images, in order."""
        self.summary: SourceSummary = labeled_source.summary
        """Files that were used and skipped."""
        self._low_range: set[str] = set()

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        taxonomy: Taxonomy,
        *,
        ids: Iterable[str] | None = None,
        skip: Collection[str] = (),
        reading: Reading | None = None,
        pixels: Pixels = PHOTOS,
        windows: Windows | None = None,
    ) -> LabeledImages:
        """Pair the images of ``folder/images`` with their labels; images without labels are left out.

        Labels are label maps in ``folder/labels``, or another format's files in ``folder``, such as a COCO file.
        ``ids`` are the names of the images to use (all if None); ``skip`` are uris to leave out; ``reading`` says how
        labels are read, if they are not recognized. ``pixels`` says how files become images;
        ``windows`` cuts large files.

        Raises :class:`UsageError` if a folder is missing, no image has a label map, or one of ``ids`` has no image.
        """
        path = Path(folder)
        if not (path / "images").is_dir():
            raise UsageError(f"labeled images are expected in {path / 'images'} and {path / 'labels'}")
        reading = reading or Reading()
        detected = detect(str(path)) not in (None, "png", "fiftyone") if reading.pairing is None else False
        has_file = reading.format is not None and not (path / "labels").exists()
        location = path if detected or has_file else path / "labels"
        labels = open_labels(location, pairing=reading.pairing, as_stored=reading.as_stored, format=reading.format)
        source = open_source(path / "images", windows=windows)
        return cls.pair(source, labels, taxonomy, ids=ids, skip=skip, pixels=pixels)

    @classmethod
    def pair(
        cls,
        images: str | os.PathLike[str] | Source,
        labels: str | os.PathLike[str] | LabelSource,
        taxonomy: Taxonomy,
        *,
        ids: Iterable[str] | None = None,
        skip: Collection[str] = (),
        pixels: Pixels = PHOTOS,
    ) -> LabeledImages:
        """Pair the images of a source with the label maps of a folder; see :meth:`open`."""
        source = images if isinstance(images, Source) else open_source(str(images))
        maps = open_labels(labels) if isinstance(labels, str | os.PathLike) else labels
        result = cls(source, pair_images(source, maps, taxonomy, ids=ids), taxonomy, skip=skip, pixels=pixels)
        if not result.uris:
            raise UsageError(f"every image in {source.spec} is used for something else already, e.g. validation")
        return result

    def only(self, uris: Collection[str]) -> LabeledImages:
        """Return the images with these names."""
        subset = copy(self)
        subset._items = [item for item in self._items if item.uri in uris]
        subset.uris = [item.uri for item in subset._items]
        return subset

    def read(self, index: int) -> AnnotatedImage:
        """Read one image with its true classes and full weights."""
        item = self._items[index]
        photo = self._source.read(item)
        image, with_data = decode_filled(photo, self._pixels, warn=partial(self._note_low_range, item.uri))
        label = self._labeled.read(item.uri, photo)
        if label.shape != image.shape[:2]:
            raise TrainingError(
                f"{self._labeled.name_of(item.uri)} is {label.shape[1]}x{label.shape[0]} px, its image "
                f"{image.shape[1]}x{image.shape[0]}; {self._labeled.size_hint(item.uri, photo)}"
            )
        if with_data is not None:
            label = np.where(with_data, label, label.dtype.type(self._taxonomy.ignore_index))
        weight = np.where(label == self._taxonomy.ignore_index, np.uint8(0), np.uint8(255))
        return AnnotatedImage(image, label, weight)

    def _note_low_range(self, uri: str, _: str) -> None:
        if uri not in self._low_range:  # images of training are read once per epoch
            self._low_range.add(uri)
            self.summary.note_low_range([uri])


class StoredImages:
    """Images with the labels and weights of a label store, read at one moment of it."""

    def __init__(self, store: LabelStore, source: Source, items: Sequence[Item], rows: Sequence[InputRow]) -> None:
        self.store = store
        """The label store."""
        self._source = source
        self._pixels = pixels_of(store.run)
        self._items = list(items)
        self._labels = [(row.id or "", row.condition) for row in rows]
        self.uris: list[str] = [item.uri for item in self._items]
        """Names of the images, in order."""

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, skip: Collection[str] = (), pin: str | None = None
    ) -> StoredImages:
        """Open the images of a store; an image with several names is used once, and images named in ``skip`` are left
        out.

        With ``pin``, the moment that is read is kept under this name until :meth:`LabelStore.unpin`, and found again
        when the same name is given; without it, the store may drop it after an hour.
        """
        store = LabelStore.open(folder)
        store = store.pin(pin) if pin else LabelStore.open(folder, moment=store.moment)
        labeled_ids = set(store.ids())
        skipped_ids: set[str] = set()
        first_rows: dict[str, InputRow] = {}
        for row in store.inputs():
            if row.id in labeled_ids:
                first_rows.setdefault(row.id, row)
                if row.uri in skip:
                    skipped_ids.add(row.id)
        rows = sorted((row for id, row in first_rows.items() if id not in skipped_ids), key=lambda row: row.uri)
        if not rows:
            raise UsageError(f"the store {store.path} holds no image to train on")
        items = _located([Item(row.uri, row.size, row.stamp) for row in rows])
        return cls(store, Source(str(store.path)), items, rows)

    def read(self, index: int) -> AnnotatedImage:
        """Read one image with its stored labels and weights."""
        return next(self.read_all([index]))

    def read_all(self, indices: Sequence[int]) -> Iterator[AnnotatedImage]:
        """Read several images with a single query of the store, since each query takes milliseconds.

        Raises :class:`TrainingError` for an image whose content is not the one that was labeled.
        """
        rows = self.store.take([self._labels[index][0] for index in indices])
        for index, row in zip(indices, rows, strict=True):
            item, (id, condition) = self._items[index], self._labels[index]
            data = self._source.read(item)
            if not row.id == id == labels_id(data, condition):
                raise TrainingError(f"{item.uri} has changed since it was labeled; run `maskmill label` again")
            image, _ = decode_filled(data, self._pixels)
            label, weight = self.store.maps(row)
            if label.shape != image.shape[:2]:
                raise TrainingError(
                    f"the labels of {item.uri} are {label.shape[1]}x{label.shape[0]} px, the image is "
                    f"{image.shape[1]}x{image.shape[0]} px; label it again"
                )
            yield AnnotatedImage(image, label, weight)


class PlainImages(_SequentialReads):
    """Images without labels."""

    def __init__(self, source: Source, items: Sequence[Item], taxonomy: Taxonomy, *, pixels: Pixels = PHOTOS) -> None:
        self._source = source
        self._pixels = pixels
        self._items = list(items)
        self._taxonomy = taxonomy
        self.uris: list[str] = [item.uri for item in self._items]
        """Names of the images, in order."""
        self.summary: SourceSummary = SourceSummary(images=len(self.uris), skipped=source.skipped)
        """Files that were used and skipped."""

    @classmethod
    def open(
        cls,
        spec: str | os.PathLike[str],
        taxonomy: Taxonomy,
        *,
        skip: Collection[str] = (),
        pixels: Pixels = PHOTOS,
        windows: Windows | None = None,
    ) -> PlainImages:
        """Open the images of a source (:func:`maskmill.engine.inputs.sources.open_source`) that are not in ``skip``.

        ``pixels`` says how files become images, ``windows`` cuts large ones.
        """
        source = open_source(spec, windows=windows)
        items = [item for item in source if item.uri not in skip]
        if not items:
            raise UsageError(f"{spec} holds no image besides the labeled ones")
        return cls(source, items, taxonomy, pixels=pixels)

    def read(self, index: int) -> AnnotatedImage:
        """Read one image; every pixel of its label map is the ignore index."""
        image, _ = decode_filled(self._source.read(self._items[index]), self._pixels)
        label = np.full(image.shape[:2], self._taxonomy.ignore_index, self._taxonomy.dtype)
        return AnnotatedImage(image, label, np.zeros(image.shape[:2], np.uint8))


def _located(items: Sequence[Item]) -> list[Item]:
    """Find the offsets of items inside archives, which a store does not keep."""
    archives = archives_of(item.uri for item in items)
    members = {member.uri: member for archive in archives for member in open_source(archive)}
    return [members.get(item.uri, item) for item in items]
