"""Turn figures into the sections of the page; a section without data is None, and the template leaves it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ...calibration.calibration import Calibration
from ...calibration.drift.report import DriftReport
from ...calibration.risk import LabelLosses
from ...labeling.drift import StoredWatch
from ...model.taxonomy import Taxonomy
from ..evaluate import Quality
from . import charts
from .model_view import LARGEST_SET, ModelView
from .overview import Overview

MATRIX_CLASSES = 24
"""Most classes in the confusion matrix; those with the most pixels come first."""
_BINS = 20


def coverage_section(calibration: Calibration) -> dict[str, Any] | None:
    """Compare held-out coverage with its target, per class and for all pixels; None without held-out figures."""
    report = calibration.report
    if not report.get("overall") or not report.get("classes"):
        return None
    target = 1 - float(calibration.level) if calibration.control == "miscoverage" else None
    measured = [
        (index, row, row["held_out"], row["argmax"]) for index, row in enumerate(report["classes"]) if row["held_out"]
    ]
    lows = [(held["interval"] or [held["coverage"]])[0] for _, _, held, _ in measured]
    low = max(0.0, np.floor(min([*lows, 0.9 if target is None else target - 0.05]) * 10) / 10)
    rows = [
        {
            "name": row["class"],
            "index": index,
            "images": row["images"],
            "shared": calibration.group == "class" and row["threshold_from"] in ("foreground", "pooled"),
            "raw_iou": None if raw is None else raw["iou"],
            **_covered(held, target, low),
        }
        for index, row, held, raw in measured
    ]
    total = {
        "name": "all",
        "images": report["num_images"],
        "shared": False,
        "raw_iou": report["argmax"]["miou"],
        **_covered(report["overall"], target, low),
        "iou": (report.get("labels") or {}).get("miou_kept"),
    }
    return {
        "rows": rows,
        "total": total,
        "target": target,
        "low": low,
        "missed": [row["name"] for row in rows if row["missed"]],
        "shared": any(row["shared"] for row in rows),
        "min_images": report.get("min_images"),
        "unseen": [row["class"] for row in report["classes"] if not row["pixels"]],
        "promise": report.get("promise"),
        "warnings": report.get("warnings", []),
        "num_images": report["num_images"],
    }


def _covered(held: Mapping[str, Any], target: float | None, low: float) -> dict[str, Any]:
    missed = bool(held["missed"]) and target is not None
    return {
        "coverage": held["coverage"],
        "interval": held["interval"],
        "missed": missed,
        "set_size": held["mean_set_size"],
        "kept": held["kept"],
        "accuracy": held["accuracy_kept"],
        "iou": held.get("iou_kept"),
        "strip": charts.interval_strip(held["coverage"], held["interval"], target, low, missed=missed),
    }


def risk_section(calibration: Calibration) -> dict[str, Any] | None:
    """Draw the error of labels against their kept share on the calibration images, with the chosen selection."""
    labels = calibration.report.get("labels") or {}
    if not labels.get("kept") or not calibration.counts.num_images:
        return None
    losses = LabelLosses.of_counts(calibration.counts)
    weights = calibration.counts.pixels(len(calibration.targets)).sum(axis=1).astype(float)
    kept_share = (losses.kept * weights[:, None]).sum(axis=0) / weights.sum()
    wrong = (losses.risk * losses.kept * weights[:, None]).sum(axis=0) / weights.sum()
    visible = kept_share > 0.02
    points = list(zip(kept_share[visible].tolist(), (wrong[visible] / kept_share[visible]).tolist(), strict=True))
    mark = (labels["kept"], 1 - labels["accuracy_kept"], f"chosen: {calibration.rule}")
    return {
        "kept": labels["kept"],
        "error": 1 - labels["accuracy_kept"],
        "chart": charts.curve(
            points,
            [mark],
            x_title="share of pixels with a label",
            y_title="wrong labels",
            title="Share of wrong labels against the share of pixels with a label",
        ),
    }


def kept_section(overview: Overview) -> dict[str, Any]:
    """Draw how many images keep which share of their pixels."""
    counts, _ = np.histogram(overview.kept, bins=10, range=(0, 1))
    labels = [f"{10 * index}–{10 * index + 10}" if index % 3 == 0 else "" for index in range(10)]
    return {
        "chart": charts.histogram(counts, labels, "share of an image with a label, in percent", "Images by kept share"),
        "share": overview.kept_share,
        "empty": int((overview.kept == 0).sum()),
    }


def balance_section(
    overview: Overview,
    taxonomy: Taxonomy,
    view: ModelView | None,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """List each class's share of the labels, beside its share before selection and in the calibration's truth."""

    def shares(counts: Any) -> NDArray[np.float64]:
        return np.asarray(counts, float) / max(float(np.sum(counts)), 1)

    kept_shares = shares(overview.counts.sum(axis=0))
    before = None if view is None else shares(view.raw)
    sample = None if view is None else shares(view.kept)
    classes = None if calibration is None else calibration.report.get("classes")
    true = None if classes is None else shares([row["pixels"] for row in classes])
    largest = np.sort(np.max([table for table in (kept_shares, before, sample, true) if table is not None], axis=0))[
        ::-1
    ]
    # one class, usually the background, may dwarf the others; its bars are then cut off
    is_cut = len(largest) > 1 and largest[0] > 3 * largest[1] > 0
    unit = float(largest[int(is_cut)]) or 1.0
    rows = []
    for index, name in enumerate(taxonomy.targets):
        columns = [("kept", kept_shares), ("before", before), ("sample", sample), ("true", true)]
        cells = {
            key: None
            if table is None
            else {"share": float(table[index]), "strip": charts.share_strip(float(table[index]) / unit, key, thin=True)}
            for key, table in columns
        }
        rows.append({"name": name, "images": int((overview.counts[:, index] > 0).sum()), **cells})
    return {
        "rows": rows,
        "before": before is not None,
        "true": true is not None,
        "cut": taxonomy.targets[int(np.argmax(kept_shares))] if is_cut else None,
        "num_sample": 0 if view is None else view.num_images,
    }


def sets_section(view: ModelView | None) -> dict[str, Any] | None:
    """Draw the share of pixels by the size of their prediction set, over the sample; None without thresholds."""
    if view is None or view.set_sizes is None:
        return None
    shares = view.set_sizes / max(int(view.set_sizes.sum()), 1)
    labels = [*(str(size) for size in range(LARGEST_SET)), f"{LARGEST_SET}+"]
    return {
        "chart": charts.histogram(shares, labels, "classes in the prediction set", "Pixels by size of prediction set"),
        "single": float(shares[1]),
        "mean": float((shares * np.arange(LARGEST_SET + 1)).sum()),
        "num_sample": view.num_images,
    }


def plane_section(view: ModelView | None) -> dict[str, Any] | None:
    """Draw the pixels of the sample in PCOS' plane; None without the model."""
    if view is None or not view.plane.any():
        return None
    totals = view.plane.sum(axis=(1, 2))
    return {
        "chart": charts.plane(view.plane, y_top=view.dispersion, title="Pixels by confidence and dispersion"),
        "reliable": float(totals[0] / max(int(totals.sum()), 1)),
        "num_sample": view.num_images,
    }


