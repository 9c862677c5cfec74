"""Cover of trusted mask perturbation on a device: ``cuda/cover.cu``."""

from __future__ import annotations

import math

import numpy as np

from ...errors import UsageError
from ..plans.cover import check_nearest
from ..types import Nearest
from .device import NULL, DeviceArray, Pointer, aligned, ceil_div, contiguous, launch, output, spread

BLOCK = (32, 8)
"""Threads of a block along columns and rows."""


def perturbation_cover(
    cells: DeviceArray,
    size: tuple[int, int],
    reliable: DeviceArray | None = None,
    *,
    nearest: Nearest = "pil",
    out: DeviceArray | None = None,
) -> DeviceArray:
    """Run :func:`maskmill.kernels.perturbation_cover` on CuPy arrays."""
    check_nearest(nearest)
    height, width = (int(length) for length in size)
    rows, columns = cells.shape[-2:]
    if max(height * rows, width * columns) >= 2**31:
        raise UsageError(f"a grid of {rows} x {columns} cells over {height} x {width} pixels is too fine")
    lead = cells.shape[:-2]
    mask: Pointer = NULL
    mask_stride = 0
    if reliable is not None:
        lead = np.broadcast_shapes(lead, reliable.shape[:-2])
        if reliable.ndim > 2:
            mask_stride = height * width
        mask = contiguous(spread(reliable, (*lead, height, width) if mask_stride else (height, width)), np.bool_)
    cells = contiguous(spread(cells, (*lead, rows, columns)), np.bool_)
    cover = output(out, (*lead, height, width), np.bool_)
    pack = 4 if width % 4 == 0 and aligned(4, cover, mask) else 1
    launch(
        "cover",
        f"perturbation_cover<{pack}>",
        (ceil_div(width, BLOCK[0] * pack), ceil_div(height, BLOCK[1]), math.prod(lead)),
        BLOCK,
        (
            cells,
            np.int32(rows),
            np.int32(columns),
            mask,
            np.int64(mask_stride),
            cover,
            np.int32(height),
            np.int32(width),
            np.bool_(nearest == "torch"),
        ),
    )
    return cover
