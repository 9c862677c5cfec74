"""Run a bundle's graph: the session protocol, the one place where a runtime is chosen, and ONNX Runtime.

A session takes a batch of prepared inputs and gives the graph's outputs; it knows nothing of images or classes::

    session = open_session(Bundle.load("deeplab"), provider="cpu")
    (scores,) = session.run(batch)

Providers are chosen by name and never replaced silently: a provider that this installation lacks is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingPackageError, SessionError, UsageError
from ..model.bundle import Bundle
from ..model.verdicts import place, require_verdict
from .device_arrays import is_device_array, run_on_device

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Names on the command line → ONNX Runtime's names."""

RUNTIMES = (*PROVIDERS, "engine", "openvino")
"""What :func:`open_session` can run a bundle with; ``engine`` is a TensorRT engine that ``maskmill build`` made."""


class Session(Protocol):
    """What runs a graph. ``run`` may be called from several threads at once."""

    @property
    def kind(self) -> str:
        """``runtime/device/precision``, e.g. ``onnxruntime/cpu/fp32``; recorded with everything made from it.

        A verdict of the export gate belongs to the runtime and the device that stand here.
        """
        ...

    @property
    def artefact(self) -> str:
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


def open_session(
    bundle: Bundle,
    *,
    role: str = "model",
    provider: str = "cpu",
    threads: int = 1,
    precision: str | None = None,
    allow_unverified: bool = False,
) -> Session:
    """The session that runs a bundle's graph for ``role`` with ``provider``, one of :data:`RUNTIMES`.

    ``precision`` picks among the bundle's files or engines, the first listed where None. Engines, and files that were
    converted from the bundle's originals, are refused unless they passed the gate in this runtime on this device, or
    with ``allow_unverified``.

    Raises :class:`SessionError`, :class:`GateError`, :class:`MissingPackageError`; :class:`UsageError` for other names.
    """
    session: Session
    if provider in PROVIDERS:
        session = OnnxSession(bundle, role=role, provider=provider, threads=threads, precision=precision)
    elif provider == "openvino":
        from .openvino_runtime import OpenVINOSession

        session = OpenVINOSession(bundle, role=role, threads=threads, precision=precision)
    elif provider == "engine":
        from .tensorrt_runtime import TensorRTSession

        session = TensorRTSession(bundle, role=role, precision=precision)
    else:
        raise UsageError(f"provider must be one of {', '.join(RUNTIMES)}, got {provider!r}")
    converted = provider == "engine" or bundle.file(role, precision).derived_from
    if converted and not allow_unverified:
        require_verdict(bundle, session.artefact, *place(session.kind))
    return session


class OnnxSession:
    """ONNX Runtime on one provider.

    With ``threads=1`` (the default) a call runs on the calling thread alone, so that a pipeline with one calling
    thread a core keeps every core busy with independent images; with more, one call uses a pool of its own.
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
        if provider not in PROVIDERS:
            raise UsageError(f"provider must be one of {', '.join(PROVIDERS)}, got {provider!r}")
        if threads < 1:
            raise UsageError(f"a session needs at least one thread, got {threads}")
        try:
            import onnxruntime
        except ImportError as error:
            extra = "cpu" if provider == "cpu" else "gpu"
            raise MissingPackageError("onnxruntime", extra, "running an ONNX model") from error
        available = onnxruntime.get_available_providers()
        if PROVIDERS[provider] not in available:
            names = ", ".join(name for name, full in PROVIDERS.items() if full in available)
            raise SessionError(
                f"ONNX Runtime {onnxruntime.__version__} here has no {provider} provider (it has {names}); "
                "install it with: pip uninstall onnxruntime && pip install 'maskmill[gpu]'"
            )
        entry = bundle.file(role, precision)
        path = bundle.path / entry.path
        settings = session_settings(entry.precision, threads)
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), providers=_with_options(provider, bundle), **settings
            )
        except Exception as error:
            raise SessionError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error
        used = self._session.get_providers()[0]
        if used != PROVIDERS[provider]:
            raise SessionError(f"asked for the {provider} provider, ONNX Runtime chose {used}; see its log above")
        self._input = bundle.input.name
        self._outputs = [output.name for output in bundle.outputs_of(role)]
        self._description = f"ONNX Runtime {onnxruntime.__version__}, {used}, {entry.precision}, {threads} thread(s)"
        self._kind = f"onnxruntime/{provider}/{entry.precision}"
        self._artefact = entry.sha256
        batch = self._session.get_inputs()[0].shape[0]
        self._max_batch = batch if isinstance(batch, int) else None
        self._threads = threads

    @property
    def kind(self) -> str:
        """Runtime, provider and precision."""
        return self._kind

    @property
    def artefact(self) -> str:
        """SHA-256 of the ONNX file."""
        return self._artefact

    @property
    def max_batch(self) -> int | None:
        """The graph's batch size where it is fixed, else None."""
        return self._max_batch

    @property
    def threads(self) -> int:
        """Threads that one call uses on the host."""
        return self._threads

    def run(self, inputs: NDArray[np.float32] | Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph on a float32 batch (N, …) in the bundle's layout, or on named inputs."""
        feeds = dict(inputs) if isinstance(inputs, Mapping) else {self._input: inputs}
        try:
            if any(is_device_array(array) for array in feeds.values()):
                return run_on_device(self._session, feeds, self._outputs)
            return self._session.run(self._outputs, feeds)
        except Exception as error:
            raise SessionError(f"the model failed on its input {shapes_of(feeds)}: {first_line(error)}") from error

    def __repr__(self) -> str:
        return self._description


def _with_options(provider: str, bundle: Bundle) -> list[Any]:
    """ONNX Runtime's providers with their options; TensorRT's engines and timings are kept in the bundle's folder.

    What TensorRT cannot take goes to CUDA: both are the device that was asked for.
    """
    if provider != "tensorrt":
        return [PROVIDERS[provider]]
    cache = bundle.path / "engines" / "onnxruntime"
    cache.mkdir(parents=True, exist_ok=True)
    options = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(cache),
    }
    return [(PROVIDERS[provider], options), PROVIDERS["cuda"]]


def session_settings(precision: str, threads: int, *, log_severity: int = 3) -> dict[str, Any]:
    """Arguments of an ``onnxruntime.InferenceSession`` for a graph in a precision.

    An fp8 graph is left as it is written, fp32 nodes between quantizers: ONNX Runtime 1.31 fuses them into nodes that
    take no fp8.
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


def shapes_of(feeds: Mapping[str, Any]) -> str:
    """Names and shapes of a call's inputs, for messages."""
    return ", ".join(f"{name!r} of shape {tuple(array.shape)}" for name, array in feeds.items())


def first_line(error: Exception) -> str:
    """The first line of an ONNX library's message, without ONNX Runtime's prefix."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\]\s*:\s*\d+\s*:\s*", "", text.splitlines()[0])
