"""Public function ``pcos``."""

from __future__ import annotations

from ..arrays import dispatch
from ..types import Array, ArrayT, Pcos


def pcos(
    share: ArrayT,
    dispersion: ArrayT,
    *,
    mask: Array | None = None,
    denominator: float = 8.0,
    epsilon: float = 1e-8,
    want_cluster: bool = False,
    out: Pcos[ArrayT] | None = None,
) -> Pcos[ArrayT]:
    """Weight each pixel by comparing it with the reliable cluster of its image.

    Args:
        share: (H, W) or (N, H, W) float32 in [0, 1]; pixels with share <= 0 are excluded.
        dispersion: float32, shaped like ``share``.
        mask: bool, shaped like ``share``: pixels that take part. Default: all.
        denominator: divisor of the squared distance in the exponent; 8 as in the official code.
        epsilon: added to the variances, as in the official code.
        want_cluster: fill ``cluster`` too.
        out: arrays to fill.

    Raises:
        UsageError: the shapes differ.

    Source: CSL; the statistics are those of one image.
    """
    return dispatch(
        "pcos",
        share,
        dispersion,
        mask=mask,
        denominator=denominator,
        epsilon=epsilon,
        want_cluster=want_cluster,
        out=out,
    )
