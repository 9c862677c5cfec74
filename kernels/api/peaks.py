"""Public functions ``peak_local_max`` and ``cam_peaks``."""

from __future__ import annotations

from ..arrays import dispatch
from ..types import ArrayT, CamMode, Peaks


def peak_local_max(
    maps: ArrayT,
    *,
    min_distance: int = 1,
    threshold_abs: float | None = None,
    threshold_rel: float | None = None,
    exclude_border: bool | int | tuple[int, int] = True,
    num_peaks: int | None = None,
    capacity: int | None = None,
    out: Peaks[ArrayT] | None = None,
) -> Peaks[ArrayT]:
    """Find the local maxima of maps, identical to scikit-image 0.26 in coordinates, order and count.

    Args:
        maps: (N, H, W) or (H, W) floating point without NaN.
        min_distance: smallest distance between peaks, in pixels (Chebyshev).
        threshold_abs: value that a peak must exceed. Default: the minimum of the map.
        threshold_rel: share of the map's maximum that a peak must exceed.
        exclude_border: width in pixels of the border without peaks; True means ``min_distance``.
        num_peaks: largest number of peaks to keep per map.
        capacity: peaks that the result holds per map; further peaks set ``overflow``. Default: enough for all.
        out: arrays to fill.

    Raises:
        UsageError: an option is out of range, a map is empty, or (on a CPU) a map holds NaN.
    """
    return dispatch(
        "peak_local_max",
        maps,
        min_distance=min_distance,
        threshold_abs=threshold_abs,
        threshold_rel=threshold_rel,
        exclude_border=exclude_border,
        num_peaks=num_peaks,
        capacity=capacity,
        out=out,
    )


def cam_peaks(
    cams: ArrayT,
    *,
    mode: CamMode = "paper",
    threshold: float = 0.5,
    min_distance: int | None = None,
    always_argmax: bool = False,
    capacity: int = 256,
) -> Peaks[ArrayT]:
    """Find point prompts in class activation maps, as S2C does.

    Args:
        cams: float32 (N, H, W) or (H, W).
        mode: ``paper`` or ``official`` (the authors' code).
        threshold: value that a peak must exceed.
        min_distance: smallest distance between peaks, in pixels. Default: 10 in paper mode, 20 in official mode.
        always_argmax: append the map's maximum if it is not among the peaks (paper mode).
        capacity: peaks that the result holds per map.

    Raises:
        UsageError: the mode is unknown, a map is empty, or (on a CPU) a map holds NaN.

    Source: S2C, class-specific point prompts.
    """
    return dispatch(
        "cam_peaks",
        cams,
        mode=mode,
        threshold=threshold,
        min_distance=min_distance,
        always_argmax=always_argmax,
        capacity=capacity,
    )
