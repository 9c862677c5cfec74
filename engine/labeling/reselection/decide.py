"""Label and weight the pixels of an image from its kept scores, by any selection that they allow."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from .... import kernels
from ....errors import UsageError
from ....kernels.types import Rule
from ..kept.encoding import RATIO_LEVELS, KeptScores
from ..kept.levels import EDGES, VALUES, ScoreLevels
from ..selection import Selected, Selection
from . import loops

_VALUES = np.append(VALUES, VALUES[-1])  # pixels without data have their own code
_RULES: tuple[Rule, ...] = get_args(Rule)


class KeptSelection:
    """A selection expressed in kept codes, prepared once for all images.

    Parameters
    ----------
    selection
        The selection to apply.
    levels
        Codes of the scores.
    limits
        (Ke,): largest scores with which a class was kept beside the top class.
    background, ignore
        Index of the background target or None, and the ignore index.
    names
        Names of the K targets.

    Raises :class:`UsageError` if a prediction set of the selection may hold a class that was not kept.
    """

    def __init__(
        self,
        selection: Selection,
        levels: ScoreLevels,
        limits: NDArray[np.float32],
        *,
        background: int | None,
        ignore: int,
        names: tuple[str, ...],
    ) -> None:
        self._selection = selection
        self._levels = levels
        self._num_targets = len(names)
        self._ignore = ignore
        self.num_classes: int = len(limits)
        """Number of scored classes."""
        self._others = max(self.num_classes - 1, 1)
        # "none of these" has the index K and is never emitted
        labels = [*range(self._num_targets), *[ignore] * (len(limits) - self._num_targets), ignore]
        self._labels = np.array(labels, np.uint8 if self._num_targets <= 255 else np.uint16)
        accepted = np.full(len(limits), len(EDGES), np.int32)
        if selection.thresholds is not None:
            accepted = levels.limits(self._checked(selection.thresholds, limits, names))
        rule = _RULES.index(selection.rule if selection.method == "conformal" else "argmax")
        self._choice = (accepted, rule, -1 if background is None else background)

    def _checked(
        self, thresholds: NDArray[np.float32], limits: NDArray[np.float32], names: tuple[str, ...]
    ) -> NDArray[np.float32]:
        """Return one threshold per scored class; raises :class:`UsageError` if one is above its limit."""
        if thresholds.ndim == 2:
            raise UsageError("scores are kept for thresholds per class; thresholds per position need `maskmill label`")
        thresholds = np.broadcast_to(thresholds, limits.shape)
        over = np.flatnonzero(thresholds > limits)
        if self._selection.method == "conformal" and self._selection.rule != "argmax" and len(over):
            worst = int(over[np.argmax(thresholds[over] - np.maximum(limits[over], 0))])
            name = names[worst] if worst < len(names) else "none of these"
            if limits[worst] < 0:
                raise UsageError(
                    f"no scores of {name} were kept beside the top class, because the store's calibration never uses "
                    "it as a label, and this one does; label again with this calibration"
                )
            raise UsageError(
                f"the kept scores are not enough for this selection: the threshold of {name} is "
                f"{thresholds[worst]:.4g}, and "
                f"scores up to {max(limits[worst], 0):.4g} were kept; choose a larger alpha or --rule argmax, or label "
                "again with a smaller --keep-scores"
            )
        return thresholds

    def select(self, kept: KeptScores) -> Selected:
        """Label and weight one image."""
        label = np.empty(kept.top.shape, self._labels.dtype)
        confidence = np.empty(kept.top.shape, np.float32)
        counts = np.zeros(self._ignore + 1, np.int64)
        total = loops.decide(
            kept.top.ravel(),
            kept.code.ravel(),
            (kept.num_more.ravel(), kept.more_class, kept.more_code),
            (_VALUES, self._levels.split_cells),
            self._choice,
            self._labels,
            label.ravel(),
            confidence.ravel(),
            counts,
        )
        num_kept = label.size - int(counts[self._ignore])
        return Selected(
            label=label,
            weight=self._weight(kept, label, confidence),
            counts=counts[: self._num_targets],
            kept=num_kept / label.size,
            confidence=float(total) / num_kept if num_kept else 0.0,
        )

    def _weight(self, kept_scores: KeptScores, label: NDArray[Any], confidence: NDArray[np.float32]) -> NDArray[Any]:
        weight, ignore = self._selection.weight, self._ignore
        if weight == "none":
            return np.where(label == ignore, np.uint8(0), np.uint8(255))
        quantized: dict[str, Any] = {"levels": self._selection.weight_levels, "label": label, "ignore": ignore}
        if weight == "confidence":
            return kernels.quantize_weights(confidence, **quantized)
        exact = weight == "pcos-supplement"
        # two classes always have the official form of the dispersion
        offset = 1 / self._others**3 if exact and self._others > 1 else 0.0
        share, dispersion = np.empty_like(confidence), np.empty_like(confidence)
        loops.weigh_inputs(
            confidence.ravel(),
            (kept_scores.code if kept_scores.share is None else kept_scores.share).ravel(),
            kept_scores.share is not None,
            VALUES,
            kept_scores.ratio.ravel(),
            np.float32(1 / (RATIO_LEVELS * self._others)),
            np.float32(offset),
            share.ravel(),
            dispersion.ravel(),
        )
        form: dict[str, Any] = {"denominator": 64.0, "epsilon": 0.0} if exact else {}
        pcos = kernels.pcos(share, dispersion, **form)
        return kernels.quantize_weights(pcos.weight, pcos.reliable, **quantized)
