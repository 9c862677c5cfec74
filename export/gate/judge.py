"""The gate: an artifact passes where it is shown, on real images, to be the same as its original.

Every conversion goes through it, to another format, precision or runtime::

    photos = GateImages.open("photos/")
    (verdict,) = judge(
        Side(bundle=bundle, sessions={"model": OnnxSession(bundle)}),
        Side(bundle=bundle, sessions={"model": engine_session}),
        photos,
    )
    require_pass(verdict)                     # GateError: what falls short, with the numbers
    add_verdict(bundle, verdict).save()

Artifact, runtime, device and precision of a verdict are those of the candidate's session. An artifact that cannot be
run at all, or gives other shapes, is a :class:`GateError` at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ...engine.inputs.images import decode_image
from ...engine.inputs.sources import Item, Source, open_source
from ...engine.model.verdicts import Metrics, Tolerances, Verdict, failures_of, runtime_and_device
from ...errors import GateError, ImageError
from .compare import GateImage, Side, compare

DEFAULT_IMAGES = 100
"""Images that the gate takes from a source unless told otherwise."""


@dataclass(frozen=True)
class GateImages:
    """Images of a source, evenly spaced through it, decoded anew each time that they are iterated over.

    An image that cannot be decoded is left out.
    """

    source: Source
    """Where they are read from."""
    items: tuple[Item, ...]
    """Which ones."""

    @classmethod
    def open(cls, spec: str, *, limit: int = DEFAULT_IMAGES) -> GateImages:
        """At most ``limit`` images of the folder, list, glob, archive or URL that ``spec`` names."""
        source = open_source(spec)
        items = tuple(source)
        if len(items) > limit:
            items = tuple(items[index] for index in np.linspace(0, len(items) - 1, limit).round().astype(int))
        return cls(source, items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[GateImage]:
        for item in self.items:
            try:
                yield item.uri, decode_image(self.source.read(item))
            except ImageError:
                continue

    def first(self, num: int) -> GateImages:
        """The first ``num`` of them."""
        return GateImages(self.source, self.items[:num])

    def only(self, names: Iterable[str]) -> GateImages:
        """Those of them that are named."""
        wanted = frozenset(names)
        return GateImages(self.source, tuple(item for item in self.items if item.uri in wanted))


def judge(
    reference: Side,
    candidate: Side,
    images: Iterable[GateImage],
    *,
    tolerances: Tolerances | None = None,
    emulated: bool = False,
    batch: int | None = None,
    faults: tuple[str, ...] = (),
    kept_fp32: tuple[str, ...] = (),
) -> tuple[Verdict, ...]:
    """Verdicts on the candidate's artifacts, one for each role in which it is not the reference itself.

    Parameters
    ----------
    reference, candidate
        What is compared; both serve the same task. An encoder and a decoder are judged together, from end to end.
    images
        Names and (H, W, 3) uint8 RGB pixels.
    tolerances
        The defaults where None.
    emulated
        Whether the candidate's sessions emulate its precision (:mod:`maskmill.export.gate.emulate`).
    batch
        Images in one call of the candidate; see :func:`maskmill.export.gate.compare.compare`.
    faults, kept_fp32
        What is known of its nodes, for the record.

    Raises :class:`GateError` where the two cannot be compared: the candidate does not run or gives other shapes.
    """
    tolerances = tolerances or Tolerances()
    metrics = compare(reference, candidate, images, batch=batch, min_share=tolerances.min_share)
    return verdicts_of(reference, candidate, metrics, tolerances, emulated, faults, kept_fp32)


def verdicts_of(
    reference: Side,
    candidate: Side,
    metrics: Metrics,
    tolerances: Tolerances,
    emulated: bool = False,
    faults: tuple[str, ...] = (),
    kept_fp32: tuple[str, ...] = (),
) -> tuple[Verdict, ...]:
    """What :func:`judge` gives, from a comparison that was made."""
    verdicts = []
    for role, session in candidate.sessions.items():
        original = reference.sessions[role]
        same = (session.artifact, session.kind) == (original.artifact, original.kind)
        if same and candidate.bundle.path == reference.bundle.path:
            continue
        runtime, device = runtime_and_device(session.kind)
        verdicts.append(
            Verdict(
                artifact=session.artifact,
                reference=original.artifact,
                precision=session.kind.rpartition("/")[2],
                runtime=runtime,
                device=device,
                emulated=emulated,
                metrics=metrics,
                tolerances=tolerances,
                failures=failures_of(metrics, tolerances),
                faults=faults,
                kept_fp32=kept_fp32,
            )
        )
    return tuple(verdicts)


def require_pass(*verdicts: Verdict) -> None:
    """Raise :class:`GateError`, naming everything that falls short and the nodes at fault, unless all passed."""
    for verdict in verdicts:
        if not verdict.passed:
            raise GateError(
                f"the {verdict.precision} artifact differs from its original in {verdict.runtime} on "
                f"{verdict.device}: {'; '.join((*verdict.failures, *verdict.faults))}"
            )


def describe(verdict: Verdict) -> str:
    """One line on a verdict, with what was asked for where it is not the default."""
    metrics, overrides = verdict.metrics, verdict.tolerances.overrides()
    how = f"{verdict.runtime} on {verdict.device}{', emulated' if verdict.emulated else ''}"
    asked = f"; tolerances changed: {', '.join(f'{key} {value:g}' for key, value in overrides.items())}"
    return (
        f"{verdict.precision} ({how}) {'passes' if verdict.passed else 'FAILS'} on {metrics.images} images: "
        f"mean IoU {metrics.mean_iou:.4f}, worst {metrics.worst_iou:.4f} ({metrics.worst_image}), "
        f"agreement {metrics.agreement:.4f}, score error mean {metrics.mean_error:.2e} max {metrics.max_error:.2e}, "
        f"score quantiles moved {metrics.score_quantile_shift:.4f}{asked if overrides else ''}"
    )
