"""Fused decode of class scores on the CPU: prepare the arguments of the compiled loops and share out the rows."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...errors import UsageError
from ..plans.class_stats import ACTIVATIONS, DEFAULTS, RULES, DecodeOptions, DecodePlan, Taps, decode_plan
from ..plans.outputs import output
from ..types import ClassStats
from .decode.rows import decode_bands, decode_rows
from .decode.simd import LANES
from .threads import in_numba_threads, num_threads, numba_threads_are_safe, share

_WORTH_THREADS = 1 << 20
"""Number of class-pixels below which threads cost more than they save (about half a millisecond of one core)."""

_FLOATS = ("confidence", "share", "dispersion", "second_confidence", "true_score")
_INDICES = ("top", "second", "set_size", "label")
"""The loops' outputs, in their order; an 8-bit label is passed separately."""

# Stand-ins for arguments that are absent.
_NO_FLOATS = np.empty(0, np.float32)
_NO_INDICES = np.empty(0, np.uint16)
_NO_LABELS = np.empty(0, np.uint8)
_NO_GROUPS = np.empty(0, np.int32)
_NO_MAP = np.empty((0, 0), np.float32)
_NO_TRUTH = np.empty((0, 0), np.int64)


def class_stats(
    scores: np.ndarray,
    size: tuple[int, int],
    options: DecodeOptions = DEFAULTS,
    *,
    truth: np.ndarray | None = None,
    thresholds: float | np.ndarray | None = None,
    out: ClassStats[np.ndarray] | None = None,
    threads: int | None = None,
) -> ClassStats[np.ndarray]:
    """Run :func:`maskmill.kernels.class_stats` on NumPy arrays.

    ``threads`` is the number of threads that share the rows; None uses all (``NUMBA_NUM_THREADS``) for a large map
    when called on the main thread, and one otherwise. The result is the same to the bit.
    """
    plan = decode_plan(scores.shape, size, options, truth, thresholds)
    if truth is not None and truth.dtype.kind not in "iu":
        raise UsageError(f"truth must hold integers, got {truth.dtype}")
    result = {
        name: output(getattr(out, name, None), plan.shape, plan.dtype_of(name), f"out.{name}") for name in plan.outputs
    }
    shared_inputs = _shared_inputs(plan, thresholds)
    calls = []
    for n in range(plan.maps):
        outputs = _outputs({name: _map_of_batch(array, plan, n) for name, array in result.items()})
        classes = _NO_TRUTH if truth is None else _map_of_batch(truth, plan, n).astype(np.int64)
        source = _source(_map_of_batch(scores, plan, n), plan)
        calls.append((source, *shared_inputs, classes, plan.exact_dispersion, outputs))
    rows = plan.size[0]
    if threads is None:
        threads = num_threads(plan.maps * plan.channels * rows * plan.size[1], _WORTH_THREADS)
    bounds = np.arange(threads + 1) * rows // threads
    if threads > 1 and numba_threads_are_safe():
        for *inputs, outputs in calls:
            in_numba_threads(decode_bands, bounds, *inputs, *outputs)
    else:
        share(decode_rows, [(*band, *call) for call in calls for band in pairwise(bounds.tolist())], threads)
    return ClassStats(**result)


def _map_of_batch(array: np.ndarray, plan: DecodePlan, n: int) -> np.ndarray:
    return array if plan.batch is None else array[n]


def _outputs(arrays: dict[str, np.ndarray]) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], np.ndarray]:
    """Return the float, index and 8-bit label outputs of one map."""
    flat = {name: array.reshape(-1) for name, array in arrays.items()}
    labels = flat.pop("label") if "label" in flat and flat["label"].dtype == np.uint8 else _NO_LABELS
    floats = tuple(flat.get(name, _NO_FLOATS) for name in _FLOATS)
    return floats, tuple(flat.get(name, _NO_INDICES) for name in _INDICES), labels


@lru_cache(maxsize=64)
def _weights(taps: Taps) -> np.ndarray:
    return taps.weight.astype(np.float32)


@lru_cache(maxsize=64)
def _windows(taps: Taps, source: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
    """Return the start of the taps per block of sixteen columns, the taps relative to it, and their weights.

    The last column is repeated to fill sixteen. The last item is True if the sixteen pixels from each start are on the
    axis and contain the taps.
    """
    missing = (0, -taps.lower.size % LANES)
    lower, upper, weight = (np.pad(array, missing, "edge") for array in (taps.lower, taps.upper, _weights(taps)))
    starts = np.minimum(lower[::LANES], max(source - LANES, 0))
    lower, upper = (np.ascontiguousarray(array - starts.repeat(LANES), np.int32) for array in (lower, upper))
    return starts, lower, upper, weight, bool(source >= LANES > upper.max())


def _shared_inputs(plan: DecodePlan, thresholds: float | np.ndarray | None) -> tuple[Any, ...]:
    """Return row taps, column taps, classes and selection in the form that the loops take."""
    limits, limit_map = _NO_FLOATS, _NO_MAP
    if thresholds is not None:
        values = np.asarray(thresholds, np.float32)
        if values.ndim == 2:
            limits, limit_map = np.empty(plan.num_scored, np.float32), np.ascontiguousarray(values)
        else:
            limits = np.full(plan.num_scored, values)
    rows, groups = plan.rows, _NO_GROUPS if plan.groups is None else plan.groups
    return (
        (rows.lower, rows.upper, _weights(rows)),
        (*_windows(plan.columns, plan.source[1]), plan.size[1]),
        (plan.channels, ACTIVATIONS.index(plan.activation), groups, plan.reached, plan.num_targets),
        (limits, limit_map, RULES.index(plan.rule), -1 if plan.background is None else plan.background, plan.ignore),
    )


def _source(scores: np.ndarray, plan: DecodePlan) -> tuple[Any, ...]:
    """Describe one map as memory: a 1-D view that spans it (16-bit values as bits) and its (y, x, class) strides.

    The loops are compiled once for 16 and once for 32 bits, for any strides. They read columns or classes that are
    adjacent in memory; a map in which neither are adjacent is copied, and so is a map with a negative stride.
    """
    words, is_bfloat16 = scores, False
    if scores.dtype != np.float32:
        is_bfloat16 = scores.dtype.name == "bfloat16"
        if not is_bfloat16 and scores.dtype != np.float16:
            raise UsageError(f"scores must be float16, bfloat16 or float32, got {scores.dtype}")
        words = scores.view(np.uint16)
    if plan.layout == "CHW":
        words = words.transpose(1, 2, 0)
    item = words.itemsize
    odd = any(stride < 0 or stride % item for stride in words.strides) or not words.flags.aligned
    if odd or item not in words.strides[1:]:
        words = words.copy(order="C")
    extent = sum(stride * (length - 1) for stride, length in zip(words.strides, words.shape, strict=True))
    items = as_strided(words, (1 + extent // item,), (item,), writeable=False)
    return items, is_bfloat16, *(stride // item for stride in words.strides)
