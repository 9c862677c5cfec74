"""Types of the kernels' arguments and results: choices, arrays, and frozen containers of arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

Activation = Literal["softmax", "sigmoid", "none"]
Rule = Literal["argmax", "foreground", "single", "agree"]
Dispersion = Literal["official", "exact"]
Layout = Literal["CHW", "HWC"]
CamMode = Literal["paper", "official"]
Nearest = Literal["pil", "torch"]
Filter = Literal["nearest", "bilinear", "bicubic", "lanczos", "area"]
Channels = Literal["RGB", "BGR"]

UNREACHED = 0xFFFF
"""Class index (uint16) of a pixel without a class: its scores are not finite, or it has no second class."""


class Array(Protocol):
    """A NumPy array, a CuPy array or a torch tensor."""

    @property
    def shape(self) -> Any:
        """Length of each axis."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of the elements."""
        ...


ArrayT = TypeVar("ArrayT", bound=Array)
"""Library of a call's first array, and of its results."""

BackendArray: TypeAlias = Any
"""A NumPy array on the host or a CuPy array on a GPU. It is ``Any``, since CuPy has no types that both would fit."""

_NOT_REQUESTED: Any = None


class _Arrays:
    """Base of the containers, whose ``repr`` shows shapes and dtypes instead of values."""

    def __repr__(self) -> str:
        parts = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            text = f"{value.dtype}{tuple(value.shape)}" if hasattr(value, "shape") else repr(value)
            parts.append(f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, repr=False)
class ClassStats(_Arrays, Generic[ArrayT]):
    """Per-pixel statistics of one score map, arrays of (H, W), or of a batch, (N, H, W); None if not requested."""

    label: ArrayT = _NOT_REQUESTED
    """uint8 (uint16 for more than 255 target classes): target class chosen by the rule, or the ignore index."""
    top: ArrayT = _NOT_REQUESTED
    """uint16: class of the highest score, K for "none of these", UNREACHED if the scores are not finite."""
    confidence: ArrayT = _NOT_REQUESTED
    """float32: score of the top class after activation and grouping; 0 if the scores are not finite."""
    share: ArrayT = _NOT_REQUESTED
    """float32 in [0, 1]: the top class's share of the sum of all scores (equal to confidence for softmax)."""
    dispersion: ArrayT = _NOT_REQUESTED
    """float32, >= 0: variance of the other classes' shares (CSL's v; ``official`` or ``exact``)."""
    second: ArrayT = _NOT_REQUESTED
    """uint16: class of the second highest score, UNREACHED if there is none."""
    second_confidence: ArrayT = _NOT_REQUESTED
    """float32: score of the second class; 0 if there is none."""
    set_size: ArrayT = _NOT_REQUESTED
    """uint16: number of classes in the prediction set, "none of these" included."""
    true_score: ArrayT = _NOT_REQUESTED
    """float32: nonconformity score of the true class; NaN if the truth is the ignore index, +inf if the scores are
    not finite."""


@dataclass(frozen=True, repr=False)
class Pcos(_Arrays, Generic[ArrayT]):
    """PCOS weights of one map, (H, W), or of a batch, (N, H, W)."""

    weight: ArrayT
    """float32 in [0, 1]; 0 outside the mask."""
    reliable: ArrayT
    """bool: better than the reliable cluster's mean in confidence or in dispersion, or weight 1 in float32."""
    cluster: ArrayT | None = None
    """uint8: 0 or 1; 255 outside the mask. None if not requested."""
    statistics: ArrayT = _NOT_REQUESTED
    """float64 (8,) or (N, 8): Gram matrix a, b, c; mean of x and v, unbiased variance of x and v in the reliable
    cluster; index of the reliable cluster."""


@dataclass(frozen=True, repr=False)
class Peaks(_Arrays, Generic[ArrayT]):
    """Local maxima of N maps, strongest first, in a buffer of fixed capacity."""

    coordinates: ArrayT
    """int64 (N, capacity, 2): (row, col) in pixels; -1 in the rows from ``count`` on."""
    count: ArrayT
    """int64 (N,): number of peaks written for each map, at most the capacity."""
    overflow: ArrayT
    """bool (N,): the map has more peaks than the capacity holds."""
