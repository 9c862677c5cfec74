"""Recognize arrays on a device, and wrap other libraries' device memory in CuPy arrays without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

if TYPE_CHECKING:
    import cupy


def is_device_array(array: Any) -> bool:
    """Return True for an array in the memory of an NVIDIA device."""
    return hasattr(array, "__cuda_array_interface__")


def array_over(pointer: int, shape: tuple[int, ...], dtype: DTypeLike, owner: object) -> cupy.ndarray:
    """Wrap device memory that ``owner`` holds in a CuPy array in C order; the array keeps ``owner`` alive."""
    import cupy

    memory = cupy.cuda.UnownedMemory(pointer, int(np.prod(shape)) * np.dtype(dtype).itemsize, owner)
    return cupy.ndarray(shape, np.dtype(dtype), cupy.cuda.MemoryPointer(memory, 0))
