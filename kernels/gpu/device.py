"""The CUDA sources as CuPy kernels: what can be compiled, compiling it once, launching it.

Everything a launcher asks of a device passes through :func:`arrays`, :func:`address` and :func:`kernel`, so that the
same launchers, geometry and argument lists included, also run over the sources compiled for a CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MissingPackageError, UsageError

SOURCES = Path(__file__).resolve().parent.parent / "cuda"
"""Folder of the .cu files."""

OPTIONS = ("--std=c++17", "--fmad=false", f"-I{SOURCES}")
"""Compiler options. Without contraction an expression gives the same bits wherever the compiler inlines it."""

ELEMENTS = {"float16": "fp16", "bfloat16": "bf16", "float32": "float"}
"""Element types of scores: dtype name to the name in common.cuh."""

ACTIVATIONS = {"softmax": "SOFTMAX", "sigmoid": "SIGMOID", "none": "NONE"}
"""Activations: name to the enumerator in class_stats.cu."""

WALKS = ("STRIDED", "VECTOR", "GROUPED")
"""Ways class_stats.cu walks the classes of a pixel."""

INSTANTIATIONS: dict[str, tuple[str, ...]] = {
    "class_stats": tuple(
        f"class_stats<{element}, {activation}, {walk}>"
        for element in ELEMENTS.values()
        for activation in ACTIVATIONS.values()
        for walk in WALKS
    ),
    "scores": (
        "score_counts",
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
    "peaks": ("map_extremes", "zero_padded_maximum", "peak_candidates", "select_peaks"),
    "confusion": ("confusion_counts<true>", "confusion_counts<false>"),
    "cover": ("perturbation_cover<1>", "perturbation_cover<4>"),
    "quantize": ("quantize_weights<1>", "quantize_weights<4>"),
    "pixels": ("resize_columns", "resize_rows_normalize"),
}
"""Every kernel that is ever launched: file name to name expressions."""

INTEGER_CODES = {
    np.dtype(name): np.int32(code)
    for code, name in enumerate(("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"))
}
"""Codes of integer types, as common.cuh's IntegerCode."""

NULL = np.uint64(0)
"""The argument for a pointer to nothing."""

Array = Any
Kernel = Callable[[tuple[int, ...], tuple[int, ...], Sequence[Any]], None]


def arrays() -> Any:
    """The array library of the device: CuPy.

    Raises:
        MissingPackageError: CuPy is not installed.
    """
    try:
        import cupy
    except ImportError as error:
        raise MissingPackageError("cupy-cuda13x", "gpu", "running kernels on a GPU") from error
    return cupy


def address(array: Array) -> int:
    """Device address of the array's first element."""
    return array.data.ptr


def kernel(source: str, name: str) -> Kernel:
    """The kernel ``name`` of ``cuda/<source>.cu``, compiled for the current device the first time it is asked for."""
    return _compiled(arrays().cuda.Device().id, source, name)


@cache
def _compiled(device: int, source: str, name: str) -> Kernel:
    # CuPy keys its cache of compiled files by the source and the options, not by what the source includes.
    shared = hashlib.sha256((SOURCES / "common.cuh").read_bytes()).hexdigest()[:16]
    module = arrays().RawModule(
        code=(SOURCES / f"{source}.cu").read_text(),
        options=(*OPTIONS, f"-DCOMMON_CUH_{shared}"),
        name_expressions=(name,),
    )
    return module.get_function(name)


def launch(source: str, name: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any]) -> None:
    """Queue one kernel on the current stream; nothing is queued for an empty grid.

    ``arguments`` are device arrays and NumPy scalars of exactly the parameters' types.

    Raises:
        UsageError: the grid is larger than a device takes.
    """
    if 0 in grid:
        return
    limits = (2**31 - 1, 65535, 65535)
    if any(blocks > limit for blocks, limit in zip(grid, limits, strict=False)):
        raise UsageError(f"{name} would need a grid of {grid} blocks, more than {limits}; pass fewer or smaller maps")
    kernel(source, name)(grid, block, tuple(arguments))


def ceil_div(count: int, size: int) -> int:
    """Blocks of ``size`` that hold ``count``."""
    return -(-count // size)


def aligned(pack: int, *operands: Array) -> bool:
    """Whether ``pack`` elements of each array can be read in one load from its first element on."""
    return all(address(array) % (pack * array.dtype.itemsize) == 0 for array in operands if array is not NULL)


def empty(shape: Any, dtype: Any) -> Array:
    """A new array on the device, its values undefined."""
    return arrays().empty(shape, dtype)


def zeros(shape: Any, dtype: Any) -> Array:
    """A new array of zeros on the device."""
    return arrays().zeros(shape, dtype)


def upload(values: Any, dtype: Any = None) -> Array:
    """The values on the device: CuPy copies host arrays through pinned memory, in the order of the stream."""
    return arrays().asarray(values, dtype=dtype)


def contiguous(array: Array, dtype: Any = None) -> Array:
    """The array in C order, converted on the device where it has to be."""
    return arrays().ascontiguousarray(array, dtype=dtype)


def spread(array: Array, shape: tuple[int, ...]) -> Array:
    """A view of the array broadcast to a shape."""
    return arrays().broadcast_to(array, shape)


def integers(array: Array, name: str) -> tuple[Array, np.int32]:
    """An integer or bool map in C order, and the code of its type.

    Raises:
        UsageError: the array holds no integers.
    """
    array = contiguous(array)
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if array.dtype not in INTEGER_CODES:
        raise UsageError(f"{name} must hold integers, got {array.dtype}")
    return array, INTEGER_CODES[array.dtype]


def output(given: Array | None, shape: tuple[int, ...], dtype: Any, name: str = "out") -> Array:
    """An array to fill: the one given, or a new one.

    Raises:
        UsageError: the one given has another shape or dtype, or is not in C order.
    """
    if given is None:
        return empty(shape, dtype)
    if given.shape != tuple(shape) or given.dtype != np.dtype(dtype) or not given.flags.c_contiguous:
        raise UsageError(
            f"{name} must be a C-contiguous {np.dtype(dtype)} array of shape {tuple(shape)}, "
            f"got {given.dtype} of shape {given.shape}"
        )
    return given
