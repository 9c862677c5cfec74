"""Argument checks and defaults of the peak kernels, shared by every form."""

from __future__ import annotations

import numpy as np

from ...errors import UsageError
from ..types import CamMode


def cam_distance(mode: CamMode, min_distance: int | None) -> int:
    """Return ``min_distance`` of ``cam_peaks``, or the mode's default if it is None.

    Raises:
        UsageError: the mode is unknown.
    """
    distances = {"paper": 10, "official": 20}
    if mode not in distances:
        raise UsageError(f"mode must be 'paper' or 'official', got {mode!r}")
    return distances[mode] if min_distance is None else min_distance


def border_widths(exclude_border: bool | int | tuple[int, int], min_distance: int) -> tuple[int, int]:
    """Return the numbers of rows and columns at each side in which no peak is reported.

    Raises:
        UsageError: a width is negative, the number of widths is not two, or min_distance is less than 1.
    """
    if min_distance < 1:
        raise UsageError(f"min_distance must be at least 1, got {min_distance}")
    if isinstance(exclude_border, (bool, np.bool_)):
        return (min_distance, min_distance) if exclude_border else (0, 0)
    widths = exclude_border if isinstance(exclude_border, tuple) else (exclude_border, exclude_border)
    if len(widths) != 2 or min(widths) < 0:
        raise UsageError(
            f"exclude_border must be a bool, a width >= 0 or a pair (rows, columns) of them, got {exclude_border!r}"
        )
    return int(widths[0]), int(widths[1])


def check_maps(shape: tuple[int, ...]) -> None:
    """Check that a shape is that of maps of at least one pixel.

    Raises:
        UsageError: the shape is not (H, W) or (N, H, W), or H or W is 0.
    """
    if len(shape) not in (2, 3) or min(shape[-2:]) < 1:
        raise UsageError(f"maps must be (H, W) or (N, H, W) with at least one pixel, got shape {shape}")
