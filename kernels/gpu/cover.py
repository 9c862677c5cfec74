"""Cover of trusted mask perturbation on a device: ``cuda/cover.cu``."""

from __future__ import annotations

import math

import numpy as np

from ...errors import UsageError
from .device import NULL, aligned, ceil_div, contiguous, launch, output, spread

BLOCK = (32, 8)
"""Threads of a block, along columns and rows."""


def perturbation_cover(cells, size, reliable=None, *, nearest="pil", out=None):
    """As :func:`maskmill.kernels.perturbation_cover`, for CuPy arrays."""
    if nearest not in ("pil", "torch"):
        raise UsageError(f"nearest must be 'pil' or 'torch', got {nearest!r}")
    height, width = (int(length) for length in size)
    rows, columns = cells.shape[-2:]
    if max(height * rows, width * columns) >= 2**31:
        raise UsageError(f"a grid of {rows} x {columns} cells over {height} x {width} pixels is too fine")
    lead = cells.shape[:-2]
    one_for_all = False
    if reliable is not None:
        one_for_all = reliable.ndim == 2
        lead = np.broadcast_shapes(lead, reliable.shape[:-2])
        reliable_shape = (height, width) if one_for_all else (*lead, height, width)
        reliable = contiguous(spread(reliable, reliable_shape), np.bool_)
    else:
        reliable = NULL
    cells = contiguous(spread(cells, (*lead, rows, columns)), np.bool_)
    cover = output(out, (*lead, height, width), np.bool_)
    pack = 4 if width % 4 == 0 and aligned(4, cover, reliable) else 1
    launch(
        "cover",
        f"perturbation_cover<{pack}>",
        (ceil_div(width, BLOCK[0] * pack), ceil_div(height, BLOCK[1]), math.prod(lead)),
        BLOCK,
        (
            cells,
            np.int32(rows),
            np.int32(columns),
            reliable,
            np.int64(0 if one_for_all else height * width),
            cover,
            np.int32(height),
            np.int32(width),
            np.bool_(nearest == "torch"),
        ),
    )
    return cover
