"""Index tables of ``perturbation_cover``, shared by every form."""

from __future__ import annotations

import numpy as np

from ...checks import check_choice
from ..types import Nearest


def check_nearest(nearest: Nearest) -> None:
    """Check the name of the nearest-neighbor rule.

    Raises:
        UsageError: the name is unknown.
    """
    check_choice("nearest", nearest, Nearest)


def cell_of_pixel(size: int, cells: int, nearest: Nearest) -> np.ndarray:
    """Return the cell that covers each pixel of an axis, int64 (size,).

    ``pil``: floor((i + 1/2) cells / size), the cell at the pixel's center, as in Pillow and the official code. (If a
    center is on the border of two cells, Pillow's running sum may choose either cell; this function chooses the later.)
    ``torch``: floor(i cells / size) in float32, as torch's ``nearest`` and the paper's pseudo-code.

    Raises:
        UsageError: ``nearest`` is unknown.
    """
    check_nearest(nearest)
    pixel = np.arange(size)
    if nearest == "pil":
        return (2 * pixel + 1) * cells // (2 * size)
    cell = (pixel.astype(np.float32) * (np.float32(cells) / np.float32(size))).astype(np.int64)
    return np.minimum(cell, cells - 1)
