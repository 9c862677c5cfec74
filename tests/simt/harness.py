"""Runs the CUDA sources on a CPU, through the launchers that run them on a device.

``simt_device(schedule)`` stands in for the device: arrays that live "there" are marked, launches go to the same .cu
files compiled as host C++ behind ``simt.h``, with the geometry and the argument list that CuPy would get. Held on the
way: the argument types are exactly the parameters', host arrays are not passed for device arrays, nothing reads a
device array on the host, and no kernel writes outside its arrays.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from maskmill.kernels.gpu import device

from ..kernels.forms import gpu

HERE = Path(__file__).parent
GUARD = 256

FORWARD, REVERSE, SHUFFLED = 0, 1, 2
SCHEDULES = (FORWARD, REVERSE, SHUFFLED)
POISON = {FORWARD: 0xA5, REVERSE: 0xFF, SHUFFLED: 0x3C}
"""What shared memory, new arrays and the guards around arrays hold: another byte a schedule, so that a result that
rests on memory nobody wrote changes with the schedule. 0xFF is NaN in every float type."""

MAIN = """
#include "simt.h"
// No kernel has a name that another library could share, and with it its static variables.
namespace {{
#include "{source}"
}}
namespace simt {{
{kinds}
SIMT_OWN const Named table[] = {{ {rows} }};
}}
extern "C" long long simt_visits(const char* branch) {{
    const long long count = simt::visits().counts[branch];
    simt::visits().counts.erase(branch);
    return count;
}}
extern "C" const char* simt_parameters(int kernel) {{ return simt::table[kernel].parameters.c_str(); }}
extern "C" int simt_launch(int kernel, void** arguments, const unsigned* grid, const unsigned* block, int schedule,
                           int poison, char* message, size_t capacity) {{
    return simt::launch(simt::table[kernel].body, arguments, grid, block, schedule, static_cast<unsigned char>(poison),
                        message, capacity);
}}
"""

KINDS = {
    "b1": ("b1", "u1"),
    "u1": ("u1", "b1"),
    "fp16": ("f2",),
    "bf16": ("bf16",),
}
"""Element kinds of arrays that a pointer may take, where they are not its own."""


class DeviceArray(np.ndarray):
    """An array on the stand-in device: reading its values on the host, which would wait for a device, is an error."""

    def _synchronizes(self, *_args, **_kwargs):
        raise AssertionError("a launcher read a device array on the host")

    __bool__ = __int__ = __float__ = __index__ = __iter__ = item = tolist = tobytes = _synchronizes


def on_device(array) -> DeviceArray:
    """A NumPy array as the launchers' caller holds it."""
    return np.asarray(array).view(DeviceArray)


class _Cupy:
    """The part of CuPy that the launchers use, over marked NumPy arrays."""

    def __init__(self, poison: int) -> None:
        self._poison = poison
        stream = SimpleNamespace(synchronize=lambda: None)
        device = SimpleNamespace(id=0, synchronize=lambda: None)
        self.cuda = SimpleNamespace(get_current_stream=lambda: stream, Device=lambda: device)

    def empty(self, shape, dtype):
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = self._poison
        return on_device(array)

    def zeros(self, shape, dtype):
        return on_device(np.zeros(shape, dtype))

    def asarray(self, array, dtype=None):
        if isinstance(array, DeviceArray) and (dtype is None or array.dtype == dtype):
            return array
        return on_device(np.array(array, dtype=dtype))

    def ascontiguousarray(self, array, dtype=None):
        _assert_on_device(array)
        return on_device(np.ascontiguousarray(array, dtype=dtype))

    def broadcast_to(self, array, shape):
        _assert_on_device(array)
        return np.broadcast_to(array, shape, subok=True)


def _assert_on_device(array) -> None:
    assert isinstance(array, DeviceArray), f"a launcher took a host array for a device array: {type(array).__name__}"


