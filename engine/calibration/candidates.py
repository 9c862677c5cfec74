"""Compare ways to select pixels by cross-validation, and recommend one for a goal.

The candidates are every rule, grouping, unit and alpha, constant confidences, and the top class of every pixel. Each is
measured on images that its thresholds were not computed from: clusters, fallbacks and thresholds are computed anew
without each fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...kernels.types import Rule
from ..inputs.summary import SourceSummary
from .binned import BinnedScores
from .goal import Goal, pick
from .intervals import blocks, folds
from .scores.pixel_samples import PixelSamples, Tally
from .scores.score_counts import UPPER
from .sharing import Fallback, Group, Unseen, share_thresholds
from .thresholds import Unit, fewest_images

ALPHAS = ("0.01", "0.02", "0.05", "0.1", "0.15", "0.2", "0.3", "0.4")
CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999)
GROUPS: tuple[Group, ...] = ("pooled", "class", "cluster", "shrunk")
UNSEEN: tuple[Unseen, ...] = ("never", "confident")
FOLDS = 5
ROUNDING = 0.005
"""Largest difference of two figures that count as equal in the table."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to select pixels."""

    method: Literal["argmax", "threshold", "conformal"]
    """Selection method."""
    confidence: float | None = None
    """Lowest confidence (``threshold``)."""
    rule: Rule = "argmax"
    """How the prediction set decides the label (``conformal``)."""
    group: Group | None = None
    """Classes that share a threshold (``conformal``)."""
    unit: Unit = "pixel"
    """Exchangeable unit (``conformal``)."""
    alpha: str | None = None
    """Error rate (``conformal``)."""
    fallback: Fallback = "foreground"
    """Threshold of classes with few images (``conformal``, groups with thresholds of classes' own)."""
    unseen: Unseen = "never"
    """Threshold of classes without a calibration pixel (``conformal``)."""

    def __str__(self) -> str:
        if self.method == "argmax":
            return "top class of every pixel"
        if self.method == "threshold":
            return f"confidence {self.confidence:g}"
        fallback = ", fallback pooled" if self.fallback == "pooled" else ""
        unseen = "" if self.unseen == "never" else f", unseen {self.unseen}"
        return f"{self.rule}, {self.group}, {self.unit}, alpha {self.alpha}{fallback}{unseen}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Held-out quality of a candidate's labels; shares in [0, 1], intervals at 95 % over images."""

    candidate: Candidate
    """The candidate."""
    kept: float
    """Share of pixels with a label."""
    accuracy: float
    """Share of kept pixels with the right label; 0 if none is kept."""
    miou: float
    """Mean IoU over kept pixels; a class without a kept pixel counts 0."""
    kept_interval: tuple[float, float] | None
    """Interval of the kept share; None over too few images."""
    accuracy_interval: tuple[float, float] | None
    """Interval of the accuracy; None over too few images."""
    dominated: bool = False
    """Another candidate keeps as much with as good accuracy and mIoU, and is better in one of them."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        raw = asdict(self)
        raw["candidate"] = {key: value for key, value in asdict(self.candidate).items() if value is not None}
        return raw


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Measured candidates, and the one to use."""

    goal: Goal
    """The goal."""
    points: tuple[Measured, ...]
    """All candidates; the first is the top class of every pixel."""
    recommended: Measured
    """The candidate for the goal."""
    notes: tuple[str, ...]
    """Limits of the recommendation in plain words."""
    warnings: tuple[str, ...] = ()
    """Signs that the measurements are meaningless, such as labels that do not match the images."""
    source: SourceSummary | None = None
    """Files that were used, and files that were skipped."""

    @property
    def raw(self) -> Measured:
        """The labels without selection."""
        return self.points[0]

    @property
    def leading(self) -> list[Measured]:
        """Selections that no other one beats in kept share and in the goal's figure, from most to least kept.

        It always includes the labels without selection and the recommendation. Of selections whose figures differ by
        less than :data:`ROUNDING`, which mostly keep the same pixels, only one is listed.
        """
        figure = "accuracy" if self.goal.aim == "accuracy" else "miou"
        leading, highest = [self.raw], -1.0
        if self.recommended is not self.raw:
            leading.append(self.recommended)
        for point in sorted(self.points, key=lambda point: (-point.kept, -getattr(point, figure))):
            if getattr(point, figure) <= highest:
                continue
            highest = getattr(point, figure)
            if not any(_alike(point, other) for other in leading):
                leading.append(point)
        return sorted(leading, key=lambda point: -point.kept)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "goal": str(self.goal),
            "recommended": self.recommended.to_json(),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "source": None if self.source is None else self.source.to_json(),
            "points": [point.to_json() for point in self.points],
        }


def default_candidates(groups: Sequence[Group] = GROUPS) -> list[Candidate]:
    """List the candidates that ``maskmill choose`` measures."""
    candidates = [Candidate(method="argmax")]
    candidates += [Candidate(method="threshold", confidence=confidence) for confidence in CONFIDENCES]
    for group, unit, alpha, unseen, rule in product(groups, get_args(Unit), ALPHAS, UNSEEN, get_args(Rule)):
        fallbacks: tuple[Fallback, ...] = get_args(Fallback) if group == "class" else ("foreground",)
        for fallback in fallbacks:
            options: dict[str, Any] = {"rule": rule, "group": group, "unit": unit, "alpha": alpha, "unseen": unseen}
            candidates.append(Candidate(method="conformal", fallback=fallback, **options))
    return candidates


