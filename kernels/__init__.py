"""Kernels: from class scores to labels, weights, thresholds and peaks, on NumPy, CuPy and torch arrays.

Each function runs where its arrays are (``kernels.cpu`` or ``kernels.gpu``) and returns arrays of the caller's library
on the same device; ``kernels.reference`` is the specification. See :mod:`maskmill.kernels.arrays` for the contract.

Usage::

    from maskmill import kernels

    stats = kernels.class_stats(logits, (height, width), outputs=("label", "share", "dispersion"))
    weights = kernels.pcos(stats.share, stats.dispersion)
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from .arrays import dispatch
from .plans.scores import conformal_rank
from .types import UNREACHED, Activation, Array, ClassStats, Dispersion, Layout, Pcos, Peaks, Rule

__all__ = [
    "UNREACHED", "ClassStats", "Pcos", "Peaks", "cam_peaks", "class_stats", "conformal_rank", "confusion_counts",
    "kth_score", "pcos", "peak_local_max", "perturbation_cover", "position_quantiles", "quantize_weights",
    "resize_normalize", "score_counts", "select_prefix", "weighted_score_counts",
]  # fmt: skip


def class_stats(
    scores: Array,
    size: tuple[int, int],
    *,
    layout: Layout = "CHW",
    activation: Activation = "softmax",
    groups: Sequence[int] | np.ndarray | None = None,
    num_targets: int | None = None,
    region: tuple[float, float, float, float] | None = None,
    truth: Array | None = None,
    thresholds: float | Array | None = None,
    rule: Rule = "argmax",
    background: int | None = None,
    ignore: int | None = None,
    dispersion: Dispersion = "official",
    outputs: Sequence[str] = ("label", "confidence"),
    out: ClassStats | None = None,
) -> ClassStats:
    """Decode class scores to full size in one pass: upsample, activate, group, pick, measure and select.

    Args:
        scores: (C, h, w) or (h, w, C), or with a leading batch axis N; float16, bfloat16 or float32, any strides.
            Logits for softmax and sigmoid, non-negative scores for none. At most 1024 classes.
        size: (H, W) of the outputs, in pixels.
        layout: where the class axis is.
        activation: ``softmax`` and ``none`` (as they are) sum the classes of a group, ``sigmoid`` takes the highest.
        groups: (C,) integers on the host, the target class 0..K-1 of each model class, -1 for a dropped one. Dropped
            classes form one more scored class, index K, "none of these". Default: one to one. A target that no model
            class maps to has score 0, is in no set and is never chosen.
        num_targets: K. Default: the highest target in ``groups`` + 1.
        region: (y0, x0, y1, x1), the part of the map that covers the output, in score-map pixels (float); samples are
            clamped to the whole map. Default: all of it, as torch's ``interpolate(mode="bilinear")``.
        truth: (H, W) or (N, H, W) integers, the true scored classes for ``true_score``; other indices are left out.
        thresholds: largest nonconformity score in the prediction set: a scalar, one a scored class, float32
            (K or K + 1,), or a map, float32 (H, W). Default: no set, the label is the top class.
        rule: what the label is, given the prediction set: ``argmax`` the top class if it is a member; ``foreground``
            the best member but ``background``, which is taken where it is the only one; ``single`` the only member;
            ``agree`` the only member if it is the top class. Otherwise, and for "none of these", ``ignore``.
        background: target class that ``foreground`` avoids.
        ignore: index of pixels without a label. Default 255, or 65535 for more than 255 targets.
        dispersion: ``official`` counts the top class's empty slot as CSL's code does, ``exact`` does not; two scored
            classes always use ``official``.
        outputs: names of the :class:`ClassStats` fields to fill.
        out: arrays to fill and return instead of new ones, C-contiguous.

    The nonconformity score of a class is the mass of all others over the total, summed apart for the top class
    (softmax), sigmoid of the negated logit, or 1 minus the score (none). ``true_score`` and set membership come from
    the same code: a class is in the set exactly where its float32 score is at most the threshold.

    Where an interpolated score is not finite, the label is ``ignore``, ``top`` and ``second`` are ``UNREACHED``,
    ``true_score`` is +inf and the rest is 0. Where all scores sum to 0 or less, share and dispersion are 0. Equal
    scores: the lowest class.

    The upsampled scores are never stored. On a CPU a large map is shared among ``NUMBA_NUM_THREADS`` threads when the
    main thread asks, and stays on the calling thread otherwise, without Python's lock; the bits are the same.

    Raises:
        UsageError: an argument is out of its range or two do not fit; dispersion of one class; ``set_size`` without
            thresholds, ``true_score`` without truth; arrays on different devices.

    Source: prediction sets, ConformalSAM; dispersion, CSL.
    """
    return dispatch(
        "class_stats",
        scores,
        size,
        layout=layout,
        activation=activation,
        host=("groups",),
        groups=groups,
        num_targets=num_targets,
        region=region,
        truth=truth,
        thresholds=thresholds,
        rule=rule,
        background=background,
        ignore=ignore,
        dispersion=dispersion,
        outputs=outputs,
        out=out,
    )


def score_counts(
    scores: Array,
    *,
    classes: Array | None = None,
    num_classes: int = 0,
    prefix: Array | None = None,
    out: Array | None = None,
) -> Array:
    """Count scores into bins, first half of the two-pass search for an exact quantile.

    Args:
        scores: float32, any shape. NaN is left out, infinities count.
        classes: integers, shaped as ``scores``; a score whose class is not in [0, num_classes) counts in the pooled
            row alone.
        num_classes: rows before the pooled one, which is the last.
        prefix: int64 (num_classes + 1,), as :func:`select_prefix` gives it. Without it the bins are the high 16 bits
            of the scores' order-preserving keys; with it the low 16 bits of the scores in the row's bin.
        out: uint64 (num_classes + 1, 65536) to add to, so that counts of shards merge.

    Returns:
        uint64 (num_classes + 1, 65536).
    """
    return dispatch("score_counts", scores, classes=classes, num_classes=num_classes, prefix=prefix, out=out)


def weighted_score_counts(
    scores: Array,
    weights: Array,
    *,
    classes: Array | None = None,
    num_classes: int = 0,
    prefix: Array | None = None,
    out: Array | None = None,
) -> Array:
    """Sum a weight a score into bins, float64 (num_classes + 1, 65536); the rest as :func:`score_counts`."""
    return dispatch(
        "weighted_score_counts", scores, weights, classes=classes, num_classes=num_classes, prefix=prefix, out=out
    )


def select_prefix(counts: Array, ranks: Array | Sequence[int] | int) -> tuple[Array, Array]:
    """Find the bin of each row that holds the k-th score, and the score's rank inside it.

    Args:
        counts: (rows, 65536), from the first pass of :func:`score_counts` or :func:`weighted_score_counts`.
        ranks: k, from 1, (rows,) or one for all; a weight for weighted counts.

    Returns:
        int64 (rows,): the bin, -1 where the rank exceeds the row's total; and the rank inside the bin, (rows,).
    """
    return dispatch("select_prefix", counts, ranks)


def kth_score(counts_low: Array, prefix: Array, ranks_within: Array) -> Array:
    """The k-th scores, float32 (rows,), from the counts of the second pass; +inf where the prefix is -1.

    Raises:
        ValueError: the two passes did not count the same scores.
    """
    return dispatch("kth_score", counts_low, prefix, ranks_within)


def position_quantiles(
    scores: Array, alpha: float | str | Fraction, *, fallback: float = np.inf, out: Array | None = None
) -> Array:
    """The conformal threshold of every position, float32 (h, w).

    Args:
        scores: (n, h, w) float32, NaN where the image was not seen at the position.
        alpha: miscoverage in (0, 1); see :func:`conformal_rank`. Each position has its own n.
        fallback: threshold of positions that no image was seen at.
        out: array to fill.

    Source: ConformalSAM.
    """
    return dispatch("position_quantiles", scores, alpha, fallback=fallback, out=out)


def pcos(
    share: Array,
    dispersion: Array,
    *,
    mask: Array | None = None,
    denominator: float = 8.0,
    epsilon: float = 1e-8,
    want_cluster: bool = False,
    out: Pcos | None = None,
) -> Pcos:
    """Weigh pixels by how they compare with the reliable cluster of their image.

    Args:
        share: (H, W) or (N, H, W) float32 in [0, 1]; pixels with share <= 0 are left out.
        dispersion: float32, shaped as ``share``.
        mask: bool, shaped as ``share``: the pixels that take part (default all).
        denominator: of the squared distance in the exponent; 8 as the official code.
        epsilon: added to the variances, as the official code.
        want_cluster: fill ``cluster`` too.
        out: arrays to fill.

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


