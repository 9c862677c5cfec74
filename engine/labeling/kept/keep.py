"""Keep the scores of an image that a later selection may need: those of all classes that a prediction set can hold.

Usage::

    keeper = ScoreKeeper.of(Calibration.load("calibration.json"), "0.05")
    scores = keeper.keep(predictor.predict(image), taxonomy)         # bytes, for a row of the store

For each pixel these are the top class with its nonconformity score, the dispersion of the other classes, and every
other class whose score is at most its largest threshold at the alpha of the keeper or above.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import CalibrationError, UsageError
from ...calibration.calibration import Calibration
from ...calibration.calibration_file import json_number
from ...calibration.thresholds import alpha_text, fewest_images, parse_alpha
from ...model.storage import location_of
from ...model.taxonomy import Taxonomy
from ...predictors.base import ScoreMap
from ...predictors.class_scores import class_scores
from ...predictors.resampling import sample_pixels
from .encoding import RATIO_LEVELS, VERSION, KeptScores, encode_scores
from .levels import NO_DATA, ScoreLevels, cells_of

CALIBRATION_FILE = "calibration.json"
"""File in the folder of a store with kept scores: the calibration that their thresholds come from."""

_CERTAIN = 1.2e-4
"""Nonconformity score of the top class below which the dispersion is too small to matter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreKeeper:
    """Keeps the scores of every image that a selection may need at an alpha or above."""

    alpha: str
    """Smallest alpha that may be chosen later."""
    limits: NDArray[np.float32]
    """(Ke,): largest nonconformity score with which a class is kept beside the top class."""
    calibration: Calibration
    """Calibration that the limits come from; its own thresholds are boundaries of the quantization."""

    @classmethod
    def of(cls, calibration: Calibration, alpha: str | float) -> ScoreKeeper:
        """Return the keeper for all thresholds of the calibration at ``alpha`` and above.

        A class's threshold may be larger at a larger alpha, which needs fewer images for a threshold of its own, so the
        limit is the largest of them. Raises :class:`UsageError` for a calibration with thresholds per position or
        another control than miscoverage.
        """
        if calibration.group == "position" or calibration.control != "miscoverage":
            raise UsageError(
                "scores are kept for thresholds per class: --keep-scores applies to no calibration with --group "
                "position or another --control; leave it out"
            )
        level = parse_alpha(alpha)
        image_counts = range(1, fewest_images(level) + 1)
        if calibration.group != "cluster":
            image_counts = sorted(set(image_counts) & set(_images_per_class(calibration)))
        levels = [level, *(Fraction(1, num + 1) for num in image_counts if Fraction(1, num + 1) < 1)]
        candidates = [calibration.thresholds, *(calibration.at(str(value)).thresholds for value in levels)]
        return cls(alpha=alpha_text(alpha), limits=np.max(candidates, axis=0), calibration=calibration)

    def record(self) -> dict[str, Any]:
        """Return the settings common to all rows, for the run record."""
        return {
            "version": VERSION,
            "alpha": self.alpha,
            "limits": [json_number(limit) for limit in self.limits.tolist()],
            "splits": [json_number(split) for split in self.calibration.thresholds.tolist()],
            "calibration": self.calibration.seal,
        }

    def write(self, folder: Path) -> None:
        """Write the calibration into the folder of a store, for later choices of alpha, unless it is there."""
        if not (folder / CALIBRATION_FILE).exists():
            self.calibration.save(folder / CALIBRATION_FILE)

    @cached_property
    def levels(self) -> ScoreLevels:
        """Codes of the scores."""
        return ScoreLevels(self.calibration.thresholds)

    def keep(self, score_map: ScoreMap, taxonomy: Taxonomy) -> bytes:
        """Encode the scores of one image; they are quantized on the backend of its scores."""
        backend = score_map.backend
        xp = backend.xp
        wide = np.uint16 if taxonomy.num_scored > 256 else np.uint8
        is_softmax = score_map.activation == "softmax"
        with backend.queue():
            stats = score_map.decode(
                taxonomy, thresholds=self.limits, outputs=("top", "share", "dispersion", "set_size")
            )
            best = score_map.decode(taxonomy, truth=stats.top, outputs=("true_score",)).true_score
            set_size, top = stats.set_size, stats.top.astype(np.int64)
            codes = self.levels.codes(best, top, xp)
            if score_map.with_data is not None:  # no later selection labels pixels without data
                with_data = xp.asarray(score_map.with_data)
                set_size, codes = xp.where(with_data, set_size, 0), xp.where(with_data, codes, np.uint16(NO_DATA))
            holds_top = best <= xp.asarray(self.limits)[top]
            cells = xp.flatnonzero(set_size > holds_top)
            counts, classes, scores = self._more(score_map, taxonomy, cells, top.ravel()[cells])
            num_more = xp.zeros(top.size, np.int64)
            num_more[cells] = counts
            other_share = 1 - stats.share.astype(np.float64)
            largest = xp.maximum(other_share * other_share / (taxonomy.num_scored - 1), 1e-30)
            ratio = xp.clip(xp.rint(stats.dispersion / largest * RATIO_LEVELS), 0, RATIO_LEVELS)
            ratio = xp.where(other_share > _CERTAIN, ratio, RATIO_LEVELS)
            arrays = backend.download(
                top.astype(wide),
                codes,
                ratio.astype(np.uint8),
                num_more.reshape(top.shape).astype(wide),
                classes.astype(wide),
                self.levels.codes(scores, classes, xp),
                *([] if is_softmax else [cells_of(other_share.astype(np.float32), xp).astype(np.uint16)]),
            )
        top, code, ratio, num_more, more_class, more_code, *share = arrays
        return encode_scores(
            KeptScores(
                top=top,
                code=code,
                share=share[0] if share else None,
                ratio=ratio,
                num_more=num_more,
                more_class=more_class,
                more_code=more_code,
            )
        )

    def _more(self, score_map: ScoreMap, taxonomy: Taxonomy, cells: Any, top: Any) -> tuple[Any, Any, Any]:
        """Return the number of classes except the top one within their limits, per cell, and those classes' scores.

        Classes and scores are listed cell by cell, best first.
        """
        xp = score_map.backend.xp
        values = score_map.scores if score_map.layout == "HWC" else xp.moveaxis(score_map.scores, 0, -1)
        values = sample_pixels(values, score_map.size, score_map.region, cells, score_map.backend)
        _, scores = class_scores(values, taxonomy, score_map.activation, xp)
        member = scores <= xp.asarray(self.limits)
        member[xp.arange(len(top)), top] = False
        places = xp.flatnonzero(member)
        row, classes = places // member.shape[1], places % member.shape[1]
        row_scores = scores[row, classes]
        order = xp.argsort(row + xp.clip(row_scores, 0, 1) / 2)
        return member.sum(axis=1), classes[order], row_scores[order]


def _images_per_class(calibration: Calibration) -> list[int]:
    """Count the calibration images that show each class."""
    return (calibration.counts.pixels(len(calibration.targets)) > 0).sum(axis=0).tolist()


def load_kept_calibration(folder: str | os.PathLike[str], seal: str) -> Calibration | None:
    """Load the calibration that a store with kept scores was made with; None if the file is not there.

    Raises :class:`CalibrationError` if its seal is a different one.
    """
    path = location_of(folder) / CALIBRATION_FILE
    if not path.exists():
        return None
    calibration = Calibration.load(path)
    if calibration.seal != seal:
        raise CalibrationError(
            f"{path} is not the calibration that the scores were kept with; restore it, or give --calibration FILE"
        )
    return calibration
