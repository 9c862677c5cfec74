"""Weights as 8-bit maps on a device: ``cuda/quantize.cu``."""

from __future__ import annotations

import numpy as np

from ..plans.quantize import check_levels
from .device import NULL, aligned, ceil_div, contiguous, integers, launch, output, spread

THREADS = 256


def quantize_weights(weight, reliable=None, *, levels=256, label=None, ignore=255, out=None):
    """As :func:`maskmill.kernels.quantize_weights`, for CuPy arrays."""
    check_levels(levels)
    weight = contiguous(weight, np.float32)
    shape = weight.shape
    reliable = NULL if reliable is None else contiguous(spread(reliable, shape), np.bool_)
    label, code = (NULL, np.int32(0)) if label is None else integers(spread(label, shape), "label")
    gray = output(out, shape, np.uint8)
    pack = 4 if aligned(4, weight, reliable, gray) else 1
    launch(
        "quantize",
        f"quantize_weights<{pack}>",
        (ceil_div(weight.size, THREADS * pack),),
        (THREADS,),
        (weight, reliable, label, code, gray, np.int64(weight.size), np.int32(levels), np.int64(ignore)),
    )
    return gray
