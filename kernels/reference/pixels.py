"""Resize and normalize an image for a model: the specification, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..plans.pixels import axis_weights, check_resize
from ..types import Channels, Filter, Layout


def _resample(pixels: np.ndarray, target: int, axis: int, filter: Filter, antialias: bool) -> np.ndarray:
    first, weights = axis_weights(pixels.shape[axis], target, filter, antialias)
    taps = np.take(pixels, first[:, None] + np.arange(weights.shape[1]), axis=axis)
    result = np.einsum("ytxc,yt->yxc" if axis == 0 else "yxtc,xt->yxc", taps, weights)
    # Pillow stores bytes after each axis, which clips the overshoot of the cubic filter. Columns come first, as in
    # Pillow before version 13; since then rows come first if the height shrinks more than the width.
    return np.clip(result, 0, 255) if antialias else result


def resize_normalize(
    image: np.ndarray,
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
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resize an HWC uint8 RGB image to ``size`` = (H, W) and normalize it: float32 (3, H, W) or (H, W, 3).

    x = (pixel * scale - mean) / std; ``mean``, ``std`` and ``pad_value`` (in pixel units) are one number or three in
    the order of ``channels``. ``pad_to`` = (H, W) adds rows below and columns to the right. The filters are Pillow's
    BILINEAR, BICUBIC and BOX without rounding; without ``antialias``, OpenCV's INTER_LINEAR and INTER_CUBIC. The
    overshoot of the cubic filter is clipped to [0, 255].

    Raises:
        UsageError: see :func:`check_resize`.
    """
    height, width = check_resize(size, pad_to, filter, antialias)
    pixels = np.asarray(image).astype(np.float64)
    pixels = _resample(pixels, size[1], 1, filter, antialias)
    pixels = np.clip(_resample(pixels, size[0], 0, filter, antialias), 0, 255)
    if channels == "BGR":
        pixels = pixels[..., ::-1]
    canvas = np.empty((height, width, 3))
    canvas[:] = pad_value
    canvas[: size[0], : size[1]] = pixels
    result = ((canvas * scale - np.asarray(mean)) / np.asarray(std)).astype(np.float32)
    if layout == "CHW":
        result = np.ascontiguousarray(result.transpose(2, 0, 1))
    if out is None:
        return result
    out[...] = result
    return out
