"""From a score map to what the store keeps: a label map, a weight map and their counts.

Thin over the kernels: one fused decode, PCOS where asked for, quantization to 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...errors import UsageError
from ...kernels.plans.class_stats import RULES
from ...kernels.types import Rule
from ..model.taxonomy import Taxonomy
from ..predictors.base import ScoreMap
from ..predictors.resampling import resample_nearest
from ..predictors.segment_everything import SegmentMap, paint

Method = Literal["argmax", "threshold", "conformal"]
Weight = Literal["none", "confidence", "pcos"]

METHODS: tuple[str, ...] = get_args(Method)
WEIGHTS: tuple[str, ...] = get_args(Weight)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How pixels are selected and weighted."""

    method: Method = "argmax"
    """``argmax`` keeps every pixel, ``threshold`` those whose top score is high, ``conformal`` those vouched for."""
    rule: Rule = "argmax"
    """How the prediction set decides the label (``conformal`` only)."""
    thresholds: NDArray[np.float32] | None = None
    """Largest nonconformity score in the prediction set: one per scored class, or a map over a fixed grid (gh, gw)."""
    weight: Weight = "none"
    """``none``: 1 for every kept pixel; ``confidence``: the top score; ``pcos``: CSL's weight."""
    weight_levels: int = 256
    """Distinct values in the weight map; fewer make smaller files."""

    def __post_init__(self) -> None:
        for name, choices in (("method", METHODS), ("rule", RULES), ("weight", WEIGHTS)):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if (self.method == "argmax") != (self.thresholds is None):
            raise UsageError("argmax takes no thresholds, threshold and conformal need them")
        if not 2 <= self.weight_levels <= 256:
            raise UsageError(f"weight levels must be from 2 to 256, got {self.weight_levels}")

    @classmethod
    def of_threshold(cls, confidence: float, taxonomy: Taxonomy, **options: Any) -> Selection:
        """Keep the argmax where its nonconformity score is at most ``1 - confidence``."""
        if not 0 < confidence <= 1:
            raise UsageError(f"the confidence threshold must be above 0 and at most 1, got {confidence}")
        thresholds = np.full(taxonomy.num_scored, 1 - confidence, np.float32)
        return cls(method="threshold", rule="argmax", thresholds=thresholds, **options)


@dataclass(frozen=True, kw_only=True)
class Selected:
    """Labels and weights of one image."""

    label: NDArray[Any]
    """(H, W) uint8 or uint16: target class, or the ignore index."""
    weight: NDArray[np.uint8]
    """(H, W): 255 where the label is reliable, 0 where it is ignored."""
    counts: NDArray[np.int64]
    """(K,): kept pixels of each target."""
    kept: float
    """Share of pixels that carry a label."""
    confidence: float
    """Mean score of the top class over the kept pixels; 0 where none is kept."""


def select(score_map: ScoreMap, taxonomy: Taxonomy, selection: Selection) -> Selected:
    """Decode, select and weight one image where its scores lie; two maps and a sum come to the host."""
    backend, ignore = score_map.backend, taxonomy.ignore_index
    with backend.queue():
        label, weight, confidence = _maps(score_map, taxonomy, selection)
        total = backend.xp.where(label == ignore, np.float32(0), confidence).sum(dtype=np.float64)
        label, weight, total = backend.download(label, weight, total)
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
    """Label, weight and top score of every pixel, in the scores' backend."""
    xp, ignore = score_map.backend.xp, taxonomy.ignore_index
    thresholds = None if selection.thresholds is None else xp.asarray(selection.thresholds)
    grid = thresholds.shape if thresholds is not None and thresholds.ndim == 2 else None
    outputs: tuple[str, ...] = ("label", "confidence")
    if selection.weight == "pcos":
        outputs += ("share", "dispersion")
    stats = kernels.class_stats(
        score_map.scores,
        grid or score_map.size,
        layout=score_map.layout,
        activation=score_map.activation,
        groups=taxonomy.groups,
        num_targets=taxonomy.num_targets,
        region=score_map.region,
        thresholds=thresholds,
        rule=selection.rule,
        background=taxonomy.background,
        ignore=ignore,
        outputs=outputs,
    )
    label, confidence = stats.label, stats.confidence
    quantized = {"levels": selection.weight_levels, "label": label, "ignore": ignore}
    if selection.weight == "pcos":
        pcos = kernels.pcos(stats.share, stats.dispersion)
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


def select_segments(segments: SegmentMap) -> Selected:
    """A map of segments as the store keeps it: every pixel of a segment has the weight 255, others 0."""
    label = paint(segments)
    inside = label > 0
    return Selected(
        label=label,
        weight=np.where(inside, np.uint8(255), np.uint8(0)),
        counts=np.array([inside.sum()], np.int64),
        kept=float(inside.mean()),
        confidence=float(np.clip(segments.scores.mean(), 0, 1)) if len(segments.scores) else 0.0,
    )
