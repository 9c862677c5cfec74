"""Quality of selected labels on MSRC, over ten random splits: 92 photos calibrate, 204 are scored.

    python benchmarks/msrc.py --resolution half            # the published table's recipe, to within .003
    python benchmarks/msrc.py --resolution full --json     # through the product, to within .02

The model is DeepLabv3 (MobileNetV2, 257 px) with its 21 VOC classes; MSRC's classes of the same name are mapped to
them, faces and bodies to person, everything else to background. ``kept`` is the share of pixels with a true class that
get a label; IoU and accuracy are over kept pixels.

``half`` follows the recipe of the published figures: logits resized by OpenCV to half the photo's size, softmax
probabilities rounded to 16 bits, labels by nearest neighbor, rules in plain NumPy. ``full`` is what ``calibrate``,
``label`` and ``evaluate`` do at the photo's own size; the model runs once per photo and its outputs are
kept on disk for the ten splits, and split 0 is repeated through ``calibrate``, a label store and ``evaluate`` to show
the same counts.

The two differ little, mostly because the half-size truth takes every second pixel, half a pixel off the logits' grid:
aligned, ``agree`` at alpha .05 keeps .807 instead of .804. How photos are shrunk for the model matters more: the
published figures are OpenCV's bilinear resize without antialiasing; with ``--antialias`` (the product's default) the
rows ``single`` and ``agree`` of the per-class thresholds keep about .02 more at the same accuracy.

The data folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.scores.observe import true_scores
from maskmill.engine.calibration.scores.score_spill import NO_CLASS, ScoreSpill
from maskmill.engine.calibration.sharing import share_thresholds
from maskmill.engine.calibration.thresholds import count_classes, fit_thresholds
from maskmill.engine.inputs.images import decode_image
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.ordered_map import ordered_map
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.files import read_class_names
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.base import ScoreMap
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.report.evaluate import Quality, confusion, evaluate_store
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.export.adopt.semantic import bundle_from_onnx
from maskmill.kernels.processors import usable_processors

NUM_SPLITS, NUM_CALIBRATION = 10, 92
TOLERANCE = {"half": 0.003, "full": 0.02}


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to select labels."""

    name: str
    published: tuple[float, float, float] | None
    """miou_kept, accuracy_kept and kept at half resolution; None if they were not published."""
    confidence: float | None = None
    group: str | None = None
    rule: str = "argmax"
    """A rule of the product, or ``best``: the most probable member of the set, foreground or not."""
    alpha: str | None = None
    min_images: int = 1
    """The published thresholds fall back to the pooled one only for a class that was not seen at all."""


def table() -> list[Row]:
    rows = [
        Row("plain argmax", (0.628, 0.912, 1.000)),
        Row("confidence >= .7", (0.660, 0.934, 0.949), confidence=0.7),
        Row("confidence >= .9", (0.688, 0.961, 0.875), confidence=0.9),
    ]
    published = {
        ("pooled", "argmax"): ((0.628, 0.912, 1.000), (0.652, 0.926, 0.966)),
        ("pooled", "foreground"): ((0.678, 0.912, 1.000), (0.654, 0.926, 0.966)),
        ("pooled", "single"): ((0.664, 0.944, 0.921), (0.653, 0.928, 0.963)),
        # Published as "argmax in set"; its kept share is that of "foreground preferred", so every non-empty set got
        # a label there: its most probable member.
        ("class", "best"): ((0.674, 0.913, 0.995), (0.702, 0.934, 0.943)),
        ("class", "argmax"): (None, None),
        ("class", "foreground"): ((0.635, 0.851, 0.995), (0.675, 0.894, 0.943)),
        ("class", "single"): ((0.795, 0.948, 0.834), (0.739, 0.945, 0.866)),
        ("class", "agree"): ((0.810, 0.964, 0.804), (0.800, 0.965, 0.815)),
    }
    for (group, rule), figures in published.items():
        for alpha, known in zip(("0.05", "0.10"), figures, strict=True):
            rows.append(Row(f"conformal, {group}, {rule}, alpha {alpha}", known, group=group, rule=rule, alpha=alpha))
    for alpha in ("0.05", "0.10"):
        name = f"conformal, class, agree, alpha {alpha}, starved classes pooled"
        rows.append(Row(name, None, group="class", rule="agree", alpha=alpha, min_images=fewest_images(alpha)))
    return rows


