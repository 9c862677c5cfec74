"""How far one artifact is from another on real images, at the model's own resolution.

::

    metrics = compare(Side(bundle=bundle, sessions={"model": OnnxSession(bundle)}), candidate, images)
    metrics.worst_iou, metrics.worst_image

What is compared follows the task. ``semantic``: the class maps, their IoU over the classes present in either, and the
class scores. ``cam``: the image's top class, the overlap of that class's activation map, and the class scores.
``promptable``: encoder and decoder from end to end, the masks that a grid of points gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.inputs.images import preprocess
from ...engine.model.bundle import Bundle
from ...engine.model.verdicts import Metrics
from ...engine.predictors.prompted.mask_decoder import PromptDecoder
from ...engine.predictors.prompted.prompts import grid_prompts
from ...engine.predictors.semantic import SemanticPredictor
from ...engine.runtimes.base import Session
from ...errors import GateError, SessionError

LEVELS = (0.8, 0.9, 0.95, 0.99)
"""Levels 1 - alpha whose score quantiles are compared."""
GRID = 3
"""Points a side of the grid that prompts are put on."""
SAMPLES = 16_384
"""Scores of an image that enter the quantiles, at most."""
CLASS_IMAGES = 10
"""Images a class must be seen in for quantiles of its own."""

GateImage = tuple[str, NDArray[np.uint8]]
"""Name and pixels, (H, W, 3) uint8 RGB, of an image."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two artifacts: what describes it and what runs it."""

    bundle: Bundle
    """How an image becomes its input, and what its outputs mean."""
    sessions: Mapping[str, Session]
    """What runs each role: ``model``, or ``encoder`` and ``decoder``."""


@dataclass(frozen=True)
class Difference:
    """How far the two are apart on one image."""

    agreement: float
    """Share of decisions that are the same."""
    iou: float
    """Mask IoU, the mean over classes or prompts."""
    mean_error: float
    """Mean absolute difference of the scores, over those that are finite; infinite where none is."""
    max_error: float
    """Largest absolute difference of a score."""
    finite: bool
    """Whether every value of the artifact is finite."""
    classes: NDArray[np.intp]
    """(n,): the reference's class of each sampled decision."""
    scores: NDArray[np.float32]
    """(2, n): nonconformity score of that class, in the reference and in the artifact."""


def compare(
    reference: Side, candidate: Side, images: Iterable[GateImage], *, batch: int | None = None, min_share: float = 0.0
) -> Metrics:
    """Run both over ``images`` and measure.

    The reference takes one image a call, the candidate ``batch`` of them, so that an axis that was frozen or mixed is
    found; by default two where the reference takes two. A class of a ``semantic`` model that covers less
    than ``min_share`` of an image in both maps has no IoU of its own there.

    Raises :class:`GateError` where the candidate does not run, or gives maps of another shape; :class:`SessionError`
    where the reference does not run.
    """
    return summarize(differences(reference, candidate, images, batch=batch, min_share=min_share))


def differences(
    reference: Side, candidate: Side, images: Iterable[GateImage], *, batch: int | None = None, min_share: float = 0.0
) -> list[tuple[str, Difference]]:
    """Name and difference of every image; see :func:`compare`."""
    first = "encoder" if reference.bundle.task == "promptable" else "model"
    run, differ = _TASKS[reference.bundle.task]
    images = iter(images)
    ahead = list(islice(images, 2))
    if batch is None:
        free = reference.sessions[first].max_batch is None and len(ahead) == 2
        batch = 2 if free and _runs(run, reference, ahead) else 1
    limit = candidate.sessions[first].max_batch
    if limit is not None and limit < batch:
        raise GateError(f"the artifact takes a batch of {limit} only, its reference any; its batch axis was frozen")
    found: list[tuple[str, Difference]] = []
    for chunk in _chunks(chain(ahead, images), batch):
        photos = [photo for _, photo in chunk]
        expected = [view for photo in photos for view in run(reference, [photo])]
        try:
            got = list(run(candidate, photos))
        except SessionError as error:
            raise GateError(f"the artifact does not run where its reference does: {error}") from error
        for (name, _), one, other in zip(chunk, expected, got, strict=True):
            found.append((name, differ(one, other, min_share)))
    return found


def summarize(found: Sequence[tuple[str, Difference]]) -> Metrics:
    """The differences of all images in a few numbers; :class:`GateError` where there is none."""
    if not found:
        raise GateError("there is no image to compare on")
    each = [difference for _, difference in found]
    worst_image, worst = min(found, key=lambda pair: pair[1].iou)
    return Metrics(
        images=len(each),
        agreement=float(np.mean([difference.agreement for difference in each])),
        mean_iou=float(np.mean([difference.iou for difference in each])),
        worst_iou=worst.iou,
        worst_image=worst_image,
        mean_error=float(np.mean([difference.mean_error for difference in each])),
        max_error=max(difference.max_error for difference in each),
        nonfinite=sum(not difference.finite for difference in each),
        score_quantile_shift=_quantile_shift(each),
    )


