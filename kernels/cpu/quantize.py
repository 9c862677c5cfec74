"""Weights as 8-bit maps with Numba."""

from __future__ import annotations

import numpy as np

from ..plans.outputs import output, spread
from ..plans.quantize import check_levels
from .compiled import compiled


@compiled(error_model="numpy")
def _quantize(weight, reliable, label, ignore, levels, out):
    last = np.float64(levels - 1)
    for i in range(weight.size):
        w = weight[i]
        # The product of a float32 and a level is exact in float64. NaN is not positive, whatever its level.
        level = np.rint(min(max(np.float64(w) * last, 1.0), last - 1.0))
        value = np.int32(np.rint(level * 255.0 / last))
        is_reliable = w >= 1 if reliable is None else reliable[i]
        weighted = w > 0 if label is None else (w > 0) & (label[i] != ignore)
        out[i] = np.uint8((np.int32(255) if is_reliable else value) if weighted else np.int32(0))


def quantize_weights(
    weight: np.ndarray,
    reliable: np.ndarray | None = None,
    *,
    levels: int = 256,
    label: np.ndarray | None = None,
    ignore: int = 255,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Run :func:`maskmill.kernels.quantize_weights` on NumPy arrays."""
    check_levels(levels)
    result = output(out, weight.shape, np.uint8)
    _quantize(
        np.ascontiguousarray(weight, np.float32).reshape(-1),
        None if reliable is None else spread(reliable, weight.shape, np.bool_).reshape(-1),
        None if label is None else spread(label, weight.shape).reshape(-1),
        ignore,
        levels,
        result.reshape(-1),
    )
    return result
