"""Convert class activation maps to prompts: peaks, points and boxes as arrays.

A prompt is a set of points on one image; prompts of several images and classes share one padded array, so that a
decoder can process them together::

    prompts = prompts_of([cams], settings, scale=(4.0, 4.0))    # cams: (classes, rows, columns), one per image
    masks, scores = decoder.run(embeddings, join_prompts(prompts))

Maps, peaks and points are on one device (:mod:`maskmill.engine.backends.base`). The number of prompts and points is
needed on the host, so the counts of peaks are downloaded from a device, but not the peaks.

Modes: ``points`` is one prompt per class, with all its peaks; ``peaks`` one per peak; ``box`` one for each part of the
map above a threshold, with the box around it; ``box+points`` the same with the peaks inside; ``best`` all of these;
``single-box`` one box per class, around all parts that hold a peak; ``mask`` the map above a threshold as a mask,
without a point.
Source of the peaks: S2C, class-specific point prompts; of ``mask`` and ``single-box``: S2C's supplement, §1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from .... import kernels
from ....checks import check_choice, check_count, check_number
from ....kernels.types import BackendArray
from ...backends.base import Backend
from ...backends.host import HOST

POSITIVE, BOX_START, BOX_END, PADDING = 1.0, 2.0, 3.0, -1.0
"""Labels of points: on the object, a box's top left and bottom right corner, and padding."""

Mode = Literal["points", "peaks", "box", "box+points", "best", "single-box", "mask"]
PeakMode = Literal["paper", "official"]

MASK_LOGIT = 10.0
"""Magnitude of the logits of a mask prompt: positive inside, negative outside."""

_SMALLEST_PART = 0.05
"""Smallest share of the cells above the threshold that a part of a map needs to get a box."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Settings of the conversion from maps to prompts."""

    mode: Mode = "points"
    """Prompts that the decoder receives; see the module's text."""
    peaks: PeakMode = "paper"
    """``paper``: peaks above ``tau``, none in a border of ``min_distance``; ``official``: as in S2C's code."""
    maximum: bool = False
    """Add a map's maximum if it is not among its peaks, so that every class has a prompt; the paper does not."""
    tau: float = 0.5
    """A peak exceeds this value of its map, whose maximum is 1."""
    min_distance: int | None = None
    """Distance of peaks in cells of the decoder's grid (256 on the longer side for SAM); 10 (``paper``) or 20
    (``official``) if None."""
    max_peaks: int | None = None
    """Number of peaks used per class, strongest first; all if None."""
    box_threshold: float = 0.4
    """Map value above which a cell belongs to the class, for boxes and for the agreement of masks with maps."""

    def __post_init__(self) -> None:
        for name, kind in (("mode", Mode), ("peaks", PeakMode)):
            check_choice(name, getattr(self, name), kind)
        for name in ("tau", "box_threshold"):
            check_number(name, getattr(self, name), least=0, below=1)
        for name in ("min_distance", "max_peaks"):
            if (value := getattr(self, name)) is not None:
                check_count(name, value, least=1)


@dataclass(frozen=True, kw_only=True, repr=False)
class Prompts:
    """N prompts of at most P points each. All arrays are on the host, except points of maps that are on a device."""

    image: NDArray[np.int64]
    """(N,): index of the prompt's image in the batch."""
    target: NDArray[np.int64]
    """(N,): index of the prompt's class."""
    group: NDArray[np.int64]
    """(N,): masks of one image, class and group are merged; if a class has several groups, the best is used."""
    points: Any
    """(N, P, 2) float32: (x, y) in pixels of the encoder's input; 0 for padding."""
    labels: NDArray[np.float32]
    """(N, P): 1 on the object, 0 off it, 2 and 3 a box's corners, -1 padding, which comes last."""
    masks: Any = None
    """(N, rows, columns) float32 logits on the decoder's grid, with the points; 0 everywhere for a prompt without a
    mask. None: no prompt has one."""

    def __len__(self) -> int:
        return len(self.image)

    def __repr__(self) -> str:
        return f"Prompts({len(self)} of at most {self.labels.shape[1]} points)"

    @property
    def num_points(self) -> NDArray[np.int64]:
        """(N,): points of each prompt, padding not counted."""
        return (self.labels != PADDING).sum(axis=1)


