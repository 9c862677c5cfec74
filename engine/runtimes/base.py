"""The session protocol: run a bundle's graph on a batch of prepared inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol


class Session(Protocol):
    """What runs a graph. ``run`` may be called from several threads at once."""

    @property
    def kind(self) -> str:
        """``runtime/device/precision``, e.g. ``onnxruntime/cpu/fp32``; recorded with everything made from it.

        A verdict of the export gate belongs to the runtime and the device that stand here.
        """
        ...

    @property
    def artifact(self) -> str:
        """SHA-256 of the file that it runs: an ONNX file of the bundle, or an engine."""
        ...

    @property
    def max_batch(self) -> int | None:
        """Largest batch that one call takes, or None where the batch axis is free."""
        ...

    @property
    def threads(self) -> int:
        """Threads that one call uses on the host."""
        ...

    def run(self, inputs: Any) -> list[Any]:
        """Inputs (N, …) float32 → outputs, each (N, …), in the order of ``Bundle.outputs_of(role)``.

        A graph with one input takes the array, one with several a mapping from their names. Sessions on a GPU take
        CuPy arrays too: the outputs then stay on the device, ordered with CuPy's current stream.
        """
        ...


def shapes_of(feeds: Mapping[str, Any]) -> str:
    """Names and shapes of a call's inputs, for messages."""
    return ", ".join(f"{name!r} of shape {tuple(array.shape)}" for name, array in feeds.items())


def first_line(error: Exception) -> str:
    """The first line of an ONNX library's message, without ONNX Runtime's prefix."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\]\s*:\s*\d+\s*:\s*", "", text.splitlines()[0])
