"""What the kernels return: frozen containers of arrays, in the caller's array library and on the caller's device."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

Array = Any
"""A NumPy or CuPy array, or a torch tensor."""

Activation = Literal["softmax", "sigmoid", "none"]
Rule = Literal["argmax", "foreground", "single", "agree"]
Dispersion = Literal["official", "exact"]
Layout = Literal["CHW", "HWC"]

UNREACHED = 0xFFFF
"""Class index (uint16) of a pixel without one: its scores are not finite, or there is no second class."""


class _Arrays:
    """Shows shapes and dtypes instead of values."""

    def __repr__(self) -> str:
        parts = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            shape = f"{value.dtype}{tuple(value.shape)}" if hasattr(value, "shape") else repr(value)
            parts.append(f"{field.name}={shape}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, repr=False)
class ClassStats(_Arrays):
    """Per-pixel statistics of one score map; every array is (H, W), or (N, H, W) for a batch. None: not asked for."""

    label: Array = None
    """uint8 (uint16 beyond 255 target classes): target class chosen by the rule, or the ignore index."""
    top: Array = None
    """uint16: class of the highest score, K for "none of these", UNREACHED where the scores are not finite."""
    confidence: Array = None
    """float32: score of the top class after activation and grouping; 0 where the scores are not finite."""
    share: Array = None
    """float32 in [0, 1]: the top class's share of the sum of all scores (equal to confidence for softmax)."""
    dispersion: Array = None
    """float32, >= 0: variance of the other classes' shares (CSL's v; ``official`` or ``exact``)."""
    second: Array = None
    """uint16: class of the second highest score, UNREACHED where there is none."""
    second_confidence: Array = None
    """float32: score of the second class; 0 where there is none."""
    set_size: Array = None
    """uint16: number of classes in the prediction set, "none of these" included."""
    true_score: Array = None
    """float32: nonconformity score of the true class; NaN where the truth is the ignore index, +inf where the
    scores are not finite."""


@dataclass(frozen=True, repr=False)
class Pcos(_Arrays):
    """PCOS weights of one map, (H, W), or of a batch, (N, H, W)."""

    weight: Array
    """float32 in [0, 1]; 0 outside the mask."""
    reliable: Array
    """bool: better than the reliable cluster's mean in confidence or in dispersion, or weight 1 in float32."""
    cluster: Array = None
    """uint8: 0 or 1; 255 outside the mask."""
    statistics: Array = None
    """float64 (8,) or (N, 8): Gram a, b, c; mean of x and v, unbiased variance of x and v in the reliable cluster;
    index of the reliable cluster."""


@dataclass(frozen=True, repr=False)
class Peaks(_Arrays):
    """Local maxima of N maps, strongest first, in a buffer of fixed capacity."""

    coordinates: Array
    """int64 (N, capacity, 2): (row, col) in pixels; rows at and after ``count`` are -1."""
    count: Array
    """int64 (N,): number of peaks written for each map, at most the capacity."""
    overflow: Array
    """bool (N,): the map has more peaks than the capacity holds."""