def point_prompts(points: Any, *, labels: NDArray[Any] | None = None, image: int = 0) -> Prompts:
    """Make prompts on one image from points (N, P, 2), (x, y); all are on the object without ``labels`` (N, P)."""
    shape = points.shape[:2]
    return Prompts(
        image=np.full(shape[0], image, np.int64),
        target=np.zeros(shape[0], np.int64),
        group=np.zeros(shape[0], np.int64),
        points=points.astype(np.float32, copy=False),
        labels=np.full(shape, POSITIVE, np.float32) if labels is None else np.asarray(labels, np.float32),
    )


def grid_prompts(side: int, height: float, width: float, xp: Any = np) -> Prompts:
    """Make prompts of one point each, at the centers of ``side`` times ``side`` cells over (height, width) pixels.

    ``xp`` is the library of the points.
    """
    y, x = (np.arange(side) + 0.5) * height / side, (np.arange(side) + 0.5) * width / side
    return point_prompts(xp.asarray(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 1, 2)))


NO_PROMPTS = point_prompts(np.zeros((0, 1, 2)))
"""Empty prompts; can be joined with those of any backend."""


def join_prompts(images: Sequence[Prompts], xp: Any = np) -> Prompts:
    """Join the prompts of several images, each numbered from 0, in one array padded to the longest.

    ``xp`` is the library of the points.
    """
    parts = [
        [np.full(len(part), index, np.int64), part.target, part.group, part.points, part.labels, part.masks]
        for index, part in enumerate(images)
    ]
    return _concatenated(parts, xp)


def prompts_of(
    images: Sequence[Any],
    settings: PromptSettings,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    grid: tuple[int, int] | None = None,
    backend: Backend = HOST,
) -> list[Prompts]:
    """Make prompts for each image from the maps of its classes, (classes, rows, columns) float32, maximum 1 or all 0.

    A class without a positive value gets no prompt. ``scale`` is the size of a grid cell in pixels of the encoder's
    input, (vertical, horizontal); a peak is at the center of its cell. ``target`` is the index of the map. ``grid`` are
    the rows and columns of a mask prompt, of which the maps cover the first; those of the maps if None.

    ``backend`` holds maps and points. The number of peaks per map is downloaded once for all images; modes with boxes
    download maps and peaks as well, since OpenCV finds a map's parts.
    """
    prompts = [NO_PROMPTS for _ in images]
    indices = [index for index, cams in enumerate(images) if len(cams)]
    if not indices:
        return prompts
    modes = ("points", "peaks", "box", "box+points") if settings.mode == "best" else (settings.mode,)
    with_boxes = any("box" in mode for mode in modes)
    peaks_of = [find_peaks(images[index], settings, backend.xp) for index in indices]
    requests = [
        (counts, images[index], peaks) if with_boxes else (counts,)
        for index, (peaks, counts) in zip(indices, peaks_of, strict=True)
    ]
    downloads = iter(backend.download(*chain.from_iterable(requests)))
    for index, (peaks, _), request in zip(indices, peaks_of, requests, strict=True):
        peak_arrays = [next(downloads) for _ in request]
        prompts[index] = _image_prompts(peaks, *peak_arrays, settings=settings, modes=modes, scale=scale, xp=backend.xp)
        if modes == ("mask",) and len(prompts[index]):
            above = images[index] > settings.box_threshold
            masks = mask_logits(above, grid or tuple(above.shape[1:]), backend.xp)
            prompts[index] = replace(prompts[index], masks=masks[backend.xp.asarray(prompts[index].target)])
    return prompts


