"""Check an exported graph: the fp32 file in ONNX Runtime must equal the torch module.

Every output is compared at batch 1, at a batch other than the traced one, and at a second size if the size is free, so
that an axis that the exporter froze is found here rather than on a user's photos. Then the gate's comparison runs, and
its result is the bundle's first verdict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.inputs.images import preprocess
from ...engine.model.bundle import Bundle, OutputSpec
from ...engine.model.input_spec import InputSpec
from ...engine.model.verdicts import Tolerances, add_verdict
from ...engine.predictors.prompted.mask_decoder import mask_feeds
from ...engine.predictors.prompted.prompts import MASK_LOGIT
from ...engine.predictors.texts import encode_texts, tokenize
from ...engine.runtimes.base import Session
from ...engine.runtimes.onnx_runtime import OnnxSession
from ...errors import GateError, SessionError
from ..pictures import GateImage, generated_images
from .judge import judge, require_pass
from .tasks import GATE_TEXTS, Side

MAX_ERROR = 1e-3
"""Largest allowed error of a raw output, as a share of its largest magnitude, or of 1 if that is smaller."""

TOLERANCES = Tolerances(agreement=0.999, class_iou=0.0, min_images=1, min_share=0.01)
"""Tolerances of the verdict on an exported fp32 file; on a small map a single tie is one pixel in a thousand."""

_BATCH = 4


def prove(bundle: Bundle, originals: Mapping[str, Session], images: Iterable[GateImage] | None = None) -> Bundle:
    """Compare the bundle's fp32 files with ``originals`` (role → session) and return it with the verdicts.

    ``images`` are names and (H, W, 3) uint8 RGB pixels; smooth generated pictures if None. Raises :class:`GateError` if
    the outputs differ.
    """
    from ...kernels.processors import usable_processors

    photos = generated_images(bundle.input) if images is None else images
    sessions: dict[str, Session] = {
        role: OnnxSession(bundle, role=role, threads=usable_processors()) for role in originals
    }
    output_errors(bundle, originals, sessions, list(islice(photos, _BATCH)))
    reference = Side(bundle=bundle, sessions=originals)
    verdicts = judge(reference, Side(bundle=bundle, sessions=sessions), photos, tolerances=TOLERANCES)
    require_pass(*verdicts)
    for verdict in verdicts:
        bundle = add_verdict(bundle, verdict)
    return bundle


def output_errors(
    bundle: Bundle, originals: Mapping[str, Session], sessions: Mapping[str, Session], photos: Sequence[GateImage]
) -> dict[str, float]:
    """Return the largest absolute error of each raw output, by name, on at most four photos.

    Raises :class:`GateError` if the converted graph does not run, gives another shape, a value that is not finite, or
    an error beyond :data:`MAX_ERROR`.
    """
    worst: dict[str, float] = {}
    for role, original in originals.items():
        feeds = _feeds(bundle, role, originals, photos)
        for feed in feeds:
            expected = original.run(feed)
            try:
                actual = sessions[role].run(feed)
            except SessionError as error:
                raise GateError(f"the exported {role} does not run on an input of the module: {error}") from error
            for output, reference, array in _paired(bundle.outputs_of(role), expected, actual):
                error = _checked_error(f"output {output.name!r} of the exported {role}", reference, array)
                worst[output.name] = max(worst.get(output.name, 0.0), error)
    return worst


def _paired(
    outputs: Sequence[OutputSpec], expected: Sequence[NDArray[Any]], actual: Sequence[NDArray[Any]]
) -> Iterator[tuple[OutputSpec, NDArray[Any], NDArray[Any]]]:
    """Yield outputs with the values of both sides.

    Objects with nearly equal scores may swap places, so their masks and classes are compared as a sum over the
    objects of score times probability, and of score times class.
    """
    at = {output.kind: index for index, output in enumerate(outputs)}
    for index, output in enumerate(outputs):
        values = [expected[index], actual[index]]
        if output.kind in ("object_masks", "object_classes"):
            scores = [side[at["object_scores"]] for side in (expected, actual)]
            if output.kind == "object_masks":
                values = [1 / (1 + np.exp(-np.clip(masks, -30, 30))) for masks in values]
            values = [np.einsum("nk,nk...->n...", *pair) for pair in zip(scores, values, strict=True)]
        yield output, values[0], values[1]


def _feeds(bundle: Bundle, role: str, originals: Mapping[str, Session], photos: Sequence[GateImage]) -> Iterator[Any]:
    if role == "text":
        return _token_batches(bundle)
    if role != "decoder":
        return _batches(bundle.input, photos)
    return _prompts(bundle, originals, photos) if bundle.text is None else _named_classes(bundle, originals, photos)


def _token_batches(bundle: Bundle) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Yield the tokens of one class name, and of several of different lengths."""
    for names in (GATE_TEXTS[:1], GATE_TEXTS):
        ids, present = tokenize(bundle, names)
        yield {"input_ids": ids, "attention_mask": present}


