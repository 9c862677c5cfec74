"""The kernels as CUDA, launched through CuPy: the functions of :mod:`maskmill.kernels` for arrays on a device.

Every function queues its launches on CuPy's current stream and returns without waiting for the device. Importing this
package neither needs CuPy nor touches a device.
"""

from ..plans.scores import conformal_rank
from .binned import binned_counts
from .class_stats import class_stats
from .confusion import confusion_counts
from .cover import perturbation_cover
from .pcos import pcos
from .peaks import cam_peaks, peak_local_max
from .pixels import resize_normalize
from .quantize import quantize_weights
from .scores import kth_score, position_quantiles, score_counts, select_prefix, weighted_score_counts

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