def find_peaks(cams: Any, settings: PromptSettings, xp: Any = np) -> tuple[Any, Any]:
    """Find peaks of maps (n, rows, columns), n > 0: (row, column) as (n, room, 2), strongest first, and counts (n,).

    ``xp`` is the library of maps and peaks. A map without a positive value has none.
    """
    positive = cams.max(axis=(1, 2)) > 0
    peaks = kernels.cam_peaks(
        xp.where(positive[:, None, None], cams, np.float32(0)),  # peaks of NaN are refused
        mode=settings.peaks,
        threshold=settings.tau,
        min_distance=settings.min_distance,
        always_argmax=settings.maximum,
    )
    counts = peaks.count if settings.max_peaks is None else xp.minimum(peaks.count, settings.max_peaks)
    return peaks.coordinates, xp.where(positive, counts, np.int64(0))


def _image_prompts(
    peaks: Any,
    counts: NDArray[np.int64],
    cams: NDArray[np.float32] | None = None,
    known_peaks: NDArray[np.int64] | None = None,
    *,
    settings: PromptSettings,
    modes: Sequence[str],
    scale: tuple[float, float],
    xp: Any,
) -> Prompts:
    """Make prompts for one image from its maps' peaks; for boxes, ``cams`` and ``known_peaks`` are on the host."""
    present = np.flatnonzero(counts)
    if len(present) == 0:
        return NO_PROMPTS
    counts = counts[present]
    peaks = peaks[xp.asarray(present), : int(counts.max())]
    parts = []
    for group, mode in enumerate(modes):
        if mode == "points":
            parts.append(_all_peaks(peaks, counts, group, xp))
        elif mode == "peaks":
            parts.append(_each_peak(peaks, counts, group, xp))
        elif mode == "mask":
            nowhere = np.full((len(counts), 1), PADDING)
            parts.append(_part(np.arange(len(counts)), group, xp.zeros((len(counts), 1, 2), np.float32), nowhere))
        else:
            assert cams is not None, "downloaded for boxes"
            assert known_peaks is not None, "downloaded for boxes"
            if mode == "single-box":
                parts.append(_single_boxes(cams[present], known_peaks[present], counts, settings, group, xp))
                continue
            with_points = mode == "box+points"
            parts.append(_boxes(cams[present], known_peaks[present], counts, settings, with_points, group, xp))
    prompts = _concatenated(parts, xp)
    steps = np.array([scale[1], scale[0]], np.float32)
    return replace(prompts, target=present[prompts.target], points=prompts.points * xp.asarray(steps))


def _centers(peaks: Any) -> BackendArray:
    """Convert (row, column) to (x, y) of the cells' centers, float32."""
    return peaks[..., ::-1].astype(np.float32) + np.float32(0.5)


def _all_peaks(peaks: Any, counts: NDArray[np.int64], group: int, xp: Any) -> list[Any]:
    inside = np.arange(peaks.shape[1]) < counts[:, None]
    points = xp.where(xp.asarray(inside[..., None]), _centers(peaks), np.float32(0))
    return _part(np.arange(len(counts)), group, points, np.where(inside, POSITIVE, PADDING))


def _each_peak(peaks: Any, counts: NDArray[np.int64], group: int, xp: Any) -> list[Any]:
    target, number = np.nonzero(np.arange(peaks.shape[1]) < counts[:, None])
    points = _centers(peaks[xp.asarray(target), xp.asarray(number)])[:, None]
    return _part(target, group, points, np.full((len(target), 1), POSITIVE))


