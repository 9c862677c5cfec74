"""The first check of an exported graph: the fp32 file in ONNX Runtime gives what the torch module gives.

Every graph runs at batch 1 and at a batch other than the one it was traced with, and at a second size where the size
is free, so that an axis the exporter froze is found here and not on a user's photos.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.images import preprocess
from ..engine.session import OnnxSession, Session
from ..errors import GateError, SessionError
from .bundle import Bundle, InputSpec, OutputSpec

MAX_ERROR = 1e-3
"""Largest error allowed, as a share of the output's largest magnitude (or of 1, where that is smaller)."""
MIN_AGREEMENT = 0.9999
"""Smallest share of pixels (or images, or mask pixels) with the same decision."""

_BATCH = 4


def prove(
    bundle: Bundle, originals: Mapping[str, Session], images: Sequence[NDArray[np.uint8]] = ()
) -> tuple[dict[str, Any], ...]:
    """Verdicts on a bundle's fp32 files, one a role, from their comparison with ``originals`` (role → session).

    ``images`` are (H, W, 3) uint8 RGB; smooth made-up pictures where there are none. Raises :class:`GateError` where an
    output is not finite, differs beyond :data:`MAX_ERROR`, or decides otherwise beyond :data:`MIN_AGREEMENT`.
    """
    verdicts = []
    for role, original in originals.items():
        converted = OnnxSession(bundle, role=role)
        outputs = bundle.outputs_of(role)
        worst = {output.name: 0.0 for output in outputs}
        agreed = total = 0
        feeds = _prompts(bundle, originals, images) if role == "decoder" else _batches(bundle.input, images)
        for feed in feeds:
            expected = original.run(feed)
            try:
                got = converted.run(feed)
            except SessionError as error:
                raise GateError(f"the exported {role} does not run where the module does: {error}") from error
            for output, one, other in zip(outputs, expected, got, strict=True):
                worst[output.name] = max(worst[output.name], _error(role, output, one, other))
                same = _same_decisions(output, one, other)
                agreed, total = agreed + int(same.sum()), total + same.size
        metrics = {
            "max_error": max(worst.values()),
            "max_error_of": worst,
            "agreement": agreed / total if total else 1.0,
        }
        if metrics["agreement"] < MIN_AGREEMENT:
            raise GateError(
                f"the exported {role} decides like the module on {metrics['agreement']:.6f} of its outputs only "
                f"(at least {MIN_AGREEMENT} is needed); nothing was written"
            )
        verdicts.append(
            {
                "artefact": bundle.file(role).sha256,
                "reference": bundle.source.weights_sha256,
                "precision": "fp32",
                "runtime": "onnxruntime",
                "device": "cpu",
                "emulated": False,
                "passed": True,
                "images": len(images),
                "tolerances": {"max_error": MAX_ERROR, "agreement": MIN_AGREEMENT},
                "metrics": metrics,
            }
        )
    return tuple(verdicts)


def made_up_picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A smooth (H, W, 3) uint8 picture with something at every scale, the same for the same seed."""
    import cv2

    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for cells in (2, 5, 13, 31):
        noise = rng.random((cells, cells, 3), dtype=np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.5
    picture -= picture.min()
    return (picture * (255 / picture.max())).astype(np.uint8)


def _batches(spec: InputSpec, images: Sequence[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
    """Single images, one batch, and where the size is free a batch of another size."""
    photos = list(images) or [made_up_picture(spec.height, spec.width, seed) for seed in range(2)]
    for photo in photos:
        yield preprocess(photo, spec)[0][None]
    chosen = [photos[index % len(photos)] for index in range(_BATCH)]
    specs = [spec]
    if spec.dynamic:
        other = (spec.height + 2 * spec.multiple, spec.width + spec.multiple)
        specs.append(dataclasses.replace(spec, height=other[0], width=other[1]))
    for each in specs:
        yield np.stack([preprocess(photo, each)[0] for photo in chosen])


def _prompts(
    bundle: Bundle, originals: Mapping[str, Session], images: Sequence[NDArray[np.uint8]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Embeddings of single images, with one point each and with sets of points, boxes and padding."""
    spec, rng = bundle.input, np.random.default_rng(0)
    names = [output.name for output in bundle.outputs_of("encoder")]
    photos = list(images) or [made_up_picture(spec.height, spec.width, 0)]
    for photo in photos:
        embeddings = originals["encoder"].run(preprocess(photo, spec)[0][None])
        for prompts, points in ((1, 1), (_BATCH, 3)):
            labels = np.ones((prompts, points), np.float32)
            if points == 3:
                labels[:] = [(1, 0, 1), (2, 3, -1), (1, 2, 3), (1, -1, -1)]
            yield {
                **{name: np.repeat(array, prompts, axis=0) for name, array in zip(names, embeddings, strict=True)},
                "points": rng.uniform(0, (spec.width, spec.height), (prompts, points, 2)).astype(np.float32),
                "labels": labels,
            }


def _error(role: str, output: OutputSpec, expected: NDArray[Any], got: NDArray[Any]) -> float:
    """Largest absolute difference, after the checks that end the export."""
    if expected.shape != got.shape:
        raise GateError(
            f"output {output.name!r} of the exported {role} has shape {got.shape}, the module's {expected.shape}"
        )
    for maker, array in (("module", expected), ("exported graph", got)):
        if not np.isfinite(array).all():
            raise GateError(f"output {output.name!r} of the {maker} holds values that are not finite ({role})")
    error = float(np.abs(expected - got).max())
    allowed = MAX_ERROR * max(1.0, float(np.abs(expected).max()))
    if error > allowed:
        raise GateError(
            f"output {output.name!r} of the exported {role} differs from the module's by {error:.3g}, "
            f"more than {allowed:.3g}; nothing was written"
        )
    return error


def _same_decisions(output: OutputSpec, expected: NDArray[Any], got: NDArray[Any]) -> NDArray[np.bool_]:
    """Where both decide the same: the best class, or on or off a mask; nothing for outputs that decide nothing."""
    if output.kind == "masks":
        return (expected > 0) == (got > 0)
    if output.kind not in ("scores", "logits", "cam"):
        return np.zeros(0, np.bool_)
    if expected.shape[output.class_axis] == 1:
        threshold = 0.0 if output.activation == "sigmoid" else 0.5
        return (expected > threshold) == (got > threshold)
    return expected.argmax(output.class_axis) == got.argmax(output.class_axis)
