"""Weights as 8-bit maps: the specification."""

from __future__ import annotations

import numpy as np

from ..plans.quantize import check_levels


def quantize_weights(
    weight: np.ndarray,
    reliable: np.ndarray | None = None,
    *,
    levels: int = 256,
    label: np.ndarray | None = None,
    ignore: int = 255,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Quantize weights to a uint8 map, shaped like ``weight``.

    0 if ``label`` is ``ignore`` or the weight is not positive (NaN included); otherwise 255 if ``reliable`` (default:
    weight >= 1); otherwise the nearest of the levels in between, never 0 or 255: level l = rint(weight * (levels - 1))
    with an exact product, stored as rint(l * 255 / (levels - 1)). A half rounds to the even neighbor.
    """
    weight = np.asarray(weight, np.float32)
    check_levels(levels)
    is_zero = ~(weight > 0)
    if label is not None:
        is_zero |= label == ignore
    level = np.clip(np.rint(np.where(is_zero, 0, weight.astype(np.float64)) * (levels - 1)), 1, levels - 2)
    result = np.rint(level * 255 / (levels - 1)).astype(np.uint8)
    result[(weight >= 1) if reliable is None else reliable] = 255
    result[is_zero] = 0
    if out is None:
        return result
    out[...] = result
    return out
