"""The CUDA sources as CuPy kernels: the list of kernels, their compilation and their launch.

The launchers reach a device only through :func:`arrays`, :func:`address` and :func:`kernel`, so that tests can run the
same launchers, with their geometry and argument lists, on the sources compiled for a CPU.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from ...errors import MissingPackageError, UsageError

SOURCES = Path(__file__).resolve().parent.parent / "cuda"
"""Folder of the .cu files."""

OPTIONS = ("--std=c++17", "--fmad=false", f"-I{SOURCES}")
"""Compiler options. Without contraction an expression gives the same bits wherever it is inlined."""

ELEMENTS = {"float16": "fp16", "bfloat16": "bf16", "float32": "float"}
"""Element types of scores: dtype name to the name in common.cuh."""

ACTIVATIONS = {"softmax": "SOFTMAX", "sigmoid": "SIGMOID", "none": "NONE"}
"""Activations: name to the enumerator in class_tally.cuh."""

WALKS = ("STRIDED", "VECTOR", "GROUPED")
"""Ways in which class_walk.cuh walks through the classes of a pixel."""

SHAPES = ((1, 1), (4, 2))
"""Rows and columns of pixels per thread of class_stats.cu."""


MODES = ("TOP", "SUMS", "SECONDS")
"""Results of the pass over the classes, as class_tally.cuh's Mode; each mode also computes those before it."""


def _class_stats() -> Iterator[str]:
    for element, activation, walk, mode, (rows, columns) in itertools.product(
        ELEMENTS.values(), ACTIVATIONS.values(), WALKS, MODES, SHAPES
    ):
        # Groups of softmax are ranked by their masses, so the sums are needed.
        if (activation, walk, mode) != ("SOFTMAX", "GROUPED", "TOP"):
            yield f"class_stats<{element}, {activation}, {walk}, {mode}, {rows}, {columns}>"


INSTANTIATIONS: dict[str, tuple[str, ...]] = {
    "class_stats": tuple(_class_stats()),
    "scores": (
        "score_counts<true>",
        "score_counts<false>",
        "largest_weight",
        "weighted_score_counts",
        "add_fixed_point",
        "select_prefix<uint64>",
        "select_prefix<double>",
        "kth_score<uint64>",
        "kth_score<double>",
        "position_quantiles",
    ),
    "pcos": tuple(f"{name}<{pack}>" for name in ("pcos_gram", "pcos_clusters", "pcos_weights") for pack in (1, 4)),
    "peaks": ("map_extremes", "zero_padded_maximum", "peak_candidates", "settle_peaks", "select_peaks"),
    "binned": ("binned_counts",),
    "confusion": ("confusion_counts<true>", "confusion_counts<false>"),
    "cover": ("perturbation_cover<1>", "perturbation_cover<4>"),
    "quantize": ("quantize_weights<1>", "quantize_weights<4>"),
    "pixels": ("resize_columns", "resize_rows_normalize"),
}
"""All kernels: file name to name expressions."""

INTEGER_CODES = {
    np.dtype(name): np.int32(code)
    for code, name in enumerate(("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"))
}
"""Codes of integer types, as common.cuh's IntegerCode."""

MOST_CONSTANTS = 512
"""Tables that :func:`constant` keeps in one generation."""

_constants: list[dict[tuple, tuple[Any, DeviceArray]]] = [{}, {}]
_constants_lock = threading.Lock()

NULL = np.uint64(0)
"""The null pointer as an argument."""

Kernel = Callable[[tuple[int, ...], tuple[int, ...], Sequence[Any]], None]


class DeviceArray(Protocol):
    """The part of ``cupy.ndarray`` that the launchers use."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    ndim: int
    size: int
    flags: Any
    data: Any

    def view(self, dtype: Any) -> DeviceArray:
        """Reinterpret the elements as another type."""
        ...

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        """Return the elements in another shape."""
        ...


Pointer = DeviceArray | np.uint64
"""An argument for a pointer parameter: an array, or :data:`NULL`."""


def arrays() -> ModuleType:
    """Import CuPy, the array library of the device.

    Raises:
        MissingPackageError: CuPy is not installed.
    """
    try:
        import cupy
    except ImportError as error:
        raise MissingPackageError("cupy-cuda13x", "gpu", "running kernels on a GPU") from error
    return cupy


def address(array: DeviceArray) -> int:
    """Return the device address of the array's first element."""
    return array.data.ptr


