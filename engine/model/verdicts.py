"""What the gate found, and who needs it: verdicts stand in the bundle's manifest as plain dictionaries.

A verdict belongs to an artifact (by its hash), a runtime and a device, the first two parts of a session's ``kind``::

    require_verdict(bundle, session.artifact, *runtime_and_device(session.kind))     # raises GateError unless it passed

Only the standard library is used, so that the engine can ask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...errors import GateError, UsageError
from .bundle import Bundle

REFERENCE = ("onnxruntime", "cpu")
"""Runtime and device that originals are run on when something is compared with them."""

_LISTS = ("failures", "faults", "kept_fp32")


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How far an artifact may be from its original."""

    mean_iou: float = 0.99
    """Lowest mean over images of the mask IoU."""
    worst_iou: float = 0.95
    """Lowest mask IoU of any image."""
    agreement: float = 0.995
    """Lowest share of decisions (a pixel's top class, a mask's pixel, an image's class) that are the same."""
    min_images: int = 50
    """Fewest images that a verdict may rest on."""
    min_share: float = 0.0
    """Share of an image that a class must cover in either map to have an IoU of its own; by default every pixel."""
    score_quantile_shift: float = 0.01
    """Largest move of a score quantile after which a calibration still serves; does not decide whether it passes."""

    def __post_init__(self) -> None:
        for name in ("mean_iou", "worst_iou", "agreement", "min_share", "score_quantile_shift"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"the tolerance {name} must be from 0 to 1, got {getattr(self, name)}")
        if self.min_images < 1:
            raise UsageError(f"a verdict rests on at least one image, got min_images {self.min_images}")

    def overrides(self) -> dict[str, float]:
        """The tolerances that are not the defaults."""
        default = dataclasses.asdict(Tolerances())
        return {name: value for name, value in dataclasses.asdict(self).items() if value != default[name]}


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How far one artifact was from another over real images, at the model's own resolution."""

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
    """Largest move of a quantile of the nonconformity scores, pooled or of a class seen often enough."""


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
    """What ran it, e.g. ``onnxruntime``."""
    device: str
    """Where it ran, e.g. ``cpu``."""
    emulated: bool = False
    """Whether its precision was emulated in fp32 rather than executed."""
    metrics: Metrics
    """What was measured."""
    tolerances: Tolerances = field(default_factory=Tolerances)
    """What was asked for."""
    failures: tuple[str, ...] = ()
    """Why it does not pass: one sentence each; empty where it passes."""
    faults: tuple[str, ...] = ()
    """Nodes that were found at fault, with what they did."""
    kept_fp32: tuple[str, ...] = ()
    """Nodes that the artifact keeps in fp32."""

    @property
    def passed(self) -> bool:
        """Whether everything asked for holds."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """What stands in the manifest."""
        raw = dataclasses.asdict(self)
        for name in _LISTS:
            raw[name] = list(raw[name])
        raw["images"] = raw["metrics"].pop("images")
        return {**raw, "passed": self.passed}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Verdict:
        """The verdict that :meth:`to_dict` wrote; raises :class:`GateError` where it is none."""
        try:
            fields = {key: value for key, value in raw.items() if key not in ("images", "passed")}
            fields["metrics"] = Metrics(images=raw["images"], **raw["metrics"])
            fields["tolerances"] = Tolerances(**raw["tolerances"])
            for name in _LISTS:
                fields[name] = tuple(raw[name])
            return cls(**fields)
        except (KeyError, TypeError, UsageError) as error:
            raise GateError(
                f"a verdict in the bundle's manifest is damaged ({error}); run `maskmill gate` again"
            ) from error


def failures_of(metrics: Metrics, tolerances: Tolerances) -> tuple[str, ...]:
    """Every way in which ``metrics`` fall short of ``tolerances``, one sentence each with both numbers."""
    found = []
    if metrics.images < tolerances.min_images:
        found.append(f"{metrics.images} images were compared, at least {tolerances.min_images} are needed")
    if metrics.nonfinite:
        found.append(f"NaN or infinity on {metrics.nonfinite} of {metrics.images} images")
    for name, value, least, where in (
        ("mean mask IoU", metrics.mean_iou, tolerances.mean_iou, ""),
        ("mask IoU of the worst image", metrics.worst_iou, tolerances.worst_iou, f" ({metrics.worst_image})"),
        ("agreement", metrics.agreement, tolerances.agreement, ""),
    ):
        # written so that NaN fails
        if not value >= least:
            found.append(f"{name} {value:.4f} is below {least:g}{where}")
    return tuple(found)


def runtime_and_device(kind: str) -> tuple[str, str]:
    """(runtime, device) of a session's ``kind``, which is ``runtime/device/precision``."""
    runtime, _, rest = kind.partition("/")
    return runtime, rest.rpartition("/")[0]


