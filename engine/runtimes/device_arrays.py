"""CuPy arrays over other libraries' memory, and ONNX Runtime on CuPy arrays: nothing is copied.

What needs pointers stands here, so that :class:`~maskmill.engine.runtimes.onnx_runtime.OnnxSession` reads as on a CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def is_device_array(array: Any) -> bool:
    """Whether the array lies on an NVIDIA device."""
    return hasattr(array, "__cuda_array_interface__")


def array_over(pointer: int, shape: tuple[int, ...], dtype: Any, owner: Any) -> Any:
    """A CuPy array in C order over memory of ``owner``, which it keeps alive."""
    import cupy

    memory = cupy.cuda.UnownedMemory(pointer, int(np.prod(shape)) * np.dtype(dtype).itemsize, owner)
    return cupy.ndarray(shape, np.dtype(dtype), cupy.cuda.MemoryPointer(memory, 0))
