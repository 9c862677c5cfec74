"""Quality against kept share of every way to select pixels, on MSRC: rules, groupings and alphas against confidences.

    python benchmarks/choose.py --teacher deeplabv3-257 --json

Each of ten random splits has 92 photos to choose on and 204 to check the choice on. ``curves`` is cross-validated on
the 92: the mean over kept shares from .5 to 1 of the best mIoU (and accuracy) among the candidates of a family that
keep at least that share, minus the same for constant confidences. ``recommendations`` compares what the chosen
selection promised on the 92 with what it does on the 204.

Teachers: ``deeplabv3-257``, ``coral`` (the stronger float model), and ``degraded``, deeplabv3-257 on photos that are
blurred (sigma 5 px) and darkened to 60 %. The data folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the
repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from msrc import adopt, find_data

from maskmill.engine.calibration.binned import BinnedScores
from maskmill.engine.calibration.calibration import fewest_images
from maskmill.engine.calibration.candidates import (
    Candidate,
    Goal,
    Measured,
    default_candidates,
    measure_candidates,
    recommend,
)
from maskmill.engine.calibration.scores.observe import Observations
from maskmill.engine.calibration.scores.pixel_samples import PixelSamples
from maskmill.engine.calibration.scores.score_counts import UPPER
from maskmill.engine.calibration.sharing import share_thresholds
from maskmill.engine.inputs.labeled_source import pair_images
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.export.adopt.semantic import bundle_from_onnx
from maskmill.kernels.processors import usable_processors

TEACHERS = ("deeplabv3-257", "coral", "degraded")
GOALS = ("miou", "accuracy 0.97", "kept 0.9")
NUM_CALIBRATION = 92
SHARES = np.linspace(0.5, 1.0, 51)


class DegradedPredictor(SemanticPredictor):
    """A teacher that sees blurred, dark photos."""

    def prepare(self, image: Any, uri: str = "") -> Any:
        """Degrade and prepare one photo."""
        return super().prepare((cv2.GaussianBlur(image, (0, 0), 5.0) * 0.6).astype(np.uint8), uri)


def open_teacher(data: Path, teacher: str, folder: Path) -> tuple[SemanticPredictor, Any]:
    """Adopt a teacher; returns its predictor and the taxonomy."""
    bundle, taxonomy = adopt(data, folder, antialias=True)
    if teacher == "coral":
        bundle = bundle_from_onnx(
            data / "models" / "coral-deeplabv3-pascal" / "model-float.onnx", folder / "coral",
            classes=list(bundle.classes), background="background", layout="NHWC", size=(513, 513), resize="stretch",
            scale=1 / 128, mean=(1.0, 1.0, 1.0),
        )  # fmt: skip
    kind = DegradedPredictor if teacher == "degraded" else SemanticPredictor
    return kind(bundle, OnnxSession(bundle)), taxonomy


def observe(data: Path, teacher: str, folder: Path) -> Observations:
    """Run a teacher on all photos."""
    predictor, taxonomy = open_teacher(data, teacher, folder)
    source = open_source(data / "msrc" / "images")
    labeled = pair_images(source, open_labels(data / "msrc" / "labels"), taxonomy)
    observations = Observations(folder, taxonomy)
    observations.collect(predictor, source, labeled, workers=usable_processors())
    return observations


def family(candidate: Candidate) -> str:
    """Name the family of a candidate: its rule and grouping, or ``confidence``."""
    if candidate.method != "conformal":
        return "confidence"
    return f"{candidate.rule}, {candidate.group}" + (" (pooled fallback)" if candidate.fallback == "pooled" else "")


def area(points: list[Measured], key: str) -> float:
    """Average over SHARES the best figure among the points that keep at least that share."""
    return float(
        np.mean([max((getattr(p, key) for p in points if p.kept >= share), default=np.nan) for share in SHARES])
    )


def on_others(candidate: Candidate, fitted: BinnedScores, samples: PixelSamples, images: Any) -> dict[str, Any]:
    """Measure a candidate with thresholds from the fitted images on other images."""
    taxonomy, num = samples.taxonomy, samples.taxonomy.num_targets
    limits: Any = None
    if candidate.method == "threshold":
        limits = np.full(taxonomy.num_scored, 1 - (candidate.confidence or 0), np.float32)
    elif candidate.method == "conformal":
        alpha = Fraction(str(candidate.alpha))
        sharing = share_thresholds(
            candidate.group or "class", (fitted.pixels > 0).sum(axis=0), min_images=fewest_images(alpha),
            background=taxonomy.background, counts=fitted.counts, fallback=candidate.fallback,
        )  # fmt: skip
        bins = fitted.thresholds(sharing, np.ones((1, fitted.counts.num_images)), alpha=alpha, unit=candidate.unit)[0]
        limits = np.where(bins >= 0, UPPER[bins], -np.inf).astype(np.float32)
        assert taxonomy.num_scored == num, "no class is dropped"
    return samples.tally(images, limits, candidate.rule).summary()


def inside(share: float, interval: tuple[float, float] | None) -> bool:
    """Return True if a share lies in its interval."""
    return interval is not None and interval[0] <= share <= interval[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=TEACHERS, default="deeplabv3-257")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data, started = find_data(), time.perf_counter()
    curves: dict[str, list[list[float]]] = {}
    checks: dict[str, list[dict[str, Any]]] = {goal: [] for goal in GOALS}
    with tempfile.TemporaryDirectory(prefix="maskmill-choose-") as name:
        observations = observe(data, options.teacher, Path(name))
        num_photos = observations.counts.num_images
        for seed in range(options.splits):
            order = np.random.default_rng(seed).permutation(num_photos)
            chosen, others = order[:NUM_CALIBRATION], order[NUM_CALIBRATION:]
            scores = BinnedScores(observations.counts.subset(chosen), observations.samples.taxonomy.num_targets)
            samples = observations.samples.subset(chosen)
            points = measure_candidates(scores, samples, default_candidates())
            confidence = [point for point in points if family(point.candidate) == "confidence"]
            for name in sorted({family(point.candidate) for point in points}):
                # a family is what a user may fall back from: the top class of every pixel is in all of them
                own = [point for point in points if family(point.candidate) == name] + points[:1]
                curves.setdefault(name, []).append(
                    [area(own, key) - area(confidence, key) for key in ("miou", "accuracy")]
                )
            for goal in GOALS:
                best = recommend(points, Goal.parse(goal)).recommended
                seen = on_others(best.candidate, scores, observations.samples, others)
                raw = on_others(points[0].candidate, scores, observations.samples, others)
                checks[goal].append({
                    "candidate": str(best.candidate),
                    "promised": {"kept": best.kept, "accuracy": best.accuracy, "miou": best.miou},
                    "seen": {
                        "kept": seen["kept"], "accuracy": seen["accuracy_kept"], "miou": seen["miou_kept"],
                        "raw_accuracy": raw["accuracy_kept"], "raw_miou": raw["miou_kept"],
                    },
                    "accuracy_inside": inside(seen["accuracy_kept"], best.accuracy_interval),
                })  # fmt: skip
    report = {
        "benchmark": "choose",
        "command": " ".join(["benchmarks/choose.py", *sys.argv[1:]]),
        "teacher": options.teacher,
        "splits": options.splits,
        "curves": {
            name: {
                key: {"mean": float(np.mean(column)), "std": float(np.std(column))}
                for key, column in zip(("miou", "accuracy"), np.array(rows).T, strict=True)
            }
            for name, rows in curves.items()
        },
        "recommendations": {
            goal: {
                "promised": {
                    key: float(np.mean([row["promised"][key] for row in rows])) for key in rows[0]["promised"]
                },
                "seen": {key: float(np.mean([row["seen"][key] for row in rows])) for key in rows[0]["seen"]},
                "accuracy_inside": float(np.mean([row["accuracy_inside"] for row in rows])),
                "chosen": sorted({row["candidate"] for row in rows}),
            }
            for goal, rows in checks.items()
        },
        "seconds": time.perf_counter() - started,
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"{options.teacher}: area above constant confidence (mIoU, accuracy), mean ± standard deviation over splits")
    for name, figures in sorted(report["curves"].items(), key=lambda item: -item[1]["miou"]["mean"]):
        miou, accuracy = figures["miou"], figures["accuracy"]
        print(f"  {name:22s} {miou['mean']:+.4f} ± {miou['std']:.4f}   {accuracy['mean']:+.4f} ± {accuracy['std']:.4f}")
    for goal, row in report["recommendations"].items():
        pairs = ", ".join(f"{key} {row['promised'][key]:.3f} → {row['seen'][key]:.3f}" for key in row["promised"])
        print(
            f"  {goal}: promised → seen {pairs}; raw accuracy {row['seen']['raw_accuracy']:.3f}, "
            f"mIoU {row['seen']['raw_miou']:.3f}; accuracy inside its interval {row['accuracy_inside']:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
