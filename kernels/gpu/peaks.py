"""Local maxima on a device: ``cuda/peaks.cu``. A map that holds NaN has no peaks: refusing it would wait."""

from __future__ import annotations

import numpy as np

from ...errors import UsageError
from ..plans.peaks import border_widths, cam_distance
from ..types import Peaks
from .device import NULL, ceil_div, contiguous, empty, launch, output, zeros

BLOCK = (32, 8)
"""Pixels of a block, columns and rows."""

SELECT_THREADS = 512

PLAIN, APPEND_MAXIMUM, OFFICIAL = 0, 1, 2
"""As peaks.cu's PeakMode."""

ANY_NUMBER = 2**62


def _tiles(maps) -> tuple[int, int, int]:
    count, height, width = maps.shape
    return ceil_div(width, BLOCK[0]), ceil_div(height, BLOCK[1]), count


def _extremes(maps):
    """uint64 (N, 2): largest value with its first pixel, and the smallest, of each map."""
    count, height, width = maps.shape
    extremes = zeros((count, 2), np.uint64)
    parts = min(ceil_div(height * width, 256 * 8), 256)
    launch("peaks", "map_extremes", (parts, count), (256,), (maps, np.int64(height * width), extremes))
    return extremes


def _maps(maps):
    """float32 (N, H, W) in C order."""
    maps = contiguous(maps, np.float32)
    if not 0 < maps.shape[-2] * maps.shape[-1] < 2**32:
        raise UsageError(f"maps must have from 1 to 2**32 - 1 pixels, got {maps.shape[-2:]}")
    return maps.reshape((-1, *maps.shape[-2:]))


def _select(
    maps,
    *,
    distance,
    border,
    threshold_abs=None,
    threshold_rel=None,
    num_peaks=None,
    mode=PLAIN,
    unfiltered=None,
    keep_above=0.0,
    capacity=None,
    out=None,
) -> Peaks:
    """Peaks of (N, H, W) maps; ``unfiltered``: what OFFICIAL made the maps from."""
    count, height, width = maps.shape
    rows, columns = (max(length - 2 * edge, 0) for length, edge in zip((height, width), border, strict=True))
    # Peaks are min_distance apart, so a square of that side holds one at most.
    most = ceil_div(rows, distance) * ceil_div(columns, distance)
    if capacity is None and out is not None:
        capacity = out.coordinates.shape[1]
    elif capacity is None:
        capacity = most if num_peaks is None else min(most, num_peaks)
        capacity += mode != PLAIN
    words = ceil_div(width, 32)
    extremes = _extremes(maps)
    candidates = empty((count, height, words), np.uint32)
    launch(
        "peaks",
        "peak_candidates",
        _tiles(maps),
        BLOCK,
        (
            maps,
            extremes,
            np.int32(height),
            np.int32(width),
            np.int32(distance),
            np.bool_(threshold_abs is not None),
            np.float32(threshold_abs or 0),
            np.bool_(threshold_rel is not None),
            np.float32(threshold_rel or 0),
            *map(np.int32, border),
            candidates,
        ),
    )
    coordinates = output(getattr(out, "coordinates", None), (count, capacity, 2), np.int64, "out.coordinates")
    peaks = output(getattr(out, "count", None), (count,), np.int64, "out.count")
    overflow = output(getattr(out, "overflow", None), (count,), np.bool_, "out.overflow")
    launch(
        "peaks",
        "select_peaks",
        (count,),
        (SELECT_THREADS,),
        (
            maps,
            candidates,
            empty((4, *candidates.shape), np.uint32) if distance > 1 else NULL,
            empty((count, max(most, 1)), np.uint64),
            np.int64(max(most, 1)),
            NULL if unfiltered is None else unfiltered,
            extremes if unfiltered is None else _extremes(unfiltered),
            np.float32(keep_above),
            np.int32(mode),
            np.int64(count),
            np.int32(height),
            np.int32(width),
            np.int32(distance),
            np.int64(ANY_NUMBER if num_peaks is None else num_peaks),
            np.int64(capacity),
            coordinates,
            peaks,
            overflow,
        ),
    )
    return Peaks(coordinates, peaks, overflow)


def peak_local_max(
    maps,
    *,
    min_distance=1,
    threshold_abs=None,
    threshold_rel=None,
    exclude_border=True,
    num_peaks=None,
    capacity=None,
    out=None,
) -> Peaks:
    """As :func:`maskmill.kernels.peak_local_max`, for CuPy arrays.

    Without a capacity there is room for as many peaks as can be ``min_distance`` apart.
    """
    return _select(
        _maps(maps),
        distance=min_distance,
        border=border_widths(exclude_border, min_distance),
        threshold_abs=threshold_abs,
        threshold_rel=threshold_rel,
        num_peaks=None if num_peaks is None else int(num_peaks),
        capacity=capacity,
        out=out,
    )


def cam_peaks(cams, *, mode="paper", threshold=0.5, min_distance=None, always_argmax=False, capacity=256) -> Peaks:
    """As :func:`maskmill.kernels.cam_peaks`, for CuPy arrays."""
    distance = cam_distance(mode, min_distance)
    cams, border = _maps(cams), border_widths(True, distance)
    if mode == "paper":
        return _select(
            cams,
            distance=distance,
            border=border,
            threshold_abs=threshold,
            mode=APPEND_MAXIMUM if always_argmax else PLAIN,
            capacity=capacity,
        )
    filtered = empty(cams.shape, np.float32)
    arguments = (cams, filtered, *map(np.int32, cams.shape[1:]))
    launch("peaks", "zero_padded_maximum", _tiles(cams), BLOCK, arguments)
    return _select(
        filtered,
        distance=distance,
        border=border,
        mode=OFFICIAL,
        unfiltered=cams,
        keep_above=threshold,
        capacity=capacity,
    )