def peak_local_max(
    maps: Array,
    *,
    min_distance: int = 1,
    threshold_abs: float | None = None,
    threshold_rel: float | None = None,
    exclude_border: bool | int | tuple[int, int] = True,
    num_peaks: int | None = None,
    capacity: int | None = None,
    out: Peaks | None = None,
) -> Peaks:
    """Local maxima of (N, H, W) or (H, W) maps, identical to scikit-image 0.26 in coordinates, order and count.

    Args:
        maps: floating point without NaN.
        min_distance: pixels; peaks lie at least this far apart (Chebyshev).
        threshold_abs: a peak exceeds it. Default: the minimum of the map.
        threshold_rel: a peak exceeds this share of the map's maximum.
        exclude_border: width in pixels without peaks at the edges; True is ``min_distance``.
        num_peaks: keep at most so many.
        capacity: peaks a map that the result holds; more set ``overflow``.
        out: arrays to fill.
    """
    return dispatch(
        "peak_local_max",
        maps,
        min_distance=min_distance,
        threshold_abs=threshold_abs,
        threshold_rel=threshold_rel,
        exclude_border=exclude_border,
        num_peaks=num_peaks,
        capacity=capacity,
        out=out,
    )


def cam_peaks(
    cams: Array,
    *,
    mode: str = "paper",
    threshold: float = 0.5,
    min_distance: int | None = None,
    always_argmax: bool = False,
    capacity: int = 256,
) -> Peaks:
    """Point prompts from class activation maps (N, H, W) as S2C takes them.

    Args:
        cams: float32 maps.
        mode: ``paper`` or ``official`` (the authors' code).
        threshold: of the mode's test.
        min_distance: pixels; default 10 in paper mode, 20 in official mode.
        always_argmax: a map whose maximum is not among its peaks gives it as well, last.
        capacity: peaks a map that the result holds.

    Source: S2C, class-specific point prompts.
    """
    return dispatch(
        "cam_peaks",
        cams,
        mode=mode,
        threshold=threshold,
        min_distance=min_distance,
        always_argmax=always_argmax,
        capacity=capacity,
    )


