"""Resize and normalize an image with Numba: rows are resized horizontally as needed, then vertically."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ..plans.outputs import output
from ..plans.pixels import OVERSHOOTS, axis_weights, check_resize
from ..types import Channels, Filter, Layout
from . import threads
from .compiled import compiled

_WORTH_THREADS = 1 << 20
"""Pixels, of the image or of the result, below which starting threads costs more than it saves."""

_ZERO, _WHITE = np.float32(0), np.float32(255)


@compiled(error_model="numpy", fastmath={"contract"})
def _resize_row(pixels, first, weights, clip, float_row, row):
    """Resize one row of the image, (width * 3,) uint8, horizontally; ``float_row`` is a float32 buffer of its size."""
    for i in range(pixels.size):
        float_row[i] = pixels[i]
    for x in range(first.size):
        r, g, b = _ZERO, _ZERO, _ZERO
        at = 3 * first[x]
        for k in range(weights.shape[1]):
            w = weights[x, k]
            r += w * float_row[at]
            g += w * float_row[at + 1]
            b += w * float_row[at + 2]
            at += 3
        row[3 * x], row[3 * x + 1], row[3 * x + 2] = r, g, b
    if clip:
        for i in range(row.size):
            row[i] = min(max(row[i], _ZERO), _WHITE)


@compiled(error_model="numpy", fastmath={"contract"})
def _blend_rows(rows, first, weights, blended):
    """Compute the weighted sum of rows first, first + 1, ... of the image; row y is stored at y modulo their number."""
    blended[:] = _ZERO
    for k in range(weights.size):
        row, w = rows[(first + k) % rows.shape[0]], weights[k]
        for i in range(blended.size):
            blended[i] += w * row[i]
    for i in range(blended.size):
        blended[i] = min(max(blended[i], _ZERO), _WHITE)


@compiled(error_model="numpy", fastmath={"contract"})
def _resize(image, top, bottom, columns, column_weights, lines, line_weights, clip, gain, offset, out):
    """Fill rows top..bottom-1 of out (3, H, W): the image (h, w * 3) resized, times gain, plus offset."""
    rows = np.empty((line_weights.shape[1], 3 * columns.size), np.float32)
    float_row, blended = np.empty(image.shape[1], np.float32), np.empty(3 * columns.size, np.float32)
    next_line = lines[top]
    for y in range(top, bottom):
        while next_line < lines[y] + rows.shape[0]:
            # Rows that no output row reads are skipped.
            if next_line >= lines[y]:
                _resize_row(image[next_line], columns, column_weights, clip, float_row, rows[next_line % rows.shape[0]])
            next_line += 1
        _blend_rows(rows, lines[y], line_weights[y], blended)
        for c in range(3):
            for x in range(columns.size):
                out[c, y, x] = blended[3 * x + c] * gain[c] + offset[c]


@lru_cache(maxsize=64)
def _taps(source: int, target: int, filter: Filter, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    first, weights = axis_weights(source, target, filter, antialias)
    return first, weights.astype(np.float32)


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
    """Run :func:`maskmill.kernels.resize_normalize` on a NumPy array."""
    height, width = check_resize(size, pad_to, filter, antialias)
    means, deviations, padding = (np.broadcast_to(np.asarray(v, np.float64), 3) for v in (mean, std, pad_value))
    gain, offset = (scale / deviations).astype(np.float32), (-means / deviations).astype(np.float32)
    result = output(out, (3, height, width) if layout == "CHW" else (height, width, 3), np.float32)
    planes = result if layout == "CHW" else result.transpose(2, 0, 1)
    if (height, width) != tuple(size):
        padding = ((padding * scale - means) / deviations).astype(np.float32)[:, None, None]
        planes[:, size[0] :, :] = padding
        planes[:, : size[0], size[1] :] = padding
    if channels == "BGR":
        # The loops write channel by channel in the image's order.
        planes, gain, offset = planes[::-1], gain[::-1], offset[::-1]
    pixels = np.ascontiguousarray(image, np.uint8)
    arguments = (
        *_taps(pixels.shape[1], size[1], filter, antialias),
        *_taps(pixels.shape[0], size[0], filter, antialias),
        antialias and filter in OVERSHOOTS,
        gain.copy(),
        offset.copy(),
        planes,
    )
    pixels = pixels.reshape(pixels.shape[0], -1)
    number = threads.num_threads(max(pixels.size // 3, size[0] * size[1]), _WORTH_THREADS)
    cuts = [size[0] * i // number for i in range(number + 1)]
    threads.share(_resize, [(pixels, *band, *arguments) for band in pairwise(cuts)], number)
    return result
