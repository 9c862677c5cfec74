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

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
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
    """The merged masks of one class of one image."""

    target: int
    """The class."""
    claim: NDArray[np.float32]
    """(rows, columns) in [0, 1]: the highest sigmoid(logit); the masks cover where it is above one half."""
    score: NDArray[np.float32]
    """(rows, columns) in [0, 1]: the highest sigmoid(logit) times confidence."""


def pick_masks(
    masks: NDArray[np.float32],
    scores: NDArray[np.float32],
    maps: NDArray[np.float32],
    *,
    pick: Literal["score", "agreement"] | int,
    threshold: float,
) -> NDArray[np.float32]:
    """One mask a prompt: (N, rows, columns) logits of (N, M, rows, columns).

    ``scores`` (N, M) are the model's, ``maps`` (N, rows, columns) the activation map of each prompt's class; for
    ``agreement`` a class is where its map exceeds ``threshold``. Raises :class:`UsageError` for an index that the model
    has no mask for.
    """
    num = masks.shape[1]
    if isinstance(pick, int):
        if pick >= num:
            raise UsageError(f"the model gives {num} mask(s) a prompt, so there is none with the index {pick}")
        return masks[:, pick]
    if num == 1:
        return masks[:, 0]
    best = scores.argmax(axis=1) if pick == "score" else agreement(masks, maps[:, None], threshold).argmax(axis=1)
    return masks[np.arange(len(masks)), best]


def agreement(masks: NDArray[np.float32], maps: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """IoU of masks (…, rows, columns), where their logits are positive, with maps where they exceed ``threshold``."""
    inside, expected = masks > 0, maps > threshold
    both = np.logical_and(inside, expected).sum(axis=(-2, -1))
    either = np.logical_or(inside, expected).sum(axis=(-2, -1))
    return (both / np.maximum(either, 1)).astype(np.float32)


def confidence(masks: NDArray[np.float32], maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of a map inside each mask, (…) of (…, rows, columns); 0 for an empty mask."""
    inside = masks > 0
    total = np.where(inside, maps, 0).sum(axis=(-2, -1), dtype=np.float64)
    return (total / np.maximum(inside.sum(axis=(-2, -1)), 1)).astype(np.float32)


def merge_masks(
    masks: NDArray[np.float32], prompts: Prompts, maps: NDArray[np.float32], *, keep: float, threshold: float
) -> list[ClassMask]:
    """The masks of each class of one image as one, in the order of the classes.

    ``masks`` (N, rows, columns) are logits, one a prompt; ``maps`` (classes, rows, columns) are indexed by
    ``prompts.target``. Of several groups of a class the one whose masks together agree best with its map is taken.
    Masks that are empty, or not as confident as :attr:`MaskSettings.keep` asks, are left out; a class of which nothing
    is left is not in the result.
    """
    found = []
    for target in np.unique(prompts.target):
        cam, best, best_agreement = maps[target], None, -1.0
        for group in np.unique(prompts.group[prompts.target == target]):
            chosen = masks[(prompts.target == target) & (prompts.group == group)]
            sure = confidence(chosen, cam)
            kept = (sure > 0) & (sure >= keep * sure.max(initial=0))
            if not kept.any():
                continue
            agrees = float(agreement(chosen[kept].max(axis=0), cam, threshold))
            if agrees > best_agreement:
                best, best_agreement = (chosen[kept], sure[kept]), agrees
        if best is not None:
            claims = 1 / (1 + np.exp(-np.clip(best[0], -_STEEPEST, _STEEPEST)))
            claim, score = claims.max(axis=0), (claims * best[1][:, None, None]).max(axis=0)
            found.append(ClassMask(target=int(target), claim=claim, score=score))
    return found


def score_map(found: list[ClassMask], size: tuple[int, int], num_classes: int, background: int) -> NDArray[np.float32]:
    """Class scores (num_classes, rows, columns) in [0, 1] of merged masks; see the module's text for the background.

    A :class:`ClassMask`'s ``target`` is its channel here.
    """
    scores = np.zeros((num_classes, *size), np.float32)
    claim = np.zeros(size, np.float32)
    for mask in found:
        np.maximum(scores[mask.target], mask.score, out=scores[mask.target])
        np.maximum(claim, mask.claim, out=claim)
    scores[background] = np.clip(1 - 2 * claim + scores.max(axis=0), 0, 1)
    return scores
