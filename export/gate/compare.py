"""Measure the difference between two artifacts on real images, at the model's own resolution.

::

    metrics = compare(Side(bundle=bundle, sessions={"model": OnnxSession(bundle)}), candidate, images)
    metrics.worst_iou, metrics.worst_image

The measures follow the task. ``semantic``: the class maps, their IoU over the classes present in either, per image and
pooled over all images, and the class scores. ``cam``: the image's top class, the overlap of that class's activation
map, and the class scores. ``promptable``: encoder and decoder end to end, on the masks of a grid of points.

Images with the same pixels count once, whatever their names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.inputs.images import preprocess
from ...engine.model.bundle import Activation, Bundle
from ...engine.model.verdicts import MIN_CLASS_PIXELS, Metrics
from ...engine.predictors.prompted.mask_decoder import PromptDecoder
from ...engine.predictors.prompted.prompts import grid_prompts
from ...engine.predictors.semantic import SemanticPredictor
from ...engine.runtimes.base import Session
from ...errors import GateError, SessionError
from ..pictures import GateImage

LEVELS = (0.8, 0.9, 0.95, 0.99)
"""Levels 1 - alpha whose score quantiles are compared."""
GRID = 3
"""Points per side of the grid of prompts."""
SAMPLES = 16_384
"""Largest number of scores per image that enter the quantiles."""
CLASS_IMAGES = 10
"""Number of images that must show a class for it to have quantiles of its own."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two artifacts: its description and its sessions."""

    bundle: Bundle
    """How an image becomes its input, and the meaning of its outputs."""
    sessions: Mapping[str, Session]
    """Session of each role: ``model``, or ``encoder`` and ``decoder``."""


@dataclass(frozen=True)
class Difference:
    """Difference between the two on one image."""

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


def compare(
    reference: Side, candidate: Side, images: Iterable[GateImage], *, batch: int | None = None, min_share: float = 0.0
) -> Metrics:
    """Run both artifacts on ``images`` and measure the differences.

    The reference runs one image per call, the candidate ``batch`` images, by default two if the reference's batch axis
    is free, so that an axis that was frozen or mixed shows. A class of a ``semantic`` model that covers less than
    ``min_share`` of an image in both maps has no IoU of its own there; its pooled IoU counts every pixel.

    Raises :class:`GateError` if the candidate does not run or gives maps of another shape, :class:`SessionError` if the
    reference does not run.
    """
    compared = differences(reference, candidate, images, batch=batch, min_share=min_share)
    return summarize(compared, reference.bundle.classes)


def differences(
    reference: Side, candidate: Side, images: Iterable[GateImage], *, batch: int | None = None, min_share: float = 0.0
) -> list[tuple[str, Difference]]:
    """Return the name and the difference of every distinct image; see :func:`compare`."""
    run, differ = _TASKS[reference.bundle.task]
    images = _distinct(images)
    ahead = list(islice(images, 2))
    batch = batch or batch_size(reference, ahead)
    limit = candidate.sessions[_first_role(reference)].max_batch
    if limit is not None and limit < batch:
        raise GateError(f"the artifact takes a batch of {limit} only, its reference any; its batch axis was frozen")
    compared: list[tuple[str, Difference]] = []
    for chunk in _chunks(chain(ahead, images), batch):
        photos = [photo for _, photo in chunk]
        expected = [view for photo in photos for view in run(reference, [photo])]
        try:
            actual = list(run(candidate, photos))
        except SessionError as error:
            raise GateError(f"the artifact does not run on an input of its reference: {error}") from error
        for (name, _), reference_view, view in zip(chunk, expected, actual, strict=True):
            compared.append((name, differ(reference_view, view, min_share)))
    return compared


def batch_size(reference: Side, images: Sequence[GateImage]) -> int:
    """Return the default number of images per call of a candidate: two if the reference takes two, else one."""
    free = reference.sessions[_first_role(reference)].max_batch is None and len(images) >= 2
    run, _ = _TASKS[reference.bundle.task]
    return 2 if free and _runs(run, reference, images[:2]) else 1


