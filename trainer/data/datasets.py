"""Training images: labeled folders, label stores and plain images, as one map-style dataset.

::

    labeled = LabeledImages.open("labeled", taxonomy)          # labeled/images, labeled/labels
    stored = StoredImages.open("labels", skip=set(labeled.uris))
    data = TrainingImages({"union": (labeled, stored)}, crop=256, ignore=taxonomy.ignore_index)
    sample = data[Draw("union", 3, 17)]

A sample depends only on the seed of the recipe and on its draw, not on the process that makes it. Datasets hold no open
file: they pickle to worker processes, which open the stores when they first read. Lance and Numba's threads do not
survive
``fork``; :func:`maskmill.trainer.data.loading.open_loader` starts workers otherwise.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...engine.formats.open import detect
from ...engine.inputs.archives import archives_of
from ...engine.inputs.identity import labels_id
from ...engine.inputs.images import decode_image
from ...engine.inputs.labeled_source import LabeledSource, pair_images
from ...engine.inputs.labels import LabelSource, open_labels
from ...engine.inputs.sources import Item, Source, open_source
from ...engine.inputs.summary import SourceSummary
from ...engine.model.taxonomy import Taxonomy
from ...engine.store.label_store import InputRow, LabelStore
from ...errors import MaskmillError, TrainingError, UsageError
from ..methods import Consistency
from ..recipes import Colors, Padding
from ..run import import_torch
from . import augment
from .augment import ColorSettings
from .weak_labels import WeakLabels

if TYPE_CHECKING:
    from torch import Tensor

STREAMS = ("union", "labeled", "stored", "unlabeled")
"""Lists of images that a step draws from. The position of a stream in this tuple is part of the seed of its draws."""


class AnnotatedImage(NamedTuple):
    """One image with its label and weight maps, before augmentation."""

    image: NDArray[np.uint8]
    """(H, W, 3) uint8 RGB."""
    label: NDArray[Any]
    """(H, W) uint8 or uint16: class, or the ignore index; an image without labels is all ignore index."""
    weight: NDArray[np.uint8]
    """(H, W) uint8: weight of each pixel's loss, from 0 (no loss) to 255 (full weight)."""


class Part(Protocol):
    """A list of images of one kind, read by index."""

    uris: list[str]
    """Names of the images, in order."""

    def read(self, index: int) -> AnnotatedImage:
        """One image with its maps; raises :class:`MaskmillError`."""
        ...

    def read_all(self, indices: Sequence[int]) -> Iterator[AnnotatedImage]:
        """Read several images in order; an error is raised when the iterator reaches the image that causes it."""
        ...


class Draw(NamedTuple):
    """One sample of a step."""

    stream: str
    """One of :data:`STREAMS`."""
    image: int
    """Number of the image in the stream."""
    position: int
    """Number of the draw, counted over the whole run: the seed of its augmentation."""


class _SequentialReads:
    """Mixin for parts that read one image at a time."""

    def read_all(self: Part, indices: Sequence[int]) -> Iterator[AnnotatedImage]:
        """See :class:`Part`."""
        return map(self.read, indices)


class LabeledImages(_SequentialReads):
    """Images with true label maps, whose indices a taxonomy maps to classes."""

    def __init__(
        self, source: Source, labeled: LabeledSource, taxonomy: Taxonomy, *, skip: Collection[str] = ()
    ) -> None:
        self._source = source
        self._labeled = labeled
        self._taxonomy = taxonomy
        self._items = [item for item in labeled.items if item.uri not in skip]
        self.uris: list[str] = [item.uri for item in self._items]
        """Names of the images, in order."""
        self.summary: SourceSummary = labeled.summary
        """Files that were used and passed over."""

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        taxonomy: Taxonomy,
        *,
        ids: Iterable[str] | None = None,
        skip: Collection[str] = (),
    ) -> LabeledImages:
        """Pair the images of ``folder/images`` with their labels; images without labels are left out.

        Labels are label maps in ``folder/labels``, or another format's files in ``folder``, such as a COCO file.
        ``ids`` are the names of the images to use (all if None); ``skip`` are uris to leave out.

        Raises :class:`UsageError` if a folder is missing, no image has a label map, or one of ``ids`` has no image.
        """
        path = Path(folder)
        if not (path / "images").is_dir():
            raise UsageError(f"labeled images are expected in {path / 'images'} and {path / 'labels'}")
        has_format = detect(str(path)) not in (None, "png", "fiftyone")
        return cls.pair(path / "images", path if has_format else path / "labels", taxonomy, ids=ids, skip=skip)

    @classmethod
    def pair(
        cls,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str] | LabelSource,
        taxonomy: Taxonomy,
        *,
        ids: Iterable[str] | None = None,
        skip: Collection[str] = (),
    ) -> LabeledImages:
        """Pair the images of a source with the label maps of a folder; see :meth:`open`."""
        source = open_source(str(images))
        maps = open_labels(labels) if isinstance(labels, str | os.PathLike) else labels
        labeled = cls(source, pair_images(source, maps, taxonomy, ids=ids), taxonomy, skip=skip)
        if not labeled.uris:
            raise UsageError(f"every image in {images} is used for something else already, e.g. validation")
        return labeled

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
        image = decode_image(photo)
        label = self._labeled.read(item.uri, photo)
        if label.shape != image.shape[:2]:
            raise TrainingError(
                f"{self._labeled.name_of(item.uri)} is {label.shape[1]}x{label.shape[0]} px, its image "
                f"{image.shape[1]}x{image.shape[0]}; {self._labeled.size_hint(item.uri, photo)}"
            )
        weight = np.where(label == self._taxonomy.ignore_index, np.uint8(0), np.uint8(255))
        return AnnotatedImage(image, label, weight)


