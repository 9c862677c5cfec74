"""Compute thresholds from labeled images: conformal calibration, with a report of what they do out of sample.

The model runs once per image. Nonconformity scores of the true class are spilled to a temporary file; thresholds are
exact order statistics of them, so memory does not depend on the number of pixels::

    calibration = calibrate(predictor, source, open_labels("labels"), taxonomy, alpha="0.05")
    calibration.save("calibration.json")

Unit ``pixel`` takes the rank ceil((n + 1)(1 - alpha)) among pixels, a heuristic since pixels of one image depend on
each other; ``image`` controls the mean over images of the share of pixels that miss their true class, with the
finite-sample correction over images (conformal risk control, Angelopoulos et al. 2024): a guarantee for a new image
like these.
:mod:`maskmill.engine.calibration.sharing` describes which classes share a threshold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ...errors import CalibrationError, UsageError
from ...kernels.types import Rule
from ..inputs.labeled_source import pair_images
from ..inputs.labels import LabelSource
from ..inputs.sources import Source
from ..model.taxonomy import Taxonomy
from ..predictors.base import Predictor
from .binned import BinnedScores
from .calibration import Calibration, RuleChoice, conditions, fewest_images, json_number, parse_alpha
from .coverage import HeldOut, argmax_rows, coverage_rows, hold_out, hold_out_positions
from .observe import Observations
from .score_counts import UPPER
from .sharing import NEVER, Fallback, Group, Sharing, Unseen, share_thresholds
from .thresholds import SmallSample, Thresholds, Unit, count_classes, fit_thresholds

DEFAULT_GRID = (512, 512)


def calibrate(
    predictor: Predictor,
    source: Source,
    labels: LabelSource,
    taxonomy: Taxonomy,
    *,
    alpha: str | float,
    group: Group | None = None,
    unit: Unit = "pixel",
    rule: RuleChoice = "agree",
    ids: frozenset[str] | None = None,
    min_images: int | None = None,
    fallback: Fallback = "foreground",
    unseen: Unseen = "never",
    on_small_n: SmallSample = "refuse",
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
        Images, and the folder of their label maps (same name, same size). Images without a label map are left out
        and counted.
    alpha
        Error rate to aim for, above 0 and below 1; a string is read literally. With 0.05 the true class is ruled out on
        up to 5 % of the pixels.
    group
        Classes or positions that share a threshold. None: ``class`` for the pixel unit, and ``pooled`` for the image
        unit, whose guarantee then holds for all pixels of an image.
    unit
        ``pixel`` is a heuristic, ``image`` a guarantee for the average over new images.
    rule
        How the prediction set decides the label; recorded for labeling. ``auto`` takes the rule with the best held-out
        mIoU among those whose labels are no less accurate than the top class of every pixel.
    ids
        Names of the images to calibrate on; all if None.
    min_images
        Fewest images for a threshold of a class's own; ceil(1 / alpha) - 1 if None.
    fallback
        Threshold of a class with fewer images: of the pooled ``foreground`` classes, or of all classes (``pooled``).
    unseen
        ``never`` emits no class without a calibration pixel, ``pooled`` gives it the pooled threshold.
    on_small_n
        Treatment of thresholds that the number of images does not allow; see
        :func:`maskmill.engine.calibration.thresholds.fit_thresholds`.
    grid
        (height, width) to which scores are resampled for ``position``.
    workers
        Number of images processed at once.
    progress
        Called with (images done, all images).

    Raises :class:`CalibrationError`, :class:`UsageError` or :class:`TaxonomyError`; an image that cannot be decoded is
    an error here, since leaving it out would change the sample.
    """
    parse_alpha(alpha)
    group = group or ("class" if unit == "pixel" else "pooled")
    for name, value, kind in (
        ("group", group, Group),
        ("unit", unit, Unit),
        ("rule", rule, RuleChoice),
        ("fallback", fallback, Fallback),
        ("unseen", unseen, Unseen),
        ("on_small_n", on_small_n, SmallSample),
    ):
        if value not in (choices := get_args(kind)):
            raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    position = group == "position"
    if position and unit == "image":
        raise UsageError("thresholds per position are for the pixel unit; choose --unit pixel, or another --group")
    labeled = pair_images(source, labels, taxonomy, ids=ids)
    with (
        tempfile.TemporaryDirectory(prefix="maskmill-calibrate-") as folder,
        Observations(Path(folder), taxonomy, grid=grid if position else None) as observations,
    ):
        observations.collect(predictor, source, labeled, workers=workers, progress=progress)
        calibration = fit_calibration(
            observations,
            predictor,
            taxonomy,
            alpha=alpha,
            group=group,
            unit=unit,
            rule=rule,
            min_images=min_images,
            fallback=fallback,
            unseen=unseen,
            on_small_n=on_small_n,
        )
    return replace(calibration, report={**calibration.report, "source": labeled.summary.to_json()})


