"""The kernels on the CPU, compiled by Numba: fused, float32, one thread unless called on the main thread."""

from __future__ import annotations

import contextlib

from .class_stats import class_stats as class_stats

for _module, _names in {
    "scores": "kth_score position_quantiles score_counts select_prefix weighted_score_counts conformal_rank",
    "pcos": "pcos",
    "peaks": "cam_peaks peak_local_max",
    "cover": "perturbation_cover",
    "quantize": "quantize_weights",
    "pixels": "resize_normalize",
}.items():
    with contextlib.suppress(ImportError):
        exec(f"from .{_module} import {_names.replace(' ', ', ')}")
