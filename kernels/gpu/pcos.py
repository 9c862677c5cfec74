"""PCOS weights on a device: three launches of ``cuda/pcos.cu``, chained on the stream."""

from __future__ import annotations

import numpy as np

from ..types import Pcos
from .device import NULL, aligned, ceil_div, contiguous, empty, launch, output, spread

THREADS = 256
PIXELS_A_PART = 2048
"""Pixels that one block sums, so long as a map has no more than the most parts."""

MOST_PARTS = THREADS
"""Each thread of a block takes one part of the pass before."""

SUMS = {"gram": 6, "clusters": 9}
"""float64 sums a part leaves in the first two passes."""


def pcos(share, dispersion, *, mask=None, denominator=8.0, epsilon=1e-8, want_cluster=False, out=None) -> Pcos:
    """As :func:`maskmill.kernels.pcos`, for CuPy arrays."""
    share, dispersion = contiguous(share, np.float32), contiguous(dispersion, np.float32)
    shape, lead = share.shape, share.shape[:-2]
    maps, pixels = int(np.prod(lead)), shape[-2] * shape[-1]
    mask = NULL if mask is None else contiguous(spread(mask, shape), np.bool_)

    def field(name, field_shape, dtype):
        return output(getattr(out, name, None), field_shape, dtype, f"out.{name}")

    weight, reliable = field("weight", shape, np.float32), field("reliable", shape, np.bool_)
    cluster = field("cluster", shape, np.uint8) if want_cluster else NULL
    statistics = field("statistics", (*lead, 8), np.float64)

    parts = min(ceil_div(pixels, PIXELS_A_PART), MOST_PARTS)
    gram, clusters = (empty((maps, parts, sums), np.float64) for sums in SUMS.values())
    packed = pixels % 4 == 0 and aligned(4, share, dispersion, mask, weight, reliable, cluster)
    pack, grid = 4 if packed else 1, (parts, maps)
    inputs = (share, dispersion, mask, np.int64(pixels))
    launch("pcos", f"pcos_gram<{pack}>", grid, (THREADS,), (*inputs, gram))
    launch("pcos", f"pcos_clusters<{pack}>", grid, (THREADS,), (*inputs, gram, clusters))
    launch(
        "pcos",
        f"pcos_weights<{pack}>",
        grid,
        (THREADS,),
        (
            *inputs,
            gram,
            clusters,
            np.float64(denominator),
            np.float64(epsilon),
            weight,
            reliable,
            cluster,
            statistics,
        ),
    )
    return Pcos(weight, reliable, cluster if want_cluster else None, statistics)
