"""Local maxima on a device: ``cuda/peaks.cu``. A map with NaN has no peaks, since an error would need a sync."""

from __future__ import annotations

import numpy as np

from ...errors import UsageError
from ..plans.peaks import border_widths, cam_distance
from ..types import CamMode, Peaks
from .device import NULL, DeviceArray, ceil_div, contiguous, empty, launch, output, zeros

BLOCK = (32, 8)
"""Pixels of a block, columns and rows."""

SETTLE_THREADS, SELECT_THREADS = 256, 512

PLAIN, APPEND_MAXIMUM, OFFICIAL = 0, 1, 2
"""As peaks.cu's PeakMode."""

ANY_NUMBER = 2**62


def _tiles(maps: DeviceArray) -> tuple[int, int, int]:
    count, height, width = maps.shape
    return ceil_div(width, BLOCK[0]), ceil_div(height, BLOCK[1]), count


def _extremes(maps: DeviceArray) -> DeviceArray:
    """Find the largest value with its first pixel, and the smallest, of each map: uint64 (N, 2)."""
    count, height, width = maps.shape
    extremes = zeros((count, 2), np.uint64)
    parts = min(ceil_div(height * width, 256 * 8), 256)
    launch("peaks", "map_extremes", (parts, count), (256,), (maps, np.int64(height * width), extremes))
    return extremes


def _maps(maps: DeviceArray) -> DeviceArray:
    """Return the maps as float32 (N, H, W) in C order."""
    maps = contiguous(maps, np.float32)
    if not 0 < maps.shape[-2] * maps.shape[-1] < 2**32:
        raise UsageError(f"maps must have from 1 to 2**32 - 1 pixels, got {maps.shape[-2:]}")
    return maps.reshape((-1, *maps.shape[-2:]))


def _select(
    maps: DeviceArray,
    *,
    distance: int,
    border: tuple[int, int],
    threshold_abs: float | None = None,
    threshold_rel: float | None = None,
    num_peaks: int | None = None,
    mode: int = PLAIN,
    unfiltered: DeviceArray | None = None,
    keep_above: float = 0.0,
    capacity: int | None = None,
    out: Peaks[DeviceArray] | None = None,
) -> Peaks[DeviceArray]:
    """Find the peaks of (N, H, W) maps; ``unfiltered``: maps before the filter of OFFICIAL."""
    count, height, width = maps.shape
    rows, columns = (max(length - 2 * edge, 0) for length, edge in zip((height, width), border, strict=True))
    # Peaks are min_distance apart, so a square of that side holds one at most.
    max_peaks = ceil_div(rows, distance) * ceil_div(columns, distance)
    if capacity is None and out is not None:
        capacity = out.coordinates.shape[1]
    elif capacity is None:
        capacity = max_peaks if num_peaks is None else min(max_peaks, num_peaks)
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
    unfiltered_maps = NULL if unfiltered is None else unfiltered
    keys, key_capacity = empty((count, max(max_peaks, 1)), np.uint64), np.int64(max(max_peaks, 1))
    num_keys, unsettled = zeros(count, np.uint32), zeros(count, np.uint32)
    launch(
        "peaks",
        "settle_peaks",
        (ceil_div(height * words, SETTLE_THREADS), count),
        (SETTLE_THREADS,),
        (
            maps,
            candidates,
            unfiltered_maps,
            np.float32(keep_above),
            *map(np.int32, (height, width, distance)),
            keys,
            key_capacity,
            num_keys,
            unsettled,
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
            keys,
            key_capacity,
            num_keys,
            unsettled,
            unfiltered_maps,
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
    maps: DeviceArray,
    *,
    min_distance: int = 1,
    threshold_abs: float | None = None,
    threshold_rel: float | None = None,
    exclude_border: bool | int | tuple[int, int] = True,
    num_peaks: int | None = None,
    capacity: int | None = None,
    out: Peaks[DeviceArray] | None = None,
) -> Peaks[DeviceArray]:
    """Run :func:`maskmill.kernels.peak_local_max` on CuPy arrays.

    The default capacity is the largest number of peaks that can be ``min_distance`` apart.
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


def cam_peaks(
    cams: DeviceArray,
    *,
    mode: CamMode = "paper",
    threshold: float = 0.5,
    min_distance: int | None = None,
    always_argmax: bool = False,
    capacity: int = 256,
) -> Peaks[DeviceArray]:
    """Run :func:`maskmill.kernels.cam_peaks` on CuPy arrays."""
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
