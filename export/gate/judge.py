"""The gate: an artifact passes if it is the same as its original on real images, within stated tolerances.

Every conversion to another format, precision or runtime must pass it::

    images = GateImages.open("photos/")
    (verdict,) = judge(
        Side(bundle=bundle, sessions={"model": OnnxSession(bundle)}),
        Side(bundle=bundle, sessions={"model": engine_session}),
        images,
    )
    require_pass(verdict)                     # GateError: names each violated tolerance with its numbers
    add_verdict(bundle, verdict).save()

Artifact, runtime, device and precision of a verdict are those of the candidate's session. An artifact that cannot run
at all, or gives other shapes, is a :class:`GateError` at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice

import numpy as np

from ...checks import check_count, name_list
from ...engine.inputs.images import decode_input
from ...engine.inputs.sources import Item, Source, open_source
from ...engine.inputs.summary import SourceSummary
from ...engine.model.input_spec import BandSpec
from ...engine.model.verdicts import Metrics, Tolerances, Verdict, failures_of, runtime_and_device
from ...errors import GateError, ImageError, UsageError
from ..pictures import GateImage
from .compare import batch_size, compare
from .tasks import Side

DEFAULT_IMAGES = 100
"""Number of images that the gate reads from a source by default."""


@dataclass(frozen=True)
class GateImages:
    """Images of a source, evenly spaced through it, decoded again on each iteration.

    An image that cannot be decoded is left out.
    """

    source: Source
    """Source that they are read from."""
    items: tuple[Item, ...]
    """The chosen images."""
    rejected: dict[str, str] = field(default_factory=dict, compare=False)
    """Kind of error of each image that could not be decoded so far."""
    low_range: dict[str, str] = field(default_factory=dict, compare=False)
    """Warning of each image so far that uses less than 1/16 of its type's range."""
    bands: BandSpec | None = None
    """Bands of the files that the model takes; None: photos."""
    bit_depth: int | None = None
    """Bits that images of more than 8 bits fill; None: all bits of their type."""

    @classmethod
    def open(
        cls,
        spec: str,
        *,
        limit: int = DEFAULT_IMAGES,
        bands: BandSpec | None = None,
        bit_depth: int | None = None,
        image_ending: str | None = None,
    ) -> GateImages:
        """Choose at most ``limit`` images of the folder, list, glob, archive or URL that ``spec`` names."""
        check_count("the number of images", limit, least=1)
        source = open_source(spec, image_ending=image_ending)
        items = tuple(source)
        if len(items) > limit:
            items = tuple(items[index] for index in np.linspace(0, len(items) - 1, limit).round().astype(int))
        return cls(source, items, bands=bands, bit_depth=bit_depth)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[GateImage]:
        for item in self.items:
            try:
                yield (
                    item.uri,
                    decode_input(
                        self.source.read(item),
                        self.bands,
                        bit_depth=self.bit_depth,
                        warn=partial(self.low_range.__setitem__, item.uri),
                    ),
                )
            except ImageError as error:
                self.rejected[item.uri] = error.kind
                continue

    @property
    def summary(self) -> SourceSummary:
        """Images used so far, and skipped files."""
        return SourceSummary(
            images=len(self.items) - len(self.rejected),
            skipped=self.source.skipped,
            rejected=Counter(self.rejected.values()),
            low_range=list(self.low_range),
        )

    def first(self, num: int) -> GateImages:
        """Return the first ``num`` of them."""
        return replace(self, items=self.items[:num])

    def only(self, names: Iterable[str]) -> GateImages:
        """Return those of them that are in ``names``."""
        selection = frozenset(names)
        return replace(self, items=tuple(item for item in self.items if item.uri in selection))


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Facts about an artifact's nodes that go into its verdict."""

    faults: tuple[str, ...] = ()
    """Nodes that cause a failure, and their values."""
    warnings: tuple[str, ...] = ()
    """Risks that do not fail the gate."""
    kept_fp32: tuple[str, ...] = ()
    """Nodes that the artifact keeps in fp32."""
    emulated: bool = False
    """True if the candidate's sessions emulate its precision (:mod:`maskmill.export.gate.emulate`)."""