def find_verdict(bundle: Bundle, artifact: str, runtime: str, device: str) -> Mapping[str, Any] | None:
    """The verdict on ``artifact`` run there against an original that the bundle has, as it stands in the manifest.

    A verdict against a file that the bundle no longer has is stale and is not found.
    """
    originals = _originals(bundle)
    for raw in bundle.verdicts:
        same = (raw["artifact"], raw["runtime"], raw["device"]) == (artifact, runtime, device)
        if same and raw["reference"] in originals:
            return raw
    return None


def add_verdict(bundle: Bundle, verdict: Verdict) -> Bundle:
    """The bundle with ``verdict`` in place of an earlier one on the same comparison; not saved."""
    raw = verdict.to_dict()
    key = ("artifact", "reference", "runtime", "device")
    others = [entry for entry in bundle.verdicts if [entry[name] for name in key] != [raw[name] for name in key]]
    return dataclasses.replace(bundle, verdicts=(*others, raw))


def require_verdict(bundle: Bundle, artifact: str, runtime: str, device: str) -> None:
    """Raise :class:`GateError` unless ``artifact`` may be labeled with there.

    An original needs no verdict where originals are what others are compared with (:data:`REFERENCE`); everything else
    needs one that passed, on this artifact, runtime and device, against an original that the bundle still has.
    """
    if artifact in _originals(bundle) and (runtime, device) == REFERENCE:
        return
    verdict = find_verdict(bundle, artifact, runtime, device)
    where = f"{runtime} on {device}"
    if verdict is None:
        raise GateError(
            f"{bundle.path}: the artifact {artifact[:12]} was not shown to equal its original in {where}; "
            "prove it with `maskmill gate`, or take the risk with --allow-unverified"
        )
    if not verdict["passed"]:
        why = "; ".join(verdict.get("failures", ())) or "see its verdict in the bundle's manifest"
        raise GateError(
            f"{bundle.path}: the {verdict['precision']} artifact {artifact[:12]} failed the gate in {where} ({why}); "
            "convert or build it anew, or take the risk with --allow-unverified"
        )


class Shift(NamedTuple):
    """How far score quantiles moved between two artifacts, at most."""

    moved: float
    """Largest move of a quantile."""
    allowed: float
    """The tolerance that the gate was asked to hold, the smaller where there are two."""


def shift_between(bundle: Bundle, one: tuple[str, str], other: tuple[str, str]) -> Shift | None:
    """The shift from one (artifact, session kind) to another; None where no gate that passed measured it.

    Both are compared through the original that their verdicts share, so their two moves add up.
    """
    first, second = (_shifts(bundle, artifact, kind) for artifact, kind in (one, other))
    sums = [
        Shift(first[name].moved + second[name].moved, min(first[name].allowed, second[name].allowed))
        for name in set(first) & set(second)
    ]
    return min(sums, default=None)


def _shifts(bundle: Bundle, artifact: str, kind: str) -> dict[str, Shift]:
    """Original → shift from it."""
    if artifact in _originals(bundle) and runtime_and_device(kind) == REFERENCE:
        return {artifact: Shift(0.0, 1.0)}
    verdict = find_verdict(bundle, artifact, *runtime_and_device(kind))
    if verdict is None or not verdict["passed"]:
        return {}
    moved, allowed = (verdict[part]["score_quantile_shift"] for part in ("metrics", "tolerances"))
    return {verdict["reference"]: Shift(moved, allowed)}


def _originals(bundle: Bundle) -> frozenset[str]:
    return frozenset(file.sha256 for file in bundle.files if not file.derived_from)
