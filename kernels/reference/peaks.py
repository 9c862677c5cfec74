"""Local maxima of maps, as scikit-image 0.26 finds them, and the point prompts of S2C: the specification."""

from __future__ import annotations

import numpy as np

from ...errors import UsageError
from ..plans.peaks import border_widths, cam_distance, check_maps
from ..types import CamMode, Peaks


def threshold_of(values: np.ndarray, threshold_abs: float | None, threshold_rel: float | None) -> np.float32:
    """Return the value that a peak must exceed: the larger of the absolute and the relative threshold."""
    threshold = values.min() if threshold_abs is None else np.float32(threshold_abs)
    if threshold_rel is not None:
        relative = np.float32(threshold_rel) * values.max()
        # Not maximum(): 0 times an infinite maximum is NaN, which must not win.
        threshold = relative if relative > threshold else threshold
    return threshold


def _window_max(values: np.ndarray, radius: int) -> np.ndarray:
    """Compute the maximum over the (2 radius + 1)² window around each pixel, clipped to the map."""
    padded = np.pad(values, radius, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=0).max(-1)
    return np.lib.stride_tricks.sliding_window_view(windows, 2 * radius + 1, axis=1).max(-1)


def _peaks_of_map(
    values: np.ndarray,
    min_distance: int,
    threshold_abs: float | None,
    threshold_rel: float | None,
    border: tuple[int, int],
    num_peaks: int | None,
) -> np.ndarray:
    """Return all peaks of one map, int64 (count, 2), strongest first."""
    candidate = np.ones(values.shape, bool)
    if values.size > 1:
        candidate = values == _window_max(values, min_distance)
        if candidate.all():
            return np.empty((0, 2), np.int64)
    candidate &= values > threshold_of(values, threshold_abs, threshold_rel)
    inside = np.zeros(values.shape, bool)
    inside[border[0] : max(values.shape[0] - border[0], 0), border[1] : max(values.shape[1] - border[1], 0)] = True
    points = np.argwhere(candidate & inside)
    points = points[np.argsort(-values[points[:, 0], points[:, 1]], kind="stable")]
    accepted: list[np.ndarray] = []
    for point in points:
        if all(np.abs(point - other).max() >= min_distance for other in accepted):
            accepted.append(point)
    return np.array(accepted[:num_peaks], np.int64).reshape(-1, 2)


def _buffer(peaks: list[np.ndarray], capacity: int | None, out: Peaks[np.ndarray] | None) -> Peaks[np.ndarray]:
    """Write the peaks of each map to a buffer of fixed capacity (default: that of ``out``, or enough for all)."""
    if capacity is None:
        capacity = int(max(map(len, peaks), default=0) if out is None else out.coordinates.shape[1])
    coordinates = np.full((len(peaks), capacity, 2), -1, np.int64)
    for row, points in zip(coordinates, peaks, strict=True):
        row[: len(points)] = points[:capacity]
    total = np.array([len(points) for points in peaks], np.int64)
    result: Peaks[np.ndarray] = Peaks(coordinates, np.minimum(total, capacity), total > capacity)
    if out is None:
        return result
    for name in ("coordinates", "count", "overflow"):
        getattr(out, name)[...] = getattr(result, name)
    return out


def _batch(maps: np.ndarray) -> np.ndarray:
    maps = np.asarray(maps, np.float32)
    check_maps(maps.shape)
    maps = maps.reshape((-1, *maps.shape[-2:]))
    has_nan = np.isnan(maps).any(axis=(1, 2))
    if has_nan.any():
        raise UsageError(f"map {int(np.argmax(has_nan))} holds NaN; peaks are defined on numbers and infinities only")
    return maps


def peak_local_max(
    maps: np.ndarray,
    *,
    min_distance: int = 1,
    threshold_abs: float | None = None,
    threshold_rel: float | None = None,
    exclude_border: bool | int | tuple[int, int] = True,
    num_peaks: int | None = None,
    capacity: int | None = None,
    out: Peaks[np.ndarray] | None = None,
) -> Peaks[np.ndarray]:
    """Find local maxima of float32 maps (N, H, W) or (H, W), as scikit-image 0.26's ``peak_local_max``.

    A peak equals the maximum of the (2 min_distance + 1)² window around it, clipped to the map, and exceeds both
    thresholds (absolute, by default the map's minimum; relative to its maximum). A constant map has no peaks. Peaks in
    the border suppress their neighbors but are not reported. Order: value descending, then raster order; in that order,
    a peak closer than min_distance (Chebyshev) to an accepted one is dropped; then the first ``num_peaks`` are kept.

    Raises:
        UsageError: a map holds NaN.
    """
    border = border_widths(exclude_border, min_distance)
    peaks = [
        _peaks_of_map(values, min_distance, threshold_abs, threshold_rel, border, num_peaks) for values in _batch(maps)
    ]
    return _buffer(peaks, capacity, out)


def cam_peaks(
    cams: np.ndarray,
    *,
    mode: CamMode = "paper",
    threshold: float = 0.5,
    min_distance: int | None = None,
    always_argmax: bool = False,
    capacity: int = 256,
) -> Peaks[np.ndarray]:
    """Find point prompts in class activation maps (N, H, W) or (H, W), as S2C (Kweon et al.).

    ``paper``: :func:`peak_local_max` with threshold_abs = ``threshold`` and a border of min_distance;
    ``always_argmax`` appends the map's first maximum if it is not among the peaks. ``official``, as the authors' code:
    peaks of the map after a 3x3 maximum filter with a border of zeros, kept if the unfiltered map exceeds
    ``threshold``; the map's first maximum replaces the first of them (or is the only peak if there is none).

    Raises:
        UsageError: a map holds NaN, or the mode is unknown.
    """
    distance = cam_distance(mode, min_distance)
    border = border_widths(True, distance)
    peaks = []
    for values in _batch(cams):
        argmax = np.array(np.unravel_index(np.argmax(values), values.shape), np.int64)[None]
        if mode == "paper":
            points = _peaks_of_map(values, distance, threshold, None, border, None)
            if always_argmax and not (points == argmax).all(axis=1).any():
                points = np.concatenate([points, argmax])
        else:
            filtered = _window_max(np.pad(values, 1), 1)[1:-1, 1:-1]
            points = _peaks_of_map(filtered, distance, None, None, border, None)
            points = points[values[points[:, 0], points[:, 1]] > np.float32(threshold)]
            points = np.concatenate([argmax, points[1:]])
        peaks.append(points)
    return _buffer(peaks, capacity, None)
