"""From class activation maps to prompts: peaks, points and boxes as arrays.

A prompt is a set of points on one image; prompts of several images and classes lie in one padded array, so that a
decoder can take them together::

    prompts = prompts_of(cams, settings, scale=(4.0, 4.0))      # cams: (classes, rows, columns)
    masks, scores = decoder.run(embeddings, prompts)

Modes: ``points`` asks once a class, with all its peaks; ``peaks`` once a peak; ``box`` once for each part of the map
above a threshold, with the box around it; ``box+points`` the same with the peaks inside; ``best`` asks all of these.
Source of the peaks: S2C, class-specific point prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..errors import UsageError

POSITIVE, BOX_START, BOX_END, PADDING = 1.0, 2.0, 3.0, -1.0
"""Labels of points: on the object, a box's top left and bottom right corner, and no point at all."""

Mode = Literal["points", "peaks", "box", "box+points", "best"]
PeakMode = Literal["paper", "official"]

MODES: tuple[str, ...] = get_args(Mode)
PEAK_MODES: tuple[str, ...] = get_args(PeakMode)

_SMALLEST_PART = 0.05
"""Parts of a map that cover less of what is above the threshold get no box."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How maps become prompts."""

    mode: Mode = "points"
    """What is asked of the decoder; see the module's text."""
    peaks: PeakMode = "paper"
    """``paper``: peaks above ``tau``, none in a border of ``min_distance``, and the map's maximum; ``official``: as the
    authors of S2C coded it."""
    tau: float = 0.5
    """A peak exceeds this value of its map, whose maximum is 1."""
    min_distance: int | None = None
    """Pixels of the grid between peaks; 10 (``paper``) or 20 (``official``) where None. The grid is the decoder's, 256
    for SAM on the longer side."""
    max_peaks: int | None = None
    """Strongest peaks of a class that are used; all where None."""
    box_threshold: float = 0.4
    """A class is taken to be where its map exceeds this: its boxes, and what masks are compared with for agreement."""

    def __post_init__(self) -> None:
        for name, choices in (("mode", MODES), ("peaks", PEAK_MODES)):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 <= self.tau < 1 or not 0 <= self.box_threshold < 1:
            raise UsageError(f"tau and the box threshold lie in [0, 1), got {self.tau} and {self.box_threshold}")
        for name in ("min_distance", "max_peaks"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True, repr=False)
class Prompts:
    """N prompts of at most P points each."""

    image: NDArray[np.int64]
    """(N,): which image of the batch a prompt is on."""
    target: NDArray[np.int64]
    """(N,): the class it asks for."""
    group: NDArray[np.int64]
    """(N,): masks of one image, class and group are merged; of several groups of a class the best is taken."""
    points: NDArray[np.float32]
    """(N, P, 2): (x, y) in pixels of the encoder's input; 0 where padded."""
    labels: NDArray[np.float32]
    """(N, P): 1 on the object, 0 off it, 2 and 3 a box's corners, -1 padding, which comes last."""

    def __len__(self) -> int:
        return len(self.image)

    def __repr__(self) -> str:
        return f"Prompts({len(self)} of at most {self.labels.shape[1]} points)"

    @property
    def num_points(self) -> NDArray[np.int64]:
        """(N,): points of each prompt, padding not counted."""
        return (self.labels != PADDING).sum(axis=1)


def point_prompts(points: NDArray[Any], *, labels: NDArray[Any] | None = None, image: int = 0) -> Prompts:
    """Prompts on one image from points (N, P, 2), (x, y); all on the object where there are no labels (N, P)."""
    shape = points.shape[:2]
    return Prompts(
        image=np.full(shape[0], image, np.int64),
        target=np.zeros(shape[0], np.int64),
        group=np.zeros(shape[0], np.int64),
        points=np.asarray(points, np.float32),
        labels=np.full(shape, POSITIVE, np.float32) if labels is None else np.asarray(labels, np.float32),
    )


def grid_prompts(side: int, height: float, width: float) -> Prompts:
    """One point a prompt, in the middle of each of ``side`` times ``side`` cells over (height, width) pixels."""
    y, x = (np.arange(side) + 0.5) * height / side, (np.arange(side) + 0.5) * width / side
    return point_prompts(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 1, 2))


NO_PROMPTS = point_prompts(np.zeros((0, 1, 2)))
"""No prompt at all."""


def join_prompts(images: Sequence[Prompts]) -> Prompts:
    """Prompts of several images, each given as if it were alone, in one array, padded to the longest."""
    parts = [
        [np.full(len(part), index, np.int64), part.target, part.group, part.points, part.labels]
        for index, part in enumerate(images)
    ]
    return _concatenated(parts or [_fields(NO_PROMPTS)])


