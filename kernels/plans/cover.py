"""Index tables of ``perturbation_cover``, shared by every form."""

from __future__ import annotations

import numpy as np

from ...errors import UsageError


def cell_of_pixel(size: int, cells: int, nearest: str) -> np.ndarray:
    """int64 (size,): the cell that covers each pixel of an axis.

    ``pil``: floor((i + 1/2) cells / size), where the middle of the pixel lies, as Pillow and the official code. (Where
    a middle lies on a seam, Pillow's running sum falls on either side of it; here it is the later cell.)
    ``torch``: floor(i cells / size) in float32, as torch's ``nearest`` and the paper's pseudo-code.
    """
    pixel = np.arange(size)
    if nearest == "pil":
        return (2 * pixel + 1) * cells // (2 * size)
    if nearest == "torch":
        cell = (pixel.astype(np.float32) * (np.float32(cells) / np.float32(size))).astype(np.int64)
        return np.minimum(cell, cells - 1)
    raise UsageError(f"nearest must be 'pil' or 'torch', got {nearest!r}")
