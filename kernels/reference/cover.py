"""The cover of trusted mask perturbation (CSL): the specification."""

from __future__ import annotations

import numpy as np

from ..plans.cover import cell_of_pixel
from ..types import Nearest


def perturbation_cover(
    cells: np.ndarray,
    size: tuple[int, int],
    reliable: np.ndarray | None = None,
    *,
    nearest: Nearest = "pil",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Spread cells (..., g, g) over ``size`` = (H, W): bool (..., H, W); if given, ``reliable`` limits the cover."""
    cells = np.asarray(cells, bool)
    rows = cell_of_pixel(size[0], cells.shape[-2], nearest)
    columns = cell_of_pixel(size[1], cells.shape[-1], nearest)
    cover = cells[..., rows[:, None], columns]
    if reliable is not None:
        cover = cover & reliable
    if out is None:
        return cover
    out[...] = cover
    return out
