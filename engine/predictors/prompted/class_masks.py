"""From a promptable model's masks to class scores: choosing, merging, and the background.

Everything stays on the decoder's own grid of logits; a pixel's score is a probability times a confidence, so that no
sentinel is ever interpolated:

* a mask's **confidence** is the mean of its class's activation map inside it, in [0, 1];
* its **score** in a pixel is sigmoid(logit) times confidence; a class has the highest of its masks' scores, and 0
  everywhere where it was not asked for;
* a pixel is **claimed** as far as the highest sigmoid(logit) of all masks says, and the **background** scores
  1 - 2 claim + (highest score of a class), not less than 0: it is 1 where no mask is near, and wins exactly where no
  mask covers the pixel.

The last two give S2C's rule (the background is what lies outside every mask, overlaps go to the higher score), with
scores that are continuous across a mask's edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ....errors import UsageError
from ...backends.base import Backend
from ...backends.host import HOST
from .prompts import Prompts

_STEEPEST = 30.0  # logits beyond are as good as certain, and exp() stays finite


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How masks become class scores."""

    pick: Literal["score", "agreement"] | int = "score"
    """Which of a prompt's masks is taken: that with the model's highest score, the one that agrees best with the
    activation map, or the one with this index (S2C's authors take 2)."""
    keep: float = 0.5
    """Masks of a class with less than this share of its most confident mask's confidence are dropped."""

    def __post_init__(self) -> None:
        if not (self.pick in ("score", "agreement") or (isinstance(self.pick, int) and self.pick >= 0)):
            raise UsageError(f"pick must be score, agreement or the index of a mask from 0, got {self.pick!r}")
        if not 0 <= self.keep <= 1:
            raise UsageError(f"keep is a share from 0 to 1, got {self.keep}")


@dataclass(frozen=True, kw_only=True, repr=False)
class ClassMask:
    """The merged masks of one class of one image, where the masks lay."""

    target: int
    """The class."""
    claim: Any
    """(rows, columns) float32 in [0, 1]: the highest sigmoid(logit); the masks cover where it is above one half."""
    score: Any
    """(rows, columns) float32 in [0, 1]: the highest sigmoid(logit) times confidence."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Answered:
    """What was asked of one image and what the decoder answered; masks and maps lie in one place."""

    prompts: Prompts
    """N prompts, at least one."""
    masks: Any
    """(N, rows, columns) float32: the logits of one mask a prompt."""
    maps: Any
    """(N, rows, columns) float32 in [0, 1]: the activation map of each prompt's class."""


def pick_masks(
    masks: Any,
    scores: Any,
    maps: Any,
    *,
    pick: Literal["score", "agreement"] | int,
    threshold: float,
    xp: Any = np,
) -> Any:
    """One mask a prompt: (N, rows, columns) logits of (N, M, rows, columns), N > 0.

    ``scores`` (N, M) are the model's, ``maps`` (N, rows, columns) the activation map of each prompt's class; for
    ``agreement`` a class is where its map exceeds ``threshold``. ``xp`` is the library of all three. Raises
    :class:`UsageError` for an index that the model has no mask for.
    """
    num = masks.shape[1]
    if isinstance(pick, int):
        if pick >= num:
            raise UsageError(f"the model gives {num} mask(s) a prompt, so there is none with the index {pick}")
        return masks[:, pick]
    if num == 1:
        return masks[:, 0]
    best = (scores if pick == "score" else agreement(masks, maps[:, None], threshold, xp)).argmax(axis=1)
    return masks[xp.arange(len(masks)), best]


def agreement(masks: Any, maps: Any, threshold: float, xp: Any = np) -> Any:
    """IoU of masks (…, rows, columns), where their logits are positive, with maps where they exceed ``threshold``."""
    inside, expected = masks > 0, maps > threshold
    both = (inside & expected).sum(axis=(-2, -1))
    either = (inside | expected).sum(axis=(-2, -1))
    return (both / xp.maximum(either, 1)).astype(np.float32)


def confidence(masks: Any, maps: Any, xp: Any = np) -> Any:
    """Mean of a map inside each mask, (…) float32 of (…, rows, columns); 0 for an empty mask."""
    inside = masks > 0
    total = xp.where(inside, maps, np.float32(0)).sum(axis=(-2, -1), dtype=np.float64)
    return (total / xp.maximum(inside.sum(axis=(-2, -1)), 1)).astype(np.float32)


def merge_masks(
    images: Sequence[Answered], *, keep: float, threshold: float, backend: Backend = HOST
) -> list[list[ClassMask]]:
    """The masks of each class of each image as one, in the order of the classes.

    Of several groups of a class the one whose masks together agree best with its map is taken. Masks that are empty,
    or not as confident as :attr:`MaskSettings.keep` asks, are left out; a class of which nothing is left is not in the
    result. ``backend`` is where masks and maps lie: from a device come down, once for all images, the masks'
    confidences,
    and the agreements of groups where a class has several.
    """
    if not images:
        return []
    xp = backend.xp
    sure = [confidence(one.masks, one.maps, xp) for one in images]
    kept = [_groups(one.prompts, known, keep) for one, known in zip(images, backend.download(*sure), strict=True)]
    rivals = [
        agreement(one.masks[xp.asarray(rows)].max(axis=0), one.maps[int(rows[0])], threshold, xp)
        for one, classes in zip(images, kept, strict=True)
        for groups in classes.values()
        for rows in groups
        if len(groups) > 1
    ]
    agrees = iter(backend.download(xp.stack(rivals))[0] if rivals else ())
    found = []
    for one, of_masks, classes in zip(images, sure, kept, strict=True):
        found.append([])
        for target, groups in classes.items():
            best = 0 if len(groups) == 1 else int(np.argmax([next(agrees) for _ in groups]))
            rows = xp.asarray(groups[best])
            claims = 1 / (1 + xp.exp(-xp.clip(one.masks[rows], -_STEEPEST, _STEEPEST)))
            score = (claims * of_masks[rows][:, None, None]).max(axis=0)
            found[-1].append(ClassMask(target=target, claim=claims.max(axis=0), score=score))
    return found


def _groups(prompts: Prompts, sure: NDArray[np.float32], keep: float) -> dict[int, list[NDArray[np.int64]]]:
    """For each class the rows of its prompts whose masks stay, group by group; what is left with none is not there."""
    found: dict[int, list[NDArray[np.int64]]] = {}
    for target in np.unique(prompts.target).tolist():
        for group in np.unique(prompts.group[prompts.target == target]):
            rows = np.flatnonzero((prompts.target == target) & (prompts.group == group))
            stay = (sure[rows] > 0) & (sure[rows] >= keep * sure[rows].max())
            if stay.any():
                found.setdefault(target, []).append(rows[stay])
    return found


def score_map(
    found: Sequence[ClassMask], size: tuple[int, int], num_classes: int, background: int, xp: Any = np
) -> Any:
    """Class scores (num_classes, rows, columns) float32 in [0, 1] of merged masks.

    The module's text says what the background's are. A :class:`ClassMask`'s ``target`` is its channel here. ``xp`` is
    the library of masks and scores.
    """
    scores = xp.zeros((num_classes, *size), np.float32)
    claim = xp.zeros(size, np.float32)
    for mask in found:
        scores[mask.target] = xp.maximum(scores[mask.target], mask.score)
        claim = xp.maximum(claim, mask.claim)
    scores[background] = xp.clip(1 - 2 * claim + scores.max(axis=0), 0, 1)
    return scores
