"""Arrays in the form that the compiled loops need: C-contiguous, of the right shape and dtype."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from ...errors import UsageError


def output(out: np.ndarray | None, shape: tuple[int, ...], dtype: DTypeLike, name: str = "out") -> np.ndarray:
    """Return ``out``, or a new array of the shape and dtype if it is None.

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


def spread(array: np.ndarray, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> np.ndarray:
    """Broadcast an array to the shape, as a C-contiguous array of the dtype."""
    return np.ascontiguousarray(np.broadcast_to(array, shape), dtype)
