"""Resize and normalize an image on a device: two launches of ``cuda/pixels.cu``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..plans.pixels import axis_weights, check_resize
from ..types import Channels, Filter, Layout
from .device import DeviceArray, ceil_div, constant, contiguous, empty, launch, output

BLOCK = (32, 8)
"""Pixels of a block, columns and rows."""


def _tiles(height: int, width: int) -> tuple[int, int]:
    return ceil_div(width, BLOCK[0]), ceil_div(height, BLOCK[1])


def _taps(source: int, target: int, filter: Filter, antialias: bool) -> tuple[DeviceArray, DeviceArray, np.int32]:
    """Return first taps, weights and the number of weights on the device, from the tables of all forms."""
    first, weights = _tables(source, target, filter, antialias)
    return constant(first), constant(weights), np.int32(weights.shape[1])


@lru_cache(512)
def _tables(source: int, target: int, filter: Filter, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    first, weights = axis_weights(source, target, filter, antialias)
    return first.astype(np.int32), weights.astype(np.float32)


def resize_normalize(
    image: DeviceArray,
    size: tuple[int, int],
    *,
    filter: Filter = "bilinear",
    antialias: bool = True,
    scale: float,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    channels: Channels = "RGB",
    layout: Layout = "CHW",
    pad_to: tuple[int, int] | None = None,
    pad_value: float | Sequence[float] = 0,
    out: DeviceArray | None = None,
) -> DeviceArray:
    """Run :func:`maskmill.kernels.resize_normalize` on a CuPy array."""
    canvas = check_resize(size, pad_to, filter, antialias)
    height, width = (int(length) for length in size)
    image = contiguous(image, np.uint8)
    # x = pixel * factor + offset, one rounding less than (pixel * scale - mean) / std.
    scales, means, deviations, padding = (
        np.broadcast_to(np.asarray(v, np.float64), 3) for v in (scale, mean, std, pad_value)
    )
    affine = np.concatenate([scales / deviations, -means / deviations, (padding * scales - means) / deviations])

    source_height, source_width = image.shape[:2]
    rows = empty((source_height, width, 3), np.float32)
    launch(
        "pixels",
        "resize_columns",
        _tiles(source_height, width),
        BLOCK,
        (
            image,
            np.int32(source_height),
            np.int32(source_width),
            np.int32(width),
            *_taps(source_width, width, filter, antialias),
            np.bool_(antialias),
            rows,
        ),
    )
    result = output(out, (3, *canvas) if layout == "CHW" else (*canvas, 3), np.float32)
    launch(
        "pixels",
        "resize_rows_normalize",
        _tiles(*canvas),
        BLOCK,
        (
            rows,
            np.int32(height),
            np.int32(width),
            *_taps(source_height, height, filter, antialias),
            *map(np.int32, canvas),
            *affine.astype(np.float32),
            np.bool_(channels == "BGR"),
            np.bool_(layout == "HWC"),
            result,
        ),
    )
    return result
