"""Measure the difference between two artifacts on real images, at the model's own resolution.

::

    metrics = compare(Side(bundle=bundle, sessions={"model": OnnxSession(bundle)}), candidate, images)
    metrics.worst_iou, metrics.worst_image

The measures follow the task. ``semantic``: the class maps, their IoU over the classes present in either, per image and
pooled over all images, and the class scores. ``cam``: the image's top class, the overlap of that class's activation
map, and the class scores. ``promptable``: encoder and decoder end to end, on the masks of a grid of points.
``detector``: boxes of one class, paired by overlap, and their scores. ``text``: as ``semantic``, for some class names.

Images with the same pixels count once, whatever their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np

from ...engine.model.verdicts import MIN_CLASS_PIXELS, Metrics
from ...errors import GateError, SessionError
from ..pictures import GateImage
from .tasks import TASKS, Difference, Run, Side

LEVELS = (0.8, 0.9, 0.95, 0.99)
"""Levels 1 - alpha whose score quantiles are compared."""
CLASS_IMAGES = 10
"""Number of images that must show a class for it to have quantiles of its own."""


def compare(
    reference: Side, candidate: Side, images: Iterable[GateImage], *, batch: int | None = None, min_share: float = 0.0
) -> Metrics:
    """Run both artifacts on ``images`` and measure the differences.

    The reference runs one image per call, the candidate ``batch`` images, by default two if the reference's batch axis
    is free, so that a frozen or mixed axis is detected. A class of a ``semantic`` model that covers less than
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
    run, differ = TASKS[reference.bundle.task]
    images = _distinct(images)
    first_images = list(islice(images, 2))
    batch = batch or batch_size(reference, first_images)
    limit = candidate.sessions[_first_role(reference)].max_batch
    if limit is not None and limit < batch:
        raise GateError(f"the artifact takes a batch of {limit} only, its reference any; its batch axis was frozen")
    pairs: list[tuple[str, Difference]] = []
    for chunk in _chunks(chain(first_images, images), batch):
        photos = [photo for _, photo in chunk]
        expected = [view for photo in photos for view in run(reference, [photo])]
        try:
            actual = list(run(candidate, photos))
        except SessionError as error:
            raise GateError(f"the artifact does not run on an input of its reference: {error}") from error
        for (name, _), reference_view, view in zip(chunk, expected, actual, strict=True):
            pairs.append((name, differ(reference_view, view, min_share)))
    return pairs


def batch_size(reference: Side, images: Sequence[GateImage]) -> int:
    """Return the default number of images per call of a candidate: two if the reference takes two, else one."""
    free = reference.sessions[_first_role(reference)].max_batch is None and len(images) >= 2
    run, _ = TASKS[reference.bundle.task]
    return 2 if free and _runs(run, reference, images[:2]) else 1


def summarize(pairs: Sequence[tuple[str, Difference]], classes: Sequence[str] = ()) -> Metrics:
    """Reduce the differences of all images to a few numbers; ``classes`` are the names of the model's classes.

    Raises :class:`GateError` if there is no image.
    """
    if not pairs:
        raise GateError("there is no image to compare on")
    parts = [difference for _, difference in pairs]
    worst_image, worst = min(pairs, key=lambda pair: pair[1].iou)
    overlaps = [difference.overlap for difference in parts if difference.overlap is not None]
    intersection, union = np.sum(overlaps, axis=0) if overlaps else np.zeros((2, 0), np.int64)
    class_names = classes if any(difference.seen for difference in parts) else ()
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
        class_images={name: sum(index in part.seen for part in parts) for index, name in enumerate(class_names)},
        class_iou={
            name: float(intersection[index] / union[index])
            for index, name in enumerate(classes[: len(union)])
            if union[index] >= MIN_CLASS_PIXELS
        },
    )


def _distinct(images: Iterable[GateImage]) -> Iterator[GateImage]:
    """Leave out images whose pixels occurred before, since copies and links add no evidence."""
    digests: set[bytes] = set()
    for name, pixels in images:
        digest = hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).digest()
        if digest not in digests:
            digests.add(digest)
            yield name, pixels


def _first_role(side: Side) -> str:
    return next(iter(side.sessions))


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


def _quantile_shift(differences: Sequence[Difference]) -> float:
    """Return the largest move of a score quantile, over everything and per class that enough images show."""
    classes = np.concatenate([difference.classes for difference in differences])
    scores = np.concatenate([difference.scores for difference in differences], axis=1)
    # a score that is not finite is in no prediction set
    scores = np.where(np.isfinite(scores), scores, 1.0)
    num_images = np.bincount(np.concatenate([np.unique(difference.classes) for difference in differences]))
    parts = [scores, *(scores[:, classes == index] for index in np.flatnonzero(num_images >= CLASS_IMAGES))]
    quantiles = [np.quantile(part, LEVELS, axis=1, method="higher") for part in parts]
    return max(float(np.abs(pair[:, 0] - pair[:, 1]).max()) for pair in quantiles)
