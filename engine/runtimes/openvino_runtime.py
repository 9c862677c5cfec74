"""Run a bundle's graph with OpenVINO on a CPU, often faster than ONNX Runtime, above all in int8.

::

    session = OpenVINOSession(Bundle.load("deeplab"), threads=1)
    (scores,) = session.run(batch)

By default OpenVINO computes in bfloat16 on processors that have it. This session sets the precision of the graph, so
that scores do not depend on the processor.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checks import check_count
from ...errors import MissingPackageError, SessionError
from ...kernels.processors import usable_processors
from ..model.bundle import Bundle
from ..model.storage import shown
from .base import interruptible, shapes_of


class OpenVINOSession:
    """OpenVINO on the CPU.

    Calls from several threads run in parallel, each on ``threads`` threads of OpenVINO's pool. The number of calls that
    run at once is limited by the number of processors; further calls wait.
    """

    def __init__(self, bundle: Bundle, *, role: str = "model", threads: int = 1, precision: str | None = None) -> None:
        check_count("threads", threads, least=1)
        # openvino_telemetry sends usage data from a forked process; OpenVINO runs without it if it cannot be imported
        sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
        try:
            from openvino import Core, __version__
        except ImportError as error:
            raise MissingPackageError("openvino", "openvino", "running a model with OpenVINO") from error
        entry = bundle.file(role, precision)
        path = bundle.path / entry.path
        calls = max(1, usable_processors() // threads)
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": calls,
            "INFERENCE_NUM_THREADS": calls * threads,
        }
        try:
            self._model = Core().compile_model(path, "CPU", options)
        except Exception as error:
            raise SessionError(shown(f"OpenVINO cannot load {path}: {_reason(error)}")) from error
        self._input = bundle.input.name
        position = {name: index for index, output in enumerate(self._model.outputs) for name in output.names}
        try:
            self._outputs = [position[output.name] for output in bundle.outputs_of(role)]
        except KeyError as error:
            raise SessionError(f"{shown(path)} has no output {error}; export the bundle again") from error
        batch = self._model.inputs[0].partial_shape[0]
        self._max_batch = batch.get_length() if batch.is_static else None
        self._threads = threads
        self._precision, self._artifact = entry.precision, entry.sha256
        version = __version__.split("-")[0]
        self._description = f"OpenVINO {version}, CPU, {entry.precision}, {threads} thread(s), {calls} call(s) at once"
        self._local = threading.local()

    @property
    def kind(self) -> str:
        """Runtime, device and precision."""
        return f"openvino/cpu/{self._precision}"

    @property
    def artifact(self) -> str:
        """SHA-256 of the ONNX file."""
        return self._artifact

    @property
    def max_batch(self) -> int | None:
        """The graph's batch size, or None if it is free."""
        return self._max_batch

    @property
    def threads(self) -> int:
        """Threads per call on the host."""
        return self._threads

    def run(self, inputs: NDArray[np.float32] | Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph on a float32 batch (N, …) in the bundle's layout, or on named inputs."""
        feeds = dict(inputs) if isinstance(inputs, Mapping) else {self._input: inputs}
        if not hasattr(self._local, "request"):
            self._local.request = self._model.create_infer_request()
        try:
            request = self._local.request
            results = interruptible(lambda: request.infer(feeds, share_inputs=True), request.cancel)
        except Exception as error:
            raise SessionError(f"the model failed on its input {shapes_of(feeds)}: {_reason(error)}") from error
        return [results[index] for index in self._outputs]

    def __repr__(self) -> str:
        return self._description


def _reason(error: Exception) -> str:
    """Return the last line of OpenVINO's message; the lines before it are source locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
