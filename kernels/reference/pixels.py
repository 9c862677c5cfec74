"""Resize and normalize a photo for a model: the specification, in float64."""

from __future__ import annotations

import numpy as np

from ..plans.pixels import axis_weights, check_resize


def _resample(pixels, target, axis, filter, antialias):
    first, weights = axis_weights(pixels.shape[axis], target, filter, antialias)
    taken = np.take(pixels, first[:, None] + np.arange(weights.shape[1]), axis=axis)
    result = np.einsum("ytxc,yt->yxc" if axis == 0 else "yxtc,xt->yxc", taken, weights)
    # Pillow stores bytes after each axis, which cuts what the cubic overshoots. Across comes first, as in Pillow before
    # version 13, which goes down first where height shrinks more than width.
    return np.clip(result, 0, 255) if antialias else result


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
    """float32 (3, H, W) or (H, W, 3) of an HWC uint8 RGB photo, resized to ``size`` = (H, W).

    x = (pixel * scale - mean) / std; ``mean``, ``std`` and ``pad_value`` (in pixel units) are one number or three in
    the order of ``channels``. ``pad_to`` = (H, W) adds rows below and columns to the right. The filters are Pillow's
    BILINEAR, BICUBIC and BOX without rounding; without ``antialias``, OpenCV's INTER_LINEAR and INTER_CUBIC. What the
    cubic overshoots is cut to [0, 255].

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