class StoredImages:
    """Images with the labels and weights of a label store, read at one moment of it."""

    def __init__(self, store: LabelStore, source: Source, items: Sequence[Item], rows: Sequence[InputRow]) -> None:
        self.store = store
        """The label store."""
        self._source = source
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
        labeled = set(store.ids())
        skipped: set[str] = set()
        first_rows: dict[str, InputRow] = {}
        for row in store.inputs():
            if row.id in labeled:
                first_rows.setdefault(row.id, row)
                if row.uri in skip:
                    skipped.add(row.id)
        rows = sorted((row for id, row in first_rows.items() if id not in skipped), key=lambda row: row.uri)
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
            image = decode_image(data)
            label, weight = self.store.maps(row)
            if label.shape != image.shape[:2]:
                raise TrainingError(
                    f"the labels of {item.uri} are {label.shape[1]}x{label.shape[0]} px, the image is "
                    f"{image.shape[1]}x{image.shape[0]} px; label it again"
                )
            yield AnnotatedImage(image, label, weight)


class PlainImages(_SequentialReads):
    """Images without labels."""

    def __init__(self, source: Source, items: Sequence[Item], taxonomy: Taxonomy) -> None:
        self._source = source
        self._items = list(items)
        self._taxonomy = taxonomy
        self.uris: list[str] = [item.uri for item in self._items]
        """Names of the images, in order."""
        self.summary: SourceSummary = SourceSummary(images=len(self.uris), skipped=source.skipped)
        """Files that were used and passed over."""

    @classmethod
    def open(cls, spec: str | os.PathLike[str], taxonomy: Taxonomy, *, skip: Collection[str] = ()) -> PlainImages:
        """Open the images of a source (:func:`maskmill.engine.inputs.sources.open_source`) that are not in ``skip``."""
        source = open_source(spec)
        items = [item for item in source if item.uri not in skip]
        if not items:
            raise UsageError(f"{spec} holds no image besides the labeled ones")
        return cls(source, items, taxonomy)

    def read(self, index: int) -> AnnotatedImage:
        """Read one image; every pixel of its label map is the ignore index."""
        image = decode_image(self._source.read(self._items[index]))
        label = np.full(image.shape[:2], self._taxonomy.ignore_index, self._taxonomy.dtype)
        return AnnotatedImage(image, label, np.zeros(image.shape[:2], np.uint8))


def _located(items: Sequence[Item]) -> list[Item]:
    """Find the offsets of items inside archives, which a store does not keep."""
    archives = archives_of(item.uri for item in items)
    members = {member.uri: member for archive in archives for member in open_source(archive)}
    return [members.get(item.uri, item) for item in items]


