"""Value of the queue of ``maskmill rank`` on MSRC: the next calibration with its images, against random ones.

    python benchmarks/ranking.py --teacher deeplabv3-257 --json
    python benchmarks/ranking.py --errors --json

Each of twenty random splits has 24 photos that are calibrated, a pool of 136, and 136 to measure on. 10, 20 and 40
photos of the pool are labeled and added: the first of the queue, planned with the model's scores (``model``) or from a
store alone (``store``), or at random (``random``, the mean of five draws). Coverage is that of all pixels, and the mean
over classes; mIoU, accuracy and kept share are those of the labels (alpha 0.1, a threshold per class, rule agree).
``--weights`` tries other weights of doubt, need and novelty, on seeds of its own.

With ``--errors``, labels of 60 of the 296 photos are damaged, each of one kind: a class is replaced by another, the map
is moved by 24 pixels, or a third of the photo is lost to the background. The rankings of maskmill and of cleanlab are
compared by the average precision of finding them, on equal probabilities; cleanlab is run by the Python of
``--cleanlab``, which may be an environment of its own. With ``--costs`` both score ``--num-images`` random maps, for
time and memory.

With ``--copies``, changed copies of all photos are compared with the originals: the share that is found, per change,
and the pairs found among the originals.

The data folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from choose import observe, open_teacher
from msrc import find_data
from numpy.typing import NDArray

from maskmill.engine.calibration.binned import BinnedScores
from maskmill.engine.calibration.drift.statistics import STATISTICS
from maskmill.engine.calibration.scores.observe import Observations
from maskmill.engine.calibration.scores.pixel_samples import Tally
from maskmill.engine.calibration.scores.score_counts import UPPER
from maskmill.engine.calibration.sharing import share_thresholds
from maskmill.engine.calibration.thresholds import fewest_images
from maskmill.engine.inputs.images import decode_image
from maskmill.engine.inputs.labeled_source import pair_images
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.report.ranking.near_duplicates import Prints, pairs_between, pairs_within, photo_print
from maskmill.engine.report.ranking.queue import Candidates, Weights, plan_queue

ALPHA = Fraction("0.1")
START, POOL, SIZES = 24, 136, (0, 10, 20, 40)
DRAWS = 5
TRIED = ((1, 1, 0.5), (1, 0, 0), (0, 1, 0), (0, 1, 0.5), (0.5, 1, 0.5), (0, 0, 1), (1, 2, 1), (0.25, 1, 1))


class Experiment:
    """Scores of all photos, and measurements of calibrations from some of them on others."""

    def __init__(self, observations: Observations, colors: NDArray[np.float32]) -> None:
        self.samples, self.counts = observations.samples, observations.counts
        self.num = self.samples.taxonomy.num_targets
        self.colors = colors
        raw = self.samples.tally(range(len(self.samples)), None, "argmax")
        self.raw_shares = raw.labeled / np.maximum(raw.true.sum(axis=1, keepdims=True), 1)

    def thresholds(self, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute thresholds per class from some photos."""
        scores = BinnedScores(self.counts.subset(images), self.num)
        sharing = share_thresholds(
            "class", (scores.pixels > 0).sum(axis=0), min_images=fewest_images(ALPHA),
            background=self.samples.taxonomy.background,
        )  # fmt: skip
        bins = scores.thresholds(sharing, np.ones((1, len(images))), alpha=ALPHA, unit="pixel")[0]
        return np.where(bins >= 0, UPPER[bins], -np.inf).astype(np.float32)

    def measure(self, images: NDArray[np.int64], others: NDArray[np.int64]) -> dict[str, float]:
        """Measure the calibration from some photos on others."""
        limits = self.thresholds(images)
        summary = self.samples.tally(others, limits, "agree").summary()
        scores = BinnedScores(self.counts.subset(others), self.num)
        bins = np.searchsorted(UPPER, limits[: self.num], side="right") - 1
        covered = scores.coverage(bins[None], np.ones((1, len(others))))[0]
        pixels = scores.pixels.sum(axis=0)
        seen = pixels > 0
        shares = covered[seen] / pixels[seen]
        return {
            "coverage": float(covered.sum() / pixels.sum()),
            "class_coverage": float(shares.mean()),
            "worst_class_coverage": float(shares.min()),
            "miou": summary["miou_kept"],
            "accuracy": summary["accuracy_kept"],
            "kept": summary["kept"],
        }

    def queue(self, start: NDArray[np.int64], pool: NDArray[np.int64], weights: Weights, how: str) -> list[int]:
        """Return the photos of the pool in the order of the queue."""
        tally: Tally = self.samples.tally(pool, self.thresholds(start), "agree")
        pixels = tally.true.sum(axis=1)
        if how == "model":
            doubt, shares = 1 - tally.single.sum(axis=1) / pixels, self.raw_shares[pool]
        else:
            confidence = self.counts.statistics[pool, STATISTICS.index("top score")]
            doubt = ranks(-tally.kept.sum(axis=1) / pixels) + ranks(-confidence)
            shares = tally.labeled / pixels[:, None]
        descriptors = np.hstack([np.sqrt(shares), 0.5 * self.colors[pool]]).astype(np.float32)
        calibrated = (self.counts.subset(start).pixels(self.num) > 0).sum(axis=0)
        picks = plan_queue(
            Candidates(doubt=doubt, shares=shares, descriptors=descriptors), max(SIZES), calibrated=calibrated,
            enough=max(10, fewest_images(ALPHA)), weights=weights,
        )  # fmt: skip
        return [int(pool[pick.image]) for pick in picks]


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") / max(len(values) - 1, 1)


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def split(experiment: Experiment, seed: int, arms: dict[str, tuple[str, Weights]]) -> dict[str, list[dict[str, float]]]:
    """Measure one split: arm → one row per number of added photos."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(experiment.samples))
    start, pool, others = order[:START], order[START : START + POOL], order[START + POOL :]
    curves = {}
    for name, (how, weights) in arms.items():
        queue = np.array(experiment.queue(start, pool, weights, how), np.int64)
        curves[name] = [experiment.measure(np.append(start, queue[:size]), others) for size in SIZES]
    draws = [rng.permutation(pool) for _ in range(DRAWS)]
    curves["random"] = [
        mean_of([experiment.measure(np.append(start, draw[:size]), others) for draw in draws]) for size in SIZES
    ]
    return curves


def compare(data: Path, teacher: str, seeds: range, try_weights: bool) -> dict[str, Any]:
    """Measure the curves of queue and random, and their paired differences after 20 photos with standard errors."""
    with tempfile.TemporaryDirectory(prefix="maskmill-ranking-") as folder:
        observations = observe(data, teacher, Path(folder))
        photos = sorted((data / "msrc" / "images").glob("*.jpg"))
        colors = np.array([photo_print(decode_image(path.read_bytes()))[1] for path in photos], np.float32) / 255
        colors /= np.sqrt(colors.shape[1]) * colors.std()
        experiment = Experiment(observations, colors)
        arms = {"model": ("model", Weights()), "store": ("store", Weights())}
        if try_weights:
            arms = {
                str(values): ("model", Weights(doubt=values[0], need=values[1], novelty=values[2])) for values in TRIED
            }
        splits = [split(experiment, seed, arms) for seed in seeds]
    result: dict[str, Any] = {"teacher": teacher, "seeds": len(seeds), "sizes": SIZES, "curves": {}, "difference": {}}
    at = SIZES.index(20)
    for name in (*arms, "random"):
        result["curves"][name] = [mean_of([curves[name][size] for curves in splits]) for size in range(len(SIZES))]
        if name != "random":
            result["difference"][name] = {}
            for key in result["curves"][name][0]:
                values = np.array([curves[name][at][key] - curves["random"][at][key] for curves in splits])
                error = float(values.std(ddof=1) / np.sqrt(len(values)))
                result["difference"][name][key] = [float(values.mean()), error, int((values > 0).sum())]
    return result


CLEANLAB = """
import json, sys, time
import numpy as np
from cleanlab.segmentation.rank import get_label_quality_scores
data = np.load(sys.argv[1])
started = time.perf_counter()
scores, _ = get_label_quality_scores(data["labels"], data["probabilities"], method="softmin", verbose=False)
seconds = time.perf_counter() - started
np.save(sys.argv[2], scores)
peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "megabytes": peak}))
"""
OURS = """
import json, sys, time
import numpy as np
from maskmill.engine.report.ranking.label_errors import softmin
data = np.load(sys.argv[1])
labels, probabilities = data["labels"], data["probabilities"]
started = time.perf_counter()
scores = [
    softmin(np.take_along_axis(values, label[None].astype(np.int64), axis=0).ravel())
    for label, values in zip(labels, probabilities)
]
seconds = time.perf_counter() - started
np.save(sys.argv[2], np.array(scores))
peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "megabytes": peak}))
"""


def run_ranker(python: str, script: str, archive: Path, output: Path) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Run one ranking; returns its scores, and seconds and peak memory of its process."""
    command = [python, "-c", script, str(archive), str(output)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return np.load(output), json.loads(ran.stdout.strip().splitlines()[-1])


def damaged(label: NDArray[Any], rng: np.random.Generator, num: int, kind: int) -> NDArray[Any]:
    """Return a label map with one error of a kind."""
    label = label.copy()
    if kind == 0:
        present = [value for value in np.unique(label) if value != 0] or [0]
        old = rng.choice(present)
        label[label == old] = rng.choice([value for value in range(num) if value != old])
    elif kind == 1:
        label = np.roll(label, 24 if rng.random() < 0.5 else -24, axis=1)
    else:
        start = int(rng.integers(0, 3)) * label.shape[1] // 3
        label[:, start : start + label.shape[1] // 3] = 0
    return label


def scores_of(score_map: Any, taxonomy: Any, target: int, side: int) -> NDArray[np.float32]:
    """Compute nonconformity scores (side, side) of one class."""
    truth = np.full((side, side), target, np.uint8)
    stats = score_map.decode(taxonomy, size=(side, side), truth=truth, outputs=("true_score",))
    return np.asarray(stats.true_score)


def find_errors(data: Path, teacher: str, python: str, seeds: range) -> dict[str, Any]:
    """Measure the average precision of finding damaged labels, ours and cleanlab's."""
    rows: list[dict[str, Any]] = []
    side = 64
    with tempfile.TemporaryDirectory(prefix="maskmill-errors-") as name:
        folder = Path(name)
        predictor, taxonomy = open_teacher(data, teacher, folder)
        source = open_source(data / "msrc" / "images")
        labeled = pair_images(source, open_labels(data / "msrc" / "labels"), taxonomy)
        probabilities, labels = [], []
        for item in labeled.items:
            photo = source.read(item)
            score_map = predictor.predict(decode_image(photo))
            values = np.stack(
                [1 - scores_of(score_map, taxonomy, target, side) for target in range(taxonomy.num_targets)]
            )
            truth = labeled.read(item.uri, photo)
            steps = [np.arange(side) * length // side for length in truth.shape]
            small = truth[np.ix_(*steps)]
            probabilities.append(values.astype(np.float32))
            labels.append(np.where(small == taxonomy.ignore_index, 0, small))
        for seed in seeds:
            rng = np.random.default_rng(seed)
            wrong = np.zeros(len(labels), bool)
            wrong[rng.choice(len(labels), 60, replace=False)] = True
            maps = [
                damaged(label, rng, taxonomy.num_targets, int(rng.integers(3))) if bad else label
                for label, bad in zip(labels, wrong, strict=True)
            ]
            wrong = np.array([(new != old).any() for new, old in zip(maps, labels, strict=True)])
            archive = folder / "errors.npz"
            np.savez(archive, labels=np.array(maps), probabilities=np.array(probabilities))
            ours, _ = run_ranker(sys.executable, OURS, archive, folder / "ours.npy")
            theirs, _ = run_ranker(python, CLEANLAB, archive, folder / "theirs.npy")
            rows.append(
                {
                    "ours": average_precision(ours, wrong),
                    "cleanlab": average_precision(theirs, wrong),
                    "base": float(wrong.mean()),
                    "difference": float(np.abs(ours - theirs).max()),
                }
            )
    return {"teacher": teacher, "average_precision": mean_of(rows), "rows": rows}


def compare_costs(python: str, num_images: int, side: int = 64, num_classes: int = 8) -> dict[str, Any]:
    """Measure time and peak memory of both rankings on random maps that each process reads from one file."""
    with tempfile.TemporaryDirectory(prefix="maskmill-costs-") as name:
        folder, rng = Path(name), np.random.default_rng(0)
        values = rng.random((num_images, num_classes, side, side), dtype=np.float32)
        values /= values.sum(axis=1, keepdims=True)
        maps = rng.integers(0, num_classes, (num_images, side, side), dtype=np.uint8)
        archive = folder / "large.npz"
        np.savez(archive, labels=maps, probabilities=values)
        ours, our_cost = run_ranker(sys.executable, OURS, archive, folder / "ours.npy")
        theirs, their_cost = run_ranker(python, CLEANLAB, archive, folder / "theirs.npy")
    return {
        "images": num_images,
        "maps": f"{side}x{side}, {num_classes} classes",
        "ours": our_cost,
        "cleanlab": their_cost,
        "largest_difference": float(np.abs(ours - theirs).max()),
    }


def jpeg(photo: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Return a photo after lossy compression."""
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1))


def cropped(photo: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """Crop a share of its size from each edge of a photo."""
    top, left = (int(share * length) for length in photo.shape[:2])
    return photo[top : photo.shape[0] - top, left : photo.shape[1] - left]


CHANGES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "JPEG, quality 30": lambda photo: jpeg(photo, 30),
    "half the size": lambda photo: cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "1.7 times the size": lambda photo: cv2.resize(photo, None, fx=1.7, fy=1.7, interpolation=cv2.INTER_CUBIC),
    "1.3 times as bright": lambda photo: np.clip(photo * 1.3, 0, 255).astype(np.uint8),
    "gamma 1.4": lambda photo: (255 * (photo / 255.0) ** 1.4).astype(np.uint8),
    "2 % cut off at each edge": lambda photo: cropped(photo, 0.02),
    "5 % cut off at each edge": lambda photo: cropped(photo, 0.05),
    "mirrored": lambda photo: np.ascontiguousarray(photo[:, ::-1]),
}


def find_copies(data: Path) -> dict[str, Any]:
    """Measure the share of changed copies that are found, and count pairs among the unchanged photos."""
    paths = sorted((data / "msrc" / "images").glob("*.jpg"))
    photos = [decode_image(path.read_bytes()) for path in paths]
    originals = Prints.gather([photo_print(photo) for photo in photos])
    pairs = pairs_within(originals)
    result: dict[str, Any] = {
        "photos": len(photos),
        "pairs": [[paths[number].name for number in pair] for pair in pairs],
    }
    result["found"], result["wrong"] = {}, {}
    same = {(number, number) for number in range(len(photos))} | {*pairs, *((b, a) for a, b in pairs)}
    for name, change in CHANGES.items():
        copies = Prints.gather([photo_print(change(photo)) for photo in photos])
        matches = pairs_between(originals, copies)
        result["found"][name] = sum(first == second for first, second in matches) / len(photos)
        result["wrong"][name] = sum(pair not in same for pair in matches)
    return result


def average_precision(scores: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float:
    hits = wrong[np.argsort(scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=("deeplabv3-257", "coral"), default="deeplabv3-257")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--weights", action="store_true")
    parser.add_argument("--errors", action="store_true")
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--copies", action="store_true")
    parser.add_argument("--cleanlab", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--num-images", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data, started = find_data(), time.perf_counter()
    if options.copies:
        result = find_copies(data)
    elif options.errors:
        result = find_errors(data, options.teacher, options.cleanlab, range(min(options.seeds, 5)))
    elif options.costs:
        result = compare_costs(options.cleanlab, options.num_images)
    else:
        seeds = range(100, 100 + options.seeds) if options.weights else range(options.seeds)
        result = compare(data, options.teacher, seeds, options.weights)
    result["seconds"] = round(time.perf_counter() - started, 1)
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    for name, curve in result.get("curves", {}).items():
        for size, row in zip(SIZES, curve, strict=True):
            print(f"{name:24} +{size:2} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    for name, row in result.get("difference", {}).items():
        print(
            f"{name:24} at +20, queue minus random: "
            + "  ".join(f"{k} {v[0]:+.3f} ± {v[1]:.3f}" for k, v in row.items())
        )
    if options.errors or options.costs or options.copies:
        print({key: value for key, value in result.items() if key != "rows"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
