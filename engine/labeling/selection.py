"""Select and weight the pixels of a score map: one decode kernel, PCOS if requested, weights in 8 bits.

Usage::

    selection = Selection.conformal(Calibration.load("calibration.json"), weight="pcos")
    labels = select(predictor.predict(image), taxonomy, selection)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...checks import check_choice, check_number
from ...errors import ImageError, UsageError
from ...kernels.plans.quantize import check_levels
from ...kernels.types import Rule
from ..calibration.calibration import Calibration
from ..inputs.identity import content_id
from ..model.taxonomy import Taxonomy
from ..predictors.base import Predictor, ScoreMap
from ..predictors.resampling import resample_nearest
from ..predictors.segment_everything import SegmentMap, paint
from ..reading.geotiff import Windows
from ..store.instances import encode_instances
from .instances import InstanceSettings, find_instances

if TYPE_CHECKING:
    from .kept.keep import ScoreKeeper

Method = Literal["argmax", "threshold", "conformal"]
Weight = Literal["none", "confidence", "pcos", "pcos-supplement"]
ALL_LEVELS = 256
"""Distinct weights of an 8-bit map."""

_NOT_FINITE = "the model gave scores that are NaN or infinite for this image; check the model, or its precision"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How pixels are selected and weighted.

    Use :meth:`argmax`, :meth:`threshold` or :meth:`conformal`; the constructor itself takes thresholds of your own,
    which are recorded by their hash.
    """

    method: Method = "argmax"
    """``argmax`` keeps every pixel, ``threshold`` those with a high top score, ``conformal`` those that the
    prediction set supports."""
    rule: Rule = "argmax"
    """How the prediction set decides the label (``conformal`` only)."""
    thresholds: NDArray[np.float32] | None = None
    """Largest nonconformity score in the prediction set: a scalar (), one per scored class (Ke,), or a map over a
    fixed grid (gh, gw); -inf keeps a class out of every set."""
    calibration: Calibration | None = None
    """Source of the thresholds; checked against the predictor before labeling."""
    weight: Weight = "none"
    """``none``: 1 for every kept pixel; ``confidence``: the top score; ``pcos``: CSL's weight as in its code (exponent
    z²/8); ``pcos-supplement``: as in its supplement (z²/64, exact dispersion, no epsilon)."""
    weight_levels: int = ALL_LEVELS
    """Number of distinct values in the weight map; fewer make smaller files."""
    keeper: ScoreKeeper | None = None
    """Keeper of the scores that later selections need; None keeps none."""
    instances: InstanceSettings | None = None
    """Objects to store beside the labels; None stores none."""

    def __post_init__(self) -> None:
        for name, choices in (("method", Method), ("rule", Rule), ("weight", Weight)):
            check_choice(name, getattr(self, name), choices)
        if (self.method == "argmax") != (self.thresholds is None):
            raise UsageError("argmax takes no thresholds, threshold and conformal need them")
        if self.thresholds is not None:
            object.__setattr__(self, "thresholds", np.asarray(self.thresholds, np.float32))
            check_thresholds(self.thresholds)
        check_levels(self.weight_levels)
        if self.weight == "none" and self.weight_levels != ALL_LEVELS:
            raise UsageError(
                "--weight-levels applies to --weight confidence, pcos or pcos-supplement only; add it, or leave "
                "--weight-levels out"
            )

    @classmethod
    def argmax(
        cls, *, weight: Weight = "none", weight_levels: int = ALL_LEVELS, instances: InstanceSettings | None = None
    ) -> Selection:
        """Keep the top class of every pixel.

        ``weight`` and ``weight_levels`` are how kept pixels are weighted and the number of distinct weights;
        ``instances`` are the limits for objects to store, None for none.
        """
        return cls(weight=weight, weight_levels=weight_levels, instances=instances)

    @classmethod
    def threshold(
        cls,
        confidence: float,
        *,
        weight: Weight = "none",
        weight_levels: int = ALL_LEVELS,
        instances: InstanceSettings | None = None,
    ) -> Selection:
        """Keep the top class if its nonconformity score is at most 1 - ``confidence``, a number in (0, 1].

        ``weight``, ``weight_levels`` and ``instances`` are as for :meth:`argmax`. Raises :class:`UsageError` for
        another confidence.
        """
        check_number("threshold", confidence, most=1, above=0)
        return cls(
            method="threshold",
            thresholds=np.asarray(1 - confidence, np.float32),
            weight=weight,
            weight_levels=weight_levels,
            instances=instances,
        )

    @classmethod
    def conformal(
        cls,
        calibration: Calibration,
        *,
        rule: Rule | None = None,
        weight: Weight = "none",
        weight_levels: int = ALL_LEVELS,
        keep_scores: str | float | None = None,
        instances: InstanceSettings | None = None,
    ) -> Selection:
        """Keep the pixels that the prediction sets of ``calibration`` support; if ``rule`` is None, by its own rule.

        With ``keep_scores``, an alpha, a label run stores the scores that another selection needs at that alpha and
        above; see :mod:`maskmill.engine.labeling.reselection.reselect`. ``weight``, ``weight_levels`` and ``instances``
        are as for :meth:`argmax`.
        """
        keeper = None
        if keep_scores is not None:
            from .kept.keep import ScoreKeeper

            keeper = ScoreKeeper.of(calibration, keep_scores)
        return cls(
            method="conformal",
            rule=rule or calibration.rule,
            thresholds=calibration.thresholds,
            calibration=calibration,
            weight=weight,
            weight_levels=weight_levels,
            keeper=keeper,
            instances=instances,
        )

    def check(self, predictor: Predictor, taxonomy: Taxonomy, windows: Windows | None = None) -> None:
        """Raise :class:`CalibrationMismatch` if the calibration was made under other conditions."""
        if self.calibration is not None:
            self.calibration.check(predictor, taxonomy, windows)
        if self.instances is not None and not predictor.bundle.has_objects:
            raise UsageError(
                f"{predictor.bundle.location} gives classes only, no single objects; export a Mask2Former, OneFormer, "
                "EoMT or SAM 3 with --instances, or import a YOLO-seg or RF-DETR-Seg model"
            )

    def notes(self, windows: Windows | None) -> list[str]:
        """Return warnings about images, read by ``windows``, of another size than those of the calibration."""
        if self.calibration is None or not self.calibration.counts.num_images:
            return []
        if (side := self.calibration.windows) is not None:
            text = f"the calibration was made by windows of {side} px, and images are labeled whole; give --windows"
            return [] if windows is not None else [f"{text} {side}, unless they have that size"]
        if windows is None:
            return []
        pixels = self.calibration.counts.pixels(len(self.calibration.targets)).sum(axis=1).max()
        if windows.side / 2 < (length := float(pixels) ** 0.5) < windows.side * 2:
            return []
        text = f"the calibration images have at most {length:.0f}x{length:.0f} labeled pixels and were read whole"
        return [f"{text}, and windows of {windows.side} px are labeled; calibrate with --windows {windows.side}"]

    def drift_reference(self) -> NDArray[np.float64] | None:
        """Return the statistics (n, J) of the calibration images, in which drift is watched; None without them."""
        if self.calibration is None or not self.calibration.counts.num_images:
            return None
        return self.calibration.drift_reference

    def record(self) -> dict[str, Any]:
        """Return everything that decides labels and weights, as plain data for the run record."""
        record: dict[str, Any] = {
            "select": self.method,
            "rule": self.rule,
            "weight": self.weight,
            "weight_levels": self.weight_levels,
        }
        if self.method == "threshold" and self.thresholds is not None and self.thresholds.ndim == 0:
            record["threshold"] = round(1 - float(self.thresholds), 7)
        elif self.thresholds is not None:
            digest = content_id(np.ascontiguousarray(self.thresholds).tobytes())
            record["thresholds"] = {"shape": list(self.thresholds.shape), "sha": digest}
        if self.calibration is not None:
            record["calibration"] = {
                key: getattr(self.calibration, key) for key in ("alpha", "group", "unit", "control", "delta")
            }
            if self.calibration.weighting is not None:
                record["calibration"]["like"] = self.calibration.weighting["like"]
        if self.keeper is not None:
            record["kept_scores"] = self.keeper.record()
        if self.instances is not None:
            record["instances"] = self.instances.record()
        return record


