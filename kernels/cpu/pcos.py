"""PCOS weights with Numba: per map, two reductions in float64 and one pass of weights in float32."""

from __future__ import annotations

import math

import numpy as np

from ...errors import UsageError
from ..plans.outputs import output, spread
from ..plans.pcos import DEGENERATE, TIE
from ..types import Pcos
from . import threads
from .compiled import compiled

_WORTH_THREADS = 1 << 20
"""Pixels below which starting threads costs more than it saves."""

# Sums may be evaluated in any order, and therefore in vectors.
_sums = compiled(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})

_LOG2E = np.float32(1.4426950408889634)
_SHIFT = np.float32(1.5 * 2**23)
_LOWEST = np.float32(-126)
"""Exponent of the smallest normal float32; smaller weights are 0."""
# Minimax polynomial of 2^f on [-0.5, 0.5] with 2^0 = 1 exactly; relative error below 1e-7.
_C1 = np.float32(0.6931470036506653)
_C2 = np.float32(0.24022242426872253)
_C3 = np.float32(0.05550733581185341)
_C4 = np.float32(0.009671512991189957)
_C5 = np.float32(0.001326472614891827)
_ZERO, _ONE, _INF = np.float32(0), np.float32(1), np.float32(np.inf)


@_sums
def _gram(x, v, mask):
    """Return the number of pixels, the sums of x and v, and the Gram matrix a, b, c."""
    n, sum_x, sum_v, a, b, c = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(x.size):
        part = x[i] > 0 if mask is None else (x[i] > 0) & mask[i]
        p, q = np.float64(x[i] if part else 0.0), np.float64(v[i] if part else 0.0)
        n += part
        sum_x += p
        sum_v += q
        a += p * p
        b += p * q
        c += q * q
    return n, sum_x, sum_v, a, b, c


@compiled()
def _wedge(a, b, c):
    """Compute the scaled singular vectors (along, across) of the 2xN matrix from its Gram matrix; see the reference.

    A pixel is in cluster 1 if |across . (x, v)| > |along . (x, v)|.
    """
    determinant = a * c - b * b
    if c == 0 or determinant <= DEGENERATE * a * c:
        return 1.0, 0.0, 0.0, 0.0
    half = (a - c) / 2
    root = math.hypot(half, b)
    largest = (a + c) / 2 + root
    ux, uv = half + root, b
    if half < 0:
        ux, uv = b, root - half
    first, second = math.sqrt(largest), math.sqrt(determinant / largest)
    return second * ux, second * uv, -first * uv, first * ux


@_sums
def _moments(x, v, mask, mean_x, mean_v, wedge):
    """Sum dx² and dv² over all pixels, x and v over cluster 0, and all four, with the pixel count, over cluster 1.

    dx and dv are the differences from the means of all pixels. Without a mask every pixel takes part.
    """
    along_x, along_v, across_x, across_v = wedge
    xx, vv, x0, v0 = 0.0, 0.0, 0.0, 0.0
    n1, x1, v1, xx1, vv1 = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(x.size):
        part = True if mask is None else (x[i] > 0) & mask[i]
        p, q = np.float64(x[i] if part else 0.0), np.float64(v[i] if part else 0.0)
        is_across = part & (abs(across_x * p + across_v * q) > abs(along_x * p + along_v * q))
        p0, q0, p1, q1 = (
            0.0 if is_across else p,
            0.0 if is_across else q,
            p if is_across else 0.0,
            q if is_across else 0.0,
        )
        dx, dv = p - mean_x if part else 0.0, q - mean_v if part else 0.0
        dx1, dv1 = dx if is_across else 0.0, dv if is_across else 0.0
        x0 += p0
        v0 += q0
        xx += dx * dx
        vv += dv * dv
        n1 += 1.0 if is_across else 0.0
        x1 += p1
        v1 += q1
        xx1 += dx1 * dx1
        vv1 += dv1 * dv1
    return xx, vv, x0, v0, n1, x1, v1, xx1, vv1


@compiled()
def _variance(n, difference, squares):
    """Compute the unbiased variance of n values; mean and squares are of their differences from some value."""
    return max(squares - difference * difference * n, 0.0) / (n - 1) if n > 1 else 0.0


@compiled()
def _statistics(x, v, mask, gram):
    """Compute the statistics of one map, in the order of :class:`Pcos`, and the wedge that splits its pixels."""
    n, sum_x, sum_v, a, b, c = gram
    wedge = _wedge(a, b, c)
    if n == 0:
        return (a, b, c, 1.0, 0.0, 1.0, 1.0, 0.0), wedge
    all_x, all_v = sum_x / n, sum_v / n
    xx, vv, x0, v0, n1, x1, v1, xx1, vv1 = _moments(x, v, mask, all_x, all_v, wedge)
    n0, best = n - n1, 0.0
    mean_x, mean_v = x0 / max(n0, 1), v0 / max(n0, 1)
    xx0, vv0 = xx - xx1, vv - vv1
    if x1 / max(n1, 1) > mean_x * (1 + TIE):
        n0, best = n1, 1.0
        mean_x, mean_v = x1 / n1, v1 / n1
        xx0, vv0 = xx1, vv1
    var_x, var_v = _variance(n0, mean_x - all_x, xx0), _variance(n0, mean_v - all_v, vv0)
    return (a, b, c, mean_x, mean_v, var_x, var_v, best), wedge