def truth_section(quality: Quality | None) -> dict[str, Any] | None:
    """Compare the labels with the truth: per class, and as a confusion matrix; None without truth."""
    if quality is None:
        return None
    figures = quality.to_json()
    rows = [
        {
            "name": row["class"],
            "index": index,
            "pixels": row["pixels"],
            "sampling": row["kept"],
            "accuracy": row["accuracy_kept"],
            "recall": row["recall"],
            "iou": row["iou_kept"],
            "strip": charts.share_strip(row["iou_kept"] or 0.0, "kept"),
        }
        for index, row in enumerate(figures["classes"])
        if row["pixels"]
    ]
    order = np.argsort(-quality.confusion.sum(axis=1), kind="stable")
    order = np.sort(order[:MATRIX_CLASSES])
    order = order[quality.confusion[order].sum(axis=1) > 0]
    columns = [*order.tolist(), quality.confusion.shape[1] - 1]
    table = quality.confusion[order][:, columns].astype(float)
    table /= np.maximum(quality.confusion[order].sum(axis=1, keepdims=True), 1)
    names = [quality.targets[index] for index in order]
    return {
        "rows": rows,
        "num_images": quality.num_images,
        "accuracy": figures["accuracy_kept"],
        "miou": figures["miou_kept"],
        "kept": figures["kept"],
        "accuracy_interval": figures.get("accuracy_kept_interval"),
        "miou_interval": figures.get("miou_kept_interval"),
        "matrix": charts.matrix(table, names, [*names, "no label"], "Labels of the pixels of each true class"),
    }