def measure_candidates(
    scores: BinnedScores, samples: PixelSamples, candidates: Sequence[Candidate], *, num_folds: int = FOLDS
) -> list[Measured]:
    """Measure candidates on the sampled pixels of held-out images."""
    num_images, num = scores.counts.num_images, scores.num_targets
    taxonomy = samples.taxonomy
    extra = taxonomy.num_scored - num
    fold_of = blocks(scores.counts.ids, num_folds)
    parts: list[list[Any]] = [[] for _ in candidates]
    for fold, images in folds(fold_of):
        weights = (fold_of != fold).astype(np.float64)[None]
        fitting_scores = BinnedScores(scores.counts.subset(np.flatnonzero(weights[0])), num)
        images_per_class = (fitting_scores.pixels > 0).sum(axis=0)
        pixels = samples.read(images)
        limits: dict[Any, Any] = {}
        for index, candidate in enumerate(candidates):
            key = (
                candidate.method,
                candidate.confidence,
                candidate.group,
                candidate.unit,
                candidate.alpha,
                candidate.fallback,
                candidate.unseen,
            )
            if key not in limits:
                limits[key] = _limits(
                    candidate, scores, fitting_scores, weights, images_per_class, extra, taxonomy.background
                )
            parts[index].append((images, pixels.tally(limits[key], candidate.rule)))
    points = [
        _measured(candidate, Tally.gather(part, num_images, num))
        for candidate, part in zip(candidates, parts, strict=True)
    ]
    return [_with_dominance(point, points) for point in points]


def _limits(
    candidate: Candidate,
    scores: BinnedScores,
    fitting_scores: BinnedScores,
    weights: Any,
    images_per_class: Any,
    extra: int,
    background: int | None,
) -> NDArray[np.float32] | None:
    """Compute thresholds (Ke,) of a candidate from the images with a weight."""
    num = scores.num_targets
    if candidate.method == "argmax":
        return None
    if candidate.method == "threshold":
        return np.full(num + extra, 1 - (candidate.confidence or 0.0), np.float32)
    assert candidate.alpha is not None, "a conformal candidate has an alpha"
    assert candidate.group is not None, "a conformal candidate has a group"
    alpha = Fraction(candidate.alpha)
    sharing = share_thresholds(
        candidate.group,
        images_per_class,
        min_images=fewest_images(alpha),
        background=background,
        counts=fitting_scores.counts,
        fallback=candidate.fallback,
        unseen=candidate.unseen,
    )
    pooled = share_thresholds("pooled", images_per_class, min_images=1, background=background, unseen="pooled")
    options: dict[str, Any] = {"alpha": alpha, "unit": candidate.unit}
    bins = scores.thresholds(sharing, weights, **options)[0]
    rest_bin = scores.thresholds(pooled, weights, **options)[0, 0]
    values = np.where(bins >= 0, UPPER[bins], -np.inf)
    return np.append(values, np.full(extra, UPPER[rest_bin])).astype(np.float32)


def _measured(candidate: Candidate, tally: Tally) -> Measured:
    summary = tally.summary(sets=2 if candidate.method == "conformal" else 1)
    return Measured(
        candidate=candidate,
        kept=summary["kept"] or 0.0,
        accuracy=summary["accuracy_kept"] or 0.0,
        miou=summary["miou_kept"] or 0.0,
        kept_interval=_pair(summary["kept_interval"]),
        accuracy_interval=_pair(summary["accuracy_kept_interval"]),
    )


def _pair(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


def _with_dominance(point: Measured, points: Sequence[Measured]) -> Measured:
    def figures(measured: Measured) -> tuple[float, float, float]:
        return measured.kept, measured.accuracy, measured.miou

    own = figures(point)
    dominated = any(
        all(other >= mine for other, mine in zip(figures(rival), own, strict=True)) and figures(rival) != own
        for rival in points
    )
    return Measured(**{**vars(point), "dominated": dominated})


def _alike(point: Measured, other: Measured) -> bool:
    return all(abs(getattr(point, key) - getattr(other, key)) < ROUNDING for key in ("kept", "accuracy", "miou"))


def recommend(points: Sequence[Measured], goal: Goal) -> Choice:
    """Choose the candidate for a goal; one whose labels are worse than the raw ones is chosen only with a note."""
    raw = points[0]
    figures = np.array([[point.kept, point.accuracy, point.miou] for point in points])
    row, fits = pick(figures, goal)
    recommended = points[row]
    notes = []
    if goal.aim == "accuracy" and not fits:
        notes.append(f"no candidate reaches accuracy {goal.least:g}; this one comes closest")
    elif goal.aim == "accuracy" and recommended.accuracy_interval is None:
        notes.append("there are too few images for an interval of its accuracy: on new images it may be below the goal")
    elif goal.aim == "accuracy" and recommended.accuracy_interval and recommended.accuracy_interval[0] < goal.least:
        low, high = recommended.accuracy_interval
        notes.append(f"the interval of its accuracy is {low:.3f} to {high:.3f}: on new images it may be below the goal")
    if recommended.miou < raw.miou or recommended.accuracy < raw.accuracy:
        notes.append(
            f"its labels are worse than the top class of every pixel: accuracy {recommended.accuracy:.3f} against "
            f"{raw.accuracy:.3f}, mIoU {recommended.miou:.3f} against {raw.miou:.3f}"
        )
    if recommended is raw and goal.aim != "kept":
        notes.append("no selection is better than the top class of every pixel on these images")
    if raw.kept < 1:
        notes.append(
            f"{1 - raw.kept:.1%} of the pixels have a dropped model class as their top class; they have no label and "
            "are left out of the accuracy and mIoU of the top class of every pixel"
        )
    if recommended.candidate.unseen == "confident":
        notes.append("it also uses classes without a calibration pixel as labels, above the constant confidence")
    return Choice(goal=goal, points=tuple(points), recommended=recommended, notes=tuple(notes))