@cache
def library(source: Path, names: tuple[str, ...]) -> tuple[ctypes.CDLL, dict[str, int]]:
    """A .cu file as a shared library with the kernels named, and the index of each."""
    if sys.platform != "linux":
        pytest.skip("running the CUDA sources on a CPU needs Linux: ucontext fibers and ELF sections")
    compiler = shutil.which("g++")
    assert compiler, "running the CUDA sources on a CPU needs g++; install it with: apt-get install g++"
    main = MAIN.format(
        source=source.name,
        kinds="\n".join(
            f'template <> inline std::string kind_of<{name}>() {{ return "{name}"; }}' for name in ("fp16", "bf16")
        ),
        rows=", ".join(f'named<{name}>("{name}")' for name in names),
    )
    options = (
        "-std=c++17",
        "-O0",
        "-fPIC",
        "-shared",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-U_FORTIFY_SOURCE",
    )
    options += (f"-I{HERE}", f"-I{source.parent}", f"-I{device.SOURCES}")
    headers = sorted(device.SOURCES.glob("*.cuh"))
    texts = [path.read_text() for path in (HERE / "simt.h", *headers, source)]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256("\0".join([main, *texts, *options, version]).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"maskmill-simt-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    built = folder / f"{source.stem}-{digest}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            path = Path(work) / "main.cpp"
            path.write_text(main)
            run = subprocess.run(
                [compiler, *options, "-o", f"{work}/main.so", str(path)], capture_output=True, text=True
            )
            assert run.returncode == 0, f"{source.name} does not compile as host C++:\n{run.stderr[-4000:]}"
            os.replace(f"{work}/main.so", built)
    loaded = ctypes.CDLL(str(built))
    loaded.simt_parameters.restype = ctypes.c_char_p
    loaded.simt_visits.restype = ctypes.c_longlong
    return loaded, {name: index for index, name in enumerate(names)}


def _kind(dtype: np.dtype) -> str:
    return "bf16" if dtype.name == "bfloat16" else f"{dtype.kind}{dtype.itemsize}"


class _Guarded:
    """The memory of one array, copied between guards; written back if nothing outside it changed."""

    def __init__(self, array: np.ndarray, poison: int) -> None:
        low, high = np.lib.array_utils.byte_bounds(array)
        self.low, self.high, self.poison = low, high, poison
        self.memory = np.full(high - low + 3 * GUARD, poison, np.uint8)
        # The same address modulo the guard, so that a load that is misaligned on a device is misaligned here.
        self.start = GUARD + (low - self.memory.ctypes.data) % GUARD
        self.inside = slice(self.start, self.start + high - low)
        self.original = np.frombuffer((ctypes.c_uint8 * (high - low)).from_address(low), np.uint8)
        self.memory[self.inside] = self.original
        self.writeable = array.flags.writeable
        self.pointer = self.memory.ctypes.data + self.start + array.ctypes.data - low

    def finish(self, name: str, position: int) -> None:
        before, after = self.memory[: self.inside.start], self.memory[self.inside.stop :]
        assert (before == self.poison).all(), f"{name} writes before its argument {position}"
        assert (after == self.poison).all(), f"{name} writes after its argument {position}"
        if self.writeable:
            self.original[:] = self.memory[self.inside]
        else:
            assert (self.original == self.memory[self.inside]).all(), f"{name} writes its input {position}"


def _check_type(name: str, position: int, parameter: str, argument) -> None:
    where = f"{name}: argument {position} for a parameter of kind {parameter!r}"
    if isinstance(argument, np.ndarray):
        _assert_on_device(argument)
        assert parameter.startswith("*"), f"{where} is an array"
        element = parameter[1:]
        if element:
            assert _kind(argument.dtype) in KINDS.get(element, (element,)), f"{where} holds {argument.dtype}"
    else:
        assert isinstance(argument, np.generic), f"{where} is a {type(argument).__name__}, not a NumPy scalar"
        null = parameter.startswith("*") and argument.dtype == np.uint64 and argument == 0
        assert null or _kind(argument.dtype) == parameter, f"{where} is {argument.dtype} {argument}"


class SimtKernel:
    """A kernel on the CPU, called as CuPy's RawKernel is."""

    def __init__(self, source: Path, names: tuple[str, ...], name: str, schedule: int) -> None:
        self.library, indices = library(source, names)
        self.name, self.index, self.schedule = name, indices[name], schedule

    def __call__(self, grid, block, args, shared_mem=0) -> None:
        assert shared_mem == 0
        parameters = self.library.simt_parameters(self.index).decode().rstrip(",").split(",")
        assert len(args) == len(parameters), f"{self.name} takes {len(parameters)} arguments, got {len(args)}"
        poison = POISON[self.schedule]
        values, guarded = [], {}
        for position, (parameter, argument) in enumerate(zip(parameters, args, strict=True)):
            _check_type(self.name, position, parameter, argument)
            if isinstance(argument, np.ndarray):
                guarded[position] = one = _Guarded(argument, poison)
                values.append(np.array(one.pointer, np.uint64))
            else:
                values.append(np.array(argument))
        spans = sorted((one.low, one.high) for one in guarded.values() if one.high > one.low)
        assert all(left[1] <= right[0] for left, right in zip(spans, spans[1:], strict=False)), "arguments overlap"
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        message = ctypes.create_string_buffer(512)
        sizes = [(ctypes.c_uint * 3)(*(*size, 1, 1)[:3]) for size in (grid, block)]
        failed = self.library.simt_launch(
            self.index, pointers, *sizes, self.schedule, poison, message, ctypes.c_size_t(len(message))
        )
        assert not failed, f"{self.name}: {message.value.decode()}"
        for position, one in guarded.items():
            one.finish(self.name, position)


launched: list[str] = []
"""Names of the kernels launched, in order; a test may clear it."""


MOST_IN_ONE_LIBRARY = 16
"""Kernels that are compiled together; a larger file is compiled for one element type at a time."""


def _kernel(source: str, name: str, schedule: int) -> SimtKernel:
    launched.append(name)
    names = device.INSTANTIATIONS[source]
    assert name in names, f"{name} is not among the instantiations of {source}.cu"
    if len(names) > MOST_IN_ONE_LIBRARY:
        names = tuple(other for other in names if other.split(",")[0] == name.split(",")[0])
    return SimtKernel(device.SOURCES / f"{source}.cu", names, name, schedule)


@contextmanager
def simt_device(schedule: int = FORWARD):
    """Launchers called inside run on the CPU, their blocks and threads in the order of ``schedule``."""
    cupy = _Cupy(POISON[schedule])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "arrays", lambda: cupy)
        patch.setattr(device, "address", lambda array: array.ctypes.data)
        patch.setattr(device, "kernel", lambda source, name: _kernel(source, name, schedule))
        yield


