"""Training images: labeled folders, label stores and plain images, as one map-style dataset.

::

    labeled = LabeledImages.open("labeled", taxonomy)          # labeled/images, labeled/labels
    stored = StoredImages.open("labels", skip=set(labeled.uris))
    data = TrainingImages({"union": (labeled, stored)}, crop=256, ignore=taxonomy.ignore_index)
    sample = data[Draw("union", 3, 17)]

A sample depends only on the seed of the recipe and on its draw, not on the process that makes it. Datasets hold no open
file: they pickle to worker processes, which open the stores when they first read. Lance and Numba's threads do not
survive ``fork``; :func:`maskmill.trainer.data.loading.open_loader` starts workers otherwise.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import MaskmillError, TrainingError
from ..methods import Consistency
from ..recipes import Colors, Padding, Scaling
from ..run import import_torch
from . import augment
from .augment import ColorSettings
from .bands import Normalization
from .parts import AnnotatedImage, Part
from .weak_labels import WeakLabels

if TYPE_CHECKING:
    from torch import Tensor

STREAMS = ("union", "labeled", "stored", "unlabeled", "partners")
"""Names of the lists of images that a step draws from. A stream's position in this tuple is part of its draws' seed."""


class Draw(NamedTuple):
    """One sample of a step."""

    stream: str
    """One of :data:`STREAMS`."""
    image: int
    """Number of the image in the stream."""
    position: int
    """Number of the draw, counted over the whole run: the seed of its augmentation."""


class TrainingImages:
    """Map-style dataset from :class:`Draw` to augmented samples; see the module docstring.

    A sample holds tensors, C the crop's side: ``image`` (3, C, C) uint8 RGB, or (bands, C, C) float32; ``label`` (C, C)
    uint8, or int32 beyond 255 classes; ``weight`` (C, C) uint8; and the names ``uri`` and ``stream``.

    A sample of the streams ``unlabeled`` and ``partners`` holds ``real`` (C, C) bool, True on pixels that are not
    padding, instead of the maps. With ``views`` it also holds ``strong`` and ``second`` (3, C, C) uint8, two recolored
    forms of the image; ``box`` and ``second_box`` (4,) int64, their CutMix boxes; and ``cells`` bool (g, g), the cells
    of ``second`` that trusted mask perturbation masks, all False for an image without it. Labeled samples hold
    ``second`` and ``cells`` if the method masks labeled images. ``colors`` changes the colors of images with labels;
    ``padding`` is the color outside images.

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
        scaling: Scaling = "factor",
        flip: float = 0.0,
        seed: int = 0,
        colors: Colors = "none",
        padding: Padding = "mean",
        views: Consistency | None = None,
        weak: WeakLabels | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        self._parts = {name: tuple(parts) for name, parts in streams.items()}
        self._ends = {name: list(accumulate(len(part.uris) for part in parts)) for name, parts in streams.items()}
        self._crop = crop
        self._scale = scale
        self._scaling: Scaling = scaling
        self._flip = flip
        self._ignore = ignore
        self._seed = seed
        self._colors: Colors = colors
        self._fill: tuple[float, ...] = augment.PADDING[padding]
        self._bands = normalization is not None
        if normalization is not None:
            self._fill = normalization.mean if padding == "mean" else (0.0,) * len(normalization.mean)
        self._views = views
        self._weak = weak

    def sizes(self) -> dict[str, int]:
        """Return the number of images of each stream."""
        return {name: ends[-1] if ends else 0 for name, ends in self._ends.items()}

    def __getitem__(self, draw: Draw) -> dict[str, Any] | TrainingError:
        """Return the sample of a draw, or its error, since an exception of a worker process would lose its message."""
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
        move = augment.draw_move(
            rng, photo.image.shape[:2], crop=self._crop, scale=self._scale, flip=self._flip, scaling=self._scaling
        )
        # bands are resized without rounding, as in prediction
        pixels = photo.image.astype(np.float32) if self._bands else photo.image
        image = augment.move_image(pixels, move, self._fill)
        sample: dict[str, Any] = {"stream": draw.stream, "uri": uri}
        views, inside = self._views, augment.inside(move)
        if draw.stream not in ("unlabeled", "partners"):
            label = augment.move_map(photo.label, move, self._ignore)
            weight = augment.move_map(photo.weight, move, 0)
            # int32 beyond 255 classes: PyTorch has few operations on uint16
            label = label if label.dtype == np.uint8 else label.astype(np.int32)
            sample |= {"label": torch.tensor(np.ascontiguousarray(label)), "weight": torch.tensor(weight.copy())}
            if self._weak is not None:
                segments, class_flags = self._weak.read(uri, photo.label)
                segment_map = augment.move_map(segments, move, 0).astype(np.int32)
                sample |= {"segments": torch.tensor(segment_map), "present": torch.tensor(class_flags)}
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
        self, image: NDArray[Any], inside: NDArray[np.bool_], rng: np.random.Generator, views: Consistency
    ) -> dict[str, Any]:
        torch = import_torch()
        has_supplement = views.mask_form == "supplement"
        masks = views.second_view == "masked" and (has_supplement or rng.random() < views.cover_probability)
        cells = augment.draw_cells(rng, self._crop, cell=views.cell, cover=views.cover, floor=has_supplement)
        settings = augment.MASKED[views.masked_colors] if masks else augment.STRONG
        second = image if settings is None else self._recolor(image, inside, rng, settings)
        return {"second": _planes(second), "cells": torch.tensor(cells & masks)}

    def _recolor(
        self, image: NDArray[Any], inside: NDArray[np.bool_], rng: np.random.Generator, colors: ColorSettings
    ) -> NDArray[Any]:
        """Change the colors of the image but not of its padding."""
        recolored = augment.recolor_bands(image, rng, colors) if self._bands else augment.recolor(image, rng, colors)
        return np.where(inside[..., None], recolored, np.array(self._fill, image.dtype))


def _planes(image: NDArray[Any]) -> Tensor:
    """Convert (H, W, C) to a (C, H, W) tensor of the same type."""
    return import_torch().tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
