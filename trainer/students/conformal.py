"""Conformal thresholds of a student: calibrate its prediction sets on labeled images while it is trained.

::

    student = load_run("run")
    labeled = LabeledImages.open("labeled", run_taxonomy(student.run))
    samples = ((sample.image, sample.label) for sample in map(labeled.read, range(2)))
    thresholds = fit_student_thresholds(student.module, samples, student.run, alpha=0.1)    # (classes,)

Thresholds are per class, as those of ``maskmill calibrate``: a class in too few of the images takes the threshold of
the pooled foreground classes, and a class in none is never selected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...engine.calibration.scores.observe import true_scores
from ...engine.calibration.scores.score_spill import ScoreSpill
from ...engine.calibration.sharing import share_thresholds
from ...engine.calibration.thresholds import count_classes, fewest_images, fit_thresholds
from ..run import Run
from .prediction import predict_scores, run_taxonomy

if TYPE_CHECKING:
    from torch import nn


def fit_student_thresholds(
    module: nn.Module,
    samples: Iterable[tuple[NDArray[np.uint8], NDArray[Any]]],
    run: Run,
    *,
    alpha: float,
    device: Any = "cpu",
) -> NDArray[np.float64]:
    """Compute the thresholds (K,) of a student in eval mode; -inf keeps a class out of every prediction set.

    ``samples`` are images (H, W, 3) uint8 RGB and their maps of true classes (H, W) with the ignore index. The pixels
    of all images are pooled: the rank ceil((n + 1)(1 - alpha)) among the n scores of a class.
    """
    taxonomy, level = run_taxonomy(run), Fraction(str(alpha))
    with tempfile.TemporaryDirectory(prefix="maskmill-recalibrate-") as folder, ScoreSpill(Path(folder)) as spill:
        for image, label in samples:
            scores = true_scores(predict_scores(module, image, run, device=device), label, taxonomy)
            has_label = label != taxonomy.ignore_index
            spill.append(scores[has_label], label[has_label].astype(np.uint16))
        spill.finish()
        rows = list(range(len(spill)))
        num_pixels, num_images = count_classes(spill, rows, taxonomy.num_targets)
        if not num_pixels.any():
            return np.full(taxonomy.num_targets, -np.inf)
        sharing = share_thresholds("class", num_images, min_images=fewest_images(level), background=taxonomy.background)
        thresholds = fit_thresholds(
            spill, rows, sharing, num_scored=taxonomy.num_scored, alpha=level, unit="pixel", on_small_n="max"
        )
    return thresholds.values[: taxonomy.num_targets].astype(np.float64)