def prompts_of(
    cams: NDArray[np.float32], settings: PromptSettings, *, scale: tuple[float, float] = (1.0, 1.0)
) -> Prompts:
    """Prompts for one image from the maps of its classes, (classes, rows, columns) float32, maximum 1 or all 0.

    A class without a positive value is not asked for. ``scale`` is the size of a grid cell in pixels of the encoder's
    input, (vertical, horizontal); a peak lies in the middle of its cell. ``target`` counts the maps given.
    """
    present = np.flatnonzero(cams.max(axis=(1, 2), initial=0) > 0)
    if len(present) == 0:
        return NO_PROMPTS
    peaks, counts = find_peaks(cams[present], settings)
    modes = MODES[:-1] if settings.mode == "best" else (settings.mode,)
    parts = []
    for group, mode in enumerate(modes):
        if mode == "points":
            parts.append(_all_peaks(peaks, counts, group))
        elif mode == "peaks":
            parts.append(_each_peak(peaks, counts, group))
        else:
            parts.append(_boxes(cams[present], peaks, counts, settings, mode == "box+points", group))
    found = _concatenated(parts)
    steps = np.array([scale[1], scale[0]], np.float32)
    return Prompts(
        image=found.image,
        target=present[found.target],
        group=found.group,
        points=found.points * steps,
        labels=found.labels,
    )


def find_peaks(cams: NDArray[np.float32], settings: PromptSettings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Peaks of maps (n, rows, columns): (row, column) as (n, most, 2), -1 where there are fewer, and (n,) how many."""
    found = kernels.cam_peaks(
        cams,
        mode=settings.peaks,
        threshold=settings.tau,
        min_distance=settings.min_distance,
        always_argmax=True,
    )
    counts = found.count if settings.max_peaks is None else np.minimum(found.count, settings.max_peaks)
    most = int(counts.max(initial=0))
    peaks = np.where(np.arange(most)[None, :, None] < counts[:, None, None], found.coordinates[:, :most], -1)
    return peaks, counts


def _middles(peaks: NDArray[np.int64]) -> NDArray[np.float32]:
    """(row, column) → (x, y) of the cells' middles."""
    return peaks[..., ::-1].astype(np.float32) + 0.5


def _all_peaks(peaks: NDArray[np.int64], counts: NDArray[np.int64], group: int) -> list[NDArray[Any]]:
    inside = np.arange(peaks.shape[1]) < counts[:, None]
    return _part(
        np.arange(len(peaks)),
        group,
        np.where(inside[..., None], _middles(peaks), 0),
        np.where(inside, POSITIVE, PADDING),
    )


def _each_peak(peaks: NDArray[np.int64], counts: NDArray[np.int64], group: int) -> list[NDArray[Any]]:
    target, number = np.nonzero(np.arange(peaks.shape[1]) < counts[:, None])
    points = _middles(peaks[target, number])[:, None]
    return _part(target, group, points, np.full((len(target), 1), POSITIVE))


def _boxes(
    cams: NDArray[np.float32],
    peaks: NDArray[np.int64],
    counts: NDArray[np.int64],
    settings: PromptSettings,
    with_points: bool,
    group: int,
) -> list[NDArray[Any]]:
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
                inside.append(_middles(peaks[target, : counts[target]][of_peaks == number]))
    most = max(map(len, inside), default=0) if with_points else 0
    points = np.zeros((len(boxes), 2 + most, 2), np.float32)
    labels = np.full((len(boxes), 2 + most), PADDING)
    for row, (corners, on) in enumerate(zip(boxes, inside, strict=True)):
        points[row, :2], labels[row, :2] = corners, (BOX_START, BOX_END)
        if with_points:
            points[row, 2 : 2 + len(on)], labels[row, 2 : 2 + len(on)] = on, POSITIVE
    return _part(np.array(targets, np.int64), group, points, labels)


def _part(target: NDArray[Any], group: int, points: NDArray[Any], labels: NDArray[Any]) -> list[NDArray[Any]]:
    num = len(target)
    return [np.zeros(num, np.int64), target, np.full(num, group, np.int64), points, labels]


def _fields(prompts: Prompts) -> list[NDArray[Any]]:
    return [prompts.image, prompts.target, prompts.group, prompts.points, prompts.labels]


def _concatenated(parts: Sequence[list[NDArray[Any]]]) -> Prompts:
    """Parts, each (image, target, group, points, labels), one after the other and as wide as the widest."""
    width = max(part[4].shape[1] for part in parts)
    image, target, group = (np.concatenate([part[field] for part in parts]) for field in range(3))
    points, labels = (
        np.concatenate(
            [
                np.pad(
                    part[field],
                    [(0, 0), (0, width - part[field].shape[1])] + [(0, 0)] * (part[field].ndim - 2),
                    constant_values=value,
                )
                for part in parts
            ]
        )
        for field, value in ((3, 0.0), (4, PADDING))
    )
    return Prompts(
        image=image,
        target=target,
        group=group,
        points=np.asarray(points, np.float32),
        labels=np.asarray(labels, np.float32),
    )
