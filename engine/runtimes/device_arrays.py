"""CuPy arrays over other libraries' memory, and ONNX Runtime on CuPy arrays: nothing is copied.

What needs pointers stands here, so that :class:`~maskmill.engine.runtimes.onnx_runtime.OnnxSession` reads as on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def is_device_array(array: Any) -> bool:
    """Whether the array lies on an NVIDIA device."""
    return hasattr(array, "__cuda_array_interface__")


def run_on_device(session: Any, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
    """Run an ``onnxruntime.InferenceSession`` on named CuPy arrays; the outputs are CuPy arrays over its own memory.

    The calling thread waits for the inputs, since ONNX Runtime works on a stream of its own, and for the outputs.
    """
    import cupy

    binding = session.io_binding()
    arrays = {name: cupy.asarray(array, order="C") for name, array in feeds.items()}
    for name, array in arrays.items():
        binding.bind_input(name, "cuda", array.device.id, array.dtype.type, array.shape, array.data.ptr)
    device = next(iter(arrays.values())).device.id
    for name in outputs:
        binding.bind_output(name, "cuda", device)
    cupy.cuda.get_current_stream().synchronize()
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return [
        array_over(value.data_ptr(), tuple(value.shape()), _DTYPES[value.data_type()], value)
        for value in binding.get_outputs()
    ]


def array_over(pointer: int, shape: tuple[int, ...], dtype: Any, owner: Any) -> Any:
    """A CuPy array in C order over memory of ``owner``, which it keeps alive."""
    import cupy

    memory = cupy.cuda.UnownedMemory(pointer, int(np.prod(shape)) * np.dtype(dtype).itemsize, owner)
    return cupy.ndarray(shape, np.dtype(dtype), cupy.cuda.MemoryPointer(memory, 0))


_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