def check_thresholds(thresholds: NDArray[np.float32]) -> None:
    """Raise :class:`UsageError` if a threshold is NaN, or negative and not -inf."""
    faults = np.isnan(thresholds) | ((thresholds < 0) & ~np.isneginf(thresholds))
    if faults.any():
        raise UsageError(
            f"thresholds are nonconformity scores of at least 0, or -inf for a class that is never emitted; "
            f"got {float(thresholds[faults].ravel()[0])}"
        )


@dataclass(frozen=True, kw_only=True)
class Selected:
    """Labels and weights of one image."""

    label: NDArray[Any]
    """(H, W) uint8 or uint16: target class, or the ignore index."""
    weight: NDArray[np.uint8]
    """(H, W): 0 for ignored pixels, 255 for reliable ones."""
    counts: NDArray[np.int64]
    """(K,): number of kept pixels of each target."""
    kept: float
    """Share of pixels that carry a label."""
    confidence: float
    """Mean score of the top class over the kept pixels; 0 if no pixel is kept."""
    scores: bytes | None = None
    """Encoded scores for later selections; None if the selection keeps none."""
    instances: bytes | None = None
    """Encoded objects; None if the selection stores none."""


def select(score_map: ScoreMap, taxonomy: Taxonomy, selection: Selection) -> Selected:
    """Decode, select and weight one image on the device of its scores; only two maps and two numbers reach the host.

    Raises :class:`ImageError` of the kind ``not-finite`` for scores with NaN or infinity.
    """
    (selected,) = select_batch([score_map], taxonomy, selection)
    if isinstance(selected, ImageError):
        raise selected
    return selected