def _named_classes(
    bundle: Bundle, originals: Mapping[str, Session], photos: Sequence[GateImage]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield one image with one class, and several images with several classes."""
    names = [output.name for output in bundle.outputs_of("encoder")]
    batch = np.stack([preprocess(photos[index % len(photos)][1], bundle.input)[0] for index in range(2)])
    for images, classes in ((batch[:1], GATE_TEXTS[:1]), (batch, GATE_TEXTS)):
        texts = encode_texts(bundle, originals["text"], classes)
        embeddings = dict(zip(names, originals["encoder"].run(images), strict=True))
        yield {**embeddings, "texts": texts.features, "present": texts.present}


def _batches(spec: InputSpec, photos: Sequence[GateImage]) -> Iterator[NDArray[np.float32]]:
    """Yield one image, a batch, and a batch of another size if the size is free."""
    photos_of_batch = [photos[index % len(photos)][1] for index in range(_BATCH)]
    yield preprocess(photos_of_batch[0], spec)[0][None]
    specs = [spec]
    if spec.dynamic:
        height, width = spec.height + 2 * spec.multiple, spec.width + spec.multiple
        specs.append(dataclasses.replace(spec, height=height, width=width))
    for size_spec in specs:
        yield np.stack([preprocess(photo, size_spec)[0] for photo in photos_of_batch])


def _prompts(
    bundle: Bundle, originals: Mapping[str, Session], photos: Sequence[GateImage]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield one point on an image, then several prompts of points on and off objects, boxes, padding and masks."""
    spec, rng = bundle.input, np.random.default_rng(0)
    names = [output.name for output in bundle.outputs_of("encoder")]
    embeddings = originals["encoder"].run(preprocess(photos[0][1], spec)[0][None])
    for labels in ([(1,)], [(1, 0, 1), (2, 3, -1), (1, 2, 3), (1, -1, -1)]):
        points = rng.uniform(0, (spec.width, spec.height), (*np.shape(labels), 2))
        masks: dict[str, NDArray[np.float32]] = {}
        if (prompt := bundle.prompt) is not None and prompt.masks:
            inside = np.zeros((len(labels), prompt.mask_height, prompt.mask_width), np.float32)
            inside[::2, : prompt.mask_height // 2] = MASK_LOGIT  # every other prompt has a mask
            masks = mask_feeds(inside, prompt, num=len(labels))
        yield {
            **{name: np.repeat(array, len(labels), axis=0) for name, array in zip(names, embeddings, strict=True)},
            "points": points.astype(np.float32),
            "labels": np.array(labels, np.float32),
            **masks,
        }


def _checked_error(name: str, expected: NDArray[Any], actual: NDArray[Any]) -> float:
    if expected.shape != actual.shape:
        raise GateError(f"{name} has shape {actual.shape}, the module's {expected.shape}; nothing was written")
    for maker, array in (("the module", expected), ("the graph", actual)):
        if not np.isfinite(array).all():
            raise GateError(f"{name} holds values that are not finite, as {maker} computes it; nothing was written")
    error = float(np.abs(expected - actual).max())
    tolerance = MAX_ERROR * max(1.0, float(np.abs(expected).max()))
    if error > tolerance:
        raise GateError(
            f"{name} differs from the module's by {error:.3g}, more than {tolerance:.3g}; nothing was written"
        )
    return error
