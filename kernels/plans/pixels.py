"""Argument checks and filter tables of ``resize_normalize``, shared by every form."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...checks import check_choice
from ...errors import UsageError
from ..types import Filter


@lru_cache(maxsize=64)
def axis_weights(source: int, target: int, filter: Filter, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Compute the resampling of one axis: first tap, int64 (target,), and weights, float64 (target, taps).

    With ``antialias``, as Pillow: the filter's support is scaled by source/target when shrinking (not when enlarging),
    taps outside the image are excluded and the other weights sum to 1. Without it, as OpenCV: two or four taps around
    the half-pixel position, taps outside the image read its edge; the cubic's parameter is -0.75 instead of -0.5.
    ``nearest`` reads the pixel that holds the half-pixel position, with or without it.
    """
    scale = source / target
    center = (np.arange(target) + 0.5) * scale
    if filter == "nearest":
        # summed in Pillow's order: its rounding decides positions halfway between two pixels
        center = np.cumsum(np.r_[scale * 0.5, np.full(target - 1, scale)])
        taps = np.minimum(np.floor(center).astype(np.int64), source - 1)[:, None]
        weights = np.ones((target, 1))
    elif antialias:
        support, shape = _SHAPES[filter]
        stretch = max(scale, 1.0)
        first = np.maximum((center - support * stretch + 0.5).astype(np.int64), 0)
        last = np.minimum((center + support * stretch + 0.5).astype(np.int64), source)
        taps = first[:, None] + np.arange((last - first).max())
        weights = shape((taps + 0.5 - center[:, None]) / stretch) * (taps < last[:, None])
        weights /= weights.sum(axis=1, keepdims=True)
    else:
        radius = {"bilinear": 1, "bicubic": 2}[filter]
        taps = np.floor(center - 0.5).astype(np.int64)[:, None] + np.arange(1 - radius, 1 + radius)
        distance = taps + 0.5 - center[:, None]
        weights = _triangle(distance) if filter == "bilinear" else _cubic(distance, -0.75)
    # The same number of taps for every pixel, all inside the image: an outside tap's weight goes to the edge.
    width = min(taps.shape[1], source)
    first = np.clip(taps[:, 0], 0, source - width)
    inside = np.clip(taps, 0, source - 1) - first[:, None]
    sums = np.zeros((target, width))
    np.add.at(sums, (np.arange(target)[:, None], inside), weights)
    first.flags.writeable = sums.flags.writeable = False
    return first, sums


def check_resize(
    size: tuple[int, int], pad_to: tuple[int, int] | None, filter: Filter, antialias: bool
) -> tuple[int, int]:
    """Check the options of ``resize_normalize`` and return (H, W) of the result.

    Raises:
        UsageError: an unknown filter, area or lanczos without antialias, an empty size, or ``pad_to`` smaller than
            ``size``.
    """
    check_choice("filter", filter, Filter)
    if filter in ("area", "lanczos") and not antialias:
        raise UsageError(f"the {filter} filter needs antialias: pass antialias=True")
    height, width = size if pad_to is None else pad_to
    if min(size) < 1 or height < size[0] or width < size[1]:
        raise UsageError(f"size {tuple(size)} must be at least 1 x 1 and fit into pad_to, got {pad_to}")
    return int(height), int(width)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Evaluate Keys' cubic convolution kernel."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


OVERSHOOTS = ("bicubic", "lanczos")
"""Filters whose result can leave the range of the pixels they read."""

_SHAPES = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, lambda x: _cubic(x, -0.5)),
    "lanczos": (3.0, lambda x: np.sinc(x) * np.sinc(x / 3) * (np.abs(x) < 3)),
    "area": (0.5, _box),
}
