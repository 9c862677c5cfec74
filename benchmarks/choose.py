"""Quality against kept share of every way to select pixels, on MSRC: rules, groupings and alphas against confidences.

    python benchmarks/choose.py --teacher deeplabv3-257 --splits-file splits.jsonl --json

Each of ten random splits has 92 photos to choose on, and the others to check the choice on. ``curves`` compares
families of selections: the mean over kept shares from .5 to 1 of the best mIoU (and accuracy) among the candidates of a
family that keep at least that share, minus the same for constant confidences; ``new`` with thresholds of the 92 photos
on the others, ``held out`` cross-validated on the 92. ``recommendations`` compares the figures of the chosen selection,
cross-validated on the 92, with those on the others. ``fallbacks`` is the table of fallbacks in
docs/calibration.md: thresholds per class at alpha .05 from the 92 photos, on the others.

``--splits-file`` holds one line per finished split, so that an interrupted run continues.

Teachers: ``deeplabv3-257``, ``coral`` (the stronger float model), ``degraded``, deeplabv3-257 on photos that are
blurred (sigma 5 px) and darkened to 60 %, and ``camvid``, which has no background: softmax regression on blurred colors
and positions, fitted to 100 photos of CamVid (the other 368 are split). The data folder is ``$MASKMILL_DATA``, or
``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from msrc import adopt, find_data

from maskmill.engine.calibration.binned import BinnedScores
from maskmill.engine.calibration.candidates import (
    Candidate,
    Measured,
    default_candidates,
    measure_candidates,
    recommend,
)
from maskmill.engine.calibration.goal import Goal
from maskmill.engine.calibration.scores.observe import Observations
from maskmill.engine.calibration.scores.pixel_samples import PixelSamples
from maskmill.engine.calibration.scores.score_counts import UPPER
from maskmill.engine.calibration.sharing import share_thresholds
from maskmill.engine.calibration.thresholds import fewest_images
from maskmill.engine.inputs.labeled_source import pair_images
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.score_files import ScoreFiles, write_score_bundle
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.export.adopt.semantic import bundle_from_onnx
from maskmill.kernels.processors import usable_processors

TEACHERS = ("deeplabv3-257", "coral", "degraded", "camvid")
GOALS = ("miou", "accuracy 0.97", "kept 0.9")
NUM_CALIBRATION = 92
NUM_CAMVID = 100
"""Photos that the CamVid teacher is fitted to."""
SPLITS = 10
SHARES = np.linspace(0.5, 1.0, 51)
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip


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
    """Run a teacher on all photos, those of its own training left out."""
    if teacher == "camvid":
        photos, truth = link_camvid(data / "camvid", folder)
        predictor, taxonomy = camvid_teacher(photos, truth, folder)
        names = frozenset(path.stem for path in photos[NUM_CAMVID:])
        source, labels = open_source(folder / "photos"), open_labels(folder / "labels")
    else:
        predictor, taxonomy = open_teacher(data, teacher, folder)
        names, source, labels = None, open_source(data / "msrc" / "images"), open_labels(data / "msrc" / "labels")
    labeled = pair_images(source, labels, taxonomy, ids=names)
    observations = Observations(folder, taxonomy)
    observations.collect(predictor, source, labeled, workers=usable_processors())
    return observations


def link_camvid(data: Path, folder: Path) -> tuple[list[Path], list[Path]]:
    """Link all photos and label maps of CamVid into ``folder``; returns both in random order, photo by photo."""
    photos, labels = [], []
    for name, paths in (("photos", photos), ("labels", labels)):
        (folder / name).mkdir()
        for part in ("train", "val"):
            for path in sorted((data / part / ("images" if name == "photos" else "labels")).iterdir()):
                paths.append(folder / name / path.name)
                paths[-1].symlink_to(path)
    order = np.random.default_rng(0).permutation(len(photos))
    return [photos[index] for index in order], [labels[index] for index in order]


def camvid_teacher(photos: list[Path], labels: list[Path], folder: Path) -> tuple[Any, Taxonomy]:
    """Fit softmax regression to the first photos and write the logits of all; returns predictor and taxonomy."""
    classes = list(CAMVID_CLASSES)
    size = (60, 45)

    def features(path: Path) -> np.ndarray:
        image = cv2.imread(str(path)).astype(np.float32) / 255
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        blurred = [small, *(cv2.GaussianBlur(small, (0, 0), sigma) for sigma in (2.0, 6.0))]
        rows, columns = np.mgrid[: size[1], : size[0]] / np.array(size[::-1]).reshape(2, 1, 1)
        place = np.stack([rows, columns, rows**2, columns**2, rows * columns, np.ones_like(rows)], -1)
        colors = np.concatenate(blurred, -1)
        both = np.concatenate([colors, colors**2, colors * rows[..., None], place], -1)
        return both.reshape(-1, both.shape[-1]).astype(np.float32)

    inputs = np.concatenate([features(path) for path in photos[:NUM_CAMVID]])
    truth = [
        cv2.resize(cv2.imread(str(path), 0), size, interpolation=cv2.INTER_NEAREST) for path in labels[:NUM_CAMVID]
    ]
    truth = np.concatenate([values.ravel() for values in truth])
    inputs, truth = inputs[truth < len(classes)], truth[truth < len(classes)]
    mean, spread = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
    mean[-1], spread[-1] = 0.0, 1.0  # the constant
    weights, velocity, rng = np.zeros((inputs.shape[1], len(classes))), 0.0, np.random.default_rng(0)
    for step in range(3000):
        chosen = rng.integers(0, len(inputs), 4096)
        batch = (inputs[chosen] - mean) / spread
        logits = batch @ weights
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[np.arange(len(chosen)), truth[chosen]] -= 1
        velocity = 0.9 * velocity - 0.5 * (1 - step / 3000) * (batch.T @ shares / len(chosen))
        weights = weights + velocity
    (folder / "scores").mkdir()
    for path in photos[NUM_CAMVID:]:
        logits = ((features(path) - mean) / spread) @ weights
        values = logits.reshape(size[1], size[0], len(classes)).transpose(2, 0, 1)
        np.save(folder / "scores" / f"{path.stem}.npy", values.astype(np.float32))
    write_score_bundle(folder / "teacher", scores=folder / "scores", classes=classes, activation="softmax")
    indices = range(len(classes))
    taxonomy = Taxonomy(
        targets=tuple(classes), background=None, model=tuple(indices), labels={**{i: i for i in indices}, 11: -1}
    )
    return ScoreFiles.open(folder / "teacher"), taxonomy


def family(candidate: Candidate) -> str:
    """Name the family of a candidate: its rule, grouping and treatment of unseen classes, or ``confidence``."""
    if candidate.method != "conformal":
        return "confidence"
    unseen = ", unseen confident" if candidate.unseen == "confident" else ""
    fallback = ", pooled fallback" if candidate.fallback == "pooled" else ""
    return f"{candidate.rule}, {candidate.group}{fallback}{unseen}"


def area(points: list[Measured], key: str) -> float:
    """Average over SHARES the best figure among the points that keep at least that share."""
    return float(
        np.mean([max((getattr(p, key) for p in points if p.kept >= share), default=np.nan) for share in SHARES])
    )


def on_others(points: list[Measured], fitted: BinnedScores, samples: PixelSamples, images: Any) -> list[Measured]:
    """Measure candidates with thresholds from the fitted images on other images."""
    taxonomy, num = samples.taxonomy, samples.taxonomy.num_targets
    assert taxonomy.num_scored == num, "no class is dropped"
    pixels, everything, results = samples.read(images), np.ones((1, fitted.counts.num_images)), []
    for point in points:
        candidate, limits = point.candidate, None
        if candidate.method == "threshold":
            limits = np.full(num, 1 - (candidate.confidence or 0), np.float32)
        elif candidate.method == "conformal":
            alpha = Fraction(str(candidate.alpha))
            sharing = share_thresholds(
                candidate.group or "class", (fitted.pixels > 0).sum(axis=0), min_images=fewest_images(alpha),
                background=taxonomy.background, counts=fitted.counts, fallback=candidate.fallback,
                unseen=candidate.unseen,
            )  # fmt: skip
            bins = fitted.thresholds(sharing, everything, alpha=alpha, unit=candidate.unit)[0]
            limits = np.where(bins >= 0, UPPER[bins], -np.inf).astype(np.float32)
        tally = pixels.tally(limits, candidate.rule)
        kept, hits = tally.kept.sum(), tally.hits.sum()
        figures = {"kept": kept / tally.true.sum(), "accuracy": hits / max(kept, 1e-9), "miou": np.nanmean(tally.iou)}
        results.append(replace(point, **{key: float(value) for key, value in figures.items()}))
    return results


def inside(share: float, interval: tuple[float, float] | None) -> bool:
    """Return True if a share lies in its interval."""
    return interval is not None and interval[0] <= share <= interval[1]


def run_split(observations: Observations, seed: int) -> dict[str, Any]:
    """Choose on the photos of one split and check on the others."""
    num = observations.samples.taxonomy.num_targets
    order = np.random.default_rng(seed).permutation(observations.counts.num_images)
    chosen, others = order[:NUM_CALIBRATION], order[NUM_CALIBRATION:]
    scores = BinnedScores(observations.counts.subset(chosen), num)
    points = measure_candidates(scores, observations.samples.subset(chosen), default_candidates())
    seen = on_others(points, scores, observations.samples, others)
    curves: dict[str, dict[str, list[float]]] = {}
    names = [family(point.candidate) for point in points]
    for kind, measured in (("held out", points), ("new", seen)):
        confidence = [point for name, point in zip(names, measured, strict=True) if name == "confidence"]
        for family_name in sorted(set(names)):
            # a family is what a user may fall back from: the top class of every pixel is in all of them
            own = [point for name, point in zip(names, measured, strict=True) if name == family_name] + measured[:1]
            lead = [area(own, key) - area(confidence, key) for key in ("miou", "accuracy")]
            curves.setdefault(family_name, {})[kind] = lead
    checks = {}
    for goal in GOALS:
        choice = recommend(points, Goal.parse(goal))
        best = choice.recommended
        new = seen[points.index(best)]
        checks[goal] = {
            "candidate": str(best.candidate),
            **{
                key: [getattr(best, key), getattr(new, key), getattr(seen[0], key)]
                for key in ("kept", "accuracy", "miou")
            },
            "accuracy_inside": inside(new.accuracy, best.accuracy_interval),
        }
    return {"seed": seed, "curves": curves, "checks": checks}


def fallbacks(observations: Observations) -> dict[str, dict[str, list[float]]]:
    """Measure what the fallback of classes with few photos does: kept mIoU, accuracy and share by rule."""
    num = observations.samples.taxonomy.num_targets
    rows: dict[str, dict[str, list[list[float]]]] = {}
    options: dict[str, dict[str, Any]] = {
        "defaults (--fallback foreground)": {},
        "--fallback pooled": {"fallback": "pooled"},
        "--fallback pooled --unseen pooled": {"fallback": "pooled", "unseen": "pooled"},
        "--unseen confident": {"unseen": "confident"},
        "--group cluster": {"group": "cluster"},
        "--group shrunk": {"group": "shrunk"},
        "--group shrunk --unseen confident": {"group": "shrunk", "unseen": "confident"},
    }
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(observations.counts.num_images)
        fitted = BinnedScores(observations.counts.subset(order[:NUM_CALIBRATION]), num)
        candidates = {("every pixel", "argmax"): Candidate(method="argmax")}
        for name, changes in options.items():
            for rule in ("agree", "foreground"):
                shared = {"method": "conformal", "group": "class", "alpha": "0.05", "rule": rule}
                candidates[name, rule] = Candidate(**(shared | changes))
        blank = {"kept": 0.0, "accuracy": 0.0, "miou": 0.0, "kept_interval": None, "accuracy_interval": None}
        points = [Measured(candidate=candidate, **blank) for candidate in candidates.values()]
        measured = on_others(points, fitted, observations.samples, order[NUM_CALIBRATION:])
        for (name, rule), point in zip(candidates, measured, strict=True):
            rows.setdefault(name, {}).setdefault(rule, []).append([point.miou, point.accuracy, point.kept])
    return {
        name: {rule: np.mean(values, axis=0).round(4).tolist() for rule, values in by_rule.items()}
        for name, by_rule in rows.items()
    }


def summarize(splits: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the splits."""
    curves = {
        name: {
            kind: {
                key: {"mean": round(float(np.mean(column)), 4), "std": round(float(np.std(column)), 4)}
                for key, column in zip(
                    ("miou", "accuracy"), np.array([split["curves"][name][kind] for split in splits]).T, strict=True
                )
            }
            for kind in ("new", "held out")
        }
        for name in splits[0]["curves"]
    }
    goals = {}
    for goal in splits[0]["checks"]:
        checks = [split["checks"][goal] for split in splits]
        goals[goal] = {
            **{
                key: dict(
                    zip(
                        ("cross-validated", "seen", "raw seen"),
                        np.mean([check[key] for check in checks], axis=0).round(4).tolist(),
                        strict=True,
                    )
                )
                for key in ("kept", "accuracy", "miou")
            },
            "accuracy_inside": float(np.mean([check["accuracy_inside"] for check in checks])),
            "chosen": sorted({check["candidate"] for check in checks}),
        }
    return {"curves": curves, "recommendations": goals}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=TEACHERS, default="deeplabv3-257")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--splits-file", type=Path, help="a line per finished split, which is not repeated")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data, started = find_data(), time.perf_counter()
    path = options.splits_file
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    splits = [json.loads(line) for line in lines]
    with tempfile.TemporaryDirectory(prefix="maskmill-choose-") as name:
        observations = observe(data, options.teacher, Path(name))
        for seed in sorted(set(range(options.splits)) - {split["seed"] for split in splits}):
            splits.append(run_split(observations, seed))
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps(splits[-1]) + "\n")
        table = fallbacks(observations)
    report = {
        "benchmark": "choose",
        "command": " ".join(["benchmarks/choose.py", *sys.argv[1:]]),
        "teacher": options.teacher,
        "photos": observations.counts.num_images,
        "splits": len(splits),
        "candidates": len(default_candidates()),
        **summarize(splits),
        "fallbacks": table,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    print(
        f"{options.teacher}: area above constant confidence on new photos (mIoU, accuracy), mean ± deviation of splits"
    )
    for name, figures in sorted(report["curves"].items(), key=lambda item: -item[1]["new"]["miou"]["mean"]):
        miou, accuracy = figures["new"]["miou"], figures["new"]["accuracy"]
        print(f"  {name:36s} {miou['mean']:+.4f} ± {miou['std']:.4f}   {accuracy['mean']:+.4f} ± {accuracy['std']:.4f}")
    for goal, row in report["recommendations"].items():
        for key in ("kept", "accuracy", "miou"):
            print(f"  {goal}: {key} " + ", ".join(f"{name} {value:.3f}" for name, value in row[key].items()))
    for name, rules in table.items():
        print(f"  {name}: " + "; ".join(f"{rule} {' / '.join(f'{v:.3f}' for v in row)}" for rule, row in rules.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
