"""What a training objective takes and returns: the moment of a run and the losses of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..recipes import Phase, Recipe

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses of a batch, float32 scalars."""

    total: Tensor
    """What is minimized; it carries the gradient."""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """What the total is made of; like it, the parts of a step add up to the step's."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """Other numbers worth a look, whose mean over the parts of a step is the step's."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where in a run a batch stands."""

    recipe: Recipe
    """The whole recipe."""
    phase: Phase
    """The phase of the step."""
    step: int
    """Number of the step, from 0."""
    ignore: int
    """Index of pixels without a label."""
    counts: Mapping[str, float]
    """What the loss of a role is divided by: its pixels in the whole step, a process."""
