"""Confusion counts on a device: ``cuda/confusion.cu``."""

from __future__ import annotations

import numpy as np

from ..plans.confusion import check_maps
from .device import DeviceArray, ceil_div, integers, launch, output, zeros

THREADS = 256
RUN = 8
"""Adjacent pixels that a thread processes together, as confusion.cu's RUN."""
SHARED_CELLS = 8192
"""Counts that fit in a block's shared memory, as confusion.cu's SHARED_CELLS: up to 90 classes."""
MOST_BLOCKS = 1024
"""Blocks that fill the largest device; each adds its counts to the result once."""


def confusion_counts(
    label: DeviceArray, truth: DeviceArray, *, num_classes: int, ignore: int = 255, out: DeviceArray | None = None
) -> DeviceArray:
    """Run :func:`maskmill.kernels.confusion_counts` on CuPy arrays."""
    check_maps(label, truth, num_classes)
    shape = (num_classes, num_classes + 1)
    counts = zeros(shape, np.int64) if out is None else output(out, shape, np.int64)
    label, label_code = integers(label, "label")
    truth, truth_code = integers(truth, "truth")
    shared = "true" if counts.size <= SHARED_CELLS else "false"
    launch(
        "confusion",
        f"confusion_counts<{shared}>",
        (min(ceil_div(truth.size, THREADS * RUN), MOST_BLOCKS),),
        (THREADS,),
        (
            label,
            label_code,
            truth,
            truth_code,
            np.int64(truth.size),
            np.int32(num_classes),
            np.int64(ignore),
            counts,
        ),
    )
    return counts