def fit_calibration(
    observations: Observations,
    predictor: Predictor,
    taxonomy: Taxonomy,
    *,
    alpha: str | float,
    group: Group,
    unit: Unit,
    rule: RuleChoice,
    min_images: int | None = None,
    fallback: Fallback = "foreground",
    unseen: Unseen = "never",
    on_small_n: SmallSample = "refuse",
) -> Calibration:
    """Fit thresholds to collected scores and measure them; the parameters are those of :func:`calibrate`."""
    level, position = parse_alpha(alpha), group == "position"
    min_images = fewest_images(level) if min_images is None else min_images
    total = observations.counts.num_images
    everything = list(range(total))
    num_pixels, num_images = count_classes(observations.spill, everything, taxonomy.num_targets)
    if not num_pixels.any():
        raise CalibrationError("no pixel of the label maps has a target class; check [labels] in the taxonomy")
    sharing = share_thresholds(
        group,
        num_images,
        min_images=min_images,
        background=taxonomy.background,
        counts=observations.counts,
        fallback=fallback,
        unseen=unseen,
    )
    scores = BinnedScores(observations.counts, taxonomy.num_targets)
    final = fit_thresholds(
        observations.spill,
        everything,
        sharing,
        num_scored=taxonomy.num_scored,
        alpha=level,
        unit=unit,
        on_small_n=on_small_n,
        names=taxonomy.targets,
    )
    if group == "shrunk":
        bins = scores.thresholds(sharing, np.ones((1, total)), alpha=level, unit=unit)[0]
        final.values[: taxonomy.num_targets] = np.where(bins >= 0, UPPER[bins], -np.inf)

    def measure(rule: Rule) -> HeldOut | None:
        if total < 2:
            return None
        if position:
            return hold_out_positions(
                observations.spill,
                observations.samples,
                sharing,
                ids=observations.counts.ids,
                num_scored=taxonomy.num_scored,
                alpha=level,
                rule=rule,
                on_small_n=on_small_n,
            )
        return hold_out(scores, observations.samples, sharing, final, alpha=level, unit=unit, rule=rule)

    if rule == "auto":
        rules: tuple[Rule, ...] = get_args(Rule)
        rule, held_out = _best_rule({name: measure(name) for name in rules}, argmax_rows(scores)[0])
    else:
        held_out = measure(rule)
    report = _report(final, held_out, scores, sharing, taxonomy, level, min_images)
    return Calibration(
        alpha=str(alpha),
        group=group,
        unit=unit,
        rule=rule,
        thresholds=final.values,
        pooled=final.pooled,
        min_images=min_images,
        unseen=unseen,
        targets=taxonomy.targets,
        background=taxonomy.background,
        made_with={**conditions(predictor, taxonomy), "batch": predictor.batch},
        counts=observations.counts,
        report={**report, "promise": promise(level, group, unit, total)},
    )


def _best_rule(measured: dict[Rule, HeldOut | None], argmax: dict[str, Any]) -> tuple[Rule, HeldOut | None]:
    """Choose the rule with the best held-out mIoU, among those whose labels are no less accurate than the raw ones."""
    ranked: list[tuple[bool, float, Rule]] = []
    for rule, held_out in measured.items():
        summary = {} if held_out is None else held_out.tally.summary()
        if summary.get("kept"):
            ranked.append((summary["accuracy_kept"] >= argmax["accuracy"], summary["miou_kept"], rule))
    best: Rule = max(ranked, key=lambda entry: entry[:2])[2] if ranked else "agree"
    return best, measured[best]