def judge(
    reference: Side,
    candidate: Side,
    images: Iterable[GateImage],
    *,
    tolerances: Tolerances | None = None,
    batch: int | None = None,
    findings: Findings | None = None,
) -> tuple[Verdict, ...]:
    """Compare two artifacts and return a verdict for each role in which the candidate is not the reference itself.

    Parameters
    ----------
    reference, candidate
        The two artifacts; both serve the same task. An encoder and a decoder are judged together, end to end.
    images
        Names and (H, W, 3) uint8 RGB pixels.
    tolerances
        Limits; the defaults if None.
    batch
        Images per call of the candidate; see :func:`maskmill.export.gate.compare.compare`.
    findings
        Facts about its nodes, for the record.

    Raises :class:`GateError` if the two cannot be compared: the candidate does not run or gives other shapes.
    :class:`UsageError` if a required class is not one of the model's.
    """
    tolerances = tolerances or Tolerances()
    check_required_classes(reference, tolerances)
    images = iter(images)
    first_images = list(islice(images, 2))
    batch = batch or batch_size(reference, first_images)
    metrics = compare(reference, candidate, chain(first_images, images), batch=batch, min_share=tolerances.min_share)
    return verdicts_of(reference, candidate, metrics, tolerances, batch=batch, findings=findings)


def verdicts_of(
    reference: Side,
    candidate: Side,
    metrics: Metrics,
    tolerances: Tolerances,
    *,
    batch: int = 1,
    findings: Findings | None = None,
) -> tuple[Verdict, ...]:
    """Return the verdicts of :func:`judge` from ``metrics`` that were measured before."""
    findings = findings or Findings()
    verdicts = []
    for role, session in candidate.sessions.items():
        original = reference.sessions[role]
        same_session = (session.artifact, session.kind) == (original.artifact, original.kind)
        if same_session and candidate.bundle.path == reference.bundle.path:
            continue
        runtime, device = runtime_and_device(session.kind)
        verdicts.append(
            Verdict(
                artifact=session.artifact,
                reference=original.artifact,
                precision=session.kind.rpartition("/")[2],
                runtime=runtime,
                device=device,
                emulated=findings.emulated,
                batch=batch,
                metrics=metrics,
                tolerances=tolerances,
                failures=failures_of(metrics, tolerances),
                warnings=findings.warnings,
                faults=findings.faults,
                kept_fp32=findings.kept_fp32,
            )
        )
    return tuple(verdicts)


def check_required_classes(reference: Side, tolerances: Tolerances) -> None:
    """Raise :class:`UsageError` if a required class is not one of the model's."""
    unknown = sorted(set(tolerances.required_classes) - set(reference.bundle.classes))
    if unknown:
        raise UsageError(
            f"the required class {unknown[0]!r} is not one of the model's: {name_list(reference.bundle.classes)}"
        )


def require_pass(*verdicts: Verdict) -> None:
    """Raise :class:`GateError`, naming each violated tolerance and the nodes that cause it, unless all passed."""
    for verdict in verdicts:
        if not verdict.passed:
            raise GateError(
                f"the {verdict.precision} artifact differs from its original in {verdict.runtime} on "
                f"{verdict.device}: {'; '.join((*verdict.failures, *verdict.faults))}"
            )


def describe(verdict: Verdict) -> str:
    """Describe a verdict in one line: the numbers, tolerances that were changed, unseen classes and warnings."""
    metrics, overrides = verdict.metrics, verdict.tolerances.overrides()
    how = f"{verdict.runtime} on {verdict.device}{', emulated' if verdict.emulated else ''}"
    line = (
        f"{verdict.precision} ({how}) {'passes' if verdict.passed else 'FAILS'} on {metrics.images} images: "
        f"mean IoU {metrics.mean_iou:.4f}, worst {metrics.worst_iou:.4f} ({metrics.worst_image}), "
        f"agreement {metrics.agreement:.4f}, score error mean {metrics.mean_error:.2e} max {metrics.max_error:.2e}, "
        f"score quantiles moved {metrics.score_quantile_shift:.4f}"
    )
    if metrics.class_iou:
        name, iou = min(metrics.class_iou.items(), key=lambda pair: pair[1])
        line += f", lowest IoU of a class over all images {iou:.4f} ({name})"
    if overrides:
        limits = ", ".join(f"{name} {describe_limit(limit)}" for name, limit in overrides.items())
        line += f"; tolerances changed: {limits}"
    if metrics.class_images:
        num_seen = len(metrics.class_images) - len(metrics.unseen_classes)
        line += f"; {num_seen} of {len(metrics.class_images)} classes are in the images"
        line += f", not {name_list(metrics.unseen_classes)}" if metrics.unseen_classes else ""
    return "; warning: ".join((line, *verdict.warnings))


def describe_limit(limit: float | tuple[str, ...]) -> str:
    """Format one tolerance for a message."""
    return ", ".join(limit) if isinstance(limit, tuple) else f"{limit:g}"
