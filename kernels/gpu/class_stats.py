"""Fused decode of class scores on a device: one launch of ``cuda/class_stats.cu``."""

from __future__ import annotations

import numpy as np

from ...errors import UsageError
from ..plans.class_stats import DEFAULTS, DecodeOptions, DecodePlan, decode_plan
from ..types import ClassStats
from .device import (
    ACTIVATIONS,
    ELEMENTS,
    NULL,
    DeviceArray,
    Pointer,
    aligned,
    ceil_div,
    constant,
    integers,
    launch,
    output,
    upload,
)

RULE_CODES = {"argmax": 0, "foreground": 1, "single": 2, "agree": 3}
"""Rules, as class_stats.cu's Rule."""

TILE = (8, 32)
"""Rows and columns of output pixels in a block, as class_stats.cu's TILE_HEIGHT and TILE_WIDTH."""


def class_stats(
    scores: DeviceArray,
    size: tuple[int, int],
    options: DecodeOptions = DEFAULTS,
    *,
    truth: DeviceArray | None = None,
    thresholds: float | DeviceArray | None = None,
    out: ClassStats[DeviceArray] | None = None,
) -> ClassStats[DeviceArray]:
    """Run :func:`maskmill.kernels.class_stats` on CuPy arrays."""
    plan = decode_plan(scores.shape, size, options, truth, thresholds)
    if scores.dtype.name not in ELEMENTS:
        raise UsageError(f"scores must be {', '.join(ELEMENTS)}, got {scores.dtype}")
    if plan.layout == "CHW":
        item, row, column = scores.strides[-3:]
    else:
        row, column, item = scores.strides[-3:]
    strides = [step // scores.dtype.itemsize for step in (scores.strides[0] if plan.batch else 0, item, row, column)]
    height, width = plan.size
    y0, x0, y1, x1 = plan.region
    walk, order, first = _classes(scores, plan, strides)
    limit, limit_strides = _thresholds(thresholds)
    actual, actual_code = (NULL, np.int32(0)) if truth is None else integers(truth, "truth")
    fields = {
        name: output(out and getattr(out, name), plan.shape, plan.dtype_of(name), f"out.{name}")
        for name in plan.outputs
    }
    labels: list[Pointer] = [NULL, NULL]
    if "label" in fields:
        labels[plan.label_dtype == np.uint16] = fields["label"]
    launch(
        "class_stats",
        f"class_stats<{ELEMENTS[scores.dtype.name]}, {ACTIVATIONS[plan.activation]}, {walk}>",
        (ceil_div(width, TILE[1]), ceil_div(height, TILE[0]), plan.maps),
        (TILE[0] * TILE[1],),
        (
            scores,
            *map(np.int64, strides),
            np.int32(plan.channels),
            *map(np.int32, plan.source),
            np.int32(height),
            np.int32(width),
            np.float64((y1 - y0) / height),
            np.float64(y0),
            np.float64((x1 - x0) / width),
            np.float64(x0),
            order,
            first,
            np.int32(plan.num_scored),
            np.int32(plan.num_targets),
            limit,
            *map(np.int64, limit_strides),
            np.int32(RULE_CODES[plan.rule]),
            np.int32(-1 if plan.background is None else plan.background),
            np.int32(plan.ignore),
            np.bool_(plan.exact_dispersion),
            actual,
            actual_code,
            *labels,
            *(fields.get(name, NULL) for name in ("top", "confidence", "share", "dispersion")),
            *(fields.get(name, NULL) for name in ("second", "second_confidence", "set_size", "true_score")),
        ),
    )
    return ClassStats(**fields)


def _classes(scores: DeviceArray, plan: DecodePlan, strides: list[int]) -> tuple[str, Pointer, Pointer]:
    """Return the kernel's walk through the classes; for grouped ones, their order and each scored class's start."""
    if plan.groups is not None:
        order = np.argsort(plan.groups, kind="stable").astype(np.int32)
        first = np.searchsorted(plan.groups[order], np.arange(plan.num_scored + 1)).astype(np.int32)
        return "GROUPED", constant(order), constant(first)
    pack = 16 // scores.dtype.itemsize
    steps = [strides[0], *strides[2:]]
    vector = strides[1] == 1 and aligned(pack, scores) and all(step % pack == 0 for step in steps)
    return "VECTOR" if vector and plan.channels >= pack else "STRIDED", NULL, NULL


def _thresholds(thresholds: float | DeviceArray | None) -> tuple[Pointer, tuple[int, ...]]:
    """Return the thresholds on the device and their strides over (class, row, column)."""
    if thresholds is None:
        return NULL, (0, 0, 0)
    limit = upload(thresholds, dtype=np.float32)
    steps = [step // 4 for step in limit.strides]
    return limit, {0: (0, 0, 0), 1: (*steps, 0, 0), 2: (0, *steps)}[limit.ndim]
