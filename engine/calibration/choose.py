"""Choose how to select pixels, from evidence on labeled images.

Usage::

    choice, calibration = choose(predictor, source, open_labels("labels"), taxonomy, goal="accuracy 0.97")
    print(choice.recommended.candidate, choice.recommended.kept, choice.notes)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...errors import CalibrationError, UsageError
from ..inputs.labeled_source import pair_images
from ..inputs.labels import LabelSource
from ..inputs.sources import Source
from ..model.taxonomy import Taxonomy
from ..predictors.base import Predictor
from ..reading.geotiff import files_of
from .binned import BinnedScores
from .calibrate import fit_calibration
from .calibration import Calibration
from .candidates import Choice, default_candidates, measure_candidates, recommend
from .description import scenes_note
from .goal import Goal
from .scores.observe import Observations


def choose(
    predictor: Predictor,
    source: Source,
    labels: LabelSource,
    taxonomy: Taxonomy,
    *,
    goal: str | Goal = "kept 0.8",
    ids: frozenset[str] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Choice, Calibration | None]:
    """Measure every rule, grouping, unit, alpha and constant confidence on labeled images, and recommend one.

    ``goal`` is ``accuracy A`` (keep as much as possible at that accuracy), ``kept S`` (the best mIoU that keeps that
    share) or ``miou``. The other parameters and errors are those of
    :func:`maskmill.engine.calibration.calibrate.calibrate`. Returns the choice, and its calibration from all images if
    the recommendation is a conformal selection.
    """
    goal = goal if isinstance(goal, Goal) else Goal.parse(goal)
    labeled_source = pair_images(source, labels, taxonomy, ids=ids)
    if int(files_of(labeled_source.uris).max()) == 0:
        raise UsageError(
            "selections are compared on held-out images, and there is only one image (all windows of a file count as "
            "one): label more images, or use `maskmill calibrate`"
        )
    with (
        tempfile.TemporaryDirectory(prefix="maskmill-choose-") as folder,
        Observations(Path(folder), taxonomy) as observations,
    ):
        observations.collect(predictor, source, labeled_source, workers=workers, progress=progress)
        scores = BinnedScores(observations.counts, taxonomy.num_targets)
        points = measure_candidates(scores, observations.samples, default_candidates())
        choice = recommend(points, goal)
        doubt = labeled_source.summary.doubt(choice.raw.accuracy if choice.raw.kept else None)
        note = scenes_note(observations.counts)
        notes = choice.notes if note is None else (*choice.notes, note)
        choice = replace(choice, source=labeled_source.summary, warnings=(doubt,) if doubt else (), notes=notes)
        best = choice.recommended.candidate
        if best.method != "conformal" or best.alpha is None or best.group is None:
            return choice, None
        fit = partial(
            fit_calibration,
            observations,
            predictor,
            taxonomy,
            alpha=best.alpha,
            group=best.group,
            unit=best.unit,
            rule=best.rule,
            fallback=best.fallback,
            unseen=best.unseen,
            windows=source.windows,
        )
        try:
            calibration = fit(on_small_n="refuse")
        except CalibrationError:  # too few images for this alpha: it was measured with the largest score as threshold
            calibration = fit(on_small_n="max")
    return choice, calibration
