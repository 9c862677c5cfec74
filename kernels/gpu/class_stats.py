"""Fused decode of class scores on a device: one launch of ``cuda/class_stats.cu``."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...errors import UsageError
from ..plans.class_stats import DEFAULTS, DecodeOptions, DecodePlan, Taps, decode_plan
from ..types import ClassStats
from .device import (
    ACTIVATIONS,
    ELEMENTS,
    NULL,
    SHAPES,
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

THREADS = 128
"""Threads of a block, as class_tally.cuh's THREADS."""

PACK = 4
"""Classes in one load, as class_walk.cuh's PACK."""

_PER_CELL, _PER_PIXEL = 37, 7
"""Approximate instructions per class: of a thread, and of each of its pixels. They decide the shape of a thread."""


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
    strides = _strides(scores, plan)
    class_bytes = strides[1] * scores.dtype.itemsize
    if abs(class_bytes) >= 1 << 31:
        raise UsageError(f"adjacent classes must be less than 2 GiB apart, got {class_bytes:,} bytes; pass fewer rows")
    walk, order, first = _classes(scores, plan, strides)
    shape, strips, weights, num_strips = _sampling(plan.rows, plan.columns)
    limit, limit_strides = _thresholds(thresholds)
    actual, actual_code = (NULL, np.int32(0)) if truth is None else integers(truth, "truth")
    fields = {
        name: output(out and getattr(out, name), plan.shape, plan.dtype_of(name), f"out.{name}")
        for name in plan.outputs
    }
    labels: list[Pointer] = [NULL, NULL]
    if "label" in fields:
        labels[plan.label_dtype == np.uint16] = fields["label"]
    counts_members = thresholds is not None and (plan.rule != "argmax" or "set_size" in fields)
    launch(
        "class_stats",
        f"class_stats<{ELEMENTS[scores.dtype.name]}, {ACTIVATIONS[plan.activation]}, {walk}, "
        f"{_mode(plan, counts_members, thresholds is not None)}, "
        f"{shape[0]}, {shape[1]}>",
        (ceil_div(num_strips[0] * num_strips[1], THREADS), 1, plan.maps),
        (THREADS,),
        (
            scores,
            np.int64(strides[0]),
            np.int32(class_bytes),
            *map(np.int64, strides[2:]),
            np.int32(plan.channels),
            *map(np.int32, plan.size),
            constant(strips),
            *map(np.int32, num_strips),
            constant(weights),
            order,
            first,
            np.int32(plan.num_scored),
            np.int32(plan.num_targets),
            limit,
            *map(np.int64, limit_strides),
            np.int32(RULE_CODES[plan.rule]),
            np.int32(-1 if plan.background is None else plan.background),
            np.bool_(counts_members),
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


def _strides(scores: DeviceArray, plan: DecodePlan) -> list[int]:
    """Return the strides over (map, class, row, column), in elements."""
    if plan.layout == "CHW":
        item, row, column = scores.strides[-3:]
    else:
        row, column, item = scores.strides[-3:]
    steps = (0 if plan.batch is None else scores.strides[0], item, row, column)
    return [step // scores.dtype.itemsize for step in steps]


def _classes(scores: DeviceArray, plan: DecodePlan, strides: list[int]) -> tuple[str, Pointer, Pointer]:
    """Return the kernel's walk through the classes; for grouped ones, their order and each scored class's start."""
    if plan.groups is not None:
        order = np.argsort(plan.groups, kind="stable").astype(np.int32)
        first = np.searchsorted(plan.groups[order], np.arange(plan.num_scored + 1)).astype(np.int32)
        return "GROUPED", constant(order), constant(first)
    steps = [strides[0], *strides[2:]]
    vector = strides[1] == 1 and aligned(PACK, scores) and all(step % PACK == 0 for step in steps)
    return "VECTOR" if vector and plan.channels >= PACK else "STRIDED", NULL, NULL


def _mode(plan: DecodePlan, counts_members: bool, has_thresholds: bool) -> str:
    """Return the cheapest Mode of class_tally.cuh whose pass over the classes computes the requested outputs."""
    outputs = set(plan.outputs)
    if counts_members or outputs & {"second", "second_confidence"}:
        return "SECONDS"
    summed = {"share", "dispersion"}
    if plan.activation == "softmax":
        summed |= {"confidence", "true_score"}
        if has_thresholds or plan.groups is not None:
            return "SUMS"
    return "SUMS" if outputs & summed else "TOP"


@lru_cache(maxsize=64)
def _sampling(rows: Taps, columns: Taps) -> tuple[tuple[int, int], np.ndarray, np.ndarray, tuple[int, int]]:
    """Choose the pixels of a thread, and return their shape, the strips, the weights and the numbers of strips."""

    def instructions(shape: tuple[int, int]) -> int:
        cells = len(_strips(rows, shape[0])) * len(_strips(columns, shape[1]))
        return cells * (_PER_CELL + _PER_PIXEL * shape[0] * shape[1])

    shape = min(SHAPES, key=instructions)
    strips = _strips(rows, shape[0]), _strips(columns, shape[1])
    weights = np.concatenate([rows.weight, columns.weight]).astype(np.float32)
    return shape, np.concatenate(strips), weights, (len(strips[0]), len(strips[1]))


def _strips(taps: Taps, max_columns: int) -> np.ndarray:
    """Cut an axis into strips of up to ``max_columns`` pixels between the same two source pixels, int32 (strips, 4).

    A strip is its first pixel, its number of pixels, the lower source pixel and the distance of the upper one.
    """
    begins = np.concatenate([[True], np.diff(taps.lower) != 0])
    index = np.arange(taps.lower.size)
    inside_run = index - np.maximum.accumulate(np.where(begins, index, 0))
    starts = np.flatnonzero(inside_run % max_columns == 0)
    counts = np.diff(np.append(starts, taps.lower.size))
    lower = taps.lower[starts]
    return np.stack([starts, counts, lower, taps.upper[starts] - lower], axis=1).astype(np.int32)


def _thresholds(thresholds: float | DeviceArray | None) -> tuple[Pointer, tuple[int, ...]]:
    """Return the thresholds on the device and their strides over (class, row, column)."""
    if thresholds is None:
        return NULL, (0, 0, 0)
    limit = upload(thresholds, dtype=np.float32)
    steps = [step // 4 for step in limit.strides]
    return limit, {0: (0, 0, 0), 1: (*steps, 0, 0), 2: (0, *steps)}[limit.ndim]
