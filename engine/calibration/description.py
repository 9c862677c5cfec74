"""Describe a calibration: per-class figures, warnings, and the promise in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ...checks import name_list
from ..model.taxonomy import Taxonomy
from .binned import BinnedScores
from .calibration_file import Control, json_number
from .coverage import HeldOut, argmax_rows, coverage_rows
from .scores.pixel_samples import Tally
from .scores.score_counts import ScoreCounts
from .sharing import NEVER, Group, Sharing
from .thresholds import Thresholds, Unit

_OPTIONS: Mapping[str, str] = {
    "batch": "--batch",
    "bit_depth": "--bit-depth",
    "overlap": "--overlap",
    "tile": "--tile",
    "windows": "--windows",
}
"""Options that state a condition of a calibration."""


def promise(
    alpha: Fraction,
    group: Group,
    unit: Unit,
    num_images: int,
    control: Control = "miscoverage",
    delta: str | None = None,
    *,
    scenes: bool = False,
) -> str:
    """Describe the guarantee of the thresholds, and for which images; all windows of a scene count as one."""
    share = f"{float(alpha):.3g}"
    images = "calibration images (all windows of a file count as one)" if scenes else "calibration images"
    who = f"a new image drawn like the {num_images} {images}; it no longer holds if the images or the model change"
    if control == "false-label-rate":
        if delta is not None:
            return (
                f"except with probability {delta}, on average over new images at most {share} of an image's labeled "
                f"pixels are wrong (0 for an image without labels), for {who}"
            )
        return (
            f"on average over new images at most {share} of an image's labeled pixels are wrong (0 for an image "
            f"without labels), for {who}"
        )
    if control == "miss-rate":
        return (
            f"for each class, on average over new images that show it at most {share} of its pixels (or the rate that "
            f"the report gives for the class) are not labeled as it, for {who}"
        )
    if unit == "pixel":
        return (
            "no guarantee: pixels of one image depend on each other, so coverage is measured on held-out images; "
            "choose --unit image for a guarantee"
        )
    if group == "pooled":
        return (
            f"on average over new images at most {share} of an image's pixels have a prediction set without their "
            f"class, for {who}"
        )
    return (
        f"for each class with a threshold of its own, on average over new images that show it at most {share} "
        f"of its pixels have a prediction set without it, for {who}; no guarantee for other classes, nor for "
        "all pixels of an image together"
    )


def scenes_note(counts: ScoreCounts) -> str | None:
    """Describe in plain words how windows of files count; None if no image is a window."""
    num_files = len(set(counts.scenes) - {""})
    if not num_files:
        return None
    text = (
        f"{sum(map(bool, counts.scenes))} windows of {num_files} file{'s' * (num_files > 1)}: each file counts as one "
        "image, since its windows resemble each other"
    )
    return f"{text}; nothing is held out, because there is only one file" if counts.num_draws == 1 else text


def describe(
    final: Thresholds,
    held_out: HeldOut | None,
    scores: BinnedScores,
    sharing: Sharing,
    taxonomy: Taxonomy,
    alpha: Fraction,
    min_images: int,
    raw: Tally,
    control: Control = "miscoverage",
) -> dict[str, Any]:
    """Report every class and all pixels, with warnings; ``held_out`` is None for a single image.

    ``raw`` counts the labels without a selection.
    """
    target = 1 - float(alpha) if control == "miscoverage" else 0.0
    rows = [None] * (taxonomy.num_targets + 1) if held_out is None else coverage_rows(held_out, target)
    argmax, argmax_classes = argmax_rows(raw)
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


def _precision(held_out: dict[str, Any]) -> float | None:
    """Return the share of the pixels labeled as a class that truly belong to it, from its IoU and accuracy."""
    iou, recall = held_out["iou_kept"], held_out["accuracy_kept"]
    return 1 / (1 + 1 / iou - 1 / recall) if iou and recall else None


def _warnings(report: dict[str, Any], sharing: Sharing, target: float) -> list[str]:
    """List in plain words what a user should look at before labeling."""
    rows = [row for row in report["classes"] if row["held_out"]]
    warnings = []

    def add(names: list[str], text: str) -> None:
        if names:
            warnings.append(f"{name_list(names)}: {text}")

    add(
        [row["class"] for row in rows if row["held_out"]["missed"]],
        f"coverage is below {target:g} by more than its interval",
    )
    add([row["class"] for row in rows if row["held_out"]["kept"] == 0], "none of its pixels keeps a label")
    add(
        [row["class"] for row in rows if row.get("threshold") not in (None, "inf", "-inf") and row["threshold"] >= 1],
        "the threshold is 1 or more, so every prediction set holds it",
    )
    add(
        [row["class"] for row in report["classes"] if row.get("threshold") == "inf"],
        "the threshold is infinite, so every prediction set holds it",
    )
    unseen = [row["class"] for row, source in zip(report["classes"], sharing.group_of, strict=True) if source == NEVER]
    add(
        unseen,
        "not in the calibration images, so it is never emitted (--unseen confident and --unseen pooled change that)",
    )
    low = [(row["class"], share) for row in rows if (share := _precision(row["held_out"])) is not None and share < 0.5]
    add(
        [f"{name} ({share:.2f})" for name, share in low],
        "fewer than half of the pixels with this label are of this class (share in parentheses): the model "
        "confidently takes other things for it, which no threshold on its scores can detect",
    )
    labels, argmax = report["labels"], report["argmax"]
    if labels and labels["accuracy_kept"] is not None:
        for key, name in (("accuracy", "accuracy"), ("miou", "mIoU")):
            if labels[f"{key}_kept"] < argmax[key]:
                warnings.append(
                    f"the labels of this rule have {name} {labels[f'{key}_kept']:.3f} on held-out images, below "
                    f"{argmax[key]:.3f} of the top class of every pixel; try `maskmill choose`"
                )
    return warnings


def remedy_of(conditions: Sequence[str]) -> str:
    """Return advice for a user whose calibration and labeling differ in these conditions."""
    again = "calibrate again under these conditions"
    if not set(conditions) <= set(_OPTIONS):
        return again
    return f"give the same {' and '.join(_OPTIONS[name] for name in conditions)} as for the calibration, or {again}"
