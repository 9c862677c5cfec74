"""Weights as 8-bit maps on a device: ``cuda/quantize.cu``."""

from __future__ import annotations

import numpy as np

from ..plans.quantize import check_levels
from .device import NULL, DeviceArray, aligned, ceil_div, contiguous, integers, launch, output, spread

THREADS = 256


def quantize_weights(
    weight: DeviceArray,
    reliable: DeviceArray | None = None,
    *,
    levels: int = 256,
    label: DeviceArray | None = None,
    ignore: int = 255,
    out: DeviceArray | None = None,
) -> DeviceArray:
    """Run :func:`maskmill.kernels.quantize_weights` on CuPy arrays."""
    check_levels(levels)
    weight = contiguous(weight, np.float32)
    shape = weight.shape
    mask = NULL if reliable is None else contiguous(spread(reliable, shape), np.bool_)
    labels, code = (NULL, np.int32(0)) if label is None else integers(spread(label, shape), "label")
    gray = output(out, shape, np.uint8)
    pack = 4 if aligned(4, weight, mask, gray) else 1
    launch(
        "quantize",
        f"quantize_weights<{pack}>",
        (ceil_div(weight.size, THREADS * pack),),
        (THREADS,),
        (weight, mask, labels, code, gray, np.int64(weight.size), np.int32(levels), np.int64(ignore)),
    )
    return gray
