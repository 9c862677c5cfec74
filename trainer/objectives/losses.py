"""Loss terms and the weights in them, one small pure function each; z are logits, y classes, w weights in [0, 1].

Shapes: logits (N, K, H, W) of any float type, computed in float32; label (N, H, W) integers with an ignore index;
weight (N, H, W) float32; results are float32 scalars. ``count`` is what a sum over pixels is divided by: the pixels of
the whole step, over all processes and parts, where the caller knows them, else those of the arguments.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import kernels
from ..run import import_torch

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor | None = None, *, ignore: int, count: float | None = None
) -> Tensor:
    """Weighted cross-entropy: L = 1/N sum_n w_n (-log softmax(z_n)[y_n]) over the pixels with a label.

    N counts the pixels with a label, not their weights, as CSL's code does. Without such a pixel the loss is 0.
    """
    functional = import_torch().nn.functional
    label = label.long()
    losses = functional.cross_entropy(logits.float(), label, ignore_index=ignore, reduction="none")
    if weight is not None:
        losses = losses * weight
    if count is None:
        count = float((label != ignore).sum())
    return losses.sum() / max(count, 1.0)


def self_reliance_weight(step: int, steps: int, *, initial: float, decay: float) -> float:
    """ConformalSAM, phase II: lambda(t) = lambda_0 exp(-decay t / T), with t from 0 to T - 1."""
    return initial * math.exp(-decay * step / steps)


def self_reliance(labeled: Tensor, unlabeled: Tensor, weight: float) -> Tensor:
    """ConformalSAM, phase II: L = (1 - lambda) L_s + lambda L_u."""
    return (1 - weight) * labeled + weight * unlabeled


class PseudoLabels(NamedTuple):
    """The student's own labels of a batch."""

    label: Tensor
    """(N, H, W) int64: the class of the highest score, or the ignore index where the pixel is padding."""
    weight: Tensor
    """(N, H, W) float32 in [0, 1]; 0 where the pixel is padding."""
    reliable: Tensor
    """(N, H, W) bool: pixels that trusted mask perturbation may cover."""


def pcos_labels(logits: Tensor, real: Tensor, *, denominator: float, ignore: int) -> PseudoLabels:
    """CSL: y_n = argmax_k p_n(k) and w_n by PCOS over the real pixels of each image; p at the size of ``real``.

    ``logits`` may be smaller than ``real`` (N, H, W) bool and are upsampled on the way.
    """
    stats = _stats(logits, real, ("label", "share", "dispersion"))
    found = kernels.pcos(stats.share, stats.dispersion, mask=real, denominator=denominator)
    return PseudoLabels(_on_real(stats.label, real, ignore), found.weight, found.reliable & real)


def threshold_labels(logits: Tensor, real: Tensor, *, threshold: float, ignore: int) -> PseudoLabels:
    """FixMatch's rule: y_n = argmax_k p_n(k) and w_n = [max_k p_n(k) >= threshold]; see :func:`pcos_labels`."""
    stats = _stats(logits, real, ("label", "confidence"))
    confident = (stats.confidence >= threshold) & real
    return PseudoLabels(_on_real(stats.label, real, ignore), confident.float(), confident)


def argmax_labels(logits: Tensor, real: Tensor, *, ignore: int) -> Tensor:
    """ConformalSAM, phase II: y_n = argmax_k p_n(k) without a filter, (N, H, W) int64; see :func:`pcos_labels`."""
    return _on_real(_stats(logits, real, ("label",)).label, real, ignore)


def _stats(logits: Tensor, real: Tensor, outputs: tuple[str, ...]) -> Any:
    return kernels.class_stats(logits.detach().float(), tuple(real.shape[-2:]), outputs=outputs)


def _on_real(label: Tensor, real: Tensor, ignore: int) -> Tensor:
    return label.long().masked_fill(~real, ignore)
