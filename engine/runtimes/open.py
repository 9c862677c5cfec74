"""Open the session that runs a bundle's graph, with the runtime that the caller names."""

from __future__ import annotations

from typing import Literal

from ...checks import check_choice
from ..model.bundle import Bundle
from ..model.verdicts import require_verdict, runtime_and_device
from .base import Session
from .onnx_runtime import EXECUTION_PROVIDERS, OnnxSession

Provider = Literal["cpu", "cuda", "tensorrt", "engine", "openvino"]
"""Runtime of a model: ONNX Runtime (``cpu``, ``cuda``, ``tensorrt``), a TensorRT engine that ``maskmill build`` made
(``engine``), or OpenVINO."""

ProviderChoice = Literal["cpu", "cuda", "tensorrt", "engine", "openvino", "auto"]
"""A :data:`Provider`, or the one that ``maskmill tune`` chose for this machine."""

ON_GPU: tuple[Provider, ...] = ("cuda", "tensorrt", "engine")
"""Providers that run on an NVIDIA GPU."""


def open_session(
    bundle: Bundle,
    *,
    role: str = "model",
    provider: Provider = "cpu",
    threads: int = 1,
    precision: str | None = None,
    allow_unverified: bool = False,
) -> Session:
    """Open the session that runs the graph of ``bundle`` for ``role``; another provider is never used silently.

    Parameters
    ----------
    bundle, role
        The bundle, and the role of the graph to run.
    provider
        Runtime, and device that it runs on.
    threads
        Threads per model call.
    precision
        Precision of the bundle's file or engine to run; if None, the first one listed.
    allow_unverified
        Also run engines and converted files that have not passed the gate in this runtime on this device.

    Raises :class:`SessionError`, :class:`GateError`, :class:`MissingPackageError`; :class:`UsageError` for other names.
    """
    session: Session
    check_choice("provider", provider, Provider)
    if provider in EXECUTION_PROVIDERS:
        session = OnnxSession(bundle, role=role, provider=provider, threads=threads, precision=precision)
    elif provider == "openvino":
        from .openvino_runtime import OpenVINOSession

        session = OpenVINOSession(bundle, role=role, threads=threads, precision=precision)
    else:
        from .tensorrt_runtime import TensorRTSession

        session = TensorRTSession(bundle, role=role, precision=precision)
    converted = provider == "engine" or bundle.file(role, precision).derived_from
    if converted and not allow_unverified:
        require_verdict(bundle, session.artifact, *runtime_and_device(session.kind))
    return session
