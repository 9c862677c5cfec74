"""Teachers of MSRC as files of scores: a good one, and two bad ones made from good models.

``good`` is DeepLabv3 (MobileNetV2, 257 px). ``blurred`` is the same model on photos that were shrunk and enlarged
again. ``eager`` is the stronger ``coral-deeplabv3-pascal`` with its background logit lowered, which predicts objects
everywhere, like a model that is queried for every class. The bad ones are weakened until the mIoU of their raw labels
over all photos is at most :data:`TARGET`, near that of SEEM in ConformalSAM (.30)::

    bundle, strength = write_teacher("eager", data, photos, truth_of, folder)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from choose import open_teacher
from PIL import Image

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.predictors.score_files import write_score_bundle
from maskmill.engine.predictors.semantic import SemanticPredictor

Teacher = Literal["good", "blurred", "eager"]
MODELS = {"good": "deeplabv3-257", "blurred": "deeplabv3-257", "eager": "coral"}
TARGET = 0.38
SIDE = 65
"""Side of the stored score maps."""
_STRENGTHS = {
    "good": [0.0],
    "blurred": [1.5 * 1.25**power for power in range(12)],
    "eager": [float(step) / 2 for step in range(1, 49)],
}
"""Factors by which photos shrink, and amounts by which the background logit falls, from weak to strong."""


def write_teacher(
    kind: Teacher, data: Path, photos: Sequence[Path], truth_of: Callable[[Path], np.ndarray], folder: Path
) -> tuple[Bundle, float]:
    """Write the logits of a teacher for all photos and a bundle that reads them; returns its strength as well.

    ``truth_of`` returns the class map of a photo, (H, W) with 255 for pixels without a class. Existing files are kept.
    """
    record, scores = folder / f"{kind}.json", folder / f"scores-{kind}"
    if record.exists():
        return Bundle.load(folder / kind), json.loads(record.read_text())["strength"]
    (folder / "models").mkdir(parents=True, exist_ok=True)
    predictor, _ = open_teacher(data, MODELS[kind], folder / "models" / kind)
    background = predictor.bundle.background or 0
    truths = [cv2.resize(truth_of(photo), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) for photo in photos]
    plain = [] if kind == "blurred" else [logits_of(predictor, photo) for photo in photos]
    logits, strength, miou = plain, 0.0, 1.0
    for strength in _STRENGTHS[kind]:
        if kind == "blurred":
            logits = [logits_of(predictor, photo, shrink=strength) for photo in photos]
        elif kind == "eager":
            logits = [values.copy() for values in plain]
            for values in logits:
                values[background] -= strength
        miou = mean_iou([values.argmax(axis=0) for values in logits], truths, len(predictor.bundle.classes))
        if miou <= TARGET:
            break
    scores.mkdir(parents=True, exist_ok=True)
    for photo, values in zip(photos, logits, strict=True):
        np.save(scores / f"{photo.stem}.npy", values.astype(np.float32))
    classes = predictor.bundle.classes
    bundle = write_score_bundle(
        folder / kind, scores=scores, classes=classes, background=classes[background], activation="softmax"
    )
    record.write_text(json.dumps({"strength": strength, "miou": miou}))
    return bundle, strength


def logits_of(predictor: SemanticPredictor, photo: Path, shrink: float = 1.0) -> np.ndarray:
    """Compute the logits (C, 65, 65) of a photo that was shrunk by a factor and enlarged again."""
    with Image.open(photo) as picture:
        image = np.asarray(picture.convert("RGB"))
    if shrink > 1:
        height, width = image.shape[:2]
        small = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        image = cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))
    score_map = predictor.predict(image)
    maps = score_map.scores if score_map.layout == "CHW" else np.moveaxis(score_map.scores, -1, 0)
    return np.stack([cv2.resize(np.asarray(values, np.float32), (SIDE, SIDE)) for values in maps])


def mean_iou(labels: Sequence[np.ndarray], truths: Sequence[np.ndarray], num_classes: int) -> float:
    """Compute the mean IoU of label maps over the classes in the truth."""
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for label, truth in zip(labels, truths, strict=True):
        valid = truth < num_classes
        pairs = truth[valid].astype(np.int64) * num_classes + label[valid]
        confusion += np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    hit, true = np.diagonal(confusion), confusion.sum(axis=1)
    union = np.maximum(true + confusion.sum(axis=0) - hit, 1)
    return float((hit / union)[true > 0].mean())
