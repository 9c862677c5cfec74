"""The form of a calibration file; :mod:`.calibration` reads and writes it.

pydantic checks a file against these classes. All numbers are finite: infinite thresholds are written as texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...errors import UsageError
from ...kernels.types import Rule
from .drift.statistics import unpack_statistics
from .scores.score_counts import PackedCounts
from .sharing import Fallback, Group, Unseen
from .thresholds import SmallSample, Unit, parse_alpha

Control = Literal["miscoverage", "false-label-rate", "miss-rate"]
Number = float | Literal["inf", "-inf"]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Side = Annotated[int, Field(ge=1, lt=1 << 31)]
Interval = tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Thresholds per position."""

    grid: tuple[int, int]
    float32_zlib_base64: str


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """Weights of the calibration images, and the corpus that they resemble with them."""

    like: str
    images: Count
    effective_images: float
    separation: float
    values: tuple[float, ...]
    statistics: str


@dataclass(frozen=True, kw_only=True)
class WeightingSummary:
    """Summary of the weights in the report."""

    like: str
    images: Count
    effective_images: float
    separation: float


@dataclass(frozen=True, kw_only=True)
class HeldOutRow:
    """Coverage and labels of a class, or of all pixels, on images that decided no threshold."""

    coverage: float
    interval: Interval
    missed: bool
    mean_set_size: float
    singleton_share: float
    kept: float
    accuracy_kept: float | None
    iou_kept: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassArgmax:
    """Labels of a class without a selection."""

    accuracy: float | None
    iou: float


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """Sample, threshold and figures of a class."""

    name: Annotated[str, Field(alias="class")]
    pixels: Count
    images: Count
    threshold_from: str
    held_out: HeldOutRow | None
    argmax: ClassArgmax | None
    threshold: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of the selection on held-out images."""

    miou_kept: float | None
    kept: float | None
    kept_interval: Interval
    accuracy_kept: float | None
    accuracy_kept_interval: Interval
    accuracy_all: float | None
    accuracy_all_interval: Interval


@dataclass(frozen=True, kw_only=True)
class Argmax:
    """Labels of all pixels without a selection."""

    accuracy: float
    kept: float
    miou: float


@dataclass(frozen=True, kw_only=True)
class FalseLabels:
    """Wrong labels of an image on held-out images."""

    risk: float
    risk_interval: Interval
    risk_of_labeled_images: float | None
    empty_images: float
    kept: float


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images and labels that were read, see :class:`maskmill.engine.inputs.summary.SourceSummary`."""

    images: Count
    skipped: Mapping[str, Count]
    rejected: Mapping[str, Count]
    without_data: Count
    without_map: tuple[str, ...]
    without_image: tuple[str, ...]
    low_range: tuple[str, ...]
    hint: str
    rules: Mapping[str, Count]
    labels_format: str
    assumed: bool
    turned: Count
    labels_as_stored: bool
    label_pixels: Count
    ignored_share: float | None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Report of thresholds that were read from binned scores."""

    num_images: Count
    num_pixels: Count
    weighting: WeightingSummary | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Report of thresholds that were computed from images."""

    num_images: Count
    num_pixels: Count
    min_images: Count
    overall: HeldOutRow | None
    labels: Labels | None
    argmax: Argmax
    image_mean_coverage: float | None
    classes: tuple[ClassRow, ...]
    warnings: tuple[str, ...]
    promise: str
    source: Source | None = None
    infinite_positions: Count | None = None
    false_labels: FalseLabels | None = None
    guaranteed_miss_rates: tuple[float | None, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class MadeWith:
    """Conditions of a calibration that the code reads; others are only compared."""

    __pydantic_config__ = {"extra": "ignore"}

    artifact: str | None = None
    session: str | None = None
    batch: Annotated[int, Field(ge=0, lt=1 << 20)] = 1
    windows: Side | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrationFile:
    """A calibration file without its seal."""

    # JSON has no other numbers
    __pydantic_config__ = {"allow_inf_nan": False}

    format_version: int
    alpha: str
    group: Group
    unit: Unit
    rule: Rule
    control: Control
    delta: str | None
    min_images: Count
    unseen: Unseen
    fallback: Fallback
    on_small_n: SmallSample
    background: int | None
    weighting: Weighting | None
    targets: tuple[str, ...]
    thresholds: tuple[Number, ...] | Grid
    pooled: Number
    made_with: MadeWith
    report: Report | Sizes
    counts: PackedCounts

    def __post_init__(self) -> None:
        if self.background is not None and not 0 <= self.background < len(self.targets):
            raise UsageError(f"background {self.background} is not one of the {len(self.targets)} targets")
        parse_alpha(self.alpha)
        if self.delta is not None:
            parse_alpha(self.delta)
        if (self.group == "position") != isinstance(self.thresholds, Grid):
            raise UsageError(f"its thresholds are not those of the group {self.group}")
        if not isinstance(self.thresholds, Grid):
            num, targets = len(self.thresholds), len(self.targets)
            if not targets <= num <= targets + 1:  # one more for "none of these"
                raise UsageError(f"it has {num} thresholds, {targets} or {targets + 1} are expected")
            check_thresholds(np.array([float(value) for value in self.thresholds]))
        check_thresholds(np.array([float(self.pooled)]))
        if self.weighting is not None:
            values = self.weighting.values
            if len(values) != len(self.counts.ids) or min(values, default=0) < 0 or not sum(values) > 0:
                raise UsageError(f"its weights are not those of {len(self.counts.ids)} images")
            if len(unpack_statistics(self.weighting.statistics)) != self.weighting.images:
                raise UsageError(f"it lacks the statistics of the {self.weighting.images} images that it resembles")


def check_thresholds(values: NDArray[np.floating[Any]]) -> None:
    """Raise :class:`UsageError` for thresholds that no scores give: those are from 0 to 1, or infinite."""
    wrong = ~(np.isinf(values) | ((values >= 0) & (values <= 1)))
    if wrong.any():
        raise UsageError(f"a threshold is {values[wrong][0]:g}; expected 0 to 1, or an infinite one")


def json_number(value: float) -> float | str:
    """Convert a number for JSON, which has no infinity."""
    return float(value) if np.isfinite(value) else "inf" if value > 0 else "-inf"
