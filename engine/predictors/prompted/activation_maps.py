"""Compute class activation maps: summed over scales and mirror images on one grid, each scaled by its maximum.

::

    cams = CamModel(bundle, session, scales=(1.0, 1.5), flip=True)
    activations = cams.run([cams.prepare(image)])[0]
    maps = activations.on_grid((256, 171), (256, 170.7), classes=[0, 2])      # (2, 256, 171) float32 in [0, 1]

As S2C: each map is resampled bilinearly, negative values are dropped, the maps of all scales and of the mirrored image
are summed, and a class's sum is divided by its maximum (plus 1e-5).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....errors import SessionError, UsageError
from ....kernels.types import BackendArray
from ...backends.base import Backend
from ...backends.host import HOST
from ...model.bundle import Bundle, InputSpec
from ...runtimes.base import Session
from ..resampling import bilinear_weights

_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class CamInput:
    """One preprocessed image for the classifier."""

    tensors: tuple[Any, ...]
    """One tensor per scale, each followed by its mirrored version if requested: float32, without the batch axis, on
    the model's backend."""
    covers: tuple[tuple[float, float], ...]
    """Shares of each tensor's height and width that the image covers."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Cams:
    """Activation maps and class probabilities of one image."""

    maps: tuple[Any, ...]
    """Class activation maps, one per tensor, each (C, h, w) as the model returns them, on ``backend``."""
    covers: tuple[tuple[float, float], ...]
    """As :attr:`CamInput.covers`."""
    flipped: tuple[bool, ...]
    """True for maps of the mirrored image."""
    probabilities: Any
    """(C,) float32: probability of each class, averaged over scales, on ``backend``."""
    backend: Backend = HOST
    """Device that holds the maps."""

    def zero_or_nan(self) -> BackendArray:
        """Return 0 if probabilities and maps are finite, else NaN: a float32 scalar on ``backend``."""
        xp = self.backend.xp
        finite = xp.isfinite(self.probabilities).all()
        for maps in self.maps:
            finite &= xp.isfinite(maps).all()
        return xp.where(finite, np.float32(0), np.float32(np.nan))

    def on_grid(self, size: tuple[int, int], extent: tuple[float, float], classes: Sequence[int]) -> BackendArray:
        """Resample the maps of some classes to a grid: (len(classes), rows, columns) float32 in [0, 1], on ``backend``.

        The map of a class without a positive value is 0. The grid has ``size`` = (rows, columns) unit cells, of which
        the image covers the first ``extent``, a real number of rows and columns.
        """
        xp = self.backend.xp
        total = xp.zeros((len(classes), *size), np.float32)
        if not len(classes):
            return total
        indices = xp.asarray(np.array(classes, np.int64))
        for maps, covers, flipped in zip(self.maps, self.covers, self.flipped, strict=True):
            rows = bilinear_weights(size[0], extent[0], maps.shape[1], covers[0])
            columns = bilinear_weights(size[1], extent[1], maps.shape[2], covers[1], mirrored=flipped)
            resampled = xp.asarray(rows) @ xp.asarray(maps[indices], np.float32) @ xp.asarray(columns).T
            total += xp.maximum(resampled, 0)
        return total / (total.max(axis=(1, 2), keepdims=True) + _EPSILON)


class CamModel:
    """Runs a ``cam`` bundle.

    Parameters
    ----------
    bundle, session
        The classifier; with scales other than 1 its session must accept other input sizes than the bundle's.
    scales
        Input sizes as multiples of the bundle's own.
    flip
        Also compute the maps of the mirrored image.
    backend
        Device that holds images and maps; the session must accept its arrays.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = True,
        backend: Backend = HOST,
    ) -> None:
        if bundle.task != "cam":
            raise UsageError(f"{bundle.location} is a {bundle.task} bundle; activation maps need a cam one")
        if not scales or min(scales) <= 0:
            raise UsageError(f"scales must be positive numbers, at least one, got {tuple(scales)}")
        kinds = [output.kind for output in bundle.outputs]
        if "cam" not in kinds or "logits" not in kinds:
            raise UsageError(f"{bundle.location} returns {', '.join(kinds)}; a cam bundle returns cam and logits")
        self.bundle = bundle
        self.session = session
        self.flip = flip
        self.backend = backend
        self.scales: tuple[float, ...] = tuple(scales)
        self._specs = [self._spec(scale) for scale in scales]
        self._cam, self._logits = kinds.index("cam"), kinds.index("logits")

    def _spec(self, scale: float) -> InputSpec:
        spec = self.bundle.input
        if scale == 1.0:
            return spec
        height, width = (
            max(spec.multiple, round(length * scale / spec.multiple) * spec.multiple)
            for length in (spec.height, spec.width)
        )
        return self.bundle.at_size(height, width).input

    def prepare(self, image: Any) -> CamInput:
        """Resize and normalize an HWC uint8 RGB image, which is on the model's backend, at every scale."""
        tensors, covers = [], []
        views = (image, image[:, ::-1]) if self.flip else (image,)
        for spec in self._specs:
            for view in views:
                tensor, covered = self.backend.preprocess(view, spec)
                tensors.append(tensor)
                covers.append(covered)
        return CamInput(tensors=tuple(tensors), covers=tuple(covers))

    def run(self, prepared: Sequence[CamInput], batch: int = 1) -> list[Cams]:
        """Compute the maps of prepared images, at most ``batch`` of one size per call of the session."""
        views = 2 if self.flip else 1
        maps: list[list[Any]] = [[] for _ in prepared]
        logits: list[list[Any]] = [[] for _ in prepared]
        for number in range(len(self._specs)):
            sized = [
                (index, tensor)
                for index, image in enumerate(prepared)
                for tensor in image.tensors[number * views : (number + 1) * views]
            ]
            limit = self.session.max_batch or max(batch, 1) * views
            for start in range(0, len(sized), limit):
                chunk = sized[start : start + limit]
                for (index, _), cam, logit in zip(chunk, *self._call([tensor for _, tensor in chunk]), strict=True):
                    maps[index].append(cam)
                    logits[index].append(logit)
        return [
            Cams(
                maps=tuple(maps[index]),
                covers=image.covers,
                flipped=(False, True)[:views] * len(self._specs),
                probabilities=self._probabilities(logits[index]),
                backend=self.backend,
            )
            for index, image in enumerate(prepared)
        ]

    def _call(self, tensors: list[Any]) -> tuple[Any, Any]:
        num, xp = len(tensors), self.backend.xp
        if (fixed := self.session.max_batch) and num < fixed:
            tensors = tensors + [xp.zeros(tensors[0].shape, np.float32)] * (fixed - num)
        outputs = self.session.run(xp.stack(tensors))
        cams, logits = outputs[self._cam], outputs[self._logits]
        classes = len(self.bundle.classes)
        axis = self.bundle.outputs[self._cam].class_axis
        if cams.ndim != 4 or cams.shape[axis] != classes or logits.shape[1:] != (classes,):
            raise SessionError(
                f"the classifier returned maps {tuple(cams.shape)} with logits {tuple(logits.shape)}; "
                f"its bundle has {classes} classes"
            )
        return (xp.moveaxis(cams, 3, 1) if axis == 3 else cams)[:num], logits[:num]

    def _probabilities(self, logits: list[Any]) -> BackendArray:
        xp = self.backend.xp
        values = xp.stack(logits).astype(np.float64)
        if self.bundle.outputs[self._logits].activation == "softmax":
            values = xp.exp(values - values.max(axis=1, keepdims=True))
            values /= values.sum(axis=1, keepdims=True)
        elif self.bundle.outputs[self._logits].activation == "sigmoid":
            values = 1 / (1 + xp.exp(-xp.clip(values, -80, 80)))
        return values.mean(axis=0).astype(np.float32)


def scored_bundle(cam: Bundle) -> Bundle:
    """Return the bundle with the classes of its score maps: a cam bundle gets a background in front if it has none."""
    if cam.task != "cam" or cam.background is not None:
        return cam
    return dataclasses.replace(cam, classes=("background", *cam.classes), background=0)
