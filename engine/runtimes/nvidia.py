"""Find the GPU of this machine, load TensorRT and collect its messages. NVIDIA's packages are imported when used."""

from __future__ import annotations

import re
from typing import Any

from ...errors import MissingPackageError, SessionError
from ..model.engine_records import Gpu

OUT_OF_MEMORY = re.compile(r"out ?of ?memory|insufficient memory|memory .*could not be allocated", re.IGNORECASE)
"""Matches TensorRT's messages about too little device memory."""


def this_gpu() -> Gpu:
    """Describe CuPy's current device. Raises :class:`SessionError` if there is none, :class:`MissingPackageError`."""
    try:
        import cupy
    except ImportError as error:
        raise MissingPackageError("cupy-cuda13x", "gpu", "running on a GPU") from error
    try:
        device = cupy.cuda.Device()
        properties = cupy.cuda.runtime.getDeviceProperties(device.id)
        capability = int(device.compute_capability)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise SessionError(f"no usable NVIDIA GPU ({error}); run `maskmill doctor` to see what was detected") from error
    return Gpu(name=properties["name"].decode(), capability=capability, memory=int(properties["totalGlobalMem"]))


def load_tensorrt(purpose: str) -> Any:
    """The module ``tensorrt``; raises :class:`MissingPackageError`."""
    try:
        # pyright takes a bare import for the module of this package
        return __import__("tensorrt")
    except ImportError as error:
        raise MissingPackageError("tensorrt", "gpu", purpose) from error


def message_log(trt: Any) -> Any:
    """A TensorRT logger that keeps warnings and errors, for messages of our own."""

    class Messages(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self._kept: list[tuple[bool, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self._kept.append((severity != trt.ILogger.WARNING, " ".join(msg.split())))

        def clear(self) -> None:
            self._kept.clear()

        def last(self) -> str:
            """The last error, else the last warning, else nothing."""
            errors = [text for error, text in self._kept if error]
            return (errors or [text for _, text in self._kept] or [""])[-1]

        def first(self, pattern: re.Pattern[str]) -> str | None:
            """The first message that ``pattern`` is found in."""
            return next((text for _, text in self._kept if pattern.search(text)), None)

    return Messages()
