"""Fused array functions from class scores to labels, weights, thresholds and peaks.

Every function takes NumPy arrays, CuPy arrays or torch tensors, runs on the device that holds them (``kernels.cpu`` or
``kernels.gpu``) and returns arrays of the caller's library on the same device. ``kernels.reference`` is the
specification, ``kernels.api`` holds the public functions, and :mod:`maskmill.kernels.arrays` describes the contract.

Usage::

    from maskmill import kernels

    stats = kernels.class_stats(logits, (height, width), outputs=("label", "share", "dispersion"))
    weights = kernels.pcos(stats.share, stats.dispersion)
"""

from .api.binned import binned_counts
from .api.class_stats import class_stats
from .api.confusion import confusion_counts
from .api.cover import perturbation_cover
from .api.pcos import pcos
from .api.peaks import cam_peaks, peak_local_max
from .api.pixels import resize_normalize
from .api.quantize import quantize_weights
from .api.scores import (
    conformal_rank,
    kth_score,
    position_quantiles,
    score_counts,
    select_prefix,
    weighted_score_counts,
)
from .types import UNREACHED, ClassStats, Pcos, Peaks

__all__ = [
    "UNREACHED", "ClassStats", "Pcos", "Peaks", "binned_counts", "cam_peaks", "class_stats", "conformal_rank",
    "confusion_counts", "kth_score", "pcos", "peak_local_max", "perturbation_cover", "position_quantiles",
    "quantize_weights", "resize_normalize", "score_counts", "select_prefix", "weighted_score_counts",
]  # fmt: skip