@dataclass(frozen=True)
class _Semantic:
    raw: NDArray[np.float32]  # (C, h, w), where the image is
    scores: NDArray[np.float32]  # after the activation


def _run_semantic(side: Side, photos: Sequence[NDArray[np.uint8]]) -> Iterator[_Semantic]:
    predictor = SemanticPredictor(side.bundle, side.sessions["model"], batch=len(photos))
    for view in predictor.run([predictor.prepare(photo) for photo in photos]):
        raw = np.asarray(view.scores, np.float32)
        raw = raw if view.layout == "CHW" else np.moveaxis(raw, -1, 0)
        raw = raw[:, : math.ceil(view.region[2]), : math.ceil(view.region[3])]
        yield _Semantic(raw, _activate(raw, view.activation))


def _differ_semantic(expected: _Semantic, got: _Semantic, min_share: float) -> Difference:
    _same_shape("score maps", expected.raw, got.raw)
    tops = [_decide(view.scores) for view in (expected, got)]
    finite = np.isfinite(got.raw).all(axis=0)
    # a pixel that is not finite agrees with nothing
    tops[1] = np.where(finite, tops[1], -1)
    step = -(-tops[0].size // SAMPLES)
    sampled = tops[0].ravel()[::step]
    scores = [1 - _of_class(view.scores, sampled, step) for view in (expected, got)]
    return Difference(
        agreement=float((tops[0] == tops[1]).mean()),
        iou=_class_iou(tops[0], tops[1], min_share),
        **_errors(expected.scores, got.scores),
        finite=bool(finite.all()),
        classes=sampled,
        scores=np.stack(scores),
    )


@dataclass(frozen=True)
class _Cam:
    logits: NDArray[np.float32]  # (C,)
    scores: NDArray[np.float32]  # (C,), after the activation
    maps: NDArray[np.float32]  # (C, h, w), where the image is


def _run_cam(side: Side, photos: Sequence[NDArray[np.uint8]]) -> Iterator[_Cam]:
    specs = {output.kind: (index, output) for index, output in enumerate(side.bundle.outputs_of())}
    (logits_at, logits), (maps_at, maps) = specs["logits"], specs["cam"]
    for values, covers in _called(side, "model", photos):
        cams = np.asarray(values[maps_at], np.float32)
        cams = cams if maps.class_axis == 1 else np.moveaxis(cams, -1, 0)
        found = np.asarray(values[logits_at], np.float32)
        yield _Cam(found, _activate(found, logits.activation), _covered(cams, covers))


def _differ_cam(expected: _Cam, got: _Cam, _: float) -> Difference:
    _same_shape("activation maps", expected.maps, got.maps)
    top = int(expected.scores.argmax())
    one, other = (np.maximum(view.maps[top], 0) for view in (expected, got))
    finite = bool(np.isfinite(got.logits).all() and np.isfinite(got.maps).all())
    union = float(np.maximum(one, other).sum())
    # the overlap of the maps themselves: at 7x7 cells a threshold would turn on a single one
    iou = float(np.minimum(one, other).sum()) / union if union > 0 else 1.0
    return Difference(
        agreement=float(finite and top == got.scores.argmax()),
        iou=iou if finite else 0.0,
        **_errors(expected.scores, got.scores),
        finite=finite,
        classes=np.array([top]),
        scores=1 - np.array([[expected.scores[top]], [got.scores[top]]]),
    )


@dataclass(frozen=True)
class _Masks:
    logits: NDArray[np.float32]  # (prompts * masks, h, w), where the image is
    scores: NDArray[np.float32]  # of each mask's pixel to be on


def _run_promptable(side: Side, photos: Sequence[NDArray[np.uint8]]) -> Iterator[_Masks]:
    decoder, spec = PromptDecoder(side.bundle, side.sessions["decoder"]), side.bundle.input
    for values, covers in _called(side, "encoder", photos):
        masks, _ = decoder.run(
            [value[None] for value in values], grid_prompts(GRID, covers[0] * spec.height, covers[1] * spec.width)
        )
        logits = _covered(masks.reshape(-1, *masks.shape[2:]), covers)
        yield _Masks(logits, _activate(logits, "sigmoid"))


def prompted_masks(side: Side, photo: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits (prompts * masks, h, w) of the masks that the gate's grid of points gives on one photo."""
    return next(_run_promptable(side, [photo])).logits


def _differ_promptable(expected: _Masks, got: _Masks, _: float) -> Difference:
    _same_shape("masks", expected.logits, got.logits)
    finite = np.isfinite(got.logits)
    one, other = expected.logits > 0, got.logits > 0
    same = (one == other) & finite
    union = (one | other | ~finite).sum(axis=(1, 2))
    both = (one & other & finite).sum(axis=(1, 2))
    step = -(-one.size // SAMPLES)
    on = one.ravel()[::step]
    scores = [np.where(on, 1 - part, part) for part in (view.scores.ravel()[::step] for view in (expected, got))]
    return Difference(
        agreement=float(same.mean()),
        iou=float(np.where(union > 0, both / np.maximum(union, 1), 1.0).mean()),
        **_errors(expected.scores, got.scores),
        finite=bool(finite.all()),
        classes=on.astype(np.intp),
        scores=np.stack(scores),
    )


_TASKS: dict[str, tuple[Any, Any]] = {
    "semantic": (_run_semantic, _differ_semantic),
    "cam": (_run_cam, _differ_cam),
    "promptable": (_run_promptable, _differ_promptable),
}


def _runs(run: Any, side: Side, images: Sequence[GateImage]) -> bool:
    """Whether a graph whose batch axis is free by its signature takes these images in one call."""
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
    """Outputs of each photo, without the batch axis, and the shares of the input that it covers."""
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
    """(…, h, w) cut to where the image is."""
    return maps[..., : math.ceil(maps.shape[-2] * covers[0]), : math.ceil(maps.shape[-1] * covers[1])]


def _activate(values: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    """Scores of the classes on the first axis."""
    # values that are not finite are counted, not warned of
    with np.errstate(invalid="ignore", over="ignore"):
        if activation == "softmax":
            exponentials = np.exp(values - values.max(axis=0))
            return exponentials / exponentials.sum(axis=0)
        return np.reciprocal(1 + np.exp(-values)) if activation == "sigmoid" else values


def _decide(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """(C, h, w) → the top class; of a single class, whether it is likelier than not."""
    return (scores[0] > 0.5).astype(np.intp) if len(scores) == 1 else scores.argmax(axis=0)


def _of_class(scores: NDArray[np.float32], classes: NDArray[np.intp], step: int) -> NDArray[np.float32]:
    """Every ``step``-th pixel's score of its class (n,)."""
    flat = scores.reshape(len(scores), -1)[:, ::step]
    if len(flat) == 1:
        return np.where(classes == 1, flat[0], 1 - flat[0]).astype(np.float32)
    return flat[classes, np.arange(len(classes))]


def _class_iou(expected: NDArray[np.intp], got: NDArray[np.intp], min_share: float) -> float:
    """Mean IoU over the classes that either map has; -1 stands for no class."""
    ious = []
    for index in np.union1d(expected, got):
        one, other = expected == index, got == index
        if index >= 0 and max(one.mean(), other.mean()) >= min_share:
            ious.append((one & other).sum() / (one | other).sum())
    return float(np.mean(ious)) if ious else 1.0


def _errors(expected: NDArray[np.float32], got: NDArray[np.float32]) -> dict[str, float]:
    with np.errstate(invalid="ignore"):
        errors = np.abs(expected - got).ravel()
    errors = errors[np.isfinite(errors)]
    if not errors.size:
        return {"mean_error": math.inf, "max_error": math.inf}
    return {"mean_error": float(errors.mean(dtype=np.float64)), "max_error": float(errors.max())}


def _same_shape(what: str, expected: NDArray[Any], got: NDArray[Any]) -> None:
    if expected.shape != got.shape:
        raise GateError(f"the artifact gives {what} of shape {got.shape}, its reference {expected.shape}")


def _quantile_shift(found: Sequence[Difference]) -> float:
    """Largest move of a score quantile, over everything and over each class that is seen in enough images."""
    classes = np.concatenate([each.classes for each in found])
    scores = np.concatenate([each.scores for each in found], axis=1)
    # a score that is not finite is in no prediction set
    scores = np.where(np.isfinite(scores), scores, 1.0)
    seen = np.bincount(np.concatenate([np.unique(each.classes) for each in found]))
    parts = [scores, *(scores[:, classes == index] for index in np.flatnonzero(seen >= CLASS_IMAGES))]
    quantiles = [np.quantile(part, LEVELS, axis=1, method="higher") for part in parts]
    return max(float(np.abs(pair[:, 0] - pair[:, 1]).max()) for pair in quantiles)
