"""The cover of trusted mask perturbation (CSL): the specification."""

from __future__ import annotations

import numpy as np

from ..plans.cover import cell_of_pixel


def perturbation_cover(cells, size, reliable=None, *, nearest="pil", out=None):
    """Cells (..., g, g) spread over ``size`` = (H, W): bool (..., H, W), only where ``reliable`` if that is given."""
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
