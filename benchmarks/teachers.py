"""Two bad teachers made from a good one, as files of scores: one blurred, one that sees objects everywhere.

``blurred`` labels photos that were shrunk and enlarged again; ``eager`` has its background logit lowered, as a model
that was asked for every class. Both are weakened until the mIoU of their raw labels on the labeled photos is at most
:data:`TARGET`, the range of SEEM in ConformalSAM (.30)::

    bundle, strength = write_teacher("eager", predictor, labeled, unlabeled, truth_of, folder)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.predictors.score_files import write_score_bundle
from maskmill.engine.predictors.semantic import SemanticPredictor

Teacher = Literal["good", "blurred", "eager"]
TARGET = 0.4
SIDE = 65
"""Side of the stored score maps."""
_STRENGTHS = {"blurred": [2.0**power for power in range(1, 6)], "eager": [float(step) for step in range(1, 25)]}
"""Factors by which photos shrink, and amounts by which the background logit falls, from weak to strong."""


def write_teacher(
    kind: Teacher,
    predictor: SemanticPredictor,
    labeled: Sequence[Path],
    unlabeled: Sequence[Path],
    truth_of: Callable[[Path], np.ndarray],
    folder: Path,
) -> tuple[Bundle, float]:
    """Write the scores of a bad teacher for all photos and a bundle that reads them; returns its strength as well.

    ``truth_of`` returns the class map of a photo, (H, W) with 255 for pixels without a class.
    """
    truths = [cv2.resize(truth_of(photo), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) for photo in labeled]
    strengths, strength = _STRENGTHS[kind], 0.0
    plain = {photo: logits_of(predictor, photo) for photo in labeled} if kind == "eager" else {}

    def logits(photo: Path, strength: float) -> np.ndarray:
        if kind == "blurred":
            return logits_of(predictor, photo, shrink=strength)
        values = (plain[photo] if photo in plain else logits_of(predictor, photo)).copy()
        values[predictor.bundle.background] -= strength
        return values

    for strength in strengths:
        labels = [logits(photo, strength).argmax(axis=0) for photo in labeled]
        if mean_iou(labels, truths, len(predictor.bundle.classes)) <= TARGET:
            break
    scores = folder / f"scores-{kind}"
    scores.mkdir(parents=True, exist_ok=True)
    for photo in [*labeled, *unlabeled]:
        values = logits(photo, strength)
        exponentials = np.exp(values - values.max(axis=0))
        np.save(scores / f"{photo.stem}.npy", (exponentials / exponentials.sum(axis=0)).astype(np.float32))
    background = predictor.bundle.classes[predictor.bundle.background or 0]
    classes = predictor.bundle.classes
    return write_score_bundle(folder / kind, scores=scores, classes=classes, background=background), strength


def logits_of(predictor: SemanticPredictor, photo: Path, shrink: float = 1.0) -> np.ndarray:
    """Compute the logits (C, 65, 65) of a photo that was shrunk by a factor and enlarged again."""
    with Image.open(photo) as picture:
        image = np.asarray(picture.convert("RGB"))
    if shrink > 1:
        height, width = image.shape[:2]
        small = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        image = cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))
    found = predictor.predict(image)
    maps = found.scores if found.layout == "CHW" else np.moveaxis(found.scores, -1, 0)
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
