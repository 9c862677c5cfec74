"""Find the GPU of this machine, load TensorRT and collect its messages. NVIDIA's packages are imported when used."""

from __future__ import annotations

import importlib
import re
from contextlib import suppress
from types import ModuleType
from typing import Any, Protocol, cast

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


def load_tensorrt(purpose: str) -> ModuleType:
    """Import ``tensorrt``; raises :class:`MissingPackageError`."""
    try:
        import tensorrt
    except ImportError as error:
        raise MissingPackageError("tensorrt", "tensorrt", purpose) from error
    return tensorrt


def load_tensorrt_runtime(purpose: str) -> tuple[ModuleType, bool]:
    """Import ``tensorrt``, or ``tensorrt_lean`` if only that is installed; returns the module and True for the latter.

    The lean runtime has no builder and runs version-compatible engines only. Raises :class:`MissingPackageError`.
    """
    with suppress(ImportError):
        return importlib.import_module("tensorrt"), False
    try:
        return importlib.import_module("tensorrt_lean"), True
    except ImportError as error:
        raise MissingPackageError("tensorrt", "tensorrt", purpose) from error


class MessageLog(Protocol):
    """TensorRT's messages so far."""

    def clear(self) -> None:
        """Forget all messages."""
        ...

    def last(self) -> str:
        """Return the last error, else the last warning, else an empty text."""
        ...

    def first(self, pattern: re.Pattern[str]) -> str | None:
        """Return the first message that matches ``pattern``, or None."""
        ...


def message_log(trt: ModuleType) -> MessageLog:
    """Return a TensorRT logger that collects warnings and errors, for our error messages."""

    class Messages(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self._entries: list[tuple[bool, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self._entries.append((severity != trt.ILogger.WARNING, " ".join(msg.split())))

        def clear(self) -> None:
            self._entries.clear()

        def last(self) -> str:
            """Return the last error, else the last warning, else an empty text."""
            errors = [text for error, text in self._entries if error]
            return (errors or [text for _, text in self._entries] or [""])[-1]

        def first(self, pattern: re.Pattern[str]) -> str | None:
            """Return the first message that matches ``pattern``, or None."""
            return next((text for _, text in self._entries if pattern.search(text)), None)

    return cast(MessageLog, Messages())