def summarize(compared: Sequence[tuple[str, Difference]], classes: Sequence[str] = ()) -> Metrics:
    """Reduce the differences of all images to a few numbers; ``classes`` are the names of the model's classes.

    Raises :class:`GateError` if there is no image.
    """
    if not compared:
        raise GateError("there is no image to compare on")
    parts = [difference for _, difference in compared]
    worst_image, worst = min(compared, key=lambda pair: pair[1].iou)
    overlaps = [difference.overlap for difference in parts if difference.overlap is not None]
    intersection, union = np.sum(overlaps, axis=0) if overlaps else np.zeros((2, 0), np.int64)
    counted = classes if any(difference.seen for difference in parts) else ()
    return Metrics(
        images=len(parts),
        agreement=float(np.mean([difference.agreement for difference in parts])),
        mean_iou=float(np.mean([difference.iou for difference in parts])),
        worst_iou=worst.iou,
        worst_image=worst_image,
        mean_error=float(np.mean([difference.mean_error for difference in parts])),
        max_error=max(difference.max_error for difference in parts),
        nonfinite=sum(not difference.finite for difference in parts),
        score_quantile_shift=_quantile_shift(parts),
        class_images={name: sum(index in part.seen for part in parts) for index, name in enumerate(counted)},
        class_iou={
            name: float(intersection[index] / union[index])
            for index, name in enumerate(classes[: len(union)])
            if union[index] >= MIN_CLASS_PIXELS
        },
    )


def _distinct(images: Iterable[GateImage]) -> Iterator[GateImage]:
    """Leave out images whose pixels were met before: copies and links prove nothing new."""
    digests: set[bytes] = set()
    for name, pixels in images:
        digest = hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).digest()
        if digest not in digests:
            digests.add(digest)
            yield name, pixels


def _first_role(side: Side) -> str:
    return "encoder" if side.bundle.task == "promptable" else "model"


@dataclass(frozen=True)
class _Semantic:
    raw: NDArray[np.float32]  # (C, h, w), the part that covers the image
    scores: NDArray[np.float32]  # after the activation


def _run_semantic(side: Side, photos: Sequence[NDArray[np.uint8]]) -> Iterator[_Semantic]:
    predictor = SemanticPredictor(side.bundle, side.sessions["model"], batch=len(photos))
    for view in predictor.run([predictor.prepare(photo) for photo in photos]):
        raw = np.asarray(view.scores, np.float32)
        raw = raw if view.layout == "CHW" else np.moveaxis(raw, -1, 0)
        raw = raw[:, : math.ceil(view.region[2]), : math.ceil(view.region[3])]
        yield _Semantic(raw, _activate(raw, view.activation))


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


Run = Callable[[Side, Sequence[NDArray[np.uint8]]], Iterator[Any]]
Differ = Callable[[Any, Any, float], Difference]

_TASKS: dict[str, tuple[Run, Differ]] = {
    "semantic": (_run_semantic, _differ_semantic),
    "cam": (_run_cam, _differ_cam),
    "promptable": (_run_promptable, _differ_promptable),
}


def _runs(run: Run, side: Side, images: Sequence[GateImage]) -> bool:
    """Return True if a graph with a free batch axis in its signature takes these images in one call."""
    try:
        list(run(side, [photo for _, photo in images]))
    except SessionError:
        return False
    return True


def _chunks(images: Iterable[GateImage], size: int) -> Iterator[tuple[GateImage, ...]]:
    iterator = iter(images)
    while chunk := tuple(islice(iterator, size)):
        yield chunk


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


def _quantile_shift(compared: Sequence[Difference]) -> float:
    """Return the largest move of a score quantile, over everything and per class that enough images show."""
    classes = np.concatenate([difference.classes for difference in compared])
    scores = np.concatenate([difference.scores for difference in compared], axis=1)
    # a score that is not finite is in no prediction set
    scores = np.where(np.isfinite(scores), scores, 1.0)
    num_images = np.bincount(np.concatenate([np.unique(difference.classes) for difference in compared]))
    parts = [scores, *(scores[:, classes == index] for index in np.flatnonzero(num_images >= CLASS_IMAGES))]
    quantiles = [np.quantile(part, LEVELS, axis=1, method="higher") for part in parts]
    return max(float(np.abs(pair[:, 0] - pair[:, 1]).max()) for pair in quantiles)
