"""Drift: false alarms of the watch, images before it detects a change, and the effect of weights.

    python benchmarks/drift.py --json > drift.json
    python benchmarks/drift.py streams photos weights cost      # the parts, in this order

``streams``: share of 200 exchangeable streams of 5,000 images that raise an alarm at level .05, with 92 calibration
images. ``synthetic`` draws nine normal statistics that depend on each other, ``real`` draws MSRC's 296 photos with
replacement; ``fixed`` ranks against the 92 calibration images alone, which the watch does not do.

``photos``: share of 40 random splits of MSRC (92 photos calibrate DeepLabv3 257 px, 204 follow) with an alarm, and the
median number of photos until it: as they are, in the order of the watch or of the folder, and changed. ``top score``
watches the mean score of the top class alone. For CamVid, val calibrates and train follows, in both orders; ``mixed``
draws the calibration images from both.

``weights``: mean miscoverage per image at alpha .1 (``--unit image``) over 40 splits of MSRC, with and without weights:
for corpora drawn with other frequencies (the odds of a photo grow by e ** .5 with each standard deviation of a
statistic), and for changed photos; and after merging 40 labeled photos of the changed kind.

``cost``: milliseconds of processor time per image of the statistics, beside those of a selection.

The data folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from msrc import adopt, find_data
from PIL import Image

from maskmill.engine.backends.host import HOST
from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.calibration.drift.statistics import STATISTICS, describe_images, sample_picture
from maskmill.engine.calibration.drift.watch import DriftWatch
from maskmill.engine.calibration.scores.score_counts import UPPER, ScoreCounts
from maskmill.engine.inputs.images import decode_image
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import CalibrationError

NUM_CALIBRATION, NUM_STREAMS, LENGTH, NUM_SPLITS, ALPHA = 92, 200, 5000, 40, "0.1"
PARTS = ("streams", "photos", "weights", "cost")

View = Callable[[np.ndarray], np.ndarray]


def middle(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.ascontiguousarray(image[height // 4 : height - height // 4, width // 4 : width - width // 4])


def identity(image: np.ndarray) -> np.ndarray:
    return image


VIEWS: dict[str, tuple[View, View]] = {
    "as they are": (identity, identity),
    "darkened to 85 %": (lambda image: (image * 0.85).astype(np.uint8), identity),
    "darkened to 60 %": (lambda image: (image * 0.6).astype(np.uint8), identity),
    "blurred, sigma 1.5": (lambda image: cv2.GaussianBlur(image, (0, 0), 1.5), identity),
    "blurred, sigma 5": (lambda image: cv2.GaussianBlur(image, (0, 0), 5.0), identity),
    "middle half": (middle, middle),
}
"""Change of the photo, and of its label map."""


def first_alarm(calibration: np.ndarray, stream: np.ndarray, seed: int) -> int | None:
    watch = DriftWatch(calibration)
    for index, row in enumerate(stream):
        watch.update(row, f"{seed}/{index}")
        if watch.alarm is not None:
            break
    return watch.alarm


def fixed_alarm(calibration: np.ndarray, stream: np.ndarray, seed: int) -> int | None:
    """Return the alarm of a watch that ranks against the calibration images only."""
    watch = DriftWatch(calibration)
    values = [list(column) for column in watch._values]
    for index, row in enumerate(stream):
        watch.update(row, f"{seed}/{index}")
        watch._values = [list(column) for column in values]
        if watch.alarm is not None:
            break
    return watch.alarm


def summary(alarms: list[int | None]) -> dict[str, Any]:
    times = [alarm for alarm in alarms if alarm is not None]
    return {"share with alarm": len(times) / len(alarms), "median images": float(np.median(times)) if times else None}


def streams(real: np.ndarray) -> dict[str, Any]:
    counts = {"synthetic": 0, "real": 0, "fixed": 0}
    for seed in range(NUM_STREAMS):
        rng = np.random.default_rng(seed)
        synthetic = rng.normal(size=(NUM_CALIBRATION + LENGTH, 9)) @ rng.normal(size=(9, 9))
        drawn = real[rng.integers(len(real), size=NUM_CALIBRATION + LENGTH)]
        for name, values, alarm in (
            ("synthetic", synthetic, first_alarm), ("real", drawn, first_alarm), ("fixed", synthetic, fixed_alarm),
        ):  # fmt: skip
            counts[name] += alarm(values[:NUM_CALIBRATION], values[NUM_CALIBRATION:], seed) is not None
        if seed % 20 == 19:
            print(f"streams: {counts} of {seed + 1}", file=sys.stderr, flush=True)
    return {name: count / NUM_STREAMS for name, count in counts.items()}


def until_alarm(statistics: dict[str, np.ndarray], camvid: dict[str, np.ndarray]) -> dict[str, Any]:
    top = [STATISTICS.index("top score")]
    plain = statistics["as they are"]
    alarms: dict[str, list[int | None]] = {}
    for seed in range(NUM_SPLITS):
        order = np.random.default_rng(seed).permutation(len(plain))
        calibration = plain[order[:NUM_CALIBRATION]]
        for name, rows in statistics.items():
            stream = rows[order[NUM_CALIBRATION:]]
            alarms.setdefault(f"MSRC, {name}", []).append(first_alarm(calibration, stream, seed))
            alarms.setdefault(f"MSRC, {name}, top score", []).append(
                first_alarm(calibration[:, top], stream[:, top], seed)
            )
        folder = plain[np.sort(order[NUM_CALIBRATION:])]
        alarms.setdefault("MSRC, as they are, folder's order", []).append(first_alarm(calibration, folder, seed))
        both = np.concatenate([camvid["val"], camvid["train"]])
        mixed = both[np.random.default_rng(seed).permutation(len(both))]
        num = len(camvid["val"])
        alarms.setdefault("CamVid, mixed", []).append(first_alarm(mixed[:num], mixed[num:], seed))
        train = camvid["train"][np.random.default_rng(seed).permutation(len(camvid["train"]))]
        alarms.setdefault("CamVid, val to train", []).append(first_alarm(camvid["val"], train, seed))
    alarms["CamVid, val to train, folder's order"] = [first_alarm(camvid["val"], camvid["train"], 0)]
    return {name: summary(values) for name, values in alarms.items()}


def miscoverage(calibration: Calibration, counts: ScoreCounts) -> float:
    """Compute the mean share of an image's pixels whose score exceeds the pooled threshold."""
    above = calibration.pooled < UPPER
    missed, total = (
        np.bincount(counts.image, values, counts.num_images)
        for values in (counts.true[:, above].sum(axis=1), counts.true.sum(axis=1))
    )
    return float(np.mean(missed / np.maximum(total, 1)))


