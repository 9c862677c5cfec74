"""Fused decode of class scores on the CPU: prepares the arguments of the compiled loops and shares out the rows."""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np
from numba import config
from numpy.lib.stride_tricks import as_strided

from ...errors import UsageError
from ..decode import DecodePlan, decode_plan
from ..types import ClassStats
from . import decode

# Class-pixels below which starting threads costs more than it saves (about half a millisecond of one core).
_WORTH_THREADS = 1 << 20
_BANDS_PER_THREAD = 4

_ACTIVATIONS = ("softmax", "sigmoid", "none")
_RULES = ("argmax", "foreground", "single", "agree")
_FIELDS = (
    ("label", np.dtype(np.uint8)),
    ("label", np.dtype(np.uint16)),
    ("top", np.dtype(np.uint16)),
    ("confidence", np.dtype(np.float32)),
    ("share", np.dtype(np.float32)),
    ("dispersion", np.dtype(np.float32)),
    ("second", np.dtype(np.uint16)),
    ("second_confidence", np.dtype(np.float32)),
    ("set_size", np.dtype(np.uint16)),
    ("true_score", np.dtype(np.float32)),
)
"""Outputs in the order of the loops' arguments."""


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
    result = {name: _output(plan, name, out) for name in plan.outputs}
    options = _options(plan, thresholds)
    tasks = []
    for n in range(plan.batch or 1):
        fields = {name: _of_batch(array, plan, n) for name, array in result.items()}
        arguments = (
            *_flat(_of_batch(scores, plan, n), plan),
            *options,
            _nothing(np.int64) if truth is None else _of_batch(truth, plan, n).astype(np.int64),
            *(_field(fields, name, dtype) for name, dtype in _FIELDS),
        )
        tasks.append(arguments)
    _run(tasks, plan.size[0], _num_threads(plan) if threads is None else threads)
    return ClassStats(**result)


def _of_batch(array, plan: DecodePlan, n: int):
    return array if plan.batch is None else array[n]


def _output(plan: DecodePlan, name: str, out: ClassStats | None) -> np.ndarray:
    """Array to fill: the caller's, or a new one."""
    given = None if out is None else getattr(out, name)
    dtype = plan.dtype_of(name)
    if given is None:
        return np.empty(plan.shape, dtype)
    if given.shape != plan.shape or given.dtype != dtype or not given.flags.c_contiguous:
        raise UsageError(
            f"out.{name} must be C-contiguous {dtype} of shape {plan.shape}, got {given.dtype} of shape {given.shape}"
        )
    return given


@lru_cache
def _nothing(dtype) -> np.ndarray:
    return np.empty((0, 0), dtype)


def _field(fields: dict[str, np.ndarray], name: str, dtype) -> np.ndarray:
    """The output array, or one of no rows where it is not asked for or has the other label dtype."""
    array = fields.get(name)
    return array if array is not None and array.dtype == dtype else _nothing(dtype)


def _options(plan: DecodePlan, thresholds) -> tuple:
    """What the loops need beside the scores and the outputs, in their order."""
    limits, limit_map = np.empty(0, np.float32), _nothing(np.float32)
    if thresholds is not None:
        given = np.asarray(thresholds, np.float32)
        limits = np.full(plan.num_scored, -np.inf if given.ndim == 2 else given, np.float32)
        limit_map = np.ascontiguousarray(given) if given.ndim == 2 else limit_map
    missing = -plan.size[1] % decode.TILE
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
        decode.EXACT if plan.dispersion == "exact" and plan.num_scored > 2 else decode.OFFICIAL,
    )


def _flat(scores: np.ndarray, plan: DecodePlan) -> tuple:
    """One map as memory: a 1-D view that spans it, 16-bit values as bits; their kind, offset and (y, x, class) strides.

    Any strides give the same type, so the loops are compiled once a width.
    """
    kind = decode.FLOAT16
    if scores.dtype.name == "bfloat16":
        kind = decode.BFLOAT16
    elif scores.dtype not in (np.float16, np.float32):
        raise UsageError(f"scores must be float16, bfloat16 or float32, got {scores.dtype}")
    words = scores.view(np.float32 if scores.dtype == np.float32 else np.uint16)
    if plan.layout == "CHW":
        words = words.transpose(1, 2, 0)
    item = words.itemsize
    if not words.flags.aligned or any(stride % item for stride in words.strides):
        words = words.copy()
    strides = [stride // item for stride in words.strides]
    extents = [stride * (length - 1) for stride, length in zip(strides, words.shape, strict=True)]
    corner = words[tuple(slice(-1, None) if stride < 0 else slice(None) for stride in strides)]
    span = as_strided(corner, (1 + sum(map(abs, extents)),), (item,), writeable=False)
    offset = -sum(extent for extent in extents if extent < 0)
    return span, kind, offset, *strides, plan.channels


def _num_threads(plan: DecodePlan) -> int:
    """All threads for a large map on the main thread; elsewhere the caller already has a thread for each map."""
    work = plan.channels * plan.size[0] * plan.size[1] * (plan.batch or 1)
    main = threading.current_thread() is threading.main_thread()
    return config.NUMBA_NUM_THREADS if main and work >= _WORTH_THREADS else 1


def _run(tasks: list[tuple], num_rows: int, num_threads: int) -> None:
    """Run the loops over every row of every task, in bands that the threads take in turn.

    Threads of our own rather than Numba's: its ``workqueue`` layer aborts the process when two Python threads enter a
    parallel function, and the loops release the lock anyway.
    """
    height = -(-num_rows // (num_threads * _BANDS_PER_THREAD)) if num_threads > 1 else num_rows
    bands = iter([(task, first) for task in tasks for first in range(0, num_rows, height)])
    failures = []

    def work() -> None:
        try:
            for task, first in bands:
                decode.decode_band(first, min(first + height, num_rows), *task)
        except BaseException as error:
            failures.append(error)

    helpers = [threading.Thread(target=work) for _ in range(num_threads - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if failures:
        raise failures[0]
