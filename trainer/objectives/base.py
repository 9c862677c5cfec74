"""Arguments and results of a training objective: the state of the run, and the losses of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..phases import Phase
from ..recipes import Recipe
from ..run import import_torch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Losses of a batch, float32 scalars."""

    total: Tensor
    """Minimized loss, with a gradient."""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """Terms of the total. Terms of the parts of a step add up to the term of the step."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """Other figures for the log. The figure of a step is the mean over its parts."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Position of a batch in a run, and the state that objectives need."""

    recipe: Recipe
    """The recipe."""
    phase: Phase
    """Phase of the step."""
    step: int
    """Number of the step, from 0."""
    ignore: int
    """Index of pixels without a label."""
    counts: Mapping[str, float]
    """Pixels per role in all parts of the step, averaged over processes: the divisors of the losses."""
    thresholds: Tensor | None = None
    """(K,) float64 thresholds of the student's prediction sets; None if it is not calibrated."""
    teacher: nn.Module | None = None
    """Moving average of the student, in eval mode; None if the recipe keeps none."""


def upsample(logits: Tensor, like: Tensor) -> Tensor:
    """Upsample logits (N, K, h, w) to float32 at the size of maps (..., H, W), bilinear with half-pixel centers."""
    size = tuple(like.shape[-2:])
    if tuple(logits.shape[-2:]) == size:
        return logits.float()
    return import_torch().nn.functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def predict(module: nn.Module, images: Tensor) -> Tensor:
    """Compute logits in eval mode without a gradient; afterwards the module is in its previous mode."""
    training = module.training
    module.eval()
    try:
        with import_torch().no_grad():
            return module(images)
    finally:
        module.train(training)