def restored(calibrations: dict[str, Calibration]) -> dict[str, Any]:
    plain = calibrations["as they are"]
    rows: dict[str, list[tuple[float, float, float, float]]] = {}

    def compare(name: str, calibration: Calibration, corpus: ScoreCounts, statistics: np.ndarray) -> None:
        try:
            weighted = calibration.resembling(statistics, name)
            weighting = weighted.weighting or {}
            after, effective = miscoverage(weighted, corpus), weighting["effective_images"]
        except CalibrationError:
            after, effective = np.nan, np.nan
        rows.setdefault(name, []).append((miscoverage(calibration, corpus), after, effective, 0.0))

    for seed in range(NUM_SPLITS):
        rng = np.random.default_rng(seed)
        order = rng.permutation(plain.counts.num_images)
        calibration = with_images(plain, order[:NUM_CALIBRATION])
        rest = order[NUM_CALIBRATION:]
        for statistic in ("as they are", "brightness", "contrast", "main class", "top score"):
            chosen = rest
            if statistic in STATISTICS:
                values = plain.counts.statistics[rest, STATISTICS.index(statistic)]
                for sign, word in ((0.5, "higher"), (-0.5, "lower")):
                    odds = np.exp(sign * (values - values.mean()) / values.std())
                    chosen = rest[rng.random(len(rest)) < odds / np.quantile(odds, 0.95)]
                    corpus = plain.counts.subset(chosen)
                    compare(f"{word} {statistic}", calibration, corpus, corpus.statistics)
            else:
                corpus = plain.counts.subset(chosen)
                compare("the same frequencies", calibration, corpus, corpus.statistics)
        for name, changed in calibrations.items():
            if name == "as they are":
                continue
            corpus = changed.counts.subset(rest[40:])
            compare(name, calibration, corpus, corpus.statistics)
            merged = Calibration.merge([calibration, with_images(changed, rest[:40])])
            compare(f"{name}, 40 labeled photos merged", merged, corpus, corpus.statistics)
    table = {}
    for name, values in rows.items():
        before, after, effective, _ = np.array(values).T
        done = np.isfinite(after)
        table[name] = {
            "miscoverage": float(before.mean()),
            "miscoverage of splits that weights allow": float(before[done].mean()) if done.any() else None,
            "miscoverage with weights": float(after[done].mean()) if done.any() else None,
            "refused": float(1 - done.mean()),
            "effective images": float(np.median(effective[done])) if done.any() else None,
        }
    return table


