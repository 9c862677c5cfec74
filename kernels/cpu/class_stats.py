"""Fused decode of class scores on the CPU: prepares the arguments of the compiled loops and shares out the rows."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...errors import UsageError
from ..decode import DecodePlan, decode_plan
from ..types import ClassStats
from .decode import decode_rows
from .outputs import output
from .simd import LANES
from .threads import num_threads, share

_WORTH_THREADS = 1 << 20
"""Class-pixels below which starting threads costs more than it saves (about half a millisecond of one core)."""
_BANDS_PER_THREAD = 4

_ACTIVATIONS = ("softmax", "sigmoid", "none")
_RULES = ("argmax", "foreground", "single", "agree")
_FLOATS = ("confidence", "share", "dispersion", "second_confidence", "true_score")
_INDICES = ("top", "second", "set_size", "label")
"""The loops' outputs, in their order; an 8-bit label is given apart."""


def class_stats(
    scores,
    size,
    *,
    layout="CHW",
    activation="softmax",
    groups=None,
    num_targets=None,
    region=None,
    truth=None,
    thresholds=None,
    rule="argmax",
    background=None,
    ignore=None,
    dispersion="official",
    outputs=("label", "confidence"),
    out=None,
    threads=None,
) -> ClassStats:
    """As :func:`maskmill.kernels.class_stats`, for NumPy arrays.

    ``threads`` is the number of threads that share the rows; None takes all (``NUMBA_NUM_THREADS``) for a large map
    when called on the main thread, and one otherwise. The result is the same to the bit.
    """
    plan = decode_plan(
        scores.shape,
        size,
        layout=layout,
        activation=activation,
        groups=groups,
        num_targets=num_targets,
        region=region,
        truth_shape=None if truth is None else truth.shape,
        thresholds_shape=None if thresholds is None else np.shape(thresholds),
        rule=rule,
        background=background,
        ignore=ignore,
        dispersion=dispersion,
        outputs=outputs,
    )
    if truth is not None and truth.dtype.kind not in "iu":
        raise UsageError(f"truth must hold integers, got {truth.dtype}")
    result = {
        name: output(getattr(out, name, None), plan.shape, plan.dtype_of(name), f"out.{name}") for name in plan.outputs
    }
    options = _options(plan, thresholds)
    maps = []
    for n in range(1 if plan.batch is None else plan.batch):
        one = {name: _of_batch(array, plan, n) for name, array in result.items()}
        true = _nothing(np.int64) if truth is None else _of_batch(truth, plan, n).astype(np.int64)
        maps.append((*_flat(_of_batch(scores, plan, n), plan), *options, true, *_outputs(one)))
    rows = plan.size[0]
    if threads is None:
        threads = num_threads(len(maps) * plan.channels * rows * plan.size[1], _WORTH_THREADS)
    height = rows if threads == 1 else -(-rows // (threads * _BANDS_PER_THREAD))
    bands = [(first, min(first + height, rows), *one) for one in maps for first in range(0, rows, height)]
    share(decode_rows, bands, threads)
    return ClassStats(**result)


def _of_batch(array, plan: DecodePlan, n: int):
    return array if plan.batch is None else array[n]


def _nothing(dtype) -> np.ndarray:
    """Stand-in of no rows for what is not there."""
    return np.empty((0, 0), dtype)


def _outputs(arrays: dict[str, np.ndarray]) -> tuple:
    """Float, index and 8-bit label outputs of one map."""
    label = arrays.get("label")
    labels = arrays.pop("label") if label is not None and label.dtype == np.uint8 else _nothing(np.uint8)
    floats = tuple(arrays.get(name, _nothing(np.float32)) for name in _FLOATS)
    return floats, tuple(arrays.get(name, _nothing(np.uint16)) for name in _INDICES), labels


def _options(plan: DecodePlan, thresholds) -> tuple:
    """What the loops need beside the scores and the outputs, in their order."""
    limits, limit_map = np.empty(0, np.float32), _nothing(np.float32)
    if thresholds is not None:
        given = np.asarray(thresholds, np.float32)
        limits = np.full(plan.num_scored, -np.inf if given.ndim == 2 else given, np.float32)
        limit_map = np.ascontiguousarray(given) if given.ndim == 2 else limit_map
    missing = -plan.size[1] % LANES
    columns = (np.pad(taps, (0, missing), "edge") for taps in (plan.columns.lower, plan.columns.upper))
    return (
        plan.rows.lower,
        plan.rows.upper,
        plan.rows.weight.astype(np.float32),
        *columns,
        np.pad(plan.columns.weight.astype(np.float32), (0, missing), "edge"),
        plan.size[1],
        _ACTIVATIONS.index(plan.activation),
        np.empty(0, np.int32) if plan.groups is None else plan.groups,
        plan.reached,
        plan.num_targets,
        limits,
        limit_map,
        _RULES.index(plan.rule),
        -1 if plan.background is None else plan.background,
        plan.ignore,
        plan.dispersion == "exact" and plan.num_scored > 2,
    )


def _flat(scores: np.ndarray, plan: DecodePlan) -> tuple:
    """One map as memory: a 1-D view that spans it, 16-bit values as bits, with its offset and (y, x, class) strides.

    The loops are compiled once for 16 and once for 32 bits, whatever the strides. They read classes or columns that
    are neighbours in memory; a map where neither are is copied.
    """
    if scores.dtype.name not in ("float16", "bfloat16", "float32"):
        raise UsageError(f"scores must be float16, bfloat16 or float32, got {scores.dtype}")
    words = scores.view(np.float32 if scores.dtype.itemsize == 4 else np.uint16)
    if plan.layout == "CHW":
        words = words.transpose(1, 2, 0)
    item = words.itemsize
    if item not in words.strides[1:] or any(stride % item for stride in words.strides) or not words.flags.aligned:
        words = np.ascontiguousarray(words)
    strides = [stride // item for stride in words.strides]
    extents = [stride * (length - 1) for stride, length in zip(strides, words.shape, strict=True)]
    lowest = words[tuple(slice(-1, None) if stride < 0 else slice(None) for stride in strides)]
    span = as_strided(lowest, (1 + sum(map(abs, extents)),), (item,), writeable=False)
    return span, scores.dtype.name == "bfloat16", -sum(e for e in extents if e < 0), *strides, plan.channels
