"""Goals of a selection, and the choice of the candidate that meets a goal best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ...checks import check_choice, check_number
from ...errors import UsageError

Aim = Literal["accuracy", "kept", "miou"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Aim of a selection: as much kept as possible at an accuracy, the best mIoU at a kept share, or the best mIoU."""

    aim: Aim
    """Figure to optimize, or to hold at its lowest acceptable value."""
    least: float = 0.0
    """Lowest acceptable value of ``accuracy`` or ``kept``."""

    def __post_init__(self) -> None:
        """Check that the lowest value is a share; raises :class:`UsageError`."""
        check_choice("aim", self.aim, Aim)
        check_number(f"the {self.aim} of a goal", self.least, least=0, most=1)

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read ``accuracy 0.97``, ``kept 0.9`` or ``miou``, in any case; raises :class:`UsageError`."""
        name, *values = text.lower().split() or [""]
        try:
            (least,) = map(float, values) if name != "miou" else (0.0, *values)
        except ValueError:
            least = None
        if name not in get_args(Aim) or least is None:
            raise UsageError(f'expected a goal such as "accuracy 0.97", "kept 0.9" or "miou", got {text!r}')
        return cls(aim=cast(Aim, name), least=least)

    def __str__(self) -> str:
        return self.aim if self.aim == "miou" else f"{self.aim} {self.least:g}"


def pick(figures: NDArray[np.float64], goal: Goal) -> tuple[int, bool]:
    """Return the candidate for a goal, and whether it reaches it; ``figures`` (C, 3) are kept, accuracy and mIoU.

    The first candidate is the labels without a selection; no candidate is chosen that is less accurate or has a lower
    mIoU, unless no other reaches an accuracy.
    """
    kept_shares, accuracy, miou = figures.T
    better = (accuracy >= accuracy[0]) & (miou >= miou[0])
    if goal.aim == "accuracy":
        fit = better & (accuracy >= goal.least)
        if not fit.any():
            return int(np.where(kept_shares > 0, accuracy, -1).argmax()), False
        return _best(fit, kept_shares, miou), True
    fit = better & (kept_shares >= goal.least) if goal.aim == "kept" else better
    return (_best(fit, miou, accuracy), True) if fit.any() else (0, False)


def _best(fit: NDArray[np.bool_], first: NDArray[np.float64], second: NDArray[np.float64]) -> int:
    """Return the first candidate with the highest ``first`` figure, and of those the highest ``second``."""
    leading = fit & (first == first[fit].max())
    return int(np.where(leading, second, -1).argmax())