def _boxes(
    cams: NDArray[np.float32],
    peaks: NDArray[np.int64],
    counts: NDArray[np.int64],
    settings: PromptSettings,
    with_points: bool,
    group: int,
    xp: Any,
) -> list[Any]:
    targets, boxes, inside = [], [], []
    for target, cam in enumerate(cams):
        above = (cam > settings.box_threshold).astype(np.uint8)
        _, parts, statistics, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
        smallest = _SMALLEST_PART * int(above.sum())
        of_peaks = parts[tuple(np.moveaxis(peaks[target, : counts[target]], -1, 0))]
        for number, (left, top, width, height, area) in enumerate(statistics[1:], start=1):
            if area >= smallest:
                targets.append(target)
                boxes.append(((left, top), (left + width, top + height)))
                inside.append(_centers(peaks[target, : counts[target]][of_peaks == number]))
    longest = max(map(len, inside), default=0) if with_points else 0
    points = np.zeros((len(boxes), 2 + longest, 2), np.float32)
    labels = np.full((len(boxes), 2 + longest), PADDING)
    for row, (corners, on) in enumerate(zip(boxes, inside, strict=True)):
        points[row, :2], labels[row, :2] = corners, (BOX_START, BOX_END)
        if with_points:
            points[row, 2 : 2 + len(on)], labels[row, 2 : 2 + len(on)] = on, POSITIVE
    return _part(np.array(targets, np.int64), group, xp.asarray(points), labels)


def _single_boxes(
    cams: NDArray[np.float32],
    peaks: NDArray[np.int64],
    counts: NDArray[np.int64],
    settings: PromptSettings,
    group: int,
    xp: Any,
) -> list[Any]:
    """Make one box per class: around all parts of its map that hold a peak, and around the peaks outside of parts."""
    points = np.zeros((len(cams), 2, 2), np.float32)
    for target, cam in enumerate(cams):
        inside = peaks[target, : counts[target]]
        _, parts = cv2.connectedComponents((cam > settings.box_threshold).astype(np.uint8), connectivity=8)
        numbers = parts[tuple(inside.T)]
        cells = np.concatenate([np.argwhere(np.isin(parts, numbers[numbers > 0])), inside])
        points[target] = cells.min(axis=0)[::-1], cells.max(axis=0)[::-1] + 1
    labels = np.tile(np.array([BOX_START, BOX_END]), (len(cams), 1))
    return _part(np.arange(len(cams)), group, xp.asarray(points), labels)


def _part(target: NDArray[Any], group: int, points: Any, labels: NDArray[Any]) -> list[Any]:
    num = len(target)
    return [np.zeros(num, np.int64), target, np.full(num, group, np.int64), points, labels, None]


def mask_logits(inside: Any, grid: tuple[int, ...], xp: Any = np) -> BackendArray:
    """Make mask prompts (N, rows, columns) float32 of masks (N, h, w), bool, that cover the first cells of ``grid``."""
    logits = xp.full((len(inside), *grid), np.float32(-MASK_LOGIT), np.float32)
    logits[:, : inside.shape[1], : inside.shape[2]] = xp.where(inside, np.float32(MASK_LOGIT), np.float32(-MASK_LOGIT))
    return logits


def _concatenated(parts: Sequence[list[Any]], xp: Any) -> Prompts:
    """Concatenate parts, each (image, target, group, points, labels, masks), padded to the widest."""
    parts = [part for part in parts if len(part[0])]
    if not parts:
        return NO_PROMPTS
    width = max(part[4].shape[1] for part in parts)
    spare = [width - part[4].shape[1] for part in parts]
    image, target, group = (np.concatenate([part[field] for part in parts]) for field in range(3))
    points = [xp.pad(part[3], ((0, 0), (0, more), (0, 0))) for part, more in zip(parts, spare, strict=True)]
    labels = [
        np.pad(part[4], ((0, 0), (0, more)), constant_values=PADDING) for part, more in zip(parts, spare, strict=True)
    ]
    return Prompts(
        image=image,
        target=target,
        group=group,
        points=xp.concatenate(points),
        labels=np.concatenate(labels).astype(np.float32),
        # all parts come from the same settings, so either all have masks or none
        masks=None if parts[0][5] is None else xp.concatenate([part[5] for part in parts]),
    )