def select_batch(
    score_maps: Sequence[ScoreMap], taxonomy: Taxonomy, selection: Selection
) -> list[Selected | ImageError]:
    """Run :func:`select` on images of one backend with one download; an image's error is returned in its place."""
    backend, arrays = score_maps[0].backend, []
    with backend.queue():
        for score_map in score_maps:
            label, weight, confidence = _maps(score_map, taxonomy, selection)
            if score_map.with_data is not None:
                with_data = backend.xp.asarray(score_map.with_data)
                label = backend.xp.where(with_data, label, label.dtype.type(taxonomy.ignore_index))
                weight = backend.xp.where(with_data, weight, np.uint8(0))
            total = backend.xp.where(label == taxonomy.ignore_index, np.float32(0), confidence).sum(dtype=np.float64)
            numbers = [total, confidence.min().astype(np.float64)]
            arrays += [label, weight, backend.xp.stack(numbers)]
        arrays = backend.download(*arrays)
        selected = [
            _selected(score_map, arrays[3 * index], arrays[3 * index + 1], arrays[3 * index + 2], taxonomy)
            for index, score_map in enumerate(score_maps)
        ]
    if selection.keeper is None and selection.instances is None:
        return selected
    return [
        labels if isinstance(labels, ImageError) else _with_extras(labels, score_map, taxonomy, selection)
        for labels, score_map in zip(selected, score_maps, strict=True)
    ]


