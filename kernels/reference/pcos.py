"""PCOS, the weighting of CSL (Liu et al.): the specification, in float64.

Each pixel is h = (x, v), its share and its dispersion. The two right singular vectors of the 2xN matrix of all pixels
split them into two clusters; a pixel that is worse than the mean of the reliable cluster in both has a lower weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..plans.pcos import DEGENERATE, TIE
from ..types import Pcos


def _clusters(x: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, tuple[Any, Any, Any]]:
    """Return the cluster, 0 or 1, of each pixel, and the Gram matrix (a, b, c) of the rows x and v."""
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


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Return mean and unbiased variance."""
    return (values.mean() if values.size else 0.0), (values.var(ddof=1) if values.size > 1 else 0.0)


def _pcos_of_map(
    x: np.ndarray, v: np.ndarray, denominator: float, epsilon: float
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Return weight, cluster and statistics of the N pixels of one map."""
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


def pcos(
    share: np.ndarray,
    dispersion: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    denominator: float = 8.0,
    epsilon: float = 1e-8,
    want_cluster: bool = False,
    out: Pcos[np.ndarray] | None = None,
) -> Pcos[np.ndarray]:
    """Compute PCOS weights of one map (H, W) or of each map of a batch (N, H, W).

    w = exp(-z_x²/denominator) exp(-z_v²/denominator), z_x = (x - mean_x)/sqrt(var_x + epsilon), z_v = (mean_v - v)/
    sqrt(var_v + epsilon), with the mean and unbiased variance of the cluster of larger mean share (cluster 0 if equal).
    If z_x > 0 or z_v > 0, w is 1. Values that differ only in the last bits of a sum count as equal. Pixels outside
    ``mask`` or without share (share <= 0) are excluded and have weight 0. The official code divides by 8, the paper's
    pseudo-code by 64, and the copies of CoVar by 2. A weight that float32 represents only as a subnormal number is 0.
    Without a pixel the statistics are mean (1, 0) and variance (1, 1).
    """
    share, dispersion = np.asarray(share), np.asarray(dispersion)
    part = share > 0 if mask is None else (share > 0) & mask
    weight = np.zeros(share.shape, np.float32)
    cluster = np.full(share.shape, 255, np.uint8)
    statistics = np.zeros((*share.shape[:-2], 8))
    for index in np.ndindex(share.shape[:-2]):
        pixels = part[index]
        x, v = share[index][pixels].astype(np.float64), dispersion[index][pixels].astype(np.float64)
        weight[index][pixels], cluster[index][pixels], statistics[index] = _pcos_of_map(x, v, denominator, epsilon)
    result: Pcos[np.ndarray] = Pcos(weight, weight == 1, cluster if want_cluster else None, statistics)
    if out is None:
        return result
    for name in ("weight", "reliable", "cluster", "statistics"):
        if getattr(out, name) is not None and getattr(result, name) is not None:
            getattr(out, name)[...] = getattr(result, name)
    return out
