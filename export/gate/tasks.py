"""Views of one image that the gate compares, for each task of a bundle.

``semantic``: the class maps, and their scores. ``cam``: the image's top class, its activation map, the class scores.
``promptable``: encoder and decoder end to end, on the masks of a grid of points. ``detector``: the boxes that labeling
would use, and their scores. ``text``: the class maps of :data:`GATE_TEXTS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.inputs.images import preprocess
from ...engine.model.bundle import Activation, Bundle
from ...engine.predictors.prompted.boxes import Boxes, BoxSettings, choose_boxes
from ...engine.predictors.prompted.mask_decoder import PromptDecoder
from ...engine.predictors.prompted.prompts import grid_prompts
from ...engine.predictors.semantic import SemanticPredictor
from ...engine.predictors.texts import TextPredictor, encode_texts
from ...engine.runtimes.base import Session
from ...errors import GateError

GATE_TEXTS = ("person", "car", "animal", "tree", "building")
"""Class names that a model of named classes is compared on."""
GRID = 3
"""Points per side of the grid of prompts."""
SAMPLES = 16_384
"""Largest number of scores per image that enter the quantiles."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two artifacts: its description and its sessions."""

    bundle: Bundle
    """How an image becomes its input, and the meaning of its outputs."""
    sessions: Mapping[str, Session]
    """Session of each role: ``model``, or ``encoder`` and ``decoder``."""


@dataclass(frozen=True)
class Difference:
    """Difference between the two artifacts on one image."""

    agreement: float
    """Share of decisions that are the same."""
    iou: float
    """Mask IoU, the mean over classes or prompts."""
    mean_error: float
    """Mean absolute difference of the finite scores; infinite if no score is finite."""
    max_error: float
    """Largest absolute difference of a score."""
    finite: bool
    """True if every value of the artifact is finite."""
    classes: NDArray[np.intp]
    """(n,): the reference's class of each sampled decision."""
    scores: NDArray[np.float32]
    """(2, n): nonconformity score of that class, in the reference and in the artifact."""
    seen: tuple[int, ...] = ()
    """Classes that the reference shows on the image; empty for promptable models."""
    overlap: NDArray[np.int64] | None = None
    """(2, C): pixels of each class in both maps, and in either; semantic models only."""


@dataclass(frozen=True)
class _Semantic:
    raw: NDArray[np.float32]  # (C, h, w), the part that covers the image
    scores: NDArray[np.float32]  # after the activation


def _run_semantic(side: Side, photos: Sequence[NDArray[np.uint8]]) -> Iterator[_Semantic]:
    predictor = SemanticPredictor(side.bundle, side.sessions["model"], batch=len(photos))
    for view in predictor.run([predictor.prepare(photo) for photo in photos]):
        scores = np.asarray(view.scores, np.float32)
        scores = scores if view.layout == "CHW" else np.moveaxis(scores, -1, 0)
        scores = scores[:, : math.ceil(view.region[2]), : math.ceil(view.region[3])]
        yield _Semantic(scores, _activate(scores, view.activation))


