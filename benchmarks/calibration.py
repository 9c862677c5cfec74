"""Guarantees of a calibration compared with new photos of MSRC: intervals of coverage, and rates per image.

    python benchmarks/calibration.py --teacher deeplabv3-257 --json

Each of 200 random splits has 92 photos to calibrate on and 204 new ones. ``coverage`` counts how often the coverage
measured on the new photos lies in the interval that the report gives, for pixel and image units, pooled thresholds and
per class; classes are grouped by the number of calibration photos that show them. ``rates`` is, for each ``--control``
with the unit image, the mean over splits of the controlled risk of a new image with its 95 % interval (1.96 standard
errors over splits), the kept share of the rule ``argmax``, and the share of images with less than 1 % kept:
``miscoverage`` (pooled), ``false-label-rate`` by conformal risk control and by Learn then Test with delta .1, and
``miss-rate`` (the mean over classes, with the rate that their few photos allow). ``shifted`` repeats the rates with new
photos that are blurred and darkened, for which nothing is promised.

The data folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from choose import NUM_CALIBRATION, TEACHERS, observe
from msrc import find_data

from maskmill.engine.calibration.binned import BinnedScores
from maskmill.engine.calibration.intervals import column_variance, image_weights, share_interval
from maskmill.engine.calibration.risk import LabelLosses, accept_false_labels, control_false_labels, control_misses
from maskmill.engine.calibration.scores.score_counts import ScoreCounts
from maskmill.engine.calibration.sharing import Group, Sharing, share_thresholds
from maskmill.engine.calibration.thresholds import Unit


def intervals(
    fitted: BinnedScores, new: BinnedScores, sharing: Sharing, alpha: float, unit: Unit
) -> list[tuple[str, bool, float, float]]:
    """Return (kind of class, inside, reported, measured) for every class that both sets show, and for all pixels."""
    num, total = fitted.counts.num_images, fitted.pixels
    options: dict[str, Any] = {"alpha": alpha, "unit": unit, "match_level": True}
    full = fitted.thresholds(sharing, np.ones((1, num)), **options)
    others = fitted.thresholds(sharing, 1 - np.eye(num), **options)
    reported, pixels = fitted.held_out(others, np.arange(num)).sum(axis=0), total.sum(axis=0)
    draws, again = image_weights(num), image_weights(num, seed=1)
    covered, drawn = fitted.coverage(fitted.thresholds(sharing, draws, **options), again), again @ total
    variance = column_variance(
        np.column_stack([covered, covered.sum(axis=1)]), np.column_stack([drawn, drawn.sum(axis=1)])
    )
    measured = new.coverage(full, np.ones((1, new.counts.num_images)))[0]
    truth = new.pixels.sum(axis=0)
    rows = []
    for target in range(len(pixels) + 1):
        everything = target == len(pixels)
        images = num if everything else int((total[:, target] > 0).sum())
        counts = [np.sum(table) if everything else table[target] for table in (reported, pixels, measured, truth)]
        if counts[3] == 0 or (not everything and sharing.group_of[target] < -2):
            continue
        share, seen = counts[0] / counts[1], counts[2] / counts[3]
        interval = share_interval(float(share), float(variance[target]), images, rare_misses=True)
        if interval is None:
            continue
        low, high = interval
        kind = "all" if everything else "background" if target == sharing.background else f"{_bucket(images)} photos"
        rows.append((kind, bool(low <= seen <= high), float(share), float(seen)))
    return rows


def _bucket(images: int) -> str:
    return "5-9" if images < 10 else "10 or more"


def rates(counts: ScoreCounts, splits: list[Any], alpha: float, shifted: ScoreCounts | None) -> dict[str, Any]:
    """Measure the controls per image over all splits."""
    losses = LabelLosses.of_counts(counts)
    others = LabelLosses.of_counts(shifted) if shifted is not None else losses
    figures: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    misses = []
    new_counts = shifted if shifted is not None else counts
    for fitted, new in splits:
        sample = LabelLosses(risk=losses.risk[fitted], kept=losses.kept[fitted])
        calibration, subset = counts.subset(fitted), new_counts.subset(new)
        binned, num_targets = BinnedScores(calibration, 1 + int(counts.target.max())), 1 + int(counts.target.max())
        images = (binned.pixels > 0).sum(axis=0)
        sharing = share_thresholds("pooled", images, min_images=1, background=None, unseen="pooled")
        pooled = int(binned.thresholds(sharing, np.ones((1, len(fitted))), alpha=alpha, unit="image")[0, 0])
        others_binned = BinnedScores(subset, num_targets)
        covered = others_binned.held_out(np.full((1, num_targets), pooled), np.zeros(len(new), np.int64)).sum(axis=1)
        missed = 1 - covered / np.maximum(others_binned.pixels.sum(axis=1), 1)
        kept = others.kept[new, pooled]
        figures["miscoverage"].append((missed.mean(), kept.mean(), (kept < 0.01).mean(), missed[kept >= 0.01].mean()))
        chosen = {
            "risk control": int(control_false_labels(sample, np.ones((1, len(fitted))), alpha)[0]),
            "learn then test": accept_false_labels(sample, alpha, 0.1),
        }
        for name, index in chosen.items():
            risk = others.risk[new, index] if index >= 0 else np.zeros(len(new))
            kept = others.kept[new, index] if index >= 0 else np.zeros(len(new))
            labeled = kept >= 0.01
            figures[name].append(
                (risk.mean(), kept.mean(), 1 - labeled.mean(), risk[labeled].mean() if labeled.any() else np.nan)
            )
        for target in np.unique(calibration.target[calibration.true.sum(axis=1) > 0]).tolist():
            (index,), (rate,) = control_misses(calibration, target, np.ones((1, len(fitted))), alpha)
            rows = np.flatnonzero((subset.target == target) & (subset.true.sum(axis=1) > 0))
            if len(rows):
                hits = subset.hits[rows, : index + 1].sum(axis=1) / subset.true[rows].sum(axis=1)
                misses.append((rate, 1 - hits.mean(), len(rows)))
    result: dict[str, Any] = {}
    for name, values in figures.items():
        table = np.array(values)
        result[name] = {
            "risk": table[:, 0].mean(), "risk_half_interval": 1.96 * table[:, 0].std() / np.sqrt(len(table)),
            "kept": table[:, 1].mean(), "empty_images": table[:, 2].mean(),
            "risk_of_labeled_images": np.nanmean(table[:, 3]), "share_above_alpha": (table[:, 0] > alpha).mean(),
        }  # fmt: skip
    table = np.array(misses)
    result["miss-rate"] = {
        "guaranteed": np.average(table[:, 0], weights=table[:, 2]),
        "seen": np.average(table[:, 1], weights=table[:, 2]),
        "classes_at_alpha": (table[:, 0] <= alpha + 1e-9).mean(),
    }
    return {name: {key: round(float(value), 4) for key, value in row.items()} for name, row in result.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=TEACHERS, default="deeplabv3-257")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--part", choices=("both", "coverage", "rates"), default="both")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data, started = find_data(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="maskmill-calibration-") as name:
        folder = Path(name)
        (folder / "plain").mkdir()
        observations = observe(data, options.teacher, folder / "plain")
        taxonomy, counts = observations.samples.taxonomy, observations.counts
        shifted = None
        if options.teacher == "deeplabv3-257" and options.part != "coverage":
            (folder / "shifted").mkdir()
            shifted = observe(data, "degraded", folder / "shifted").counts
    orders = [np.random.default_rng(10_000 + seed).permutation(counts.num_images) for seed in range(options.splits)]
    splits = [(order[:NUM_CALIBRATION], order[NUM_CALIBRATION:]) for order in orders]
    inside: dict[str, list[tuple[bool, float, float]]] = defaultdict(list)
    groups: tuple[Group, ...] = ("pooled", "class")
    units: tuple[Unit, ...] = ("pixel", "image")
    for fitted, new in splits[: max(1, options.splits // 4) if options.part != "rates" else 0]:
        sets = [BinnedScores(counts.subset(images), taxonomy.num_targets) for images in (fitted, new)]
        for group in groups:
            sharing = share_thresholds(
                group, (sets[0].pixels > 0).sum(axis=0), min_images=round(1 / options.alpha) - 1,
                background=taxonomy.background, counts=sets[0].counts,
            )  # fmt: skip
            for unit in units:
                for kind, hit, share, seen in intervals(sets[0], sets[1], sharing, options.alpha, unit):
                    inside[f"{unit}, {group}, {kind}"].append((hit, share, seen))
    report = {
        "benchmark": "calibration",
        "command": " ".join(["benchmarks/calibration.py", *sys.argv[1:]]),
        "teacher": options.teacher,
        "alpha": options.alpha,
        "splits": {"rates": options.splits, "coverage": max(1, options.splits // 4)},
        "coverage": {
            key: {
                "cases": len(rows),
                "inside": round(float(np.mean([row[0] for row in rows])), 3),
                "reported": round(float(np.mean([row[1] for row in rows])), 4),
                "measured": round(float(np.mean([row[2] for row in rows])), 4),
            }
            for key, rows in sorted(inside.items())
        },
        "rates": {} if options.part == "coverage" else rates(counts, splits, options.alpha, None),
        "shifted": {} if shifted is None else rates(counts, splits, options.alpha, shifted),
        "seconds": round(time.perf_counter() - started, 1),
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    for key, row in report["coverage"].items():
        print(f"{key:40s} {row['cases']:5d} cases, reported {row['reported']:.3f}, measured {row['measured']:.3f}, "
              f"{row['inside']:.2f} inside the 95 % interval")  # fmt: skip
    for title in ("rates", "shifted"):
        for name, row in (report[title] or {}).items():
            print(f"{title}, {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
