"""Weights as 8-bit maps: the specification."""

from __future__ import annotations

import numpy as np

from ..plans.quantize import check_levels


def quantize_weights(weight, reliable=None, *, levels=256, label=None, ignore=255, out=None):
    """uint8 map, shaped as ``weight``: 255 only where reliable, 0 only where there is no weight.

    0 where ``label`` is ``ignore`` or the weight is not positive (NaN included); else 255 where ``reliable`` (default:
    weight >= 1); else the nearest of the levels between, never 0 or 255: level l = rint(weight * (levels - 1)), the
    product exact, written as rint(l * 255 / (levels - 1)). A half goes to the even neighbor.
    """
    weight = np.asarray(weight, np.float32)
    check_levels(levels)
    nothing = ~(weight > 0)
    if label is not None:
        nothing |= label == ignore
    level = np.clip(np.rint(np.where(nothing, 0, weight.astype(np.float64)) * (levels - 1)), 1, levels - 2)
    result = np.rint(level * 255 / (levels - 1)).astype(np.uint8)
    result[(weight >= 1) if reliable is None else reliable] = 255
    result[nothing] = 0
    if out is None:
        return result
    out[...] = result
    return out
