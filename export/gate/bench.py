"""Measure the speed of each installed runtime and precision of a bundle, and judge each by the gate.

::

    rows = measure(bundle, GateImages.open("photos/"))
    print_rows(rows)

Speed is measured in the way that labeling calls a model: on a CPU with one image per call and one calling thread per
core, on other devices with one calling thread.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ...checks import check_number
from ...engine.inputs.images import preprocess
from ...engine.model.bundle import Bundle
from ...engine.model.verdicts import Tolerances, Verdict
from ...engine.runtimes.base import Session
from ...engine.runtimes.open import Provider, open_session
from ...errors import BundleError, MissingPackageError, SessionError
from ...kernels.processors import usable_processors
from ..pictures import generated_images
from .judge import GateImages
from .proof import judge_artifact, roles_of

_HOST = ("cpu", "openvino")
_PICTURES = 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """One runtime and precision."""

    provider: Provider
    """Provider that runs it."""
    precision: str
    """Precision of the file."""
    images_per_second: float | None = None
    """Speed of the model, or of a promptable model's encoder; None if it does not run."""
    ratio: float | None = None
    """Speed relative to the bundle's original in ONNX Runtime on the processor."""
    gate: str = ""
    """``original``, ``passes``, the failures, or why it was not compared."""
    verdict: Verdict | None = None
    """The gate's report, if it was compared."""


def measure(
    bundle: Bundle, images: GateImages | None = None, *, seconds: float = 5.0, tolerances: Tolerances | None = None
) -> list[Row]:
    """Return a row for each installed provider and each precision of the bundle; nothing is recorded.

    Speed and differences are measured on ``images``; without them, speed on generated pictures and no differences. A
    provider that is not installed has no row; a file that a provider cannot run has a row with the reason.
    """
    check_number("seconds", seconds, above=0)
    role = roles_of(bundle)[0]
    inputs = _inputs(bundle, images)
    original = bundle.file(role)
    precisions = dict.fromkeys(file.precision for file in bundle.files if file.role == role)
    rows: list[Row] = []
    for provider in get_args(Provider):
        for precision in precisions:
            try:
                row = _row(bundle, role, provider, precision, inputs, seconds)
            except MissingPackageError:
                break
            except (SessionError, BundleError) as error:
                if provider not in _HOST:
                    break  # this machine has no such device, or no engine
                rows.append(Row(provider=provider, precision=precision, gate=str(error)))
                continue
            if (provider, precision) == ("cpu", original.precision):
                row = dataclasses.replace(row, gate="original")
            elif images is not None:
                row = _judged(row, bundle, images, tolerances)
            rows.append(row)
    base = next((row.images_per_second for row in rows if row.gate == "original"), None)
    if base is None:
        return rows
    return [
        dataclasses.replace(row, ratio=row.images_per_second / base if row.images_per_second else None) for row in rows
    ]


def print_rows(rows: Sequence[Row], *, as_json: bool = False) -> None:
    """Print the rows as a table, or as JSON."""
    if as_json:
        documents = [{**dataclasses.asdict(row), "verdict": row.verdict and row.verdict.to_dict()} for row in rows]
        print(json.dumps(documents, indent=2))
        return
    from ...engine.report.terminal import PlainConsole, figures_table

    table = figures_table("runtime", "images/s", "ratio", "mean IoU", "worst", "agreement", note="gate")
    for row in rows:
        metrics = row.verdict.metrics if row.verdict else None
        table.add_row(
            f"{row.provider} {row.precision}",
            f"{row.images_per_second:.1f}" if row.images_per_second else "-",
            f"{row.ratio:.2f}x" if row.ratio else "-",
            *(
                [f"{metrics.mean_iou:.4f}", f"{metrics.worst_iou:.4f}", f"{metrics.agreement:.4f}"]
                if metrics
                else "---"
            ),
            row.gate,
        )
    PlainConsole().print(table)


def throughput(session: Session, inputs: Sequence[NDArray[np.float32]], *, callers: int, seconds: float) -> float:
    """Return the images per second of ``callers`` threads that run ``inputs``, each (1, …), for ``seconds``.

    Calls have the batch size of the session, 1 if any size will do.
    """
    size = session.max_batch or 1
    batches = [
        np.concatenate([inputs[(start + index) % len(inputs)] for index in range(size)])
        for start in range(0, len(inputs), size)
    ]
    session.run(batches[0])
    counts = [0] * callers
    start = time.perf_counter()

    def call(index: int) -> None:
        while time.perf_counter() - start < seconds:
            session.run(batches[(index + counts[index]) % len(batches)])
            counts[index] += 1

    threads = [threading.Thread(target=call, args=(index,)) for index in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return size * sum(counts) / (time.perf_counter() - start)


def _row(
    bundle: Bundle, role: str, provider: Provider, precision: str, inputs: Sequence[NDArray[np.float32]], seconds: float
) -> Row:
    session = open_session(bundle, role=role, provider=provider, precision=precision, allow_unverified=True)
    callers = usable_processors() if provider in _HOST else 1
    speed = throughput(session, inputs, callers=callers, seconds=seconds)
    return Row(provider=provider, precision=precision, images_per_second=speed)


def _judged(row: Row, bundle: Bundle, images: GateImages, tolerances: Tolerances | None) -> Row:
    try:
        threads = usable_processors()
        verdict = judge_artifact(bundle, row.provider, row.precision, images, tolerances, threads=threads)[0]
    except (SessionError, BundleError) as error:
        return dataclasses.replace(row, gate=str(error))
    outcome = "; ".join(verdict.failures) or ("passes, emulated" if verdict.emulated else "passes")
    return dataclasses.replace(row, gate=outcome, verdict=verdict)


def _inputs(bundle: Bundle, images: GateImages | None) -> list[NDArray[np.float32]]:
    spec = bundle.input
    if images is not None:
        inputs = [preprocess(photo, spec)[0][None] for _, photo in images.first(_PICTURES)]
        if inputs:
            return inputs
    return [preprocess(picture, spec)[0][None] for _, picture in generated_images(spec, _PICTURES)]
