"""The session protocol: run a bundle's graph on a batch of prepared inputs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

GRACE_SECONDS = 1.0
"""Time that a node has to end after an interrupt, in seconds."""


class Session(Protocol):
    """A graph that is ready to run. Several threads may call ``run`` at once."""

    @property
    def kind(self) -> str:
        """``runtime/device/precision``, e.g. ``onnxruntime/cpu/fp32``; recorded with labels and calibrations.

        A verdict of the export gate holds for this runtime and this device only.
        """
        ...

    @property
    def artifact(self) -> str:
        """SHA-256 of the file that this session runs: an ONNX file of the bundle, or an engine."""
        ...

    @property
    def max_batch(self) -> int | None:
        """Batch size that calls should have, or None if it does not matter.

        It is the only one that the graph accepts, or the one that the engine was optimized for.
        """
        ...

    @property
    def threads(self) -> int:
        """Threads per call on the host."""
        ...

    def run(self, inputs: Any) -> list[Any]:
        """Compute the outputs, each (N, …), of float32 inputs (N, …), in the order of ``Bundle.outputs_of(role)``.

        A graph with one input accepts an array, a graph with several a mapping from input names to arrays. Sessions on
        a GPU also accept CuPy arrays: then the outputs are CuPy arrays, computed in the order of CuPy's current stream.
        """
        ...


def interruptible(call: Callable[[], T], cancel: Callable[[], object]) -> T:
    """Return the result of ``call``; an interrupt ends it, although Python handles interrupts only between calls.

    If called on the main thread, ``call`` runs on another one; at an interrupt ``cancel`` asks it to end, and it has
    :data:`GRACE_SECONDS` to do so.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    # a process that exits while threads of this name are alive is ended at once
    thread = threading.Thread(target=work, name="maskmill-model", daemon=True)
    thread.start()
    try:
        return result.result()
    except KeyboardInterrupt:
        cancel()
        thread.join(GRACE_SECONDS)
        raise


def shapes_of(feeds: Mapping[str, Any]) -> str:
    """Format names and shapes of a call's inputs for a message."""
    return ", ".join(f"{name!r} of shape {tuple(array.shape)}" for name, array in feeds.items())


def first_line(error: Exception) -> str:
    """Return the first line of an ONNX library's message, without ONNX Runtime's prefix."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\]\s*:\s*\d+\s*:\s*", "", text.splitlines()[0])
