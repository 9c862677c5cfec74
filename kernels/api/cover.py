"""Public function ``perturbation_cover``."""

from __future__ import annotations

from ..arrays import dispatch
from ..types import Array, ArrayT, Nearest


def perturbation_cover(
    cells: ArrayT,
    size: tuple[int, int],
    reliable: Array | None = None,
    *,
    nearest: Nearest = "pil",
    out: ArrayT | None = None,
) -> ArrayT:
    """Spread a grid of cells over pixels by nearest neighbor.

    Args:
        cells: bool (..., g, g).
        size: (H, W) of the result, in pixels.
        reliable: bool (H, W) or (..., H, W); pixels outside it are False in the result. Default: all pixels.
        nearest: ``pil`` (the cell at the pixel's center) or ``torch`` (its mode ``nearest``).
        out: array to fill.

    Returns:
        bool (..., H, W).

    Raises:
        UsageError: ``nearest`` is unknown.

    Source: CSL, trusted mask perturbation.
    """
    return dispatch("perturbation_cover", cells, size, reliable, nearest=nearest, out=out)
