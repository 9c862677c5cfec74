"""The arguments of ``class_stats``, checked once for every form, and the sampling positions they share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..types import Activation, Dispersion, Layout, Rule

LAYOUTS: tuple[str, ...] = get_args(Layout)
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
RULES: tuple[str, ...] = get_args(Rule)
DISPERSIONS: tuple[str, ...] = get_args(Dispersion)
OUTPUTS = (
    "label",
    "top",
    "confidence",
    "share",
    "dispersion",
    "second",
    "second_confidence",
    "set_size",
    "true_score",
)
"""Fields of :class:`~maskmill.kernels.types.ClassStats`, in its order."""

MAX_CLASSES = 1024


@dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """What ``class_stats`` was asked to do, in the terms of its loops."""

    batch: int | None
    """Maps in the batch; None where the scores have no batch axis."""
    channels: int
    """Model classes C."""
    source: tuple[int, int]
    """(h, w) of the scores."""
    size: tuple[int, int]
    """(H, W) of the outputs."""
    layout: str
    activation: str
    groups: NDArray[np.int32] | None
    """(C,) scored class of each model class, K for a dropped one; None: one to one."""
    num_targets: int
    """K."""
    num_scored: int
    """Ke: K, and one more where a model class is dropped."""
    reached: NDArray[np.bool_]
    """(Ke,): some model class maps to it."""
    rows: Taps
    columns: Taps
    rule: str
    background: int | None
    ignore: int
    label_dtype: np.dtype[Any]
    dispersion: str
    outputs: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of every output."""
        return self.size if self.batch is None else (self.batch, *self.size)

    def dtype_of(self, output: str) -> np.dtype[Any]:
        """Type of the elements of one output."""
        if output == "label":
            return self.label_dtype
        return np.dtype(np.uint16 if output in ("top", "second", "set_size") else np.float32)


@dataclass(frozen=True, eq=False)
class Taps:
    """Sampling along one axis: output i = (1 - weight[i]) * source[lower[i]] + weight[i] * source[upper[i]]."""

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: NDArray[np.float64]


@lru_cache(maxsize=64)
def bilinear_taps(source: int, size: int, start: float, stop: float) -> Taps:
    """Half-pixel bilinear taps: ``size`` samples over [start, stop) of an axis of ``source`` pixels, clamped to it.

    Sample i lies at (i + 0.5) * (stop - start) / size + start - 0.5. With start 0 and stop ``source`` this is torch's
    ``interpolate(mode="bilinear", align_corners=False)``.
    """
    position = (np.arange(size) + 0.5) * ((stop - start) / size) + start - 0.5
    position = np.clip(position, 0, source - 1)
    lower = position.astype(np.int64)
    upper = np.minimum(lower + 1, source - 1)
    weight = np.asarray(position - lower, np.float64)
    for array in (lower, upper, weight):
        array.setflags(write=False)
    return Taps(lower, upper, weight)


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _grouping(groups, channels: int, num_targets: int | None):
    """Scored class of each model class (None: one to one), K, Ke and which scored classes are reached."""
    if groups is None:
        if num_targets not in (None, channels):
            raise UsageError(
                f"num_targets is {num_targets} but the scores have {channels} classes: give groups as well"
            )
        return None, channels, channels, np.ones(channels, bool)
    groups = np.asarray(groups)
    if groups.shape != (channels,) or groups.dtype.kind not in "iu":
        raise UsageError(
            f"groups must hold one integer for each of the {channels} model classes, "
            f"got {groups.dtype} of shape {groups.shape}"
        )
    groups = groups.astype(np.int64)
    highest = int(groups.max())
    if groups.min() < -1:
        raise UsageError(f"groups must hold target classes from 0, or -1 for a dropped class, got {groups.min()}")
    targets = highest + 1 if num_targets is None else int(num_targets)
    if targets < 1 or highest >= targets:
        raise UsageError(f"groups name target {highest}, but there are {targets} targets")
    if targets > MAX_CLASSES:
        raise UsageError(f"at most {MAX_CLASSES} target classes are supported, got {targets}")
    dropped = groups < 0
    scored = targets + bool(dropped.any())
    groups = np.where(dropped, targets, groups).astype(np.int32)
    reached = np.zeros(scored, bool)
    reached[groups] = True
    return groups, targets, scored, reached


