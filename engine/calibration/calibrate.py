"""From labeled images to thresholds: conformal calibration, with a coverage report.

The model runs once per image. Nonconformity scores of the true class are spilled to a temporary file; thresholds are
exact order statistics of them, so memory does not depend on the number of pixels::

    calibration = calibrate(predictor, source, open_labels("labels"), taxonomy, alpha="0.05", group="class")
    calibration.save("calibration.json")

Groups: ``pooled`` has one threshold, ``class`` one for each target (Mondrian), ``position`` one for each cell of a
fixed grid (ConformalSAM). Units: ``pixel`` takes the rank ceil((n + 1)(1 - alpha)) among pixels, a heuristic since
pixels of one image depend on each other; ``image`` controls the mean over images of the share of pixels that miss
their true class, with the finite-sample correction over images (conformal risk control, Angelopoulos et al. 2024).

Coverage is reported out of sample: the images are split into folds, and each fold is scored with thresholds computed
from the others, the same way as the final thresholds from all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CalibrationError, ImageError, UsageError
from ...kernels.plans.class_stats import RULES
from ...kernels.types import Activation, Rule
from ..inputs.labeled_source import pair_images
from ..inputs.labels import LabelSource
from ..inputs.ordered_map import ordered_map
from ..inputs.sources import Item, Source
from ..model.taxonomy import Taxonomy
from ..predictors.base import Predictor, ScoreMap
from ..predictors.resampling import resample_nearest
from .calibration import Calibration, conditions, json_number
from .coverage import CoverageReport, SampleSpill
from .score_spill import NO_CLASS, ScoreSpill
from .thresholds import GROUPS, UNITS, Group, Thresholds, Unit, fit_thresholds

DEFAULT_GRID = (512, 512)
DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class _Scored:
    score_map: ScoreMap
    size: tuple[int, int]
    truth: NDArray[Any]
    scores: NDArray[np.float32]


def calibrate(
    predictor: Predictor,
    source: Source,
    labels: LabelSource,
    taxonomy: Taxonomy,
    *,
    alpha: str | float,
    group: Group = "class",
    unit: Unit = "pixel",
    rule: Rule = "agree",
    ids: frozenset[str] | None = None,
    min_images: int | None = None,
    folds: int = DEFAULT_FOLDS,
    grid: tuple[int, int] = DEFAULT_GRID,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Compute thresholds from labeled images.

    Parameters
    ----------
    predictor, taxonomy
        The model and the target classes; labeling must use the same.
    source, labels
        Images, and the folder of their label maps (same name, same size). Images without a label map are left
        out and counted.
    alpha
        Share of true classes that may miss the prediction set, above 0 and below 1; a string is taken literally.
    group, unit, rule
        See the module's text; the rule is recorded for labeling.
    ids
        Names of the images to calibrate on; all where None.
    min_images
        Fewest images a class must be seen in to get its own threshold; ceil(1 / alpha) - 1 where None.
    folds
        Parts the images are split into for the coverage report, at least 2.
    grid
        (height, width) that scores are resampled to for ``position``.
    workers
        Images in work at once.
    progress
        Called with (images done, images in all).

    Raises :class:`CalibrationError`, :class:`UsageError` or :class:`TaxonomyError`; an image that cannot be decoded is
    an error here, since leaving it out would change the sample.
    """
    level = _parse_alpha(alpha)
    for name, value, choices in (("group", group, GROUPS), ("unit", unit, UNITS), ("rule", rule, RULES)):
        if value not in choices:
            raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if folds < 2:
        raise UsageError(f"the coverage report needs at least 2 folds, got {folds}")
    if min_images is None:
        min_images = -(-level.denominator // level.numerator) - 1
    labeled = pair_images(source, labels, taxonomy, ids=ids)
    num_images = len(labeled.items)
    position = group == "position"

    def score(item: Item) -> _Scored:
        try:
            photo = source.read(item)
            image = predictor.backend.decode(photo)
            prepared = predictor.prepare(image, item.uri)
        except ImageError as error:
            raise CalibrationError(f"cannot calibrate on {item.uri}: {error}; mend it or leave it out") from error
        truth = labeled.read(item.uri, photo)
        if truth.shape != image.shape[:2]:
            raise CalibrationError(
                f"{labeled.name_of(item.uri)} is {truth.shape[1]}x{truth.shape[0]} px and its image {item.uri} is "
                f"{image.shape[1]}x{image.shape[0]} px; {labeled.size_hint(item.uri, photo)}"
            )
        score_map = predictor.run([prepared])[0]
        size = grid if position else truth.shape
        if position:
            truth = resample_nearest(truth, grid)
        scores = true_scores(score_map, truth, taxonomy)
        return _Scored(score_map.on_host(), (size[0], size[1]), truth, scores)

    with (
        tempfile.TemporaryDirectory(prefix="maskmill-calibrate-") as folder,
        ScoreSpill(Path(folder), grid=grid if position else None) as spill,
        SampleSpill(Path(folder), len(taxonomy.model)) as samples,
    ):
        activation: Activation = "softmax"
        for done, scored in enumerate(ordered_map(score, labeled.items, workers), start=1):
            activation = scored.score_map.activation
            classes = scored.truth.ravel().astype(np.uint16)
            classes[scored.truth.ravel() == taxonomy.ignore_index] = NO_CLASS
            kept = slice(None) if position else classes != NO_CLASS
            spill.append(scored.scores.ravel()[kept], classes[kept])
            samples.append(scored.score_map, scored.size, scored.truth, taxonomy.ignore_index)
            if progress is not None:
                progress(done, num_images)
        spill.finish()
        samples.finish()
        everything = list(range(num_images))
        options: dict[str, Any] = {
            "num_targets": taxonomy.num_targets,
            "num_scored": taxonomy.num_scored,
            "alpha": level,
            "group": group,
            "unit": unit,
            "min_images": min_images,
        }
        final = fit_thresholds(spill, everything, **options)
        if not final.num_pixels.any():
            raise CalibrationError("no pixel of the label maps has a target class; check [labels] in the taxonomy")
        coverage = CoverageReport(taxonomy, activation, num_images)
        fold_of = np.random.default_rng(0).permutation(num_images) % folds
        if num_images >= 2:
            for fold in range(min(folds, num_images)):
                held_out = np.flatnonzero(fold_of == fold).tolist()
                rest = np.flatnonzero(fold_of != fold).tolist()
                coverage.add(fit_thresholds(spill, rest, **options), spill, samples, held_out)
        report = _report(final, coverage, taxonomy, num_images, folds, min_images, group)
        report["source"] = labeled.summary.to_json()
    return Calibration(
        alpha=str(alpha),
        group=group,
        unit=unit,
        rule=rule,
        thresholds=final.values,
        pooled=final.pooled,
        made_with=conditions(predictor, taxonomy),
        report=report,
    )


def true_scores(score_map: ScoreMap, truth: NDArray[Any], taxonomy: Taxonomy) -> NDArray[np.float32]:
    """Compute the nonconformity score of every pixel's true class, (H, W) float32; NaN for ignored pixels.

    ``truth`` (H, W) holds target indices or the ignore index; its shape decides the resolution.
    """
    backend = score_map.backend
    with backend.queue():
        stats = score_map.decode(taxonomy, size=truth.shape, truth=truth, outputs=("true_score",))
        return backend.download(stats.true_score)[0]


def _parse_alpha(alpha: str | float) -> Fraction:
    try:
        level = Fraction(str(alpha))
    except ValueError:
        raise UsageError(f"alpha must be a number above 0 and below 1, got {alpha!r}") from None
    if not 0 < level < 1:
        raise UsageError(f"alpha must be above 0 and below 1, got {alpha}")
    return level


def _report(
    final: Thresholds,
    coverage: CoverageReport,
    taxonomy: Taxonomy,
    num_images: int,
    folds: int,
    min_images: int,
    group: str,
) -> dict[str, Any]:
    held_out = coverage.to_json()
    by_class = []
    for index, name in enumerate(taxonomy.targets):
        row = {
            "class": name,
            "pixels": int(final.num_pixels[index]),
            "images": int(final.num_images[index]),
            "starved": bool(final.starved[index]),
            "held_out": held_out["classes"][index],
        }
        if final.values.ndim == 1:
            row["threshold"] = json_number(final.values[index])
        by_class.append(row)
    report: dict[str, Any] = {
        "num_images": num_images,
        "num_pixels": int(final.num_pixels.sum()),
        "folds": min(folds, num_images) if num_images >= 2 else None,
        "min_images": min_images,
        "overall": held_out["overall"],
        "image_mean_coverage": held_out["image_mean_coverage"],
        "classes": by_class,
    }
    if group == "position":
        report["infinite_positions"] = int(np.isinf(final.values).sum())
    return report
