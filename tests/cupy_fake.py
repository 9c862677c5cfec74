"""CuPy over main memory: enough of it for sessions and stages that work on a device.

Arrays are marked, must not be mixed with NumPy's and are never read on the host; streams do their work at once and log
it, so that a test sees what was ordered after what; a stream that captures keeps its work for the graph. Kernels are
the CUDA sources run on the CPU (:mod:`tests.simt.harness`). What is used is logged for a check against the real CuPy.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maskmill import kernels
from maskmill.kernels.gpu import device

from .kernels.forms import gpu
from .simt.harness import DeviceArray, simt_device

used: set[tuple[str, int, tuple[str, ...]]] = set()
"""(dotted name, positional arguments or -1 for a method, keywords) of everything of CuPy that was asked for."""
events: list[tuple[Any, ...]] = []
"""What was asked of streams, in order: (stream, what, …)."""
machine = SimpleNamespace(name="NVIDIA H100 80GB HBM3", capability="90", devices=1, memory_for=1 << 60)
"""The device; ``memory_for`` is the size of the largest array that it has room for, in bytes."""

_streams: dict[int, Stream] = {}
_current = threading.local()
_handles = itertools.count(1000)


class CupyArray(DeviceArray):
    """An array on the stand-in device."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data)

    @property
    def device(self) -> Any:  # type: ignore[override]
        return Device()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return dict(self.__array_interface__)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        for value in inputs:
            assert not isinstance(value, np.ndarray) or isinstance(value, CupyArray), "NumPy and CuPy arrays mixed"
        plain = [np.asarray(value) if isinstance(value, CupyArray) else value for value in inputs]
        if "out" in options:
            options["out"] = tuple(np.asarray(value) for value in options["out"])
        return _put(getattr(ufunc, method)(*plain, **options))

    def __iter__(self) -> Any:  # type: ignore[override]
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        _plain(key)
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_plain(key), _plain(value))

    def set(self, arr: np.ndarray, stream: Stream | None = None) -> None:
        assert not isinstance(arr, CupyArray)
        events.append((stream or get_current_stream(), "upload", arr.shape))
        np.asarray(self)[...] = arr

    # CuPy's reductions take no initial value, and those without a neutral element refuse an array without values

    def sum(self, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        return _put(np.asarray(self).sum(axis=axis, dtype=dtype, keepdims=keepdims))

    def mean(self, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        return _put(np.asarray(self).mean(axis=axis, dtype=dtype, keepdims=keepdims))

    def all(self, axis: Any = None, out: None = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        return _put(np.asarray(self).all(axis=axis, keepdims=keepdims))

    def max(self, axis: Any = None, out: None = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        assert self.size, "zero-size array to reduction operation cupy_max which has no identity"
        return _put(np.asarray(self).max(axis=axis, keepdims=keepdims))

    def argmax(self, axis: Any = None, out: None = None, dtype: Any = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        assert self.size, "zero-size array to reduction operation cupy_argmax which has no identity"
        return _put(np.asarray(self).argmax(axis=axis, keepdims=keepdims))


def _put(value: Any) -> Any:
    return np.asarray(value).view(CupyArray) if isinstance(value, (np.ndarray, np.generic)) else value


class _Noted:
    """Logs the names of CuPy's methods that are asked for."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in ("do", "ptr"):  # ptr is set by CuPy's constructor
            used.add((f"cupy.cuda.{type(self).__name__}.{name}", -1, ()))
        return super().__getattribute__(name)


class Stream(_Noted):
    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else next(_handles)
        self._captured: list[Callable[[], None]] | None = None
        _streams[self.ptr] = self

    def do(self, what: str, work: Callable[[], None]) -> None:
        """Work that somebody queued here."""
        events.append((self, what))
        if self._captured is not None:
            self._captured.append(work)
        else:
            work()

    def __enter__(self) -> Stream:
        _current.stack = [*getattr(_current, "stack", []), self]
        return self

    def __exit__(self, *_: Any) -> None:
        _current.stack = _current.stack[:-1]

    def wait_event(self, event: Event) -> None:
        events.append((self, "wait", event))

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        assert self._captured is None, "a stream that captures cannot be waited for"
        events.append((self, "synchronize"))

    def begin_capture(self, mode: int | None = None) -> None:
        self._captured = []

    def end_capture(self) -> Graph:
        assert self._captured is not None
        graph, self._captured = Graph(self._captured), None
        return graph


class Graph(_Noted):
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self._work = work

    def launch(self, stream: Stream | None = None) -> None:
        (stream or get_current_stream()).do("graph", lambda: [work() for work in self._work] and None)


class Event(_Noted):
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        pass

    def record(self, stream: Stream | None = None) -> None:
        events.append((stream or get_current_stream(), "record", self))

    def synchronize(self) -> None:
        events.append((None, "synchronize", self))


class Device:
    def __init__(self, device: int | None = None) -> None:
        if machine.devices < 1:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        self.id = device or 0
        self.compute_capability = machine.capability

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class CUDARuntimeError(RuntimeError):
    pass


class UnownedMemory:
    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        self.ptr, self.size, self.owner = ptr, size, owner


class MemoryPointer:
    def __init__(self, mem: UnownedMemory, offset: int) -> None:
        self.ptr, self.mem = mem.ptr + offset, mem


_NULL = Stream(null=True)


def get_current_stream() -> Stream:
    return getattr(_current, "stack", [_NULL])[-1] if getattr(_current, "stack", []) else _NULL


def stream_at(handle: int) -> Stream:
    """The stream with this handle."""
    return _streams[handle]


def _room(array: np.ndarray) -> CupyArray:
    if array.nbytes > machine.memory_for:
        raise MemoryError(f"Out of memory allocating {array.nbytes:,} bytes")
    return array.view(CupyArray)


def _asarray(a: Any, dtype: Any = None, order: str | None = None, *, blocking: bool = False) -> CupyArray:
    if isinstance(a, CupyArray) and dtype in (None, a.dtype) and (order != "C" or a.flags.c_contiguous):
        return a
    return _room(np.array(a, dtype=dtype, order=order or "K"))


def _ascontiguousarray(a: Any, dtype: Any = None) -> CupyArray:
    assert isinstance(a, CupyArray)
    return _put(np.ascontiguousarray(a, dtype=dtype))


def _asnumpy(
    a: CupyArray, stream: Stream | None = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    assert isinstance(a, CupyArray)
    events.append((stream or get_current_stream(), "download", a.shape, blocking))
    if out is None:
        return np.array(a)
    out[...] = np.asarray(a)
    return out


def _each(function: Any) -> Any:
    """A function of NumPy for marked arrays."""

    def call(*args: Any, **options: Any) -> Any:
        return _put(function(*_plain(args), **{key: _plain(value) for key, value in options.items()}))

    return call


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(one) for one in value)
    assert not isinstance(value, np.ndarray) or isinstance(value, CupyArray), "a NumPy array where CuPy's is needed"
    return np.asarray(value) if isinstance(value, CupyArray) else value


def _ndarray(shape: Any, dtype: Any = float, memptr: MemoryPointer | None = None) -> CupyArray:
    import ctypes

    assert memptr is not None
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = (ctypes.c_uint8 * size).from_address(memptr.ptr)
    buffer._owner = memptr.mem.owner  # type: ignore[attr-defined]
    return np.frombuffer(buffer, dtype).reshape(shape).view(CupyArray)


def _module() -> tuple[ModuleType, ModuleType]:
    def properties(index: int) -> dict[str, Any]:
        return {"name": machine.name.encode(), "totalGlobalMem": 80 << 30}

    cupy, cupyx = ModuleType("cupy"), ModuleType("cupyx")
    functions: dict[str, Any] = {
        "asarray": _asarray,
        "ascontiguousarray": _ascontiguousarray,
        "asnumpy": _asnumpy,
        "empty": lambda shape, dtype=float: _room(np.full(shape, 99, dtype)),
        "zeros": lambda shape, dtype=float: _room(np.zeros(shape, dtype)),
    }
    names = (
        "arange", "broadcast_to", "clip", "concatenate", "diagonal", "einsum", "exp", "isfinite", "maximum", "minimum",
        "moveaxis", "pad", "repeat", "stack", "where",
    )  # fmt: skip
    for name in names:
        functions[name] = _each(getattr(np, name))
    for name, function in functions.items():
        setattr(cupy, name, _logged(f"cupy.{name}", function))
    cupyx.empty_pinned = _logged("cupyx.empty_pinned", lambda shape, dtype: np.empty(shape, dtype))  # type: ignore[attr-defined]
    cupy.ndarray = _ndarray_type()  # type: ignore[attr-defined]
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        **{
            kind.__name__: _logged(f"cupy.cuda.{kind.__name__}", kind)
            for kind in (Stream, Event, Device, UnownedMemory, MemoryPointer)
        },
        get_current_stream=_logged("cupy.cuda.get_current_stream", get_current_stream),
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceProperties=_logged("cupy.cuda.runtime.getDeviceProperties", properties),
        ),
    )
    return cupy, cupyx


def _ndarray_type() -> Any:
    class Kind(type(CupyArray)):
        def __call__(cls, *args: Any, **options: Any) -> Any:
            return _ndarray(*args, **options)

        def __instancecheck__(cls, instance: Any) -> bool:
            return type(instance) is CupyArray

    return Kind("ndarray", (CupyArray,), {})


def _logged(name: str, function: Any) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        used.add((name, len(args), tuple(sorted(options))))
        return function(*args, **options)

    return call


def assert_in_cupy(asked: set[tuple[str, int, tuple[str, ...]]]) -> None:
    """Hold entries of :data:`used` against the true CuPy, in a process of its own: each exists and takes this."""
    script = (
        "import cupy, cupyx, inspect, json, operator, sys\n"
        "for name, args, options in json.load(sys.stdin):\n"
        "    library, _, rest = name.partition('.')\n"
        "    function = operator.attrgetter(rest)({'cupy': cupy, 'cupyx': cupyx}[library])\n"
        "    if args < 0: continue\n"
        "    try: signature = inspect.signature(function)\n"
        "    except ValueError: continue\n"
        "    signature.bind(*range(args), **dict.fromkeys(options))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(sorted(asked)), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def _by_place(on_host: Any, on_device: Any) -> Any:
    """Marked arrays are NumPy's to the public functions, so the choice of the form is made here."""
    return lambda array, *args, **options: (on_device if type(array) is CupyArray else on_host)(array, *args, **options)


@contextmanager
def fake_cupy(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``import cupy`` gives the stand-in inside, and the public kernels run the CUDA sources on its arrays."""
    cupy, cupyx = _module()
    events.clear()
    machine.__init__(name="NVIDIA H100 80GB HBM3", capability="90", devices=1, memory_for=1 << 60)
    patch.setitem(sys.modules, "cupy", cupy)
    patch.setitem(sys.modules, "cupyx", cupyx)
    # undone before what it is laid over: `patch` is undone later, and would bring the harness's functions back
    with simt_device(), pytest.MonkeyPatch.context() as inner:
        inner.setattr(device, "arrays", lambda: cupy)
        kernel, one_at_a_time = device.kernel, threading.Lock()

        def locked(source: str, name: str) -> Any:
            def launch(*args: Any) -> None:
                with one_at_a_time:
                    kernel(source, name)(*args)

            return launch

        inner.setattr(device, "kernel", locked)
        for name in ("cam_peaks", "class_stats", "pcos", "quantize_weights", "resize_normalize"):
            inner.setattr(kernels, name, _by_place(getattr(kernels, name), getattr(gpu, name)))
        yield cupy
