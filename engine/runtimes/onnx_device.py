"""Run ONNX Runtime on CuPy arrays, on our own stream and without waiting for the device.

With its own stream, ONNX Runtime would need a sync before and after every call. With ``user_compute_stream`` its CUDA
and TensorRT providers queue their work on a given stream, which events order with the caller's.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .device_arrays import array_over

if TYPE_CHECKING:
    import cupy

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's names of element types → NumPy's."""

Shapes = tuple[tuple[int, ...], ...]


def new_stream() -> cupy.cuda.Stream | None:
    """Return a stream for a session; None without CuPy, since the session then gets only NumPy arrays."""
    try:
        import cupy
    except ImportError:
        return None
    return cupy.cuda.Stream(non_blocking=True)


class DeviceRunner:
    """Runs an ``onnxruntime.InferenceSession``, made with ``user_compute_stream``, on CuPy arrays."""

    def __init__(self, session: Any, outputs: Sequence[str], stream: cupy.cuda.Stream) -> None:
        import onnxruntime

        self._session, self._outputs, self._stream = session, outputs, stream
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._known: dict[Shapes, list[tuple[tuple[int, ...], str]]] = {}
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Any]) -> list[cupy.ndarray]:
        """Queue a call on named inputs in the order of CuPy's current stream; nothing is copied.

        The first call with new input shapes determines the output shapes, and waits for the device.
        """
        import cupy

        caller = cupy.cuda.get_current_stream()
        arrays = {name: cupy.asarray(array, order="C") for name, array in feeds.items()}
        shapes = tuple(array.shape for array in arrays.values())
        binding = self._session.io_binding()
        for name, array in arrays.items():
            binding.bind_input(name, "cuda", array.device.id, array.dtype.type, array.shape, array.data.ptr)
        device = next(iter(arrays.values())).device.id
        with self._lock:
            known_outputs = self._known.get(shapes)
            if known_outputs is None:
                return self._first(binding, shapes, device, caller)
            # memory of CuPy's pool, since ONNX Runtime's would be reused while the caller's stream still reads it
            results = [cupy.empty(shape, dtype) for shape, dtype in known_outputs]
            for name, result in zip(self._outputs, results, strict=True):
                binding.bind_output(name, "cuda", device, result.dtype.type, result.shape, result.data.ptr)
            self._call(binding, caller)
        return results

    def _call(self, binding: Any, caller: cupy.cuda.Stream) -> None:
        """Queue a call after the caller's work and before its next."""
        self._stream.wait_event(caller.record())
        try:
            self._session.run_with_iobinding(binding, self._options)
        finally:  # a call that failed may have queued work that reads the inputs
            caller.wait_event(self._stream.record())

    def _first(self, binding: Any, shapes: Shapes, device: int, caller: cupy.cuda.Stream) -> list[cupy.ndarray]:
        """Copy the outputs out of memory that ONNX Runtime allocated, and note their shapes."""
        for name in self._outputs:
            binding.bind_output(name, "cuda", device)
        self._call(binding, caller)
        values = binding.get_outputs()
        known_outputs = [(tuple(value.shape()), _DTYPES[value.data_type()]) for value in values]
        results = [
            array_over(value.data_ptr(), shape, np.dtype(dtype), value).copy()
            for value, (shape, dtype) in zip(values, known_outputs, strict=True)
        ]
        caller.synchronize()
        self._known[shapes] = known_outputs
        return results
