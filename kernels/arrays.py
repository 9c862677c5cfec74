"""The array contract: NumPy, CuPy and torch in, the caller's library and device out, nothing copied or moved.

All arrays of a call must be on one device; the first array decides the library of the result. The forms see NumPy
arrays on a CPU and CuPy arrays on a GPU: a torch tensor is detached and its memory is viewed (bfloat16 as
``ml_dtypes.bfloat16``); on a GPU the work runs on the tensor's device and on torch's current stream. Neither torch nor
CuPy is imported unless a call receives one of its arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from types import ModuleType
from typing import Any, Literal

import numpy as np

from ..errors import UsageError

Library = Literal["numpy", "cupy", "torch"]

_PLAIN = (type(None), bool, int, float, str, tuple)
"""Types of options that are not arrays and contain none; most options are, so they are tested first."""


def library_of(value: object) -> Library | None:
    """Return the library of an array, or None for any other value."""
    if isinstance(value, np.ndarray):
        return "numpy"
    if value is None or isinstance(value, (str, int, float, tuple)):
        return None
    for name, kind in (("torch", "Tensor"), ("cupy", "ndarray")):
        # An array of a library can only exist once the library is loaded.
        module = sys.modules.get(name)
        if module is not None and isinstance(value, getattr(module, kind)):
            return name  # type: ignore[return-value]
    return None


def device_of(array: Any) -> str:
    """Return the device of an array: ``cpu`` or ``cuda:<index>``.

    Raises:
        UsageError: the array is on a device of another kind.
    """
    library = library_of(array)
    if library == "numpy":
        return "cpu"
    if library == "cupy":
        return f"cuda:{array.device.id}"
    device = array.device
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"the kernels run on cpu and cuda devices, got a tensor on {device}: move it first")
    return str(device)


def dispatch(name: str, /, *arguments: Any, host: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Call the form of a kernel that runs on the arrays' device, and return its arrays in the caller's library.

    ``host`` holds options that every form reads on the host; they are passed on unchanged.

    Raises:
        UsageError: the arrays are on different devices, or none of the arguments is an array.
    """
    host = host or {}
    arrays = [*_arrays(arguments), *_arrays(options.values())]
    if not arrays:
        raise UsageError(f"{name} takes NumPy, CuPy or torch arrays, got {type(arguments[0]).__name__}")
    if all(isinstance(array, np.ndarray) for array in arrays):
        return getattr(_form("cpu"), name)(*arguments, **options, **host)
    devices = sorted({device_of(array) for array in arrays})
    if len(devices) > 1:
        raise UsageError(f"the arrays of {name} are on {' and '.join(devices)}: move them to one device first")
    on_cpu = devices == ["cpu"]
    form = _form("cpu" if on_cpu else "gpu")
    library = library_of(arrays[0])

    originals: dict[int, Any] = {}

    def native(array: Any) -> Any:
        view = _numpy_view(array) if on_cpu else _cupy_view(array)
        originals[id(view)] = array
        return view

    def back(array: Any) -> Any:
        return originals[id(array)] if id(array) in originals else _as_library(array, library)

    arguments = tuple(_mapped(native, value) for value in arguments)
    options = {key: _mapped(native, value) for key, value in options.items()}
    with _stream_of(arrays[0], library, on_cpu):
        return _mapped(back, getattr(form, name)(*arguments, **options, **host))


def _form(name: Literal["cpu", "gpu"]) -> ModuleType:
    """Import one form of the kernels; the CPU form loads Numba."""
    if name == "cpu":
        from . import cpu

        return cpu
    from . import gpu

    return gpu


def host_array(name: str, value: Any) -> Any:
    """Convert a small option to a NumPy array; None and scalars are returned unchanged.

    Raises:
        UsageError: the option is on a GPU, and reading it would wait for the device.
    """
    if library_of(value) is None:
        return value if value is None or np.isscalar(value) else np.asarray(value)
    if device_of(value) != "cpu":
        raise UsageError(
            f"{name} is read on the host: pass a sequence or a NumPy array, not an array on {device_of(value)}"
        )
    return _numpy_view(value)


def _arrays(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the arrays among the values and in their result containers."""
    for value in values:
        if isinstance(value, _PLAIN):
            continue
        if library_of(value) is not None:
            yield value
        elif is_dataclass(value) and not isinstance(value, type):
            yield from _arrays(getattr(value, field.name) for field in fields(value))


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to an array, or to the arrays of a tuple or a result container."""
    if library_of(value) is not None:
        return function(value)
    if isinstance(value, tuple):
        return tuple(_mapped(function, item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _mapped(function, getattr(value, f.name)) for f in fields(value)})
    return value


def _is_bfloat16(tensor: Any) -> bool:
    return str(tensor.dtype) == "torch.bfloat16"


def _bfloat16() -> type[np.generic]:
    import ml_dtypes

    return ml_dtypes.bfloat16


def _numpy_view(array: Any) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array
    tensor = array.detach()
    if _is_bfloat16(tensor):
        return tensor.view(sys.modules["torch"].uint16).numpy().view(_bfloat16())
    return tensor.numpy()


def _cupy_view(array: Any) -> Any:
    if library_of(array) == "cupy":
        return array
    import cupy

    tensor = array.detach()
    if _is_bfloat16(tensor):
        return cupy.from_dlpack(tensor.view(sys.modules["torch"].int16)).view(_bfloat16())
    return cupy.from_dlpack(tensor)


def _as_library(array: Any, library: Library | None) -> Any:
    if library != "torch":
        return array
    torch = sys.modules["torch"]
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else torch.from_dlpack(array)


@contextmanager
def _stream_of(array: Any, library: Library | None, on_cpu: bool) -> Iterator[None]:
    """Select the arrays' device and, for torch, its current stream, so that the work follows the caller's."""
    if on_cpu:
        yield
        return
    import cupy

    if library == "cupy":
        with array.device:
            yield
        return
    stream = sys.modules["torch"].cuda.current_stream(array.device).cuda_stream
    with cupy.cuda.Device(array.device.index), cupy.cuda.ExternalStream(stream, array.device.index):
        yield