def _differ_semantic(expected: _Semantic, actual: _Semantic, min_share: float) -> Difference:
    _same_shape("score maps", expected.raw, actual.raw)
    tops = [view.scores.argmax(axis=0) for view in (expected, actual)]
    finite = np.isfinite(actual.raw).all(axis=0)
    # a pixel that is not finite agrees with nothing
    tops[1] = np.where(finite, tops[1], -1)
    step = -(-tops[0].size // SAMPLES)
    sampled = tops[0].ravel()[::step]
    scores = [1 - _of_class(view.scores, sampled, step) for view in (expected, actual)]
    overlap = _overlap(tops[0], tops[1], len(expected.scores))
    mean_error, max_error = _errors(expected.scores, actual.scores)
    return Difference(
        agreement=float((tops[0] == tops[1]).mean()),
        iou=_class_iou(tops[0], tops[1], min_share),
        mean_error=mean_error,
        max_error=max_error,
        finite=bool(finite.all()),
        classes=sampled,
        scores=np.stack(scores),
        seen=tuple(np.unique(tops[0]).tolist()),
        overlap=overlap,
    )


@dataclass(frozen=True)
class _Cam:
    logits: NDArray[np.float32]  # (C,)
    scores: NDArray[np.float32]  # (C,), after the activation
    maps: NDArray[np.float32]  # (C, h, w), the part that covers the image


def _run_cam(side: Side, photos: Sequence[NDArray[np.uint8]]) -> Iterator[_Cam]:
    specs = {output.kind: (index, output) for index, output in enumerate(side.bundle.outputs_of())}
    (logits_at, logits), (maps_at, maps) = specs["logits"], specs["cam"]
    for values, covers in _called(side, "model", photos):
        cams = np.asarray(values[maps_at], np.float32)
        cams = cams if maps.class_axis == 1 else np.moveaxis(cams, -1, 0)
        class_logits = np.asarray(values[logits_at], np.float32)
        yield _Cam(class_logits, _activate(class_logits, logits.activation), _covered(cams, covers))


def _differ_cam(expected: _Cam, actual: _Cam, _: float) -> Difference:
    _same_shape("activation maps", expected.maps, actual.maps)
    top = int(expected.scores.argmax())
    maps = [np.maximum(view.maps[top], 0) for view in (expected, actual)]
    finite = bool(np.isfinite(actual.logits).all() and np.isfinite(actual.maps).all())
    union = float(np.maximum(*maps).sum())
    # the overlap of the maps themselves: at 7x7 cells a threshold would depend on a single one
    iou = float(np.minimum(*maps).sum()) / union if union > 0 else 1.0
    mean_error, max_error = _errors(expected.scores, actual.scores)
    return Difference(
        agreement=float(finite and top == actual.scores.argmax()),
        iou=iou if finite else 0.0,
        mean_error=mean_error,
        max_error=max_error,
        finite=finite,
        classes=np.array([top]),
        scores=1 - np.array([[expected.scores[top]], [actual.scores[top]]]),
        seen=(top,),
    )


@dataclass(frozen=True)
class _Masks:
    logits: NDArray[np.float32]  # (prompts * masks, h, w), the part that covers the image
    scores: NDArray[np.float32]  # probability of each mask's pixels


def _run_promptable(side: Side, photos: Sequence[NDArray[np.uint8]]) -> Iterator[_Masks]:
    decoder, spec = PromptDecoder(side.bundle, side.sessions["decoder"]), side.bundle.input
    for values, covers in _called(side, "encoder", photos):
        masks, _ = decoder.run(
            [value[None] for value in values], grid_prompts(GRID, covers[0] * spec.height, covers[1] * spec.width)
        )
        logits = _covered(masks.reshape(-1, *masks.shape[2:]), covers)
        yield _Masks(logits, _activate(logits, "sigmoid"))


def prompted_masks(side: Side, photo: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the mask logits (prompts * masks, h, w) of the gate's grid of points on one photo."""
    return next(_run_promptable(side, [photo])).logits


def _differ_promptable(expected: _Masks, actual: _Masks, _: float) -> Difference:
    _same_shape("masks", expected.logits, actual.logits)
    finite = np.isfinite(actual.logits)
    masks, actual_masks = expected.logits > 0, actual.logits > 0
    agreement = (masks == actual_masks) & finite
    union = (masks | actual_masks | ~finite).sum(axis=(1, 2))
    intersection = (masks & actual_masks & finite).sum(axis=(1, 2))
    step = -(-masks.size // SAMPLES)
    on = masks.ravel()[::step]
    scores = [np.where(on, 1 - part, part) for part in (view.scores.ravel()[::step] for view in (expected, actual))]
    mean_error, max_error = _errors(expected.scores, actual.scores)
    return Difference(
        agreement=float(agreement.mean()),
        iou=float(np.where(union > 0, intersection / np.maximum(union, 1), 1.0).mean()),
        mean_error=mean_error,
        max_error=max_error,
        finite=bool(finite.all()),
        classes=on.astype(np.intp),
        scores=np.stack(scores),
    )


def _run_text(side: Side, photos: Sequence[NDArray[np.uint8]]) -> Iterator[_Semantic]:
    texts = encode_texts(side.bundle, side.sessions["text"], GATE_TEXTS)
    predictor = TextPredictor(side.bundle, side.sessions["encoder"], side.sessions["decoder"], texts, batch=len(photos))
    for view in predictor.run([predictor.prepare(photo) for photo in photos]):
        raw = np.asarray(view.scores)[:, : math.ceil(view.region[2]), : math.ceil(view.region[3])]
        yield _Semantic(raw, raw)


def _run_detector(side: Side, photos: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[Boxes, bool]]:
    kinds = [output.kind for output in side.bundle.outputs]
    for values, covers in _called(side, "model", photos):
        boxes, scores = values[kinds.index("boxes")], values[kinds.index("box_scores")]
        finite = bool(np.isfinite(boxes).all() and np.isfinite(scores).all())
        # if no box reaches the threshold of labeling, the photo is compared on its best box
        settings = BoxSettings(box_score=min(BoxSettings.box_score, float(np.nan_to_num(scores).max(initial=0.0))))
        yield choose_boxes(boxes, scores, covers, settings), finite


def _differ_detector(expected: tuple[Boxes, bool], actual: tuple[Boxes, bool], _: float) -> Difference:
    """Pair the boxes of one class that overlap most, best first; a box without a partner has an IoU of 0."""
    (boxes, _), (actual_boxes, finite) = expected, actual
    overlaps = _box_ious(boxes, actual_boxes)
    pairs = []
    for row in range(len(boxes)):
        column = int(overlaps[row].argmax()) if len(actual_boxes) else -1
        if column >= 0 and overlaps[row, column] >= 0.5:
            pairs.append((row, column, float(overlaps[row, column])))
            overlaps[:, column] = 0
    num = max(len(boxes), len(actual_boxes), 1)
    rows, columns = ([pair[index] for pair in pairs] for index in (0, 1))
    scores = np.stack([boxes.scores[rows], actual_boxes.scores[columns]])
    mean_error, max_error = _errors(*scores) if pairs else (0.0, 0.0)
    pair_share = 1.0 if not len(boxes) and not len(actual_boxes) else len(pairs) / num
    return Difference(
        agreement=pair_share if finite else 0.0,
        iou=(1.0 if pair_share == 1.0 and not pairs else sum(pair[2] for pair in pairs) / num) if finite else 0.0,
        mean_error=mean_error if finite else math.inf,
        max_error=max_error if finite else math.inf,
        finite=finite,
        classes=boxes.classes[rows],
        scores=1 - scores,
        seen=tuple(np.unique(boxes.classes).tolist()),
    )


def _box_ious(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """Compute the IoU (n, m) of boxes of the same class, 0 for others."""
    low = np.maximum(first.boxes[:, None, :2], second.boxes[None, :, :2])
    high = np.minimum(first.boxes[:, None, 2:], second.boxes[None, :, 2:])
    intersections = np.clip(high - low, 0, None).prod(axis=2, dtype=np.float64)
    areas = [(part.boxes[:, 2:] - part.boxes[:, :2]).prod(axis=1, dtype=np.float64) for part in (first, second)]
    ious = intersections / (areas[0][:, None] + areas[1][None] - intersections)
    return np.where(first.classes[:, None] == second.classes[None], ious, 0.0)


Run = Callable[[Side, Sequence[NDArray[np.uint8]]], Iterator[Any]]
Differ = Callable[[Any, Any, float], Difference]

TASKS: dict[str, tuple[Run, Differ]] = {
    "semantic": (_run_semantic, _differ_semantic),
    "cam": (_run_cam, _differ_cam),
    "promptable": (_run_promptable, _differ_promptable),
    "detector": (_run_detector, _differ_detector),
    "text": (_run_text, _differ_semantic),
}


def _called(
    side: Side, role: str, photos: Sequence[NDArray[np.uint8]]
) -> Iterator[tuple[list[NDArray[Any]], tuple[float, float]]]:
    """Yield the outputs of each photo, without the batch axis, and the shares of the input that it covers."""
    session, spec = side.sessions[role], side.bundle.input
    prepared = [preprocess(photo, spec) for photo in photos]
    tensors = np.stack([tensor for tensor, _ in prepared])
    fixed = session.max_batch
    if fixed and len(tensors) < fixed:
        tensors = np.concatenate([tensors, np.zeros((fixed - len(tensors), *tensors.shape[1:]), tensors.dtype)])
    outputs = session.run(tensors)
    for index, (_, covers) in enumerate(prepared):
        yield [np.asarray(output)[index] for output in outputs], covers


def _covered(maps: NDArray[Any], covers: tuple[float, float]) -> NDArray[Any]:
    """Cut maps (…, h, w) to the part that covers the image."""
    return maps[..., : math.ceil(maps.shape[-2] * covers[0]), : math.ceil(maps.shape[-1] * covers[1])]


def _activate(values: NDArray[np.float32], activation: Activation) -> NDArray[np.float32]:
    """Turn stored values into scores of the classes on the first axis."""
    # values that are not finite are counted, not warned of
    with np.errstate(invalid="ignore", over="ignore"):
        if activation == "softmax":
            exponentials = np.exp(values - values.max(axis=0))
            return exponentials / exponentials.sum(axis=0)
        return np.reciprocal(1 + np.exp(-values)) if activation == "sigmoid" else values


def _of_class(scores: NDArray[np.float32], classes: NDArray[np.intp], step: int) -> NDArray[np.float32]:
    """Return every ``step``-th pixel's score of its class (n,)."""
    return scores.reshape(len(scores), -1)[:, ::step][classes, np.arange(len(classes))]


def _overlap(expected: NDArray[np.intp], actual: NDArray[np.intp], num_classes: int) -> NDArray[np.int64]:
    """Count each class's pixels in both maps and in either, (2, C); -1 stands for no class."""
    agreement = expected[expected == actual]
    intersection = np.bincount(agreement, minlength=num_classes)
    sums = np.bincount(expected.ravel(), minlength=num_classes)
    sums += np.bincount(actual[actual >= 0], minlength=num_classes)
    return np.stack([intersection, sums - intersection])


def _class_iou(expected: NDArray[np.intp], actual: NDArray[np.intp], min_share: float) -> float:
    """Average the IoU over the classes in either map; -1 stands for no class."""
    ious = []
    for index in np.union1d(expected, actual):
        mask, actual_mask = expected == index, actual == index
        if index >= 0 and max(mask.mean(), actual_mask.mean()) >= min_share:
            ious.append((mask & actual_mask).sum() / (mask | actual_mask).sum())
    return float(np.mean(ious)) if ious else 1.0


def _errors(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> tuple[float, float]:
    """Return the mean and the largest absolute difference of the finite scores, infinite if there are none."""
    with np.errstate(invalid="ignore"):
        errors = np.abs(expected - actual).ravel()
    errors = errors[np.isfinite(errors)]
    if not errors.size:
        return math.inf, math.inf
    return float(errors.mean(dtype=np.float64)), float(errors.max())


def _same_shape(name: str, expected: NDArray[Any], actual: NDArray[Any]) -> None:
    if expected.shape != actual.shape:
        raise GateError(f"the artifact gives {name} of shape {actual.shape}, its reference {expected.shape}")
