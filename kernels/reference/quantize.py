"""Weights as 8-bit maps: the specification."""

from __future__ import annotations

import numpy as np


def level_values(levels: int) -> np.ndarray:
    """uint8 (levels,): the grey values of ``levels`` evenly spaced levels, 0 and 255 included.

    Raises:
        ValueError: fewer than 3 levels (0 and 255 mean something else than a weight between them) or more than 256.
    """
    if not 3 <= levels <= 256:
        raise ValueError(f"levels must lie in 3..256, got {levels}")
    return np.rint(np.arange(levels) * 255 / (levels - 1)).astype(np.uint8)


def quantize_weights(weight, reliable=None, *, levels=256, label=None, ignore=255, out=None):
    """uint8 map, shaped as ``weight``: 255 only where reliable, 0 only where there is no weight.

    0 where ``label`` is ``ignore`` or the weight is not positive (NaN included); else 255 where ``reliable`` (default:
    weight >= 1); else the nearest of the levels between, never 0 or 255: level rint(weight * (levels - 1)), a half
    to the even one, the product exact.
    """
    weight = np.asarray(weight, np.float32)
    values = level_values(levels)
    nothing = ~(weight > 0)
    if label is not None:
        nothing |= label == ignore
    level = np.clip(np.rint(np.where(nothing, 0, weight.astype(np.float64)) * (levels - 1)), 1, levels - 2)
    result = values[level.astype(np.int64)]
    result[(weight >= 1) if reliable is None else reliable] = 255
    result[nothing] = 0
    if out is None:
        return result
    out[...] = result
    return out
