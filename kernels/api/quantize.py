"""Public function ``quantize_weights``."""

from __future__ import annotations

from ..arrays import dispatch
from ..types import Array, ArrayT


def quantize_weights(
    weight: ArrayT,
    reliable: Array | None = None,
    *,
    levels: int = 256,
    label: Array | None = None,
    ignore: int = 255,
    out: ArrayT | None = None,
) -> ArrayT:
    """Quantize weights in [0, 1] to uint8: reliable pixels are 255, pixels without a weight 0, others in between.

    Args:
        weight: float32.
        reliable: bool, shaped like ``weight``. Default: weight >= 1.
        levels: number of distinct values, 3 to 256; fewer make smaller files.
        label: labels; pixels whose label is ``ignore`` get 0.
        ignore: ignore index of ``label``.
        out: array to fill.

    Returns:
        uint8, shaped like ``weight``.

    Raises:
        UsageError: ``levels`` is out of range.
    """
    return dispatch("quantize_weights", weight, reliable, levels=levels, label=label, ignore=ignore, out=out)
