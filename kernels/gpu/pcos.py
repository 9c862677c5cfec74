"""PCOS weights on a device: three launches of ``cuda/pcos.cu``, chained on the stream."""

from __future__ import annotations

import numpy as np

from ..types import Pcos
from .device import NULL, DeviceArray, aligned, ceil_div, contiguous, empty, launch, output, spread

THREADS = 256
PIXELS_PER_PART = 2048
"""Pixels that one block sums, up to the largest number of parts."""

MOST_PARTS = 1024
"""Each thread of a block adds up to four parts of the previous pass."""

SUMS = {"gram": 6, "clusters": 9}
"""Number of float64 sums per part in the first two passes."""


def pcos(
    share: DeviceArray,
    dispersion: DeviceArray,
    *,
    mask: DeviceArray | None = None,
    denominator: float = 8.0,
    epsilon: float = 1e-8,
    want_cluster: bool = False,
    out: Pcos[DeviceArray] | None = None,
) -> Pcos[DeviceArray]:
    """Run :func:`maskmill.kernels.pcos` on CuPy arrays."""
    share, dispersion = contiguous(share, np.float32), contiguous(dispersion, np.float32)
    shape, lead = share.shape, share.shape[:-2]
    maps, pixels = int(np.prod(lead)), shape[-2] * shape[-1]
    masks = NULL if mask is None else contiguous(spread(mask, shape), np.bool_)

    def field(name: str, field_shape: tuple[int, ...], dtype: type) -> DeviceArray:
        return output(getattr(out, name, None), field_shape, dtype, f"out.{name}")

    weight, reliable = field("weight", shape, np.float32), field("reliable", shape, np.bool_)
    cluster = field("cluster", shape, np.uint8) if want_cluster else None
    clusters_out = NULL if cluster is None else cluster
    statistics = field("statistics", (*lead, 8), np.float64)

    parts = min(ceil_div(pixels, PIXELS_PER_PART), MOST_PARTS)
    gram, clusters = (empty((maps, parts, sums), np.float64) for sums in SUMS.values())
    packed = aligned(4, share, dispersion, masks, weight, reliable, clusters_out)
    pack, grid = 4 if packed else 1, (parts, maps)
    inputs = (share, dispersion, masks, np.int64(pixels))
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
            clusters_out,
            statistics,
        ),
    )
    return Pcos(weight, reliable, cluster, statistics)
