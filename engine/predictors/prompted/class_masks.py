"""Convert a promptable model's masks to class scores: choose, merge, and score the background.

Everything stays on the decoder's own grid of logits; a pixel's score is a probability times a confidence, so that no
special value is ever interpolated:

* a mask's **confidence** is the mean of its class's activation map inside it, in [0, 1];
* its **score** in a pixel is sigmoid(logit) times confidence; a class has the highest of its masks' scores, and 0
without a prompt; * the **claim** on a pixel is the highest sigmoid(logit) of all masks, and the **background** scores 1
- 2 claim + (highest score of a class), at least 0: it is 1 far from every mask, and wins exactly if no mask covers the
pixel.

The last two give S2C's rule (the background is what lies outside every mask, overlaps go to the higher score), with
scores that are continuous across a mask's edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ....checks import check_number
from ....errors import UsageError
from ....kernels.types import BackendArray
from ...backends.base import Backend
from ...backends.host import HOST
from .prompts import Prompts

_STEEPEST = 30.0  # larger logits are certain in float32, and exp() stays finite


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How masks become class scores."""

    pick: Literal["score", "agreement"] | int = "score"
    """Mask that is used of each prompt's: that with the model's highest score, the one that agrees best with the
    activation map, or the one with this index (S2C's authors take 2)."""
    keep: float = 0.5
    """Masks of a class with less than this share of its most confident mask's confidence are dropped."""

    def __post_init__(self) -> None:
        if not (self.pick in ("score", "agreement") or (isinstance(self.pick, int) and self.pick >= 0)):
            raise UsageError(f"pick must be score, agreement or the index of a mask from 0, got {self.pick!r}")
        check_number("keep", self.keep, least=0, most=1)


@dataclass(frozen=True, kw_only=True, repr=False)
class ClassMask:
    """Merged masks of one class of one image, on the masks' device."""

    target: int
    """The class."""
    claim: Any
    """(rows, columns) float32 in [0, 1]: the highest sigmoid(logit); above one half inside the masks."""
    score: Any
    """(rows, columns) float32 in [0, 1]: the highest sigmoid(logit) times confidence."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Answered:
    """Prompts of one image with the decoder's masks; masks and maps are on one device."""

    prompts: Prompts
    """N prompts, at least one."""
    masks: Any
    """(N, rows, columns) float32: logits of one mask per prompt."""
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
) -> BackendArray:
    """Pick one mask per prompt: (N, rows, columns) logits of (N, M, rows, columns), N > 0.

    ``scores`` (N, M) are the model's, ``maps`` (N, rows, columns) the activation map of each prompt's class; for
    ``agreement`` a class covers the pixels whose map exceeds ``threshold``. ``xp`` is the library of all three. Raises
    :class:`UsageError` for an index without a mask.
    """
    num = masks.shape[1]
    if isinstance(pick, int):
        if pick >= num:
            raise UsageError(f"the model returns {num} mask(s) per prompt, so there is none with the index {pick}")
        return masks[:, pick]
    if num == 1:
        return masks[:, 0]
    best = (scores if pick == "score" else agreement(masks, maps[:, None], threshold, xp)).argmax(axis=1)
    return masks[xp.arange(len(masks)), best]


def agreement(masks: Any, maps: Any, threshold: float, xp: Any = np) -> BackendArray:
    """Compute the IoU of masks (…, rows, columns) at positive logits with maps above ``threshold``."""
    inside, expected = masks > 0, maps > threshold
    both = (inside & expected).sum(axis=(-2, -1))
    either = (inside | expected).sum(axis=(-2, -1))
    return (both / xp.maximum(either, 1)).astype(np.float32)


def confidence(masks: Any, maps: Any, xp: Any = np) -> BackendArray:
    """Average a map inside each mask: (…) float32 of (…, rows, columns); 0 for an empty mask."""
    inside = masks > 0
    total = xp.where(inside, maps, np.float32(0)).sum(axis=(-2, -1), dtype=np.float64)
    return (total / xp.maximum(inside.sum(axis=(-2, -1)), 1)).astype(np.float32)


def merge_masks(
    images: Sequence[Answered], *, keep: float, threshold: float, backend: Backend = HOST
) -> list[list[ClassMask]]:
    """Merge the masks of each class of each image, in the order of the classes.

    If a class has several groups, the one whose merged masks agree best with its map is used. Masks that are empty,
    or less confident than :attr:`MaskSettings.keep` requires, are left out; a class without a remaining mask is not in
    the result. ``backend`` holds masks and maps; the masks' confidences, and the agreements of groups of classes with
    several, are downloaded once for all images.
    """
    if not images:
        return []
    xp = backend.xp
    certainties = [confidence(image.masks, image.maps, xp) for image in images]
    kept_rows = [
        _groups(image.prompts, known, keep) for image, known in zip(images, backend.download(*certainties), strict=True)
    ]
    rivals = [
        agreement(image.masks[xp.asarray(rows)].max(axis=0), image.maps[int(rows[0])], threshold, xp)
        for image, classes in zip(images, kept_rows, strict=True)
        for groups in classes.values()
        for rows in groups
        if len(groups) > 1
    ]
    agreements = iter(backend.download(xp.stack(rivals))[0] if rivals else ())
    merged_masks: list[list[ClassMask]] = []
    for image, certainty, classes in zip(images, certainties, kept_rows, strict=True):
        merged_masks.append([])
        for target, groups in classes.items():
            best = 0 if len(groups) == 1 else int(np.argmax([next(agreements) for _ in groups]))
            rows = xp.asarray(groups[best])
            claims = 1 / (1 + xp.exp(-xp.clip(image.masks[rows], -_STEEPEST, _STEEPEST)))
            score = (claims * certainty[rows][:, None, None]).max(axis=0)
            merged_masks[-1].append(ClassMask(target=target, claim=claims.max(axis=0), score=score))
    return merged_masks


def _groups(prompts: Prompts, certainty: NDArray[np.float32], keep: float) -> dict[int, list[NDArray[np.int64]]]:
    """Return for each class the rows of its prompts whose masks stay, by group; classes without any are left out."""
    kept_rows: dict[int, list[NDArray[np.int64]]] = {}
    for target in np.unique(prompts.target).tolist():
        for group in np.unique(prompts.group[prompts.target == target]):
            rows = np.flatnonzero((prompts.target == target) & (prompts.group == group))
            stay = (certainty[rows] > 0) & (certainty[rows] >= keep * certainty[rows].max())
            if stay.any():
                kept_rows.setdefault(target, []).append(rows[stay])
    return kept_rows


def score_map(
    masks: Sequence[ClassMask], size: tuple[int, int], num_classes: int, background: int, xp: Any = np
) -> BackendArray:
    """Compute class scores (num_classes, rows, columns) float32 in [0, 1] of merged masks.

    The module's text defines the background's score. A :class:`ClassMask`'s ``target`` is its channel here. ``xp`` is
    the library of masks and scores.
    """
    scores = xp.zeros((num_classes, *size), np.float32)
    claim = xp.zeros(size, np.float32)
    for mask in masks:
        scores[mask.target] = xp.maximum(scores[mask.target], mask.score)
        claim = xp.maximum(claim, mask.claim)
    scores[background] = xp.clip(1 - 2 * claim + scores.max(axis=0), 0, 1)
    return scores