def with_images(calibration: Calibration, indices: np.ndarray) -> Calibration:
    counts = calibration.counts.subset(indices)
    sizes = {"num_images": counts.num_images, "num_pixels": int(counts.true.sum())}
    return dataclasses.replace(calibration, counts=counts, report=sizes).at(ALPHA)


def write_view(data: Path, folder: Path, view: View, label_view: View) -> None:
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for path in sorted((data / "msrc" / "images").glob("*.jpg")):
        Image.fromarray(view(decode_image(path.read_bytes()))).save(folder / "images" / f"{path.stem}.png")
        label = np.asarray(Image.open(data / "msrc" / "labels" / f"{path.stem}.png"))
        Image.fromarray(label_view(label)).save(folder / "labels" / f"{path.stem}.png")


def cost(predictor: SemanticPredictor, taxonomy: Any, data: Path) -> dict[str, float]:
    photo = decode_image(next((data / "msrc" / "images").glob("*.jpg")).read_bytes())
    figures = {}
    for name, image in (("320 x 213 px", photo), ("4000 x 3000 px", cv2.resize(photo, (4000, 3000)))):
        score_map = predictor.predict(image)
        works: dict[str, Callable[[], Any]] = {
            "statistics": lambda image=image, map=score_map: describe_images(
                [map], [sample_picture(image, HOST)], taxonomy
            ),
            "selection": lambda map=score_map: select(map, taxonomy, Selection.threshold(0.9)),
        }
        for work, run in works.items():
            times = []
            for _ in range(30):
                started = time.thread_time()
                run()
                times.append(time.thread_time() - started)
            figures[f"{work}, {name}"] = 1000 * float(np.median(times))
    watch, rng = DriftWatch(np.random.default_rng(0).normal(size=(92, 9))), np.random.default_rng(1)
    started = time.thread_time()
    for index in range(2000):
        watch.update(rng.normal(size=9), str(index))
    figures["watch, mean of 2,000 images"] = (time.thread_time() - started) / 2
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.parts = options.parts or list(PARTS)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    data, started = find_data(), time.perf_counter()
    report: dict[str, Any] = {
        "benchmark": "drift",
        "command": " ".join(["benchmarks/drift.py", *sys.argv[1:]]),
    }
    with tempfile.TemporaryDirectory(prefix="maskmill-drift-") as folder:
        root = Path(folder)
        bundle, taxonomy = adopt(data, root, antialias=True)
        predictor = SemanticPredictor(bundle, OnnxSession(bundle))
        calibrations: dict[str, Calibration] = {}
        names = list(VIEWS) if {"photos", "weights"} & set(options.parts) else list(VIEWS)[:1]
        if set(options.parts) != {"cost"}:
            for number, name in enumerate(names):
                views, place = VIEWS[name], root / str(number)
                write_view(data, place, *views)
                calibrations[name] = calibrate(
                    predictor, open_source(place / "images"), open_labels(place / "labels"), taxonomy, alpha=ALPHA,
                    unit="image", workers=2,
                )  # fmt: skip
                print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        statistics = {name: calibration.counts.statistics for name, calibration in calibrations.items()}
        parts: dict[str, Callable[[], Any]] = {
            "streams": lambda: streams(statistics["as they are"]),
            "photos": lambda: until_alarm(statistics, camvid_statistics(predictor, taxonomy, data)),
            "weights": lambda: restored(calibrations),
            "cost": lambda: cost(predictor, taxonomy, data),
        }
        for part in options.parts:
            report[part] = parts[part]()
            print(f"{part}: {json.dumps(report[part])}", file=sys.stderr, flush=True)
    report["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(report, indent=2 if options.json else 1))
    return 0


def camvid_statistics(predictor: SemanticPredictor, taxonomy: Any, data: Path) -> dict[str, np.ndarray]:
    """Compute the statistics of the photos of val and train, in the folder's order."""
    rows = {}
    for part in ("val", "train"):
        images = [decode_image(path.read_bytes()) for path in sorted((data / "camvid" / part / "images").glob("*.jpg"))]
        rows[part] = np.concatenate(
            [describe_images([predictor.predict(image)], [sample_picture(image, HOST)], taxonomy) for image in images]
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
