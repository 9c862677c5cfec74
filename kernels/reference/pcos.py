"""PCOS, the weighting of CSL (Liu et al.): the specification, in float64.

Each pixel is h = (x, v), its share and its dispersion. The two right singular vectors of the 2xN matrix of all pixels
split them in two clusters; a pixel's weight falls off where it is worse than the mean of the reliable cluster in both.
"""

from __future__ import annotations

import numpy as np

from ..plans.pcos import DEGENERATE, TIE
from ..types import Pcos


def _clusters(x, v):
    """0 or 1 for each pixel, and the Gram matrix (a, b, c) of the rows x and v."""
    a, b, c = x @ x, x @ v, v @ v
    determinant = a * c - b * b
    if c == 0 or determinant <= DEGENERATE * a * c:
        return np.zeros(x.size, np.uint8), (a, b, c)
    half = (a - c) / 2
    root = np.hypot(half, b)
    largest = (a + c) / 2 + root
    ux, uv = (half + root, b) if half >= 0 else (b, root - half)
    # |V_n1| > |V_n0| without dividing: V_n0 = (u . h) / sigma_0, V_n1 = (u_perp . h) / sigma_1; a tie is cluster 0.
    along = np.abs(ux * x + uv * v) * np.sqrt(determinant / largest)
    across = np.abs(ux * v - uv * x) * np.sqrt(largest)
    return (across > along).astype(np.uint8), (a, b, c)


def _moments(values):
    return (values.mean() if values.size else 0.0), (values.var(ddof=1) if values.size > 1 else 0.0)


def _pcos_of_one(x, v, denominator, epsilon):
    """Weight, cluster and statistics of the N pixels of one map."""
    if x.size == 0:
        return np.zeros(0), np.zeros(0, np.uint8), (0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0)
    cluster, gram = _clusters(x, v)
    means = [_moments(x[cluster == k])[0] for k in (0, 1)]
    best = int(means[1] > means[0] * (1 + TIE))
    mean_x, var_x = _moments(x[cluster == best])
    mean_v, var_v = _moments(v[cluster == best])
    z_x = (x - mean_x) / np.sqrt(var_x + epsilon)
    z_v = (mean_v - v) / np.sqrt(var_v + epsilon)
    better = (x > mean_x * (1 + TIE)) | (v < mean_v * (1 - TIE))
    weight = np.where(better, 1.0, np.exp(-(z_x**2 + z_v**2) / denominator))
    weight[weight <= np.finfo(np.float32).tiny] = 0
    return weight, cluster, (*gram, mean_x, mean_v, var_x, var_v, best)


def pcos(share, dispersion, *, mask=None, denominator=8.0, epsilon=1e-8, want_cluster=False, out=None):
    """PCOS weights of one map (H, W) or of each map of a batch (N, H, W).

    w = exp(-z_x²/denominator) exp(-z_v²/denominator), z_x = (x - mean_x)/sqrt(var_x + epsilon), z_v = (mean_v - v)/
    sqrt(var_v + epsilon), with the mean and unbiased variance of the cluster of larger mean share (of two equal ones,
    cluster 0); 1 where z_x > 0 or z_v > 0. What is equal but for the last bits of a sum counts as equal. Pixels
    outside ``mask`` or with no share (share <= 0) take no part and weigh 0. The official code divides by 8, the
    paper's pseudo-code by 64, and the copies of CoVar by 2. A weight that float32 holds only as a subnormal number is
    0. Without a pixel the statistics are mean (1, 0) and variance (1, 1).
    """
    share, dispersion = np.asarray(share), np.asarray(dispersion)
    part = share > 0 if mask is None else (share > 0) & mask
    weight = np.zeros(share.shape, np.float32)
    cluster = np.full(share.shape, 255, np.uint8)
    statistics = np.zeros((*share.shape[:-2], 8))
    for index in np.ndindex(share.shape[:-2]):
        held = part[index]
        x, v = share[index][held].astype(np.float64), dispersion[index][held].astype(np.float64)
        weight[index][held], cluster[index][held], statistics[index] = _pcos_of_one(x, v, denominator, epsilon)
    result = Pcos(weight, weight == 1, cluster if want_cluster else None, statistics)
    if out is None:
        return result
    for name in ("weight", "reliable", "cluster", "statistics"):
        if getattr(out, name) is not None and getattr(result, name) is not None:
            getattr(out, name)[...] = getattr(result, name)
    return out
