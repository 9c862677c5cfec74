"""Judge existing artifacts: a conversion, an engine, an original in another runtime, or another bundle.

::

    verdicts = prove_artifact(bundle, "openvino", "int8", GateImages.open("photos/"))   # recorded in the manifest
"""

from __future__ import annotations

from ...engine.model.bundle import Bundle
from ...engine.model.verdicts import Tolerances, Verdict, add_verdict
from ...engine.runtimes.base import Session
from ...engine.runtimes.onnx_runtime import OnnxSession
from ...engine.runtimes.open import Provider, open_session
from ...errors import UsageError
from .emulate import GraphSession, emulation
from .judge import Findings, GateImages, judge
from .tasks import Side

EMULATED = ("fp16", "bf16", "mixed")
"""Precisions that a CPU does not execute; an emulation of the file runs instead."""


def prove_artifact(
    bundle: Bundle,
    provider: Provider,
    precision: str | None,
    images: GateImages,
    tolerances: Tolerances | None = None,
    *,
    threads: int = 1,
    batch: int | None = None,
) -> tuple[Verdict, ...]:
    """Judge the bundle's file or engine of ``precision`` as ``provider`` runs it, and record the verdicts.

    Raises the errors of :func:`judge_artifact`, and :class:`UsageError` for the original itself on the runtime of
    originals. Verdicts that do not pass are recorded and returned like others.
    """
    verdicts = judge_artifact(bundle, provider, precision, images, tolerances, threads=threads, batch=batch)
    if not verdicts:
        raise UsageError(
            f"{bundle.location} in {precision or 'its first precision'} on {provider} is the original itself"
        )
    new_bundle = Bundle.load(bundle.path)
    for verdict in verdicts:
        new_bundle = add_verdict(new_bundle, verdict)
    new_bundle.save()
    return verdicts


def judge_artifact(
    bundle: Bundle,
    provider: Provider,
    precision: str | None,
    images: GateImages,
    tolerances: Tolerances | None = None,
    *,
    threads: int = 1,
    batch: int | None = None,
) -> tuple[Verdict, ...]:
    """Judge the bundle's file or engine of ``precision`` as ``provider`` runs it, ``batch`` images per call.

    There is no verdict on the original itself. A role of a promptable bundle without a file of that precision runs as
    the original does. Raises :class:`GateError` if the two cannot be compared, :class:`SessionError` if the provider or
    the file is missing.
    """
    roles = roles_of(bundle)
    first = roles[0]
    originals: dict[str, Session] = {role: OnnxSession(bundle, role=role, threads=threads) for role in roles}
    emulated = provider == "cpu" and precision in EMULATED
    sessions: dict[str, Session] = {}
    for role in roles:
        is_missing = all(file.role != role or precision not in (None, file.precision) for file in bundle.files)
        if is_missing and provider != "engine" and len(roles) > 1:
            sessions[role] = originals[role]
        elif emulated:
            sessions[role] = emulated_session(bundle, role, str(precision), threads)
        else:
            sessions[role] = open_session(
                bundle, role=role, provider=provider, threads=threads, precision=precision, allow_unverified=True
            )
    return judge(
        Side(bundle=bundle, sessions=originals),
        Side(bundle=bundle, sessions=sessions),
        images,
        tolerances=tolerances,
        findings=Findings(emulated=emulated),
        # an engine takes the batches that it was built for
        batch=batch or (min(2, sessions[first].max_batch or 2) if provider == "engine" else None),
    )


def prove_same(
    reference: Bundle,
    bundle: Bundle,
    images: GateImages,
    tolerances: Tolerances | None = None,
    *,
    threads: int = 1,
    batch: int | None = None,
) -> tuple[Verdict, ...]:
    """Judge a bundle's originals, with its own preprocessing, against another's; records nothing.

    Raises :class:`UsageError` if both are the same bundle, or if task or classes differ.
    """
    if reference.path.resolve() == bundle.path.resolve():
        raise UsageError(f"{bundle.location} cannot be compared with itself; give another bundle as the reference")
    if (reference.task, reference.classes) != (bundle.task, bundle.classes):
        raise UsageError(
            f"{bundle.location} and {reference.location} cannot be compared: they must have the same task and classes"
        )
    original, candidate = (
        Side(bundle=side, sessions={role: OnnxSession(side, role=role, threads=threads) for role in roles_of(side)})
        for side in (reference, bundle)
    )
    return judge(original, candidate, images, tolerances=tolerances, batch=batch)


def emulated_session(bundle: Bundle, role: str, precision: str, threads: int) -> GraphSession:
    """Open the emulation of the bundle's 16-bit file, which replaces it on a CPU."""
    import onnx

    entry = bundle.file(role, precision)
    return GraphSession(
        emulation(onnx.load_model(bundle.path / entry.path)),
        bundle,
        role=role,
        kind=f"onnxruntime/cpu/{precision}",
        artifact=entry.sha256,
        threads=threads,
    )


def roles_of(bundle: Bundle) -> tuple[str, ...]:
    """Return the roles of the graphs that a bundle's task runs."""
    return {"promptable": ("encoder", "decoder"), "text": ("encoder", "text", "decoder")}.get(bundle.task, ("model",))
