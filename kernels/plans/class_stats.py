"""Options of ``class_stats``, checked once for every form, and the sampling positions that the forms share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ...checks import check_choice
from ...errors import UsageError
from ..types import Activation, Dispersion, Layout, Rule

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
RULES: tuple[Rule, ...] = get_args(Rule)
DISPERSIONS: tuple[Dispersion, ...] = get_args(Dispersion)
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DecodeOptions:
    """Options of :func:`maskmill.kernels.class_stats` that are read on the host; it describes each of them."""

    layout: Layout = "CHW"
    activation: Activation = "softmax"
    groups: Sequence[int] | NDArray[Any] | None = None
    num_targets: int | None = None
    region: tuple[float, float, float, float] | None = None
    rule: Rule = "argmax"
    background: int | None = None
    ignore: int | None = None
    dispersion: Dispersion = "official"
    outputs: Sequence[str] | str = ("label", "confidence")


DEFAULTS = DecodeOptions()


@dataclass(frozen=True, eq=False)
class Taps:
    """Sampling along one axis: output i = (1 - weight[i]) * source[lower[i]] + weight[i] * source[upper[i]]."""

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodePlan:
    """Checked options of one call, with defaults resolved, in the terms of the forms' loops."""

    batch: int | None
    """Maps in the batch; None if the scores have no batch axis."""
    channels: int
    """Model classes C."""
    source: tuple[int, int]
    """(h, w) of the scores."""
    size: tuple[int, int]
    """(H, W) of the outputs."""
    layout: Layout
    activation: Activation
    groups: NDArray[np.int32] | None
    """(C,) scored class of each model class, K for a dropped one; None: one to one."""
    num_targets: int
    """K."""
    num_scored: int
    """Ke: K, plus one if a model class is dropped."""
    reached: NDArray[np.bool_]
    """(Ke,): a model class maps to the scored class."""
    region: tuple[float, float, float, float]
    """(y0, x0, y1, x1), part of the map that covers the output, in pixels of the scores."""
    rows: Taps
    columns: Taps
    rule: Rule
    background: int | None
    ignore: int
    label_dtype: np.dtype[Any]
    exact_dispersion: bool
    """The dispersion does not count the top class's empty slot."""
    outputs: tuple[str, ...]

    @property
    def maps(self) -> int:
        """Number of maps, 1 without a batch axis."""
        return 1 if self.batch is None else self.batch

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of every output."""
        return self.size if self.batch is None else (self.batch, *self.size)

    def dtype_of(self, output: str) -> np.dtype[Any]:
        """Return the element type of one output."""
        if output == "label":
            return self.label_dtype
        return np.dtype(np.uint16 if output in ("top", "second", "set_size") else np.float32)


@lru_cache(maxsize=64)
def bilinear_taps(source: int, size: int, start: float, stop: float) -> Taps:
    """Compute half-pixel bilinear taps: ``size`` samples over [start, stop) of an axis, clamped to the axis.

    ``source`` is the length of the axis in pixels. Sample i is at (i + 0.5) * (stop - start) / size + start - 0.5. With
    start 0 and stop ``source`` this is torch's ``interpolate(mode="bilinear", align_corners=False)``.
    """
    position = (np.arange(size) + 0.5) * ((stop - start) / size) + start - 0.5
    position = np.clip(position, 0, source - 1)
    lower = position.astype(np.int64)
    upper = np.minimum(lower + 1, source - 1)
    weight = np.asarray(position - lower, np.float64)
    for array in (lower, upper, weight):
        array.setflags(write=False)
    return Taps(lower, upper, weight)


def decode_plan(
    scores_shape: tuple[int, ...],
    size: tuple[int, int],
    options: DecodeOptions,
    truth: Any = None,
    thresholds: Any = None,
) -> DecodePlan:
    """Check the arguments of ``class_stats`` and resolve its defaults.

    ``truth`` and ``thresholds`` are as in :func:`maskmill.kernels.class_stats`; only their shapes are read.

    Raises:
        UsageError: an argument is out of range, or two arguments conflict.
    """
    _check_choices(options)
    layout, region = options.layout, options.region
    if len(scores_shape) not in (3, 4) or 0 in scores_shape[-3:]:
        raise UsageError(f"scores must be {layout} or N{layout} without an empty axis, got shape {tuple(scores_shape)}")
    channels, height, width = scores_shape[-3:] if layout == "CHW" else (scores_shape[-1], *scores_shape[-3:-1])
    if channels > MAX_CLASSES:
        raise UsageError(f"at most {MAX_CLASSES} classes are supported, got {channels}: is the layout {layout}?")
    rows, columns = (int(length) for length in size)
    if rows < 1 or columns < 1:
        raise UsageError(f"size must be (height, width) of at least 1 pixel, got {tuple(size)}")
    y0, x0, y1, x1 = (0.0, 0.0, float(height), float(width)) if region is None else (float(edge) for edge in region)
    if not (all(map(math.isfinite, (y0, x0, y1, x1))) and y0 < y1 and x0 < x1):
        raise UsageError(f"region must be (y0, x0, y1, x1) with y0 < y1 and x0 < x1, got {region}")

    groups, targets, num_scored, reached = _grouping(options.groups, channels, options.num_targets)
    batch = scores_shape[0] if len(scores_shape) == 4 else None
    _check_arrays(truth, thresholds, (rows, columns) if batch is None else (batch, rows, columns), num_scored)
    background = options.background
    if background is not None and not 0 <= background < targets:
        raise UsageError(f"background must be a target class, 0 to {targets - 1}, got {background}")
    is_narrow = targets <= 255
    limit = 255 if is_narrow else 65535
    ignore = limit if options.ignore is None else int(options.ignore)
    if not targets <= ignore <= limit:
        raise UsageError(f"ignore must be an index from {targets} to {limit} that no target class has, got {ignore}")
    return DecodePlan(
        batch=batch,
        channels=channels,
        source=(height, width),
        size=(rows, columns),
        layout=layout,
        activation=options.activation,
        groups=groups,
        num_targets=targets,
        num_scored=num_scored,
        reached=reached,
        region=(y0, x0, y1, x1),
        rows=bilinear_taps(height, rows, y0, y1),
        columns=bilinear_taps(width, columns, x0, x1),
        rule=options.rule,
        background=background,
        ignore=ignore,
        label_dtype=np.dtype(np.uint8 if is_narrow else np.uint16),
        exact_dispersion=options.dispersion == "exact" and num_scored > 2,
        outputs=_check_outputs(options.outputs, num_scored, thresholds is not None, truth is not None),
    )


def _check_choices(options: DecodeOptions) -> None:
    for name, choices in (
        ("layout", LAYOUTS),
        ("activation", ACTIVATIONS),
        ("rule", RULES),
        ("dispersion", DISPERSIONS),
    ):
        check_choice(name, getattr(options, name), choices)


def _grouping(
    groups: Sequence[int] | NDArray[Any] | None, channels: int, num_targets: int | None
) -> tuple[NDArray[np.int32] | None, int, int, NDArray[np.bool_]]:
    """Return the scored class of each model class (None: one to one), K, Ke and which scored classes are reached."""
    if groups is None:
        if num_targets not in (None, channels):
            raise UsageError(
                f"num_targets is {num_targets} but the scores have {channels} classes: pass groups as well"
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
    drops = groups < 0
    num_scored = targets + bool(drops.any())
    groups = np.where(drops, targets, groups).astype(np.int32)
    reached = np.zeros(num_scored, bool)
    reached[groups] = True
    return groups, targets, num_scored, reached


def _check_arrays(truth: Any, thresholds: Any, output_shape: tuple[int, ...], num_scored: int) -> None:
    limits_shape = None if thresholds is None else np.shape(thresholds)
    size = output_shape[-2:]
    if limits_shape not in (None, (), (num_scored,), size):
        raise UsageError(
            f"thresholds must be a scalar, one value per class ({num_scored},) or a map {size}, "
            f"got shape {limits_shape}"
        )
    if truth is not None and tuple(truth.shape) != output_shape:
        raise UsageError(f"truth must have the shape of the outputs, {output_shape}, got {tuple(truth.shape)}")


def _check_outputs(
    outputs: Sequence[str] | str, num_scored: int, has_thresholds: bool, has_truth: bool
) -> tuple[str, ...]:
    if isinstance(outputs, str):
        outputs = (outputs,)
    for output in outputs:
        check_choice("outputs", output, OUTPUTS)
    if "set_size" in outputs and not has_thresholds:
        raise UsageError("set_size needs thresholds: without them there is no prediction set")
    if "true_score" in outputs and not has_truth:
        raise UsageError("true_score needs truth, the map of true classes")
    if "dispersion" in outputs and num_scored == 1:
        raise UsageError("dispersion needs at least two classes, got one")
    return tuple(output for output in OUTPUTS if output in outputs)