def perturbation_cover(
    cells: Array,
    size: tuple[int, int],
    reliable: Array | None = None,
    *,
    nearest: str = "pil",
    out: Array | None = None,
) -> Array:
    """Spread a grid of cells, bool (..., g, g), over (H, W) pixels by nearest neighbor, where ``reliable``.

    ``nearest`` is ``pil`` (pixel centers) or ``torch`` (its mode ``nearest``). Source: CSL, trusted mask perturbation.
    """
    return dispatch("perturbation_cover", cells, size, reliable, nearest=nearest, out=out)


def quantize_weights(
    weight: Array,
    reliable: Array | None = None,
    *,
    levels: int = 256,
    label: Array | None = None,
    ignore: int = 255,
    out: Array | None = None,
) -> Array:
    """Weights in [0, 1] as uint8: 255 only where reliable, 0 only where there is no weight.

    Args:
        weight: float32.
        reliable: bool, shaped as ``weight``. Default: weight >= 1.
        levels: distinct values; fewer make smaller files.
        label: pixels where it is ``ignore`` get 0.
        ignore: ignore index of ``label``.
        out: array to fill.
    """
    return dispatch("quantize_weights", weight, reliable, levels=levels, label=label, ignore=ignore, out=out)


def confusion_counts(
    label: Array, truth: Array, *, num_classes: int, ignore: int = 255, out: Array | None = None
) -> Array:
    """Count the pixels of each true class and label.

    Args:
        label: integers, (H, W), (N, H, W) or any other shape; those outside [0, num_classes) count in the last column.
        truth: integers, shaped as ``label``; pixels outside [0, num_classes) are left out.
        num_classes: rows of the result.
        ignore: value of ``truth`` that is left out too.
        out: int64 (num_classes, num_classes + 1), C-contiguous, to add to, so that counts of images merge.

    Returns:
        int64 (num_classes, num_classes + 1): pixels of true class (row) and label (column).

    Raises:
        UsageError: the shapes differ, a map holds no integers, or num_classes is not positive.
    """
    return dispatch("confusion_counts", label, truth, num_classes=num_classes, ignore=ignore, out=out)


def resize_normalize(
    image: Array,
    size: tuple[int, int],
    *,
    filter: str = "bilinear",
    antialias: bool = True,
    scale: float,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    channels: str = "RGB",
    layout: Layout = "CHW",
    pad_to: tuple[int, int] | None = None,
    pad_value: float | Sequence[float] = 0,
    out: Array | None = None,
) -> Array:
    """Resize a photo and normalize it for a model: x = (pixel * scale - mean) / std, float32.

    Args:
        image: HWC uint8 RGB.
        size: (H, W) in pixels.
        filter: ``bilinear``, ``bicubic`` or ``area``.
        antialias: widen the filter when shrinking, as Pillow.
        scale: of the pixel, before the mean.
        mean: one number or three, in the order of ``channels``.
        std: as ``mean``.
        channels: order of the result, ``RGB`` or ``BGR``.
        layout: of the result.
        pad_to: (H, W) to pad to, right and bottom.
        pad_value: of the padding, in pixel units.
        out: array to fill.
    """
    return dispatch(
        "resize_normalize",
        image,
        size,
        host=("mean", "std", "pad_value"),
        filter=filter,
        antialias=antialias,
        scale=scale,
        mean=mean,
        std=std,
        channels=channels,
        layout=layout,
        pad_to=pad_to,
        pad_value=pad_value,
        out=out,
    )