@compiled()
def _limits(mean_x, mean_v):
    """Return the largest float32 x and the smallest float32 v that are not better than the means."""
    above, below = mean_x * (1 + TIE), mean_v * (1 - TIE)
    x, v = np.float32(above), np.float32(below)
    if x > above:
        x = np.nextafter(x, -_INF)
    if v < below:
        v = np.nextafter(v, _INF)
    return x, v


@compiled(error_model="numpy", fastmath={"contract"})
def _weigh(x, v, mask, statistics, denominator, epsilon, weight, reliable):
    limit_x, limit_v = _limits(statistics[3], statistics[4])
    scale_x = np.float32(1 / math.sqrt((statistics[5] + epsilon) * denominator))
    scale_v = np.float32(1 / math.sqrt((statistics[6] + epsilon) * denominator))
    # Each mean is split into two float32, so that a small difference keeps its digits.
    mean_x, mean_v = np.float32(statistics[3]), np.float32(statistics[4])
    rest_x, rest_v = np.float32(statistics[3] - mean_x), np.float32(statistics[4] - mean_v)
    for i in range(x.size):
        part = True if mask is None else (x[i] > 0) & mask[i]
        better = (x[i] > limit_x) | (v[i] < limit_v)
        z_x = ((x[i] - mean_x) - rest_x) * scale_x
        z_v = ((v[i] - mean_v) - rest_v) * scale_v
        power = max(-(z_x * z_x + z_v * z_v) * _LOG2E, _LOWEST)
        magic = power + _SHIFT
        f = power - (magic - _SHIFT)
        series = ((((_C5 * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _ONE
        exponent = np.int32(np.float32(magic).view(np.int32) << np.int32(23))
        fallen = np.int32(np.float32(series).view(np.int32) + exponent).view(np.float32)
        w = _ONE if better else (fallen if power > _LOWEST else _ZERO)
        weight[i] = w if part else _ZERO
        reliable[i] = part & (w == _ONE)


@_sums
def _assign(x, v, mask, wedge, cluster):
    """Assign clusters by the arithmetic of :func:`_moments`, so that rounding decides a tie the same way."""
    along_x, along_v, across_x, across_v = wedge
    for i in range(x.size):
        p, q = np.float64(x[i]), np.float64(v[i])
        is_across = abs(across_x * p + across_v * q) > abs(along_x * p + along_v * q)
        part = True if mask is None else (x[i] > 0) & mask[i]
        cluster[i] = np.uint8(is_across) if part else np.uint8(255)


def _pcos_of_map(x, v, mask, denominator, epsilon, weight, reliable, cluster, statistics):
    gram = _gram(x, v, mask)
    if mask is None and gram[0] < x.size:
        mask = np.ones(x.size, np.bool_)
    values, wedge = _statistics(x, v, mask, gram)
    statistics[:] = values
    _weigh(x, v, mask, values, denominator, epsilon, weight, reliable)
    if cluster is not None:
        _assign(x, v, mask, wedge, cluster)


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
    """Run :func:`maskmill.kernels.pcos` on NumPy arrays."""
    shape = share.shape
    if dispersion.shape != shape:
        raise UsageError(f"dispersion must have the shape of the share, {shape}, got {dispersion.shape}")
    pixels = (-1, shape[-2] * shape[-1])
    weight = output(out and out.weight, shape, np.float32, "out.weight")
    reliable = output(out and out.reliable, shape, np.bool_, "out.reliable")
    statistics = output(out and out.statistics, (*shape[:-2], 8), np.float64, "out.statistics")
    cluster = output(out and out.cluster, shape, np.uint8, "out.cluster") if want_cluster else None
    x = np.ascontiguousarray(share, np.float32).reshape(pixels)
    v = np.ascontiguousarray(dispersion, np.float32).reshape(pixels)
    masks = None if mask is None else spread(mask, shape, np.bool_).reshape(pixels)
    maps = [
        (
            x[n],
            v[n],
            None if masks is None else masks[n],
            float(denominator),
            float(epsilon),
            weight.reshape(pixels)[n],
            reliable.reshape(pixels)[n],
            None if cluster is None else cluster.reshape(pixels)[n],
            statistics.reshape(-1, 8)[n],
        )
        for n in range(len(x))
    ]
    threads.share(_pcos_of_map, maps, min(threads.num_threads(x.size, _WORTH_THREADS), max(len(maps), 1)))
    return Pcos(weight, reliable, cluster, statistics)