def promise(alpha: Fraction, group: Group, unit: Unit, num_images: int) -> str:
    """Describe in plain words what the thresholds guarantee, and for which images."""
    share = f"{float(alpha):.3g}"
    if unit == "pixel":
        return (
            "no guarantee: pixels of one image depend on each other, so coverage is measured on held-out images; "
            "choose --unit image for a guarantee"
        )
    who = f"a new image drawn like the {num_images} calibration images; it ends when the images or the model change"
    if group == "pooled":
        return f"on average over new images at most {share} of an image's pixels miss their class, for {who}"
    return (
        f"for each class with a threshold of its own, on average over new images that show it at most {share} of its "
        f"pixels miss it, for {who}; no guarantee for other classes, nor for all pixels of an image together"
    )


def _report(
    final: Thresholds,
    held_out: HeldOut | None,
    scores: BinnedScores,
    sharing: Sharing,
    taxonomy: Taxonomy,
    alpha: Fraction,
    min_images: int,
) -> dict[str, Any]:
    target = 1 - float(alpha)
    rows = [None] * (taxonomy.num_targets + 1) if held_out is None else coverage_rows(held_out, target)
    argmax, argmax_classes = argmax_rows(scores)
    by_class = []
    for index, name in enumerate(taxonomy.targets):
        row: dict[str, Any] = {
            "class": name,
            "pixels": int(final.num_pixels[index]),
            "images": int(final.num_images[index]),
            "threshold_from": sharing.source_name(index, taxonomy.targets),
            "held_out": rows[index],
            "argmax": argmax_classes[index],
        }
        if final.values.ndim == 1:
            row["threshold"] = json_number(final.values[index])
        by_class.append(row)
    report: dict[str, Any] = {
        "num_images": scores.counts.num_images,
        "num_pixels": int(final.num_pixels.sum()),
        "min_images": min_images,
        "overall": rows[-1],
        "labels": None if held_out is None else held_out.tally.summary(sets=2),
        "argmax": argmax,
        "image_mean_coverage": None,
        "classes": by_class,
    }
    if held_out is not None:
        covered, total = held_out.covered.sum(axis=1), held_out.total.sum(axis=1)
        report["image_mean_coverage"] = float((covered[total > 0] / total[total > 0]).mean())
    if sharing.group == "position":
        report["infinite_positions"] = int(np.isposinf(final.values).sum())
    report["warnings"] = _warnings(report, sharing, target)
    return report


def _warnings(report: dict[str, Any], sharing: Sharing, target: float) -> list[str]:
    """List in plain words what a user should look at before labeling."""
    rows = [row for row in report["classes"] if row["held_out"]]
    warnings = []

    def add(names: list[str], text: str) -> None:
        if names:
            warnings.append(f"{', '.join(names)}: {text}")

    add([row["class"] for row in rows if row["held_out"]["missed"]], f"coverage is below {target:g}, interval included")
    add([row["class"] for row in rows if row["held_out"]["kept"] == 0], "no pixel of it keeps a label")
    add(
        [row["class"] for row in rows if row.get("threshold") not in (None, "inf", "-inf") and row["threshold"] >= 1],
        "the threshold is 1 or more, so every prediction set holds it",
    )
    add(
        [row["class"] for row in report["classes"] if row.get("threshold") == "inf"],
        "the threshold is infinite, so every prediction set holds it",
    )
    unseen = [row["class"] for row, source in zip(report["classes"], sharing.group_of, strict=True) if source == NEVER]
    add(unseen, "not in the calibration images, so it is never emitted (--unseen pooled changes that)")
    labels, argmax = report["labels"], report["argmax"]
    if labels and labels["accuracy_kept"] is not None:
        for key, name in (("accuracy", "accuracy"), ("miou", "mIoU")):
            if labels[f"{key}_kept"] < argmax[key]:
                warnings.append(
                    f"the labels of this rule have {name} {labels[f'{key}_kept']:.3f} on held-out images, below "
                    f"{argmax[key]:.3f} of the top class of every pixel; try `maskmill choose`"
                )
    return warnings