class TrainingImages:
    """Map-style dataset from :class:`Draw` to augmented samples; see the module docstring.

    A sample holds tensors, C the crop's side: ``image`` (3, C, C) uint8 RGB; ``label`` (C, C) uint8, or int32 beyond
    255 classes; ``weight`` (C, C) uint8; and the names ``uri`` and ``stream``.

    A sample of the stream ``unlabeled`` holds ``real`` (C, C) bool, True on pixels that are not padding, instead of the
    maps. With ``views`` it also holds ``strong`` and ``second`` (3, C, C) uint8, two recolored forms of the image;
    ``box`` and
    ``second_box`` (4,) int64, their CutMix boxes; and ``cells`` bool (g, g), the cells of ``second`` that trusted mask
    perturbation masks, all False for an image without it. Labeled samples hold ``second`` and ``cells`` if the method
    masks labeled images. ``colors`` changes the colors of images with labels; ``padding`` is the color outside images.

    With ``weak`` a sample with a label also holds ``segments`` (C, C) int32, 0 on pixels without a segment, and
    ``present`` (K,) bool, the classes in the whole image.
    """

    def __init__(
        self,
        streams: Mapping[str, Sequence[Part]],
        *,
        crop: int,
        ignore: int,
        scale: tuple[float, float] = (1.0, 1.0),
        flip: float = 0.0,
        seed: int = 0,
        colors: Colors = "none",
        padding: Padding = "mean",
        views: Consistency | None = None,
        weak: WeakLabels | None = None,
    ) -> None:
        self._parts = {name: tuple(parts) for name, parts in streams.items()}
        self._ends = {name: list(accumulate(len(part.uris) for part in parts)) for name, parts in streams.items()}
        self._crop = crop
        self._scale = scale
        self._flip = flip
        self._ignore = ignore
        self._seed = seed
        self._colors: Colors = colors
        self._fill = augment.PADDING[padding]
        self._views = views
        self._weak = weak

    def sizes(self) -> dict[str, int]:
        """Return the number of images of each stream."""
        return {name: ends[-1] if ends else 0 for name, ends in self._ends.items()}

    def __getitem__(self, draw: Draw) -> dict[str, Any] | TrainingError:
        """Return the sample of a draw, or the error: an exception of a worker process would lose its message."""
        return self.__getitems__([draw])[-1]

    def __getitems__(self, draws: Sequence[Draw]) -> list[dict[str, Any] | TrainingError]:
        """Return the samples of the draws of a batch, up to and including the first error; see :meth:`__getitem__`."""
        places = [self._locate(draw) for draw in draws]
        parts = {id(part): part for part, _ in places}
        photos = {
            key: part.read_all([index for other, index in places if other is part]) for key, part in parts.items()
        }
        samples: list[dict[str, Any] | TrainingError] = []
        for draw, (part, index) in zip(draws, places, strict=True):
            try:
                samples.append(self._sample(draw, part.uris[index], next(photos[id(part)])))
            except MaskmillError as error:
                return [*samples, TrainingError(f"{part.uris[index]} cannot be trained on: {error}")]
        return samples

    def _locate(self, draw: Draw) -> tuple[Part, int]:
        ends = self._ends[draw.stream]
        number = bisect_right(ends, draw.image)
        return self._parts[draw.stream][number], draw.image - (ends[number - 1] if number else 0)

    def _sample(self, draw: Draw, uri: str, photo: AnnotatedImage) -> dict[str, Any]:
        torch = import_torch()
        rng = np.random.default_rng([self._seed, STREAMS.index(draw.stream), draw.position])
        move = augment.draw_move(rng, photo.image.shape[:2], crop=self._crop, scale=self._scale, flip=self._flip)
        image = augment.move_image(photo.image, move, self._fill)
        sample: dict[str, Any] = {"stream": draw.stream, "uri": uri}
        views, inside = self._views, augment.inside(move)
        if draw.stream != "unlabeled":
            label = augment.move_map(photo.label, move, self._ignore)
            weight = augment.move_map(photo.weight, move, 0)
            # int32 beyond 255 classes: PyTorch has few operations on uint16
            label = label if label.dtype == np.uint8 else label.astype(np.int32)
            sample |= {"label": torch.tensor(np.ascontiguousarray(label)), "weight": torch.tensor(weight.copy())}
            if self._weak is not None:
                segments, present = self._weak.read(uri, photo.label)
                moved = augment.move_map(segments, move, 0).astype(np.int32)
                sample |= {"segments": torch.tensor(moved), "present": torch.tensor(present)}
            if views is not None and views.masked_images != "unlabeled":
                sample |= self._second_view(image, inside, rng, views)
            if self._colors != "none":
                settings = augment.STRONG if self._colors == "strong" else augment.S2C
                image = self._recolor(image, inside, rng, settings)
            return sample | {"image": _planes(image)}
        sample |= {"image": _planes(image), "real": torch.tensor(inside.copy())}
        if views is not None:
            sample |= {
                "strong": _planes(self._recolor(image, inside, rng, augment.STRONG)),
                "box": torch.tensor(augment.draw_cutmix_box(rng, self._crop, views.cutmix)),
                **self._second_view(image, inside, rng, views),
                "second_box": torch.tensor(augment.draw_cutmix_box(rng, self._crop, views.cutmix)),
            }
        return sample

    def _second_view(
        self, image: NDArray[np.uint8], inside: NDArray[np.bool_], rng: np.random.Generator, views: Consistency
    ) -> dict[str, Any]:
        torch = import_torch()
        exact = views.mask_form == "supplement"
        masks = views.second_view == "masked" and (exact or rng.random() < views.cover_probability)
        cells = augment.draw_cells(rng, self._crop, cell=views.cell, cover=views.cover, floor=exact)
        settings = augment.MASKED[views.masked_colors] if masks else augment.STRONG
        second = image if settings is None else self._recolor(image, inside, rng, settings)
        return {"second": _planes(second), "cells": torch.tensor(cells & masks)}

    def _recolor(
        self, image: NDArray[np.uint8], inside: NDArray[np.bool_], rng: np.random.Generator, colors: ColorSettings
    ) -> NDArray[np.uint8]:
        """Change the colors of the image and leave its padding as it is."""
        return np.where(inside[..., None], augment.recolor(image, rng, colors), np.array(self._fill, np.uint8))


def _planes(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) → (3, H, W) tensor uint8."""
    return import_torch().tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
