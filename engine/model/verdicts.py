"""Gate verdicts: their record in the bundle's manifest, and the check before labeling.

A verdict belongs to an artifact (by its hash), a runtime and a device, which are the first two parts of a session's
``kind``::

    require_verdict(bundle, session.artifact, *runtime_and_device(session.kind))     # raises GateError unless it passed
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...checks import check_count, check_number, name_list
from ...errors import GateError, UsageError
from .bundle import Bundle
from .schema import read_value

REFERENCE = ("onnxruntime", "cpu")
"""Runtime and device on which the originals run in comparisons."""

MIN_CLASS_PIXELS = 100
"""Fewest pixels of a class, over all images and in either map, for its pooled IoU to count; with fewer, ties decide."""


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Limits on the difference between an artifact and its original."""

    mean_iou: float = 0.99
    """Lowest mean over images of the mask IoU."""
    worst_iou: float = 0.95
    """Lowest mask IoU of any image."""
    class_iou: float = 0.9
    """Lowest mask IoU of any class, pooled over all images; semantic models only."""
    agreement: float = 0.995
    """Lowest share of decisions (a pixel's top class, a mask's pixel, an image's class) that are the same."""
    min_images: int = 50
    """Fewest different images that a verdict needs."""
    min_share: float = 0.0
    """Share of an image that a class must cover in either map to have an IoU of its own there; 0 counts every pixel."""
    required_classes: tuple[str, ...] = ()
    """Classes that the original must show on at least one of the images."""
    score_quantile_shift: float = 0.01
    """Largest shift of a score quantile at which calibrations remain valid; it does not affect the verdict."""

    def __post_init__(self) -> None:
        for name in ("mean_iou", "worst_iou", "class_iou", "agreement", "min_share", "score_quantile_shift"):
            check_number(f"the tolerance {name}", getattr(self, name), least=0, most=1)
        check_count("min_images", self.min_images, least=1)

    def overrides(self) -> dict[str, Any]:
        """Return the tolerances that differ from the defaults, by name."""
        default = dataclasses.asdict(Tolerances())
        return {name: value for name, value in dataclasses.asdict(self).items() if value != default[name]}


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Measured difference between two artifacts over real images, at the model's own resolution."""

    images: int
    """Images that were compared."""
    agreement: float
    """Mean over images of the share of decisions that are the same."""
    mean_iou: float
    """Mean over images of the mask IoU."""
    worst_iou: float
    """Mask IoU of the worst image."""
    worst_image: str
    """Name of the worst image."""
    mean_error: float
    """Mean absolute difference of the scores, after the activation."""
    max_error: float
    """Largest absolute difference of a score."""
    nonfinite: int
    """Images on which the artifact gave NaN or infinity."""
    score_quantile_shift: float
    """Largest shift of a quantile of the nonconformity scores, pooled or of a class in enough images."""
    class_images: Mapping[str, int] = field(default_factory=dict)
    """Images on which the original shows each class, 0 included; empty for promptable models."""
    class_iou: Mapping[str, float] = field(default_factory=dict)
    """Mask IoU of each class, pooled over all images, for classes of at least :data:`MIN_CLASS_PIXELS` pixels."""

    @property
    def unseen_classes(self) -> tuple[str, ...]:
        """Classes that the original predicts on no image, and that are therefore not tested."""
        return tuple(name for name, images in self.class_images.items() if not images)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate's report on one artifact, runtime and device."""

    artifact: str
    """SHA-256 of the ONNX file or engine that was judged."""
    reference: str
    """SHA-256 of the bundle's original that it was compared with."""
    precision: str
    """Precision of the artifact."""
    runtime: str
    """Runtime that ran it, e.g. ``onnxruntime``."""
    device: str
    """Device that it ran on, e.g. ``cpu``."""
    emulated: bool = False
    """True if its precision was emulated in fp32 rather than executed."""
    batch: int = 1
    """Images per call of the artifact."""
    metrics: Metrics
    """Measured differences."""
    tolerances: Tolerances = field(default_factory=Tolerances)
    """Limits that the metrics were compared with."""
    failures: tuple[str, ...] = ()
    """Reasons why it does not pass, one sentence each; empty if it passes."""
    warnings: tuple[str, ...] = ()
    """Risks that do not fail the gate, one sentence each."""
    faults: tuple[str, ...] = ()
    """Nodes that cause the failure, and their values."""
    kept_fp32: tuple[str, ...] = ()
    """Nodes that the artifact keeps in fp32."""

    @property
    def passed(self) -> bool:
        """True if every tolerance holds."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's form: plain JSON values, with ``passed`` and the number of images on top."""
        raw: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }
        raw["tolerances"]["required_classes"] = list(self.tolerances.required_classes)
        raw["images"] = raw["metrics"].pop("images")
        return {**raw, "passed": self.passed}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Verdict:
        """Read the form that :meth:`to_dict` returns; raises :class:`GateError` if it is damaged."""
        try:
            fields = {key: value for key, value in raw.items() if key not in ("images", "passed")}
            metrics = fields.get("metrics")
            if isinstance(metrics, Mapping):
                fields["metrics"] = {**metrics, "images": raw.get("images")}
            verdict = read_value(cls, fields, "verdict")
            if raw.get("passed") is not verdict.passed:
                raise UsageError("it contradicts itself: 'passed' does not follow from its failures")
            return verdict
        except UsageError as error:
            raise GateError(
                f"a verdict in the bundle's manifest is damaged ({error}); run `maskmill gate` again"
            ) from error


