"""Binned score counts on a device: ``cuda/binned.cu``."""

from __future__ import annotations

import numpy as np

from ..plans.binned import check_binned
from .device import DeviceArray, ceil_div, contiguous, integers, launch, zeros

THREADS = 256
MOST_BLOCKS = 4096
"""Blocks that fill the largest device several times; more would only load the edges again."""


def binned_counts(
    scores: DeviceArray,
    truth: DeviceArray,
    top: DeviceArray,
    top_scores: DeviceArray,
    edges: DeviceArray,
    *,
    num_classes: int,
    ignore: int = 255,
) -> DeviceArray:
    """Run :func:`maskmill.kernels.binned_counts` on CuPy arrays."""
    check_binned(scores, truth, top, top_scores, edges, num_classes)
    counts = zeros((3, num_classes, edges.shape[0]), np.uint32)
    scores, top_scores, edges = (contiguous(array, np.float32) for array in (scores, top_scores, edges))
    truth, truth_code = integers(truth, "truth")
    top, top_code = integers(top, "top")
    launch(
        "binned",
        "binned_counts",
        (min(ceil_div(scores.size, THREADS), MOST_BLOCKS),),
        (THREADS,),
        (
            scores,
            truth,
            truth_code,
            top,
            top_code,
            top_scores,
            np.int64(scores.size),
            edges,
            np.int32(edges.size),
            np.int32(num_classes),
            np.int64(ignore),
            counts,
        ),
    )
    return counts
