"""Resize and normalize a photo with Numba: rows are resized across as they are needed, then down the columns."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..plans.outputs import output
from ..plans.pixels import axis_weights, check_resize
from . import threads
from .compiled import compiled

_WORTH_THREADS = 1 << 20
"""Pixels, of the photo or of the result, below which starting threads costs more than it saves."""

_ZERO, _WHITE = np.float32(0), np.float32(255)


@compiled(error_model="numpy", fastmath={"contract"})
def _resize_row(pixels, first, weights, clip, wide, row):
    """One row of the photo, (width * 3,) uint8, resized across; ``wide`` is room for it as float32."""
    for i in range(pixels.size):
        wide[i] = pixels[i]
    for x in range(first.size):
        r, g, b = _ZERO, _ZERO, _ZERO
        at = 3 * first[x]
        for k in range(weights.shape[1]):
            w = weights[x, k]
            r += w * wide[at]
            g += w * wide[at + 1]
            b += w * wide[at + 2]
            at += 3
        row[3 * x], row[3 * x + 1], row[3 * x + 2] = r, g, b
    if clip:
        for i in range(row.size):
            row[i] = min(max(row[i], _ZERO), _WHITE)


@compiled(error_model="numpy", fastmath={"contract"})
def _blend_rows(rows, first, weights, blended):
    """Weighted sum of the rows first, first + 1, ... of the photo; row y is kept at y modulo their number."""
    blended[:] = _ZERO
    for k in range(weights.size):
        row, w = rows[(first + k) % rows.shape[0]], weights[k]
        for i in range(blended.size):
            blended[i] += w * row[i]
    for i in range(blended.size):
        blended[i] = min(max(blended[i], _ZERO), _WHITE)


@compiled(error_model="numpy", fastmath={"contract"})
def _resize(image, top, bottom, columns, column_weights, lines, line_weights, clip, gain, offset, out):
    """Rows top..bottom-1 of out (3, H, W): the photo (h, w * 3) resized, times gain, plus offset."""
    rows = np.empty((line_weights.shape[1], 3 * columns.size), np.float32)
    wide, blended = np.empty(image.shape[1], np.float32), np.empty(3 * columns.size, np.float32)
    ready = lines[top]
    for y in range(top, bottom):
        while ready < lines[y] + rows.shape[0]:
            # Rows that no later one reads either are passed over.
            if ready >= lines[y]:
                _resize_row(image[ready], columns, column_weights, clip, wide, rows[ready % rows.shape[0]])
            ready += 1
        _blend_rows(rows, lines[y], line_weights[y], blended)
        for c in range(3):
            for x in range(columns.size):
                out[c, y, x] = blended[3 * x + c] * gain[c] + offset[c]


@lru_cache(maxsize=64)
def _taps(source: int, target: int, filter: str, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    first, weights = axis_weights(source, target, filter, antialias)
    return first, weights.astype(np.float32)


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
    """As :func:`maskmill.kernels.resize_normalize`, for NumPy arrays."""
    height, width = check_resize(size, pad_to, filter, antialias)
    mean, std, pad_value = (np.broadcast_to(np.asarray(v, np.float64), 3) for v in (mean, std, pad_value))
    gain, offset = (scale / std).astype(np.float32), (-mean / std).astype(np.float32)
    result = output(out, (3, height, width) if layout == "CHW" else (height, width, 3), np.float32)
    planes = result if layout == "CHW" else result.transpose(2, 0, 1)
    if (height, width) != tuple(size):
        padding = ((pad_value * scale - mean) / std).astype(np.float32)[:, None, None]
        planes[:, size[0] :, :] = padding
        planes[:, : size[0], size[1] :] = padding
    if channels == "BGR":
        # The loops write channel by channel in the photo's order.
        planes, gain, offset = planes[::-1], gain[::-1], offset[::-1]
    photo = np.ascontiguousarray(image, np.uint8)
    arguments = (
        *_taps(photo.shape[1], size[1], filter, antialias),
        *_taps(photo.shape[0], size[0], filter, antialias),
        antialias and filter == "bicubic",
        gain.copy(),
        offset.copy(),
        planes,
    )
    photo = photo.reshape(photo.shape[0], -1)
    number = threads.num_threads(max(photo.size // 3, size[0] * size[1]), _WORTH_THREADS)
    cuts = [size[0] * i // number for i in range(number + 1)]
    threads.share(_resize, [(photo, *cut, *arguments) for cut in zip(cuts, cuts[1:], strict=False)], number)
    return result
