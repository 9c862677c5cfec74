"""Resize and normalize a photo for a model: the specification, in float64."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...errors import UsageError


def _triangle(x):
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x, a):
    """Keys' cubic convolution kernel."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _box(x):
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


_SHAPES = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, lambda x: _cubic(x, -0.5)),
    "area": (0.5, _box),
}


@lru_cache(maxsize=64)
def axis_weights(source: int, target: int, filter: str, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """First tap, int64 (target,), and weights, float64 (target, taps), of the resampling of one axis.

    With ``antialias`` as Pillow: the filter's support is scaled by source/target when shrinking (never when enlarging),
    taps outside the photo are left out and the rest sum to 1. Without it as OpenCV: two or four taps around the
    half-pixel position, taps outside the photo read its edge; the cubic's parameter is -0.75 instead of -0.5.
    """
    scale = source / target
    center = (np.arange(target) + 0.5) * scale
    if antialias:
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
    # As many taps for every pixel, all inside the photo: the weight of a tap beyond an edge goes to the edge.
    width = min(taps.shape[1], source)
    first = np.clip(taps[:, 0], 0, source - width)
    inside = np.clip(taps, 0, source - 1) - first[:, None]
    folded = np.zeros((target, width))
    np.add.at(folded, (np.arange(target)[:, None], inside), weights)
    first.flags.writeable = folded.flags.writeable = False
    return first, folded


def check_resize(size, pad_to, filter: str, antialias: bool) -> tuple[int, int]:
    """(H, W) of the result.

    Raises:
        UsageError: an unknown filter, area without antialias, an empty size, or ``pad_to`` smaller than ``size``.
    """
    if filter not in _SHAPES:
        raise UsageError(f"filter must be one of {', '.join(_SHAPES)}, got {filter!r}")
    if filter == "area" and not antialias:
        raise UsageError("the area filter averages: it cannot be had without antialias")
    height, width = size if pad_to is None else pad_to
    if min(size) < 1 or height < size[0] or width < size[1]:
        raise UsageError(f"size {tuple(size)} must be at least 1 x 1 and fit in pad_to, got {pad_to}")
    return int(height), int(width)


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
