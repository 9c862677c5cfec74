"""Run a bundle's graph with ONNX Runtime, on NumPy arrays or on CuPy arrays.

::

    session = OnnxSession(Bundle.load("deeplab"), provider="cpu")
    (scores,) = session.run(batch)

If this installation lacks a provider, that is an error; no other provider replaces it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...checks import check_choice, check_count
from ...errors import MissingPackageError, SessionError, install_command
from ..model.bundle import Bundle
from ..model.storage import shown
from .base import first_line, interruptible, shapes_of
from .device_arrays import is_device_array
from .onnx_device import DeviceRunner, new_stream

if TYPE_CHECKING:
    import cupy

EXECUTION_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Our provider names → ONNX Runtime's names."""


class OnnxSession:
    """ONNX Runtime on one provider.

    With ``threads=1`` (the default) a call runs on the calling thread alone, so that a pipeline with one calling
    thread per core keeps every core busy with independent images. With more threads, each call uses a pool.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        role: str = "model",
        provider: str = "cpu",
        threads: int = 1,
        precision: str | None = None,
    ) -> None:
        check_choice("provider", provider, EXECUTION_PROVIDERS)
        check_count("threads", threads, least=1)
        try:
            import onnxruntime
        except ImportError as error:
            extra = "cpu" if provider == "cpu" else "gpu"
            raise MissingPackageError("onnxruntime", extra, "running an ONNX model") from error
        available = onnxruntime.get_available_providers()
        if EXECUTION_PROVIDERS[provider] not in available:
            names = ", ".join(name for name, full in EXECUTION_PROVIDERS.items() if full in available)
            raise SessionError(
                f"ONNX Runtime {onnxruntime.__version__} here has no {provider} provider, only {names}; "
                f"install it with: pip uninstall onnxruntime && {install_command('gpu')}"
            )
        entry = bundle.file(role, precision)
        path = bundle.path / entry.path
        settings = session_settings(entry.precision, threads)
        stream = None if provider == "cpu" else new_stream()
        if provider != "cpu":
            settings["sess_options"].add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), providers=_with_options(provider, bundle, stream), **settings
            )
        except Exception as error:
            raise SessionError(shown(f"ONNX Runtime cannot load {path}: {first_line(error)}")) from error
        first_provider = self._session.get_providers()[0]
        if first_provider != EXECUTION_PROVIDERS[provider]:
            raise SessionError(
                f"expected the {provider} provider, ONNX Runtime chose {first_provider}; see its log above"
            )
        self._input = bundle.input.name
        self._outputs = [output.name for output in bundle.outputs_of(role)]
        self._device = None if stream is None else DeviceRunner(self._session, self._outputs, stream)
        self._description = (
            f"ONNX Runtime {onnxruntime.__version__}, {first_provider}, {entry.precision}, {threads} thread(s)"
        )
        if provider != "cpu" and (operators := operators_on_cpu(self._session)):
            self._description += f", {sum(operators.values())} nodes on the CPU ({', '.join(operators)})"
        self._kind = f"onnxruntime/{provider}/{entry.precision}"
        self._artifact = entry.sha256
        batch = self._session.get_inputs()[0].shape[0]
        self._max_batch = batch if isinstance(batch, int) else None
        self._threads = threads

    @property
    def kind(self) -> str:
        """Runtime, provider and precision."""
        return self._kind

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
        try:
            if self._device is not None and any(is_device_array(array) for array in feeds.values()):
                return self._device.run(feeds)
            return run_graph(self._session, self._outputs, feeds)
        except Exception as error:
            raise SessionError(f"the model failed on its input {shapes_of(feeds)}: {first_line(error)}") from error

    def __repr__(self) -> str:
        return self._description


def run_graph(session: Any, outputs: list[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Run a graph in an ``onnxruntime.InferenceSession``; an interrupt ends it after the current node."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    return interruptible(lambda: session.run(outputs, feeds, options), lambda: setattr(options, "terminate", True))


def operators_on_cpu(session: Any) -> dict[str, int]:
    """Count the nodes that ONNX Runtime placed on its CPU provider, by operator, the most frequent first.

    Behind a GPU provider they cost copies to and from the device; shape arithmetic there is normal. The session must
    record its placement; releases before 1.24 cannot, and give an empty result.
    """
    try:
        placed = session.get_provider_graph_assignment_info()
    except AttributeError:
        return {}
    nodes = [node for part in placed if part.ep_name == EXECUTION_PROVIDERS["cpu"] for node in part.get_nodes()]
    return dict(Counter(node.op_type for node in nodes).most_common())


def _with_options(provider: str, bundle: Bundle, stream: cupy.cuda.Stream | None) -> list[Any]:
    """Return ONNX Runtime's providers with their options; TensorRT caches engines and timings in the bundle's folder.

    Nodes that TensorRT does not support run on CUDA: both providers use the same device and stream.
    """
    if provider == "cpu":
        return [EXECUTION_PROVIDERS[provider]]
    shared = {} if stream is None else {"user_compute_stream": str(stream.ptr)}
    if provider == "cuda":
        return [(EXECUTION_PROVIDERS[provider], shared)]
    cache = bundle.path / "engines" / "onnxruntime"
    cache.mkdir(parents=True, exist_ok=True)
    options = {
        **shared,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(cache),
    }
    return [(EXECUTION_PROVIDERS[provider], options), (EXECUTION_PROVIDERS["cuda"], shared)]


def session_settings(precision: str, threads: int, *, log_severity: int = 4) -> dict[str, Any]:
    """Return the arguments of an ``onnxruntime.InferenceSession`` for a graph in a precision.

    Errors are raised, so that ONNX Runtime need not log them.

    An fp8 graph stays as written, fp32 nodes between quantizers: ONNX Runtime 1.31 would fuse them into nodes that
    do not support fp8.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = log_severity
    if precision != "fp8":
        return {"sess_options": options}
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return {"sess_options": options, "disabled_optimizers": ["ClipQuantRewrite", "ReluQuantRewrite"]}