def _check_outputs(outputs, scored: int, has_thresholds: bool, has_truth: bool) -> tuple[str, ...]:
    if isinstance(outputs, str):
        outputs = (outputs,)
    for output in outputs:
        _one_of("outputs", output, OUTPUTS)
    if "set_size" in outputs and not has_thresholds:
        raise UsageError("set_size needs thresholds: without them there is no prediction set")
    if "true_score" in outputs and not has_truth:
        raise UsageError("true_score needs truth, the map of true classes")
    if "dispersion" in outputs and scored == 1:
        raise UsageError("dispersion needs at least two classes, got one")
    return tuple(output for output in OUTPUTS if output in outputs)


def decode_plan(
    shape: tuple[int, ...],
    size: tuple[int, int],
    *,
    layout: str,
    activation: str,
    groups,
    num_targets: int | None,
    region,
    truth_shape: tuple[int, ...] | None,
    thresholds_shape: tuple[int, ...] | None,
    rule: str,
    background: int | None,
    ignore: int | None,
    dispersion: str,
    outputs,
) -> DecodePlan:
    """Check the arguments of ``class_stats`` and settle its defaults.

    ``truth_shape`` and ``thresholds_shape`` are the shapes of those arrays, () for a scalar, None where not given.

    Raises:
        UsageError: an argument is out of its range, or two do not fit each other.
    """
    _one_of("layout", layout, LAYOUTS)
    _one_of("activation", activation, ACTIVATIONS)
    _one_of("rule", rule, RULES)
    _one_of("dispersion", dispersion, DISPERSIONS)
    if len(shape) not in (3, 4) or 0 in shape[-3:]:
        raise UsageError(f"scores must be {layout} or N{layout} without an empty axis, got shape {tuple(shape)}")
    channels, height, width = shape[-3:] if layout == "CHW" else (shape[-1], *shape[-3:-1])
    if channels > MAX_CLASSES:
        raise UsageError(f"at most {MAX_CLASSES} classes are supported, got {channels}: is the layout {layout}?")
    rows, columns = (int(length) for length in size)
    if rows < 1 or columns < 1:
        raise UsageError(f"size must be (height, width) of at least 1 pixel, got {tuple(size)}")
    y0, x0, y1, x1 = (0.0, 0.0, float(height), float(width)) if region is None else (float(edge) for edge in region)
    if not (all(map(math.isfinite, (y0, x0, y1, x1))) and y0 < y1 and x0 < x1):
        raise UsageError(f"region must be (y0, x0, y1, x1) with y0 < y1 and x0 < x1, got {region}")

    groups, targets, scored, reached = _grouping(groups, channels, num_targets)
    if thresholds_shape not in (None, (), (scored,), (rows, columns)):
        raise UsageError(
            f"thresholds must be a scalar, one a class ({scored},) or a map ({rows}, {columns}), "
            f"got shape {thresholds_shape}"
        )
    batch = shape[0] if len(shape) == 4 else None
    expected = (rows, columns) if batch is None else (batch, rows, columns)
    if truth_shape not in (None, expected):
        raise UsageError(f"truth must have the shape of the outputs, {expected}, got {truth_shape}")
    if background is not None and not 0 <= background < targets:
        raise UsageError(f"background must be a target class, 0 to {targets - 1}, got {background}")
    narrow = targets <= 255
    limit = 255 if narrow else 65535
    ignore = limit if ignore is None else int(ignore)
    if not targets <= ignore <= limit:
        raise UsageError(f"ignore must be an index from {targets} to {limit} that no target class has, got {ignore}")
    return DecodePlan(
        batch=batch,
        channels=channels,
        source=(height, width),
        size=(rows, columns),
        layout=layout,
        activation=activation,
        groups=groups,
        num_targets=targets,
        num_scored=scored,
        reached=reached,
        rows=bilinear_taps(height, rows, y0, y1),
        columns=bilinear_taps(width, columns, x0, x1),
        rule=rule,
        background=background,
        ignore=ignore,
        label_dtype=np.dtype(np.uint8 if narrow else np.uint16),
        dispersion=dispersion,
        outputs=_check_outputs(outputs, scored, thresholds_shape is not None, truth_shape is not None),
    )