def kernel(source: str, name: str) -> Kernel:
    """Return the kernel ``name`` of ``cuda/<source>.cu``, compiled for the current device on first use."""
    return _compiled(arrays().cuda.Device().id, source, name)


@cache
def _compiled(device: int, source: str, name: str) -> Kernel:
    # CuPy's cache of compiled files is keyed by the source and the options, not by the included files.
    headers = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.cuh")))).hexdigest()[:16]
    module = arrays().RawModule(
        code=(SOURCES / f"{source}.cu").read_text(),
        options=(*OPTIONS, f"-DHEADERS_{headers}"),
        name_expressions=(name,),
    )
    return module.get_function(name)


def launch(source: str, name: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any]) -> None:
    """Queue one kernel on the current stream; an empty grid queues nothing.

    ``arguments`` are device arrays and NumPy scalars of exactly the parameters' types.

    Raises:
        UsageError: the grid is larger than a device allows.
    """
    if 0 in grid:
        return
    limits = (2**31 - 1, 65535, 65535)
    if any(blocks > limit for blocks, limit in zip(grid, limits, strict=False)):
        raise UsageError(f"{name} would need a grid of {grid} blocks, more than {limits}; pass fewer or smaller maps")
    kernel(source, name)(grid, block, tuple(arguments))


def ceil_div(count: int, size: int) -> int:
    """Return the number of blocks of ``size`` that hold ``count``."""
    return -(-count // size)


def aligned(pack: int, *operands: Pointer) -> bool:
    """Return True if each array can be read in loads of ``pack`` elements, starting at its first element."""
    return all(
        address(array) % (pack * array.dtype.itemsize) == 0 for array in operands if not isinstance(array, np.generic)
    )


def empty(shape: int | tuple[int, ...], dtype: Any) -> DeviceArray:
    """Allocate an array on the device; its values are undefined."""
    return arrays().empty(shape, dtype)


def zeros(shape: int | tuple[int, ...], dtype: Any) -> DeviceArray:
    """Allocate an array of zeros on the device."""
    return arrays().zeros(shape, dtype)


def upload(values: Any, dtype: Any = None) -> DeviceArray:
    """Copy values to the device: CuPy copies host arrays through pinned memory, in stream order."""
    return arrays().asarray(values, dtype=dtype)


def constant(values: np.ndarray) -> DeviceArray:
    """Return read-only values on the device: equal tables are uploaded once, then any stream may read them.

    The first call with a table waits for its upload. Two generations of tables are kept: the older one is dropped when
    the device is idle, and holds no table that a launch is about to use.
    """
    library, values = arrays(), np.ascontiguousarray(values)
    key = (id(library), library.cuda.Device().id, values.dtype.str, values.shape, values.tobytes())
    with _constants_lock:
        table = _constants[0].get(key)
        if table is None:
            table = _constants[1].get(key)
            if table is None:
                table = (library, library.asarray(values))
                library.cuda.get_current_stream().synchronize()
            if len(_constants[0]) >= MOST_CONSTANTS:
                library.cuda.Device().synchronize()
                _constants[:] = [{}, _constants[0]]
            _constants[0][key] = table
    return table[1]


def contiguous(array: DeviceArray, dtype: Any = None) -> DeviceArray:
    """Return the array in C order and of the dtype, converted on the device if necessary."""
    return arrays().ascontiguousarray(array, dtype=dtype)


def spread(array: DeviceArray, shape: tuple[int, ...]) -> DeviceArray:
    """Return a view of the array broadcast to a shape."""
    return arrays().broadcast_to(array, shape)


def integers(array: DeviceArray, name: str) -> tuple[DeviceArray, np.int32]:
    """Return an integer or bool map in C order, and the code of its type.

    Raises:
        UsageError: the array does not hold integers.
    """
    array = contiguous(array)
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if array.dtype not in INTEGER_CODES:
        raise UsageError(f"{name} must hold integers, got {array.dtype}")
    return array, INTEGER_CODES[array.dtype]


def output(out: DeviceArray | None, shape: tuple[int, ...], dtype: Any, name: str = "out") -> DeviceArray:
    """Return ``out``, or a new array if it is None.

    Raises:
        UsageError: ``out`` has another shape or dtype, or is not in C order.
    """
    if out is None:
        return empty(shape, dtype)
    if out.shape != tuple(shape) or out.dtype != np.dtype(dtype) or not out.flags.c_contiguous:
        raise UsageError(
            f"{name} must be a C-contiguous {np.dtype(dtype)} array of shape {tuple(shape)}, "
            f"got {out.dtype} of shape {out.shape}"
        )
    return out
