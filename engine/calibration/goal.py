"""Goals of a selection, the candidate that serves one best, and how much of its lead is luck.

The best of many candidates owes part of its figures to the images that it was chosen on. :func:`choice_bias` estimates
that part as in "Bootstrapping the out-of-sample predictions" (Tsamardinos et al. 2018): images are drawn with
replacement, the best candidate on them is chosen, and its figures there are compared with those on the images that were
not drawn. The same difference for the labels without a selection, which nobody chose, comes from the smaller set of
images alone, and is taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .intervals import image_weights
from .scores.pixel_samples import Tally

Aim = Literal["accuracy", "kept", "miou"]

ROUNDS = 200
"""Bootstrap rounds."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Aim of a selection: as much kept as possible at an accuracy, the best mIoU at a kept share, or the best mIoU."""

    aim: Aim
    """Figure that the goal is about."""
    least: float = 0.0
    """Lowest acceptable value of ``accuracy`` or ``kept``."""

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read ``accuracy 0.97``, ``kept 0.9`` or ``miou``; raises :class:`UsageError`."""
        name, _, value = text.strip().partition(" ")
        aims: dict[str, Aim] = {"accuracy": "accuracy", "kept": "kept", "miou": "miou"}
        aim = aims.get(name)
        try:
            least = float(value) if value else 0.0
        except ValueError:
            least = -1.0
        if aim is None or not 0 <= least < 1 or (aim == "miou") == bool(value):
            raise UsageError(f'a goal is "accuracy 0.97", "kept 0.9" or "miou", got {text!r}')
        return cls(aim=aim, least=least)

    def __str__(self) -> str:
        return self.aim if self.aim == "miou" else f"{self.aim} {self.least:g}"


@dataclass(frozen=True)
class Expected:
    """Figures of a recommendation without the bias of choosing the best of many, in [0, 1]."""

    kept: float
    """Share of pixels with a label."""
    accuracy: float
    """Share of kept pixels with the right label."""
    miou: float
    """Mean IoU over kept pixels."""


def pick(figures: NDArray[np.float64], goal: Goal) -> tuple[int, bool]:
    """Return the candidate for a goal, and whether it reaches it; ``figures`` (C, 3) are kept, accuracy and mIoU.

    The first candidate is the labels without a selection; no candidate is chosen that is less accurate or has a lower
    mIoU, unless no other reaches an accuracy.
    """
    kept, accuracy, miou = figures.T
    better = (accuracy >= accuracy[0]) & (miou >= miou[0])
    if goal.aim == "accuracy":
        fit = better & (accuracy >= goal.least)
        if not fit.any():
            return int(np.where(kept > 0, accuracy, -1).argmax()), False
        return _best(fit, kept, miou), True
    fit = better & (kept >= goal.least) if goal.aim == "kept" else better
    return (_best(fit, miou, accuracy), True) if fit.any() else (0, False)


def _best(fit: NDArray[np.bool_], first: NDArray[np.float64], second: NDArray[np.float64]) -> int:
    """Return the first candidate with the highest ``first`` figure, and of those the highest ``second``."""
    leading = fit & (first == first[fit].max())
    return int(np.where(leading, second, -1).argmax())


def choice_bias(tallies: Sequence[Tally], goal: Goal) -> NDArray[np.float64]:
    """Estimate how much too good kept share, accuracy and mIoU (3,) of the chosen candidate are."""
    drawn = image_weights(len(tallies[0].true), ROUNDS, seed=2)
    others = (drawn == 0).astype(np.float64)
    inside = np.array([_figures(tally, drawn) for tally in tallies])
    outside = np.array([_figures(tally, others) for tally in tallies])
    chosen = [pick(inside[:, number], goal)[0] for number in range(ROUNDS)]
    difference = inside - outside
    lead = difference[chosen, np.arange(ROUNDS)] - difference[0]
    return np.maximum(np.nan_to_num(lead).mean(axis=0), 0)


def _figures(tally: Tally, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute kept share, accuracy and mIoU (m, 3) of weighted images (m, n)."""
    true, kept, hits, labeled = (weights @ table for table in (tally.true, tally.kept, tally.hits, tally.labeled))
    present = true > 0
    iou = np.where(present, hits / np.maximum(kept + labeled - hits, 1e-9), 0)
    return np.column_stack(
        [
            kept.sum(axis=1) / np.maximum(true.sum(axis=1), 1e-9),
            hits.sum(axis=1) / np.maximum(kept.sum(axis=1), 1e-9),
            iou.sum(axis=1) / np.maximum(present.sum(axis=1), 1),
        ]
    )
