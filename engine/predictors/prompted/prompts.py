"""From class activation maps to prompts: peaks, points and boxes as arrays.

A prompt is a set of points on one image; prompts of several images and classes lie in one padded array, so that a
decoder can take them together::

    asked = prompts_of([cams], settings, scale=(4.0, 4.0))      # cams: (classes, rows, columns), one an image
    masks, scores = decoder.run(embeddings, join_prompts(asked))

Maps, peaks and points lie in one place, the host or a device (:mod:`maskmill.engine.backends.base`). How many prompts
of how
many points there are is known on the host: the counts of peaks come down from a device, the peaks themselves do not.

Modes: ``points`` asks once a class, with all its peaks; ``peaks`` once a peak; ``box`` once for each part of the map
above a threshold, with the box around it; ``box+points`` the same with the peaks inside; ``best`` asks all of these.
Source of the peaks: S2C, class-specific point prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from .... import kernels
from ....errors import UsageError
from ...backends.base import Backend
from ...backends.host import HOST

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
    """N prompts of at most P points each. All arrays lie on the host, but the points of maps on a device lie there."""

    image: NDArray[np.int64]
    """(N,): which image of the batch a prompt is on."""
    target: NDArray[np.int64]
    """(N,): the class it asks for."""
    group: NDArray[np.int64]
    """(N,): masks of one image, class and group are merged; of several groups of a class the best is taken."""
    points: Any
    """(N, P, 2) float32: (x, y) in pixels of the encoder's input; 0 where padded."""
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


def point_prompts(points: Any, *, labels: NDArray[Any] | None = None, image: int = 0) -> Prompts:
    """Prompts on one image from points (N, P, 2), (x, y); all on the object where there are no labels (N, P)."""
    shape = points.shape[:2]
    return Prompts(
        image=np.full(shape[0], image, np.int64),
        target=np.zeros(shape[0], np.int64),
        group=np.zeros(shape[0], np.int64),
        points=points.astype(np.float32, copy=False),
        labels=np.full(shape, POSITIVE, np.float32) if labels is None else np.asarray(labels, np.float32),
    )


def grid_prompts(side: int, height: float, width: float, xp: Any = np) -> Prompts:
    """One point a prompt, in the middle of each of ``side`` times ``side`` cells over (height, width) pixels.

    ``xp`` is the library of the points.
    """
    y, x = (np.arange(side) + 0.5) * height / side, (np.arange(side) + 0.5) * width / side
    return point_prompts(xp.asarray(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 1, 2)))


NO_PROMPTS = point_prompts(np.zeros((0, 1, 2)))
"""No prompt at all; may be joined with those of any backend."""


def join_prompts(images: Sequence[Prompts], xp: Any = np) -> Prompts:
    """Prompts of several images, each given as if it were alone, in one array, padded to the longest.

    ``xp`` is the library of the points.
    """
    parts = [
        [np.full(len(part), index, np.int64), part.target, part.group, part.points, part.labels]
        for index, part in enumerate(images)
    ]
    return _concatenated(parts, xp)


def prompts_of(
    images: Sequence[Any],
    settings: PromptSettings,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    backend: Backend = HOST,
) -> list[Prompts]:
    """Prompts for each image from the maps of its classes, (classes, rows, columns) float32, maximum 1 or all 0.

    A class without a positive value is not asked for. ``scale`` is the size of a grid cell in pixels of the encoder's
    input, (vertical, horizontal); a peak lies in the middle of its cell. ``target`` counts the maps given.

    ``backend`` is where the maps lie and the points will. What comes down from a device, once for all images, is how
    many
    peaks each map has; for modes with boxes maps and peaks come down as well, since OpenCV finds a map's parts.
    """
    asked = [NO_PROMPTS for _ in images]
    shown = [index for index, cams in enumerate(images) if len(cams)]
    if not shown:
        return asked
    modes = MODES[:-1] if settings.mode == "best" else (settings.mode,)
    with_boxes = any(mode.startswith("box") for mode in modes)
    found = [find_peaks(images[index], settings, backend.xp) for index in shown]
    wanted = [
        (counts, images[index], peaks) if with_boxes else (counts,)
        for index, (peaks, counts) in zip(shown, found, strict=True)
    ]
    down = iter(backend.download(*chain.from_iterable(wanted)))
    for index, (peaks, _), one in zip(shown, found, wanted, strict=True):
        known = [next(down) for _ in one]
        asked[index] = _asked(peaks, *known, settings=settings, modes=modes, scale=scale, xp=backend.xp)
    return asked