class CudaForm:
    """The CUDA form as the tests see a form: functions of NumPy arrays.

    Each call runs under every schedule; the results must be the same to the bit. An array given as ``out`` starts each
    run with what it holds.
    """

    def __getattr__(self, name: str):
        function = getattr(gpu, name)

        def call(*args, **options):
            runs = [_run(function, args, options, schedule) for schedule in SCHEDULES]
            bits = [[array.tobytes() for array in _arrays(result)] for result, _ in runs]
            for schedule, other in zip(SCHEDULES, bits, strict=True):
                assert other == bits[0], f"{name} gives other results under schedule {schedule}: a race"
            result, filled = runs[-1]
            return _mapped(lambda array: _handed_back(array, filled), result)

        return call if callable(function) else function


cuda = CudaForm()


def _run(function, args, options, schedule):
    """The result of one call, and the caller's arrays with what the call made of each."""
    given = []

    def moved(array):
        copied = on_device(array.copy())
        given.append((array, copied))
        return copied

    options = {key: _mapped(moved if key == "out" else on_device, value) for key, value in options.items()}
    with simt_device(schedule):
        result = function(*(_mapped(on_device, value) for value in args), **options)
    return result, given


def _handed_back(array, filled):
    for original, copied in filled:
        if array is copied:
            original[...] = np.asarray(copied)
            return original
    return np.asarray(array)


def _mapped(function, value):
    if isinstance(value, np.ndarray):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_mapped(function, item) for item in value)
    if is_dataclass(value):
        return replace(value, **{field.name: _mapped(function, getattr(value, field.name)) for field in fields(value)})
    return value


def _arrays(value):
    found = []
    _mapped(lambda array: found.append(np.asarray(array)), value)
    return found