def failures_of(metrics: Metrics, tolerances: Tolerances) -> tuple[str, ...]:
    """Return one sentence, with both numbers, for each tolerance that ``metrics`` violate."""
    failures = []
    if metrics.images < tolerances.min_images:
        failures.append(f"{metrics.images} different images were compared, at least {tolerances.min_images} are needed")
    if metrics.nonfinite:
        failures.append(f"NaN or infinity on {metrics.nonfinite} of {metrics.images} images")
    for name, value, limit, image in (
        ("mean mask IoU", metrics.mean_iou, tolerances.mean_iou, ""),
        ("mask IoU of the worst image", metrics.worst_iou, tolerances.worst_iou, f" ({metrics.worst_image})"),
        ("agreement", metrics.agreement, tolerances.agreement, ""),
    ):
        # written so that NaN fails
        if not value >= limit:
            failures.append(f"{name} {value:.4f} is below {limit:g}{image}")
    for name, iou in metrics.class_iou.items():
        if not iou >= tolerances.class_iou:
            failures.append(f"mask IoU of the class {name} over all images {iou:.4f} is below {tolerances.class_iou:g}")
    unseen = [name for name in tolerances.required_classes if not metrics.class_images.get(name)]
    if unseen:
        failures.append(f"no image shows the required class {name_list(unseen)}; add images that do")
    return tuple(failures)


def runtime_and_device(kind: str) -> tuple[str, str]:
    """Split a session's ``kind``, which is ``runtime/device/precision``, into (runtime, device)."""
    runtime, _, rest = kind.partition("/")
    return runtime, rest.rpartition("/")[0]


def recorded_verdicts(bundle: Bundle) -> list[Verdict]:
    """Return the verdicts in the bundle's manifest; raises :class:`GateError` if one is damaged."""
    return [Verdict.from_dict(raw) for raw in bundle.verdicts]


def find_verdict(bundle: Bundle, artifact: str, runtime: str, device: str) -> Verdict | None:
    """Return the verdict on ``artifact`` for this runtime and device, against a current original; None without one.

    A verdict against a file that the bundle no longer has is stale and is ignored.
    """
    originals = _originals(bundle)
    for verdict in recorded_verdicts(bundle):
        same_artifact = (verdict.artifact, verdict.runtime, verdict.device) == (artifact, runtime, device)
        if same_artifact and verdict.reference in originals:
            return verdict
    return None


def add_verdict(bundle: Bundle, verdict: Verdict) -> Bundle:
    """Return the bundle with ``verdict`` in place of an earlier one on the same comparison; not saved."""

    def comparison(entry: Verdict) -> tuple[str, ...]:
        return entry.artifact, entry.reference, entry.runtime, entry.device

    others = [entry for entry in recorded_verdicts(bundle) if comparison(entry) != comparison(verdict)]
    return dataclasses.replace(bundle, verdicts=tuple(entry.to_dict() for entry in (*others, verdict)))


def require_verdict(bundle: Bundle, artifact: str, runtime: str, device: str) -> None:
    """Raise :class:`GateError` unless ``artifact`` may label with this runtime and device.

    An original needs no verdict on the runtime and device of :data:`REFERENCE`, with which others are compared. Every
    other artifact needs a verdict that passed, for this runtime and device, against an original that the bundle has.
    """
    if artifact in _originals(bundle) and (runtime, device) == REFERENCE:
        return
    verdict = find_verdict(bundle, artifact, runtime, device)
    place = f"{runtime} on {device}"
    if verdict is None:
        raise GateError(
            f"{bundle.location}: the artifact {artifact[:12]} was not shown to equal its original in {place}; "
            "prove it with `maskmill gate`, or accept the risk with --allow-unverified"
        )
    if not verdict.passed:
        raise GateError(
            f"{bundle.location}: the {verdict.precision} artifact {artifact[:12]} failed the gate in {place} "
            f"({'; '.join(verdict.failures)}); convert or build it again, or accept the risk with --allow-unverified"
        )


class Shift(NamedTuple):
    """Shift of the score quantiles between two artifacts."""

    moved: float
    """Largest shift of a quantile."""
    allowed: float
    """Tolerance that the gate applied, the smaller one if there are two."""


def shift_between(bundle: Bundle, first: tuple[str, str], second: tuple[str, str]) -> Shift | None:
    """Return the shift from one (artifact, session kind) to another, or None if no verdict that passed measured it.

    Both are compared through the original that their verdicts share, so their two shifts are added.
    """
    shifts = [_shifts(bundle, artifact, kind) for artifact, kind in (first, second)]
    sums = [
        Shift(shifts[0][name].moved + shifts[1][name].moved, min(shifts[0][name].allowed, shifts[1][name].allowed))
        for name in set(shifts[0]) & set(shifts[1])
    ]
    return min(sums, default=None)


def _shifts(bundle: Bundle, artifact: str, kind: str) -> dict[str, Shift]:
    """Map each original to the artifact's shift from it."""
    if artifact in _originals(bundle) and runtime_and_device(kind) == REFERENCE:
        return {artifact: Shift(0.0, 1.0)}
    verdict = find_verdict(bundle, artifact, *runtime_and_device(kind))
    if verdict is None or not verdict.passed:
        return {}
    shift = Shift(verdict.metrics.score_quantile_shift, verdict.tolerances.score_quantile_shift)
    return {verdict.reference: shift}


def _originals(bundle: Bundle) -> frozenset[str]:
    return frozenset(file.sha256 for file in bundle.files if not file.derived_from)
