"""CuPy over main memory: enough of it for sessions and predictors that work on a device.

Arrays are marked, must not be mixed with NumPy's and are never read on the host. Streams do their work at once, log it,
and tell the race detector (:mod:`tests.race_detector`) what each operation reads and writes; a stream that captures
keeps its work for the graph. Kernels are the CUDA sources run on the CPU (:mod:`tests.simt.harness`). The names and
arguments in use are logged for a check against the real CuPy.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maskmill import kernels
from maskmill.kernels.gpu import device

from . import race_detector
from .kernels.forms import gpu
from .simt.harness import DeviceArray, simt_device

used: set[tuple[str, int, tuple[str, ...]]] = set()
"""(dotted name, positional arguments or -1 for a method, keywords) of every part of CuPy that was used."""
events: list[tuple[Any, ...]] = []
"""Operations on streams, in order: (stream, operation, …)."""
MACHINE = {"name": "NVIDIA H100 80GB HBM3", "capability": "90", "devices": 1, "memory_for": 1 << 60, "delay": 1}
machine = SimpleNamespace(**MACHINE)
"""The device; ``memory_for`` is the size of the largest array that it has room for, in bytes, ``delay`` the number of
times that an event which nobody waited for says that it is not done."""

Work = Callable[[race_detector.Timeline], None]

_streams: dict[int, Stream] = {}
_current = threading.local()
_handles = itertools.count(1000)


class CupyArray(DeviceArray):
    """An array on the stand-in device."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        chunk = race_detector.chunk_at(self.ctypes.data)
        return SimpleNamespace(ptr=self.ctypes.data, mem=SimpleNamespace(ptr=chunk.low if chunk else self.ctypes.data))

    @property
    def device(self) -> Any:  # type: ignore[override]
        return Device()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return dict(self.__array_interface__)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.pop("out", None)
        result = _computed(ufunc.__name__, getattr(ufunc, method), inputs, options)
        if out is None:
            return result
        out[0][...] = result
        return out[0]

    def __iter__(self) -> Any:  # type: ignore[override]
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        parts = key if isinstance(key, tuple) else (key,)
        key = key if any(part is Ellipsis for part in parts) else (*parts, Ellipsis)  # no scalars on the host
        return _computed("index", lambda array, *parts: array[parts], (self, *key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        target = np.asarray(self)[_plain(key)] if not _is_fancy(key) else np.asarray(self)
        _operation("assign", reads=_arrays((key, value)), writes=[target])
        np.ndarray.__setitem__(np.asarray(self), _plain(key), _plain(value))

    def set(self, arr: np.ndarray, stream: Stream | None = None) -> None:
        assert not isinstance(arr, CupyArray)
        stream = stream or get_current_stream()
        events.append((stream, "upload", arr.shape))
        _operation("upload", reads=_pinned(arr), writes=[self], stream=stream)
        np.asarray(self)[...] = np.asarray(arr)

    # CuPy's reductions take no initial value, and those without a neutral element refuse an array without values

    def sum(self, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        return _computed("sum", np.sum, (self,), {"axis": axis, "dtype": dtype, "keepdims": keepdims})

    def mean(self, axis: Any = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        return _computed("mean", np.mean, (self,), {"axis": axis, "dtype": dtype, "keepdims": keepdims})

    def all(self, axis: Any = None, out: None = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        return _computed("all", np.all, (self,), {"axis": axis, "keepdims": keepdims})

    def max(self, axis: Any = None, out: None = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        assert self.size, "zero-size array to reduction operation cupy_max which has no identity"
        return _computed("max", np.max, (self,), {"axis": axis, "keepdims": keepdims})

    def argmax(self, axis: Any = None, out: None = None, dtype: Any = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        assert self.size, "zero-size array to reduction operation cupy_argmax which has no identity"
        return _computed("argmax", np.argmax, (self,), {"axis": axis, "keepdims": keepdims})

    # what may be a view or a copy

    def reshape(self, *shape: Any, order: Any = "C") -> Any:  # type: ignore[override]
        return _computed("reshape", lambda array: array.reshape(*shape, order=order), (self,), {})

    def ravel(self, order: Any = "C") -> Any:  # type: ignore[override]
        return _computed("ravel", lambda array: array.ravel(order), (self,), {})

    def astype(self, dtype: Any, order: Any = "K", *, copy: bool = True) -> Any:  # type: ignore[override]
        return _computed("astype", lambda array: array.astype(dtype, order, copy=copy), (self,), {})

    def copy(self, order: Any = "C") -> Any:  # type: ignore[override]
        return _computed("copy", lambda array: array.copy(order), (self,), {})


class PinnedArray(np.ndarray):
    """Pinned host memory, which streams read and write while the host works on."""

    def __array_finalize__(self, source: Any) -> None:
        if type(source) is PinnedArray:
            race_detector.touch_on_host(self, write=False, what="look on the host")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*map(_read, inputs), **{key: _read(value) for key, value in options.items()})

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return function(*map(_read, args), **{key: _read(value) for key, value in options.items()})

    def __setitem__(self, key: Any, value: Any) -> None:
        race_detector.touch_on_host(self, write=True, what="write on the host")
        np.asarray(self)[key] = _read(value)


def _read(value: Any) -> Any:
    """A plain array of values that the host reads now, or a list of such arrays."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_read, value))
    if isinstance(value, PinnedArray):
        race_detector.touch_on_host(value, write=False, what="read on the host")
        return np.asarray(value)
    return value


def _pinned(array: np.ndarray) -> list[np.ndarray]:
    """The array if a stream reads it after the call returns; CuPy copies pageable memory before."""
    return [array] if isinstance(array, PinnedArray) else []


def _is_fancy(key: Any) -> bool:
    return any(isinstance(part, (np.ndarray, list)) for part in (key if isinstance(key, tuple) else (key,)))


def _arrays(values: Any) -> list[CupyArray]:
    if isinstance(values, (tuple, list)):
        return [array for value in values for array in _arrays(value)]
    return [values] if isinstance(values, CupyArray) else []


def _operation(what: str, *, reads: Any = (), writes: Any = (), stream: Stream | None = None) -> None:
    """Tell the detector of one operation on a stream, the current one if None."""
    timeline = (stream or get_current_stream()).timeline
    race_detector.begin(timeline)
    for arrays, write in ((reads, False), (writes, True)):
        for array in arrays:
            if array.size:
                race_detector.touch(timeline, *np.lib.array_utils.byte_bounds(array), write=write, what=what)


def _computed(what: str, function: Any, args: Any, options: Any) -> Any:
    """The result of a function on marked arrays: a view of one of them, or an array in memory of the current stream."""
    result = function(*_plain(args), **{key: _plain(value) for key, value in options.items()})
    if not isinstance(result, (np.ndarray, np.generic)):
        return result
    result, inputs = np.asarray(result), _arrays((*args, *options.values()))
    if result.size and any(np.may_share_memory(result, array) for array in inputs):
        return result.view(CupyArray)
    made = _new(result.shape, result.dtype)
    _operation(what, reads=inputs, writes=[made])
    np.asarray(made)[...] = result
    return made


def _new(shape: Any, dtype: Any) -> CupyArray:
    """An array in memory of the current stream's arena, its values undefined."""
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = race_detector.allocate(get_current_stream().timeline, num_bytes)
    return memory.view(dtype).reshape(shape).view(CupyArray)


class _Noted:
    """Logs the names of CuPy's methods that are asked for."""

    def __getattribute__(self, name: str) -> Any:
        # ptr is set by CuPy's constructor
        if not name.startswith("_") and name not in ("do", "ptr", "seconds", "timeline", "clock"):
            used.add((f"cupy.cuda.{type(self).__name__}.{name}", -1, ()))
        return super().__getattribute__(name)


class Stream(_Noted):
    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else next(_handles)
        self.timeline = race_detector.stream("the null stream" if null else f"stream {self.ptr}")
        self._captured: list[Work] | None = None
        _streams[self.ptr] = self

    def do(self, what: str, work: Work) -> None:
        """Queue work here, which is called with the timeline that it runs on."""
        events.append((self, what))
        if self._captured is not None:
            self._captured.append(work)
        else:
            race_detector.begin(self.timeline)
            work(self.timeline)

    def __enter__(self) -> Stream:
        _current.stack = [*getattr(_current, "stack", []), self]
        return self

    def __exit__(self, *_: Any) -> None:
        _current.stack = _current.stack[:-1]

    def wait_event(self, event: Event) -> None:
        events.append((self, "wait", event))
        race_detector.begin(self.timeline)
        self.timeline.join(event.clock)

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        assert self._captured is None, "a stream that captures cannot be waited for"
        events.append((self, "synchronize"))
        race_detector.wait([self.timeline.clock])

    def begin_capture(self, mode: int | None = None) -> None:
        self._captured = []

    def end_capture(self) -> Graph:
        assert self._captured is not None
        graph, self._captured = Graph(self._captured), None
        return graph


class Graph(_Noted):
    def __init__(self, work: list[Work]) -> None:
        self._work = work

    def launch(self, stream: Stream | None = None) -> None:
        (stream or get_current_stream()).do("graph", lambda timeline: [work(timeline) for work in self._work] and None)


class Event(_Noted):
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.clock: race_detector.Clock = {}
        self._delay = machine.delay

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or get_current_stream()
        events.append((stream, "record", self))
        self.seconds = time.perf_counter()
        race_detector.begin(stream.timeline)
        self.clock, self._delay = dict(stream.timeline.clock), machine.delay

    def synchronize(self) -> None:
        events.append((None, "synchronize", self))
        race_detector.wait([self.clock])

    @property
    def done(self) -> bool:
        self._delay -= 1
        if self._delay < 0:
            race_detector.wait([self.clock])
        return self._delay < 0


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

    def synchronize(self) -> None:
        race_detector.wait([timeline.clock for timeline in race_detector.streams()])


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


def _asarray(a: Any, dtype: Any = None, order: str | None = None, *, blocking: bool = False) -> CupyArray:
    if isinstance(a, CupyArray):
        if dtype in (None, a.dtype) and (order != "C" or a.flags.c_contiguous):
            return a
        return _computed("asarray", lambda array: np.array(array, dtype, order=order or "K"), (a,), {})
    source = np.array(_read(a), dtype, order=order or "K")
    array = _new(source.shape, source.dtype)
    _operation("asarray", writes=[array])
    np.asarray(array)[...] = source
    return array


def _ascontiguousarray(a: Any, dtype: Any = None) -> CupyArray:
    assert isinstance(a, CupyArray)
    return _asarray(a, dtype, "C")


def _asnumpy(
    a: CupyArray, stream: Stream | None = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    assert isinstance(a, CupyArray)
    stream = stream or get_current_stream()
    events.append((stream, "download", a.shape, blocking))
    _operation("download", reads=[a], writes=[] if out is None else _pinned(out), stream=stream)
    result = np.array(a) if out is None else out
    if out is not None:
        np.asarray(out)[...] = np.asarray(a)
    if blocking:
        race_detector.wait([stream.timeline.clock])
    return result


def _filled(shape: Any, dtype: Any, value: int, what: str = "") -> CupyArray:
    array = _new(shape, dtype)
    if array.nbytes > machine.memory_for:
        raise MemoryError(f"Out of memory allocating {array.nbytes:,} bytes")
    if what:
        _operation(what, writes=[array])
    np.asarray(array)[...] = value
    return array


def _empty_pinned(shape: Any, dtype: Any) -> PinnedArray:
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    memory = race_detector.allocate(None, int(np.prod(shape)) * dtype.itemsize)
    return memory.view(dtype).reshape(shape).view(PinnedArray)


def _each(function: Any) -> Any:
    """A function of NumPy for marked arrays."""
    return lambda *args, **options: _computed(function.__name__, function, args, options)


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(item) for item in value)
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
        "empty": lambda shape, dtype=float: _filled(shape, dtype, 99),
        "zeros": lambda shape, dtype=float: _filled(shape, dtype, 0, "zeros"),
    }
    names = (
        "abs", "arange", "argsort", "bincount", "broadcast_to", "clip", "concatenate", "diagonal", "einsum", "exp",
        "flatnonzero", "isfinite", "maximum", "minimum", "moveaxis", "pad", "repeat", "rint", "searchsorted", "sqrt",
        "stack", "where",
    )  # fmt: skip
    for name in names:
        functions[name] = _each(getattr(np, name))
    for name, function in functions.items():
        setattr(cupy, name, _logged(f"cupy.{name}", function))
    cupyx.empty_pinned = _logged("cupyx.empty_pinned", _empty_pinned)  # type: ignore[attr-defined]
    cupy.ndarray = _ndarray_type()  # type: ignore[attr-defined]
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        **{
            kind.__name__: _logged(f"cupy.cuda.{kind.__name__}", kind)
            for kind in (Stream, Event, Device, UnownedMemory, MemoryPointer)
        },
        get_elapsed_time=_logged(
            "cupy.cuda.get_elapsed_time", lambda start, stop: 1000 * (stop.seconds - start.seconds)
        ),
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
    """Compare entries of :data:`used` with the real CuPy, in a separate process: each exists and takes them."""
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


@cache
def _constant_parameters(source: str, name: str) -> frozenset[int]:
    """Positions of the pointers that a kernel only reads through."""
    text = (device.SOURCES / f"{source}.cu").read_text()
    definition = re.search(rf"__global__ void (?:__launch_bounds__\([^)]*\)\s*)?{name}\(([^)]*)\)", text)
    assert definition, f"{source}.cu has no kernel {name}"
    parameters = definition[1].split(",")
    return frozenset(index for index, text in enumerate(parameters) if "*" in text and "const" in text)


def _by_place(on_host: Any, on_device: Any) -> Any:
    """Marked arrays are NumPy's to the public functions, so the choice of the form is made here."""
    return lambda array, *args, **options: (on_device if type(array) is CupyArray else on_host)(array, *args, **options)


@contextmanager
def fake_cupy(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``import cupy`` gives the stand-in inside, and the public kernels run the CUDA sources on its arrays."""
    cupy, cupyx = _module()
    events.clear()
    machine.__init__(**MACHINE)
    race_detector.reset()
    race_detector.patch_hand_offs(patch)
    patch.setitem(sys.modules, "cupy", cupy)
    patch.setitem(sys.modules, "cupyx", cupyx)
    # undone before what it is laid over: `patch` is undone later, and would bring the harness's functions back
    with simt_device(), pytest.MonkeyPatch.context() as inner:
        inner.setattr(device, "arrays", lambda: cupy)
        kernel, one_at_a_time = device.kernel, threading.Lock()

        def locked(source: str, name: str) -> Any:
            def launch(grid: Any, block: Any, args: Any) -> None:
                constant = _constant_parameters(source, name.partition("<")[0])
                arrays = [(index, value) for index, value in enumerate(args) if isinstance(value, CupyArray)]
                _operation(
                    name,
                    reads=[array for _, array in arrays],
                    writes=[array for index, array in arrays if index not in constant],
                )
                with one_at_a_time:
                    kernel(source, name)(grid, block, args)

            return launch

        inner.setattr(device, "kernel", locked)
        for name in (name for name in kernels.__all__ if name.islower() and name != "conformal_rank"):
            inner.setattr(kernels, name, _by_place(getattr(kernels, name), getattr(gpu, name)))
        yield cupy
        assert not race_detector.races, "\n".join(race_detector.races)