def drift_section(overview: Overview, settings: StoredWatch | None, drift: DriftReport | None) -> dict[str, Any] | None:
    """Compare distances of the store's images and of the calibration images from the latter; None without them."""
    if settings is None or drift is None:
        return None
    own = settings.distance.own
    distances = overview.distance[np.isfinite(overview.distance)]
    both = np.concatenate([distances, own])
    edges = np.linspace(float(both.min()), float(both.max()) + 1e-9, _BINS + 1)
    above, below = (np.histogram(values, bins=edges)[0].astype(float) for values in (distances, own))
    return {
        "alarm": drift.alarm is not None,
        "sentence": drift.sentence(),
        "images": drift.images,
        "level": drift.level,
        "changes": [
            {"statistic": change.statistic, "alarm": change.alarm, "before": change.calibration, "now": change.corpus}
            for change in drift.changes
        ],
        "surroundings": drift.surroundings,
        "chart": charts.mirrored(
            above, below, edges, ("these images", "calibration images"),
            "distance of an image from the calibration images",
            "Distance of these images, and of the calibration images, from the calibration images",
        ),
    }  # fmt: skip


def rejects_section(overview: Overview) -> list[dict[str, Any]]:
    """List rejected inputs by kind, the most frequent kind first, with examples."""
    return [
        {"kind": kind, "count": count, "examples": _examples(overview, kind)}
        for kind, count in overview.rejects.most_common()
    ]


def _examples(overview: Overview, kind: str) -> list[tuple[str, str]]:
    return [(overview.short(uri), message) for uri, message in overview.reject_examples.get(kind, [])]


def speed_section(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Sum the recorded runs: images per second, and the time of each stage; None without a record."""
    if not history:
        return None
    seconds, images = (sum(float(run.get(key, 0)) for run in history) for key in ("seconds", "images"))
    busy: Counter[str] = Counter()
    items: Counter[str] = Counter()
    for stage in (stage for run in history for stage in run["stages"]):
        busy[stage["name"]] += stage["busy"]
        items[stage["name"]] += stage["items"]
    total = sum(busy.values()) or 1.0
    return {
        "runs": len(history),
        "images": int(images),
        "seconds": seconds,
        "rate": images / seconds if seconds else 0.0,
        "stages": [
            {
                "name": name,
                "milliseconds": 1000 * time / max(items[name], 1),
                "share": time / total,
                "strip": charts.share_strip(time / total, "kept"),
            }
            for name, time in busy.items()
        ],
    }


def percent(share: float | None, digits: int = 1) -> Markup:
    """Format a share as percent with a narrow space, "–" for None."""
    if share is None:
        return Markup("–")
    text = f"{100 * share:.{digits}f}"
    if digits and share < 1 and float(text) == 100:
        text = f"{100 - 10**-digits:.{digits}f}"  # 99.97 % must not be shown as 100 %
    return Markup("{}&#8239;%").format(text)
