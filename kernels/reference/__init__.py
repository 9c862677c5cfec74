"""The kernels in NumPy and float64: the readable specification of the other forms, without regard to speed."""

from ..plans.scores import conformal_rank, kth_score, select_prefix
from .binned import binned_counts
from .class_stats import class_stats
from .confusion import confusion_counts
from .cover import perturbation_cover
from .pcos import pcos
from .peaks import cam_peaks, peak_local_max
from .pixels import resize_normalize
from .quantize import quantize_weights
from .scores import position_quantiles, score_counts, weighted_score_counts

__all__ = [
    "binned_counts",
    "cam_peaks",
    "class_stats",
    "conformal_rank",
    "confusion_counts",
    "kth_score",
    "pcos",
    "peak_local_max",
    "perturbation_cover",
    "position_quantiles",
    "quantize_weights",
    "resize_normalize",
    "score_counts",
    "select_prefix",
    "weighted_score_counts",
]
