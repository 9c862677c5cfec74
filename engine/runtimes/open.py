"""Open the session that runs a bundle's graph, with the runtime the caller names."""

from __future__ import annotations

from ...errors import UsageError
from ..model.bundle import Bundle
from ..model.verdicts import require_verdict, runtime_and_device
from .base import Session
from .onnx_runtime import PROVIDERS, OnnxSession

RUNTIMES = (*PROVIDERS, "engine", "openvino")
"""What :func:`open_session` can run a bundle with; ``engine`` is a TensorRT engine that ``maskmill build`` made."""


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
        require_verdict(bundle, session.artifact, *runtime_and_device(session.kind))
    return session


ON_GPU = ("cuda", "tensorrt", "engine")
"""Providers that run on an NVIDIA GPU."""