def fewest_images(alpha: str) -> int:
    """Return the product's default: ceil(1 / alpha) - 1."""
    level = Fraction(alpha)
    return -(-level.denominator // level.numerator) - 1


def find_data() -> Path:
    data = Path(os.environ.get("MASKMILL_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    missing = [
        name for name in ("msrc/images", "msrc/labels", "models/deeplabv3-257/model.onnx") if not (data / name).exists()
    ]
    if missing:
        sys.exit(f"the benchmark needs {', '.join(missing)} in {data}; set MASKMILL_DATA to the data folder")
    return data


def adopt(data: Path, folder: Path, antialias: bool):
    """Return the bundle, and the taxonomy from MSRC's labels to the model's classes."""
    model = data / "models" / "deeplabv3-257"
    spelling = {"biyclce": "bicycle"}  # in the class list of the public model
    classes = [spelling.get(name, name) for name in read_class_names(model / "labels.txt").values()]
    bundle = bundle_from_onnx(
        model / "model.onnx",
        folder / "deeplabv3",
        classes=classes,
        background="background",
        layout="NHWC",
        size=(257, 257),
        resize="stretch",
        antialias=antialias,
        scale=1 / 127.5,
        mean=(1.0, 1.0, 1.0),
    )
    labels = {}
    for index, name in read_class_names(data / "msrc" / "classes.txt").items():
        target = {"face": "person", "body": "person"}.get(name, name)
        labels[index] = -1 if name == "void" else classes.index(target) if target in classes else 0
    return bundle, dataclasses.replace(Taxonomy.of_model(bundle), labels=labels, assumed=False)


@dataclasses.dataclass(frozen=True)
class FullPhoto:
    """One photo at its own size, decoded by the product."""

    score_map: ScoreMap
    truth: np.ndarray
    """(H, W) target indices."""

    def true_scores(self, taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray]:
        """Nonconformity scores and classes of the pixels with a true class."""
        valid = self.truth != taxonomy.ignore_index
        return true_scores(self.score_map, self.truth, taxonomy)[valid], self.truth[valid]

    def label(self, row: Row, thresholds: np.ndarray | None, taxonomy: Taxonomy) -> np.ndarray:
        """The row's labels, in the shape of ``truth``."""
        if row.confidence is not None:
            selection = Selection.threshold(row.confidence)
        elif thresholds is None:
            selection = Selection()
        elif row.rule == "best":
            taxonomy = dataclasses.replace(taxonomy, background=None)
            selection = Selection(method="conformal", rule="foreground", thresholds=thresholds)
        else:
            selection = Selection(method="conformal", rule=row.rule, thresholds=thresholds)
        return select(self.score_map, taxonomy, selection).label


@dataclasses.dataclass(frozen=True)
class HalfPhoto:
    """One photo by the published recipe, in plain NumPy: only the pixels with a true class, flat."""

    scores: np.ndarray
    """(M, K) float32: one minus the probability, which was rounded to 16 bits."""
    truth: np.ndarray
    """(M,) target indices."""

    @classmethod
    def of_logits(cls, logits: np.ndarray, truth: np.ndarray, taxonomy: Taxonomy) -> HalfPhoto:
        """Make a photo from the model's (h, w, K) output and the (H, W) truth at the photo's size."""
        height, width = truth.shape[0] // 2, truth.shape[1] // 2
        values = cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)
        truth = cv2.resize(truth, (width, height), interpolation=cv2.INTER_NEAREST)
        exponentials = np.exp(values - values.max(axis=2, keepdims=True))
        probabilities = (exponentials / exponentials.sum(axis=2, keepdims=True)).astype(np.float16)
        valid = truth != taxonomy.ignore_index
        return cls(1 - probabilities[valid].astype(np.float32), truth[valid])

    def true_scores(self, taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray]:
        """Nonconformity scores and classes of the pixels with a true class."""
        return self.scores[np.arange(len(self.truth)), self.truth], self.truth

    def label(self, row: Row, thresholds: np.ndarray | None, taxonomy: Taxonomy) -> np.ndarray:
        """The row's labels, in the shape of ``truth``."""
        ignore, top = taxonomy.ignore_index, self.scores.argmin(axis=1)
        if thresholds is None:
            level = 1.0 if row.confidence is None else 1 - row.confidence
            return np.where(self.scores.min(axis=1) <= np.float32(level), top, ignore)
        members = self.scores <= thresholds
        best = np.where(members, self.scores, 2).argmin(axis=1)
        size = members.sum(axis=1)
        if row.rule == "foreground":
            foreground = np.where(members[:, 1:], self.scores[:, 1:], 2).argmin(axis=1) + 1
            best = np.where(members[:, 1:].any(axis=1), foreground, 0)
        kept = {
            "argmax": size.astype(bool) & (best == top),
            "best": size > 0,
            "foreground": size > 0,
            "single": size == 1,
            "agree": (size == 1) & (best == top),
        }[row.rule]
        return np.where(kept, best, ignore)


def predict_all(predictor, taxonomy: Taxonomy, photos: list[Path], labels: LabelFolder, resolution: str, folder: Path):
    """Return every photo, ready for selection; full-size logits are kept in a file."""
    cache = None

    def predict(photo: Path):
        entry = labels.find(photo.name)
        truth = taxonomy.encode(labels.read(entry), entry.name)
        score_map = predictor.predict(decode_image(photo.read_bytes()))
        if resolution == "half":
            return HalfPhoto.of_logits(score_map.scores, truth, taxonomy)
        return FullPhoto(score_map, truth)

    found = []
    for index, photo in enumerate(ordered_map(predict, photos, usable_processors())):
        if isinstance(photo, FullPhoto):
            scores = photo.score_map.scores
            if cache is None:
                cache = np.memmap(folder / "scores", scores.dtype, mode="w+", shape=(len(photos), *scores.shape))
            cache[index] = scores
            photo = FullPhoto(dataclasses.replace(photo.score_map, scores=cache[index]), photo.truth)
        found.append(photo)
    return found


def thresholds_of(samples, taxonomy: Taxonomy, rows: list[Row], splits, folder: Path):
    """Compute thresholds of every conformal (group, alpha, min_images) and split, and held-out class coverage."""
    spill = ScoreSpill(folder)
    for sample in samples:
        spill.append(*sample.true_scores(taxonomy))
    spill.finish()
    found, coverage = {}, {}
    for group, alpha, min_images in sorted({(row.group, row.alpha, row.min_images) for row in rows if row.group}):
        shares = np.full((len(splits), taxonomy.num_targets), np.nan)
        for index, (calibration, scored) in enumerate(splits):
            images = calibration.tolist()
            sharing = share_thresholds(
                group,
                count_classes(spill, images, taxonomy.num_targets)[1],
                min_images=min_images,
                background=taxonomy.background,
                fallback="pooled",
                unseen="pooled",
            )
            fitted = fit_thresholds(
                spill, images, sharing, num_scored=taxonomy.num_scored, alpha=Fraction(alpha), unit="pixel",
                on_small_n="inf",
            )  # fmt: skip
            found[group, alpha, min_images, index] = fitted.values
            covered = total = np.zeros(NO_CLASS + 1)
            for scores, classes in spill.images(scored.tolist()):
                inside = scores <= fitted.values[classes]
                covered = covered + np.bincount(classes, inside, minlength=NO_CLASS + 1)
                total = total + np.bincount(classes, minlength=NO_CLASS + 1)
            with np.errstate(invalid="ignore"):
                shares[index] = (covered / total)[: taxonomy.num_targets]
        if min_images == 1:
            coverage[f"{group}, alpha {alpha}"] = {
                name: float(np.nanmean(shares[:, target]))
                for target, name in enumerate(taxonomy.targets)
                if not np.isnan(shares[:, target]).all()
            }
    return found, coverage


def score_rows(samples, taxonomy: Taxonomy, rows: list[Row], thresholds, splits) -> np.ndarray:
    """Compute confusion counts (rows, splits, K, K + 1) of the scored photos."""
    scored_in = [
        [split for split, (_, scored) in enumerate(splits) if index in scored] for index in range(len(samples))
    ]

    def score(index: int) -> np.ndarray:
        sample = samples[index]
        counts = np.zeros((len(rows), len(splits), taxonomy.num_targets, taxonomy.num_targets + 1), np.int64)
        for number, row in enumerate(rows):
            if row.group is None:
                counts[number, scored_in[index]] = confusion(sample.label(row, None, taxonomy), sample.truth, taxonomy)
                continue
            for split in scored_in[index]:
                values = thresholds[row.group, row.alpha, row.min_images, split]
                counts[number, split] = confusion(sample.label(row, values, taxonomy), sample.truth, taxonomy)
        return counts

    total = 0
    for counts in ordered_map(score, range(len(samples)), usable_processors()):
        total = total + counts
    return total


def repeat_split(predictor, taxonomy: Taxonomy, data: Path, photos: list[Path], split, folder: Path) -> Quality:
    """Repeat one split through ``calibrate``, a label store and ``evaluate``: per class, ``agree``, alpha 0.05."""
    names = [photo.stem for photo in photos]
    calibration, scored = (frozenset(names[index] for index in part) for part in split)
    source, labels = open_source(data / "msrc" / "images"), LabelFolder(data / "msrc" / "labels")
    found = calibrate(
        predictor, source, labels, taxonomy, alpha="0.05", group="class", rule="agree", ids=calibration, min_images=1,
        fallback="pooled", unseen="pooled", on_small_n="inf", workers=usable_processors(),
    )  # fmt: skip
    listed = folder / "scored.txt"
    listed.write_text("\n".join(str(photo.resolve()) for photo in photos if photo.stem in scored))
    label(predictor, open_source(listed), folder / "store", taxonomy, Selection.conformal(found))
    return evaluate_store(LabelStore.open(folder / "store"), labels, taxonomy, workers=usable_processors())


def summarize(rows: list[Row], counts: np.ndarray, taxonomy: Taxonomy) -> list[dict]:
    results = []
    for row, of_splits in zip(rows, counts, strict=True):
        found = [Quality(confusion=one, targets=taxonomy.targets, num_images=0) for one in of_splits]
        result: dict = {"selection": row.name}
        for index, key in enumerate(("miou_kept", "accuracy_kept", "kept")):
            values = np.array([getattr(quality, key) for quality in found])
            result[key] = {"mean": float(values.mean()), "std": float(values.std())}
            if row.published is not None:
                result[key]["published"] = row.published[index]
                result[key]["difference"] = float(values.mean()) - row.published[index]
        results.append(result)
    return results


def print_table(results: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table("selection", "mIoU kept", "accuracy kept", "kept", "largest difference")
    for result in results:
        cells = [
            f"{result[key]['mean']:.3f} ± {result[key]['std']:.3f}" for key in ("miou_kept", "accuracy_kept", "kept")
        ]
        shown.add_row(result["selection"], *cells, f"{difference:.4f}" if (difference := worst([result])) else "-")
    Console(width=140).print(shown)


def worst(results: list[dict]) -> float:
    """Return the largest distance of a figure from the published one."""
    keys = ("miou_kept", "accuracy_kept", "kept")
    return max((abs(result[key].get("difference", 0.0)) for result in results for key in keys), default=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", choices=("half", "full"), default="half")
    parser.add_argument("--antialias", action="store_true", help="shrink photos with Pillow's filter, not OpenCV's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data = find_data()
    started = time.perf_counter()
    photos, labels = sorted((data / "msrc" / "images").glob("*.jpg")), LabelFolder(data / "msrc" / "labels")
    orders = [np.random.default_rng(seed).permutation(len(photos)) for seed in range(NUM_SPLITS)]
    splits = [(order[:NUM_CALIBRATION], order[NUM_CALIBRATION:]) for order in orders]
    rows = table()
    with tempfile.TemporaryDirectory(prefix="maskmill-msrc-") as name:
        folder = Path(name)
        bundle, taxonomy = adopt(data, folder, options.antialias)
        predictor = SemanticPredictor(bundle, OnnxSession(bundle))
        samples = predict_all(predictor, taxonomy, photos, labels, options.resolution, folder)
        thresholds, coverage = thresholds_of(samples, taxonomy, rows, splits, folder)
        counts = score_rows(samples, taxonomy, rows, thresholds, splits)
        results = summarize(rows, counts, taxonomy)
        report = {
            "benchmark": "msrc",
            "command": " ".join(["benchmarks/msrc.py", *sys.argv[1:]]),
            "machine": f"{platform.processor() or platform.machine()}, {usable_processors()} processors",
            "resolution": options.resolution,
            "antialias": options.antialias,
            "photos": len(photos),
            "splits": NUM_SPLITS,
            "rows": results,
            "worst_difference": worst(results),
            "tolerance": TOLERANCE[options.resolution],
            "coverage": coverage,
            "versions": {
                name: version(name) for name in ("maskmill", "numpy", "onnxruntime", "opencv-python-headless")
            },
        }
        if options.resolution == "full":
            number = next(index for index, row in enumerate(rows) if row.rule == "agree" and row.alpha == "0.05")
            cached = Quality(confusion=counts[number, 0], targets=taxonomy.targets, num_images=0)
            repeated = repeat_split(predictor, taxonomy, data, photos, splits[0], folder)
            report["split_0_agrees"] = bool((cached.confusion == repeated.confusion).all())
            report["split_0"] = {"cached": cached.miou_kept, "through the store": repeated.miou_kept}
    report["seconds"] = time.perf_counter() - started
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_table(results)
        print(f"largest difference {report['worst_difference']:.4f}, {report['seconds']:.0f} s")
    return int(report["worst_difference"] > report["tolerance"] or not report.get("split_0_agrees", True))


if __name__ == "__main__":
    sys.exit(main())
