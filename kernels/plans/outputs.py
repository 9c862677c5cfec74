"""Arrays as the compiled loops take them: C-contiguous, of the right shape and dtype."""

from __future__ import annotations

import numpy as np

from ...errors import UsageError


def output(out: np.ndarray | None, shape: tuple[int, ...], dtype, name: str = "out") -> np.ndarray:
    """``out`` itself, or a new array of the shape and dtype.

    Raises:
        UsageError: ``out`` has another shape or dtype, or is not C-contiguous.
    """
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise UsageError(
            f"{name} must be C-contiguous {np.dtype(dtype)} of shape {shape}, got {out.dtype} of shape {out.shape}"
        )
    return out


def spread(array: np.ndarray, shape: tuple[int, ...], dtype=None) -> np.ndarray:
    """``array``, broadcast to the shape."""
    return np.ascontiguousarray(np.broadcast_to(array, shape), dtype)
