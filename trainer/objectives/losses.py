"""Loss terms, one small pure function each; z are logits, y classes, w weights in [0, 1].

Shapes: logits (N, K, H, W) of any float type, computed in float32; label (N, H, W) integers with an ignore index;
weight (N, H, W) float32; results are float32 scalars. ``count`` divides a sum over pixels: the number of pixels of the
whole step, over all processes and parts, if the caller knows it, otherwise that of the arguments.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..run import import_torch

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor | None = None, *, ignore: int, count: float | None = None
) -> Tensor:
    """Compute weighted cross-entropy: L = 1/N sum_n w_n (-log softmax(z_n)[y_n]) over the pixels with a label.

    N counts the pixels with a label, not their weights, as in CSL's code. Without such a pixel the loss is 0.
    """
    functional = import_torch().nn.functional
    label = label.long()
    losses = functional.cross_entropy(logits.float(), label, ignore_index=ignore, reduction="none")
    if weight is not None:
        losses = losses * weight
    divisor = (label != ignore).sum().clamp(min=1) if count is None else max(count, 1.0)
    return losses.sum() / divisor


def hard_cross_entropy(logits: Tensor, label: Tensor, *, ignore: int, threshold: float, pixels: int) -> Tensor:
    """Compute online hard example mining: the mean of -log p_n over the hard pixels, p_n = softmax(z_n)[y_n].

    Hard are pixels with p_n <= max(``threshold``, the ``pixels``-th smallest p of the batch); all pixels with a label
    if there are fewer than ``pixels`` of them. Source: UniMatch's code for Cityscapes (.7 and 200,000).
    """
    torch = import_torch()
    label = label.long()
    mask = label != ignore
    losses = torch.nn.functional.cross_entropy(logits.float(), label, ignore_index=ignore, reduction="none")
    if 0 < pixels <= label.numel():  # with fewer labeled pixels the limit is the value of an unlabeled pixel: 1
        probability = torch.exp(-losses.detach()).masked_fill(~mask, 1.0)
        limit = probability.flatten().kthvalue(pixels).values.clamp(min=threshold)
        mask = mask & (probability <= limit)
    return torch.where(mask, losses, 0.0).sum() / mask.sum().clamp(min=1)


def self_reliance_weight(step: int, steps: int, *, initial: float, decay: float) -> float:
    """Compute lambda(t) = lambda_0 exp(-decay t / T), with t from 0 to T - 1 (ConformalSAM, phase II)."""
    return initial * math.exp(-decay * step / steps)


def self_reliance(labeled: Tensor, unlabeled: Tensor, weight: float) -> Tensor:
    """Compute L = (1 - lambda) L_s + lambda L_u (ConformalSAM, phase II)."""
    return (1 - weight) * labeled + weight * unlabeled