def find_peaks(cams: Any, settings: PromptSettings, xp: Any = np) -> tuple[Any, Any]:
    """Peaks of maps (n, rows, columns), n > 0: (row, column) as (n, room, 2), the strongest first, and (n,) how many.

    They lie where the maps do; ``xp`` is their library. A map without a positive value has none.
    """
    positive = cams.max(axis=(1, 2)) > 0
    found = kernels.cam_peaks(
        xp.where(positive[:, None, None], cams, np.float32(0)),  # peaks of NaN are refused
        mode=settings.peaks,
        threshold=settings.tau,
        min_distance=settings.min_distance,
        always_argmax=True,
    )
    counts = found.count if settings.max_peaks is None else xp.minimum(found.count, settings.max_peaks)
    return found.coordinates, xp.where(positive, counts, np.int64(0))


def _asked(
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
    """Prompts for one image from the peaks of its maps; ``cams`` and ``known_peaks`` are given for boxes."""
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
        else:
            assert cams is not None, "brought down for boxes"
            assert known_peaks is not None, "brought down for boxes"
            with_points = mode == "box+points"
            parts.append(_boxes(cams[present], known_peaks[present], counts, settings, with_points, group, xp))
    found = _concatenated(parts, xp)
    steps = np.array([scale[1], scale[0]], np.float32)
    return replace(found, target=present[found.target], points=found.points * xp.asarray(steps))


def _middles(peaks: Any) -> Any:
    """(row, column) → (x, y) of the cells' middles, float32."""
    return peaks[..., ::-1].astype(np.float32) + np.float32(0.5)


def _all_peaks(peaks: Any, counts: NDArray[np.int64], group: int, xp: Any) -> list[Any]:
    inside = np.arange(peaks.shape[1]) < counts[:, None]
    points = xp.where(xp.asarray(inside[..., None]), _middles(peaks), np.float32(0))
    return _part(np.arange(len(counts)), group, points, np.where(inside, POSITIVE, PADDING))


def _each_peak(peaks: Any, counts: NDArray[np.int64], group: int, xp: Any) -> list[Any]:
    target, number = np.nonzero(np.arange(peaks.shape[1]) < counts[:, None])
    points = _middles(peaks[xp.asarray(target), xp.asarray(number)])[:, None]
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
                inside.append(_middles(peaks[target, : counts[target]][of_peaks == number]))
    most = max(map(len, inside), default=0) if with_points else 0
    points = np.zeros((len(boxes), 2 + most, 2), np.float32)
    labels = np.full((len(boxes), 2 + most), PADDING)
    for row, (corners, on) in enumerate(zip(boxes, inside, strict=True)):
        points[row, :2], labels[row, :2] = corners, (BOX_START, BOX_END)
        if with_points:
            points[row, 2 : 2 + len(on)], labels[row, 2 : 2 + len(on)] = on, POSITIVE
    return _part(np.array(targets, np.int64), group, xp.asarray(points), labels)


def _part(target: NDArray[Any], group: int, points: Any, labels: NDArray[Any]) -> list[Any]:
    num = len(target)
    return [np.zeros(num, np.int64), target, np.full(num, group, np.int64), points, labels]


def _concatenated(parts: Sequence[list[Any]], xp: Any) -> Prompts:
    """Parts, each (image, target, group, points, labels), one after the other and as wide as the widest."""
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
    )