def _with_extras(labels: Selected, score_map: ScoreMap, taxonomy: Taxonomy, selection: Selection) -> Selected:
    """Add the data that the selection stores beside the maps."""
    keeper, settings = selection.keeper, selection.instances
    return replace(
        labels,
        scores=None if keeper is None else keeper.keep(score_map, taxonomy),
        instances=None if settings is None else encode_instances(find_instances(score_map, taxonomy, settings)),
    )


def _selected(
    score_map: ScoreMap,
    label: NDArray[Any],
    weight: NDArray[np.uint8],
    numbers: NDArray[np.float64],
    taxonomy: Taxonomy,
) -> Selected | ImageError:
    """Count the pixels of maps on the host; ``numbers``: sum of the kept top scores, and lowest top score."""
    (total, lowest), backend, ignore = numbers, score_map.backend, taxonomy.ignore_index
    if lowest == 0 and not bool(backend.download(backend.xp.isfinite(score_map.scores).all())[0]):
        return ImageError("not-finite", _NOT_FINITE)  # the kernel writes confidence 0 at such pixels
    counts = np.bincount(label.ravel(), minlength=ignore + 1)
    num_kept = label.size - int(counts[ignore])
    return Selected(
        label=label,
        weight=weight,
        counts=counts[: taxonomy.num_targets],
        kept=num_kept / label.size,
        confidence=float(total) / num_kept if num_kept else 0.0,
    )


def _maps(score_map: ScoreMap, taxonomy: Taxonomy, selection: Selection) -> tuple[Any, Any, Any]:
    """Compute label, weight and top score of every pixel, on the scores' backend."""
    xp, ignore, thresholds = score_map.backend.xp, taxonomy.ignore_index, selection.thresholds
    if thresholds is not None and thresholds.ndim == 0:
        thresholds = np.full(taxonomy.num_scored, thresholds, np.float32)
    shape: tuple[int, ...] = () if thresholds is None else thresholds.shape
    grid = (shape[0], shape[1]) if len(shape) == 2 else None
    outputs: tuple[str, ...] = ("label", "confidence")
    exact = selection.weight == "pcos-supplement"
    if exact or selection.weight == "pcos":
        outputs += ("share", "dispersion")
    stats = score_map.decode(
        taxonomy, size=grid, thresholds=thresholds, rule=selection.rule, outputs=outputs,
        dispersion="exact" if exact else "official",
    )  # fmt: skip
    label, confidence = stats.label, stats.confidence
    quantized = {"levels": selection.weight_levels, "label": label, "ignore": ignore}
    if exact or selection.weight == "pcos":
        form: dict[str, Any] = {"denominator": 64.0, "epsilon": 0.0} if exact else {}
        pcos = kernels.pcos(stats.share, stats.dispersion, **form)
        weight = kernels.quantize_weights(pcos.weight, pcos.reliable, **quantized)
    elif selection.weight == "confidence":
        weight = kernels.quantize_weights(confidence, **quantized)
    else:
        weight = xp.where(label == ignore, np.uint8(0), np.uint8(255))
    if grid is None:
        return label, weight, confidence
    return (
        resample_nearest(label, score_map.size, xp),
        resample_nearest(weight, score_map.size, xp),
        resample_nearest(confidence, score_map.size, xp),
    )


def select_segments(maps: Sequence[SegmentMap]) -> list[Selected | ImageError]:
    """Convert maps of segments to stored form: weight 255 inside a segment, 0 elsewhere.

    A map whose scores were not finite is replaced by an :class:`ImageError` of the kind ``not-finite``.
    """
    return [_segments(map) if map.finite else ImageError("not-finite", _NOT_FINITE) for map in maps]


def _segments(segments: SegmentMap) -> Selected:
    label = paint(segments)
    inside = label > 0
    return Selected(
        label=label,
        weight=np.where(inside, np.uint8(255), np.uint8(0)),
        counts=np.array([inside.sum()], np.int64),
        kept=float(inside.mean()),
        confidence=float(np.clip(segments.scores.mean(), 0, 1)) if len(segments.scores) else 0.0,
    )
