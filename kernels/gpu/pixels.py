"""Resize and normalize a photo on a device: two launches of ``cuda/pixels.cu``."""

from __future__ import annotations

import numpy as np

from ..plans.pixels import axis_weights, check_resize
from .device import ceil_div, contiguous, empty, launch, output, upload

BLOCK = (32, 8)
"""Pixels of a block, columns and rows."""


def _tiles(height: int, width: int) -> tuple[int, int]:
    return ceil_div(width, BLOCK[0]), ceil_div(height, BLOCK[1])


def _taps(source: int, target: int, filter: str, antialias: bool):
    """First taps, weights and their number on the device, from the tables that every form resamples with."""
    first, weights = axis_weights(source, target, filter, antialias)
    on_device = upload(first.astype(np.int32)), upload(weights.astype(np.float32))
    return (*on_device, np.int32(weights.shape[1]))


def resize_normalize(
    image,
    size,
    *,
    filter="bilinear",
    antialias=True,
    scale,
    mean,
    std,
    channels="RGB",
    layout="CHW",
    pad_to=None,
    pad_value=0,
    out=None,
):
    """As :func:`maskmill.kernels.resize_normalize`, for CuPy arrays."""
    canvas = check_resize(size, pad_to, filter, antialias)
    height, width = (int(length) for length in size)
    image = contiguous(image, np.uint8)
    # x = pixel * factor + offset, a rounding less than (pixel * scale - mean) / std.
    scale, mean, std, padding = (np.broadcast_to(np.asarray(v, np.float64), 3) for v in (scale, mean, std, pad_value))
    affine = np.concatenate([scale / std, -mean / std, (padding * scale - mean) / std]).astype(np.float32)

    source_height, source_width = image.shape[:2]
    resized = empty((source_height, width, 3), np.float32)
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
            resized,
        ),
    )
    result = output(out, (3, *canvas) if layout == "CHW" else (*canvas, 3), np.float32)
    launch(
        "pixels",
        "resize_rows_normalize",
        _tiles(*canvas),
        BLOCK,
        (
            resized,
            np.int32(height),
            np.int32(width),
            *_taps(source_height, height, filter, antialias),
            *map(np.int32, canvas),
            *affine,
            np.bool_(channels == "BGR"),
            np.bool_(layout == "HWC"),
            result,
        ),
    )
    return result
