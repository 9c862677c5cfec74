"""The first check of an exported graph: the fp32 file in ONNX Runtime gives what the torch module gives.

Every output is compared, at batch 1 and at a batch other than the one that was traced, and at a second size where the
size is free, so that an axis that the exporter froze is found here and not on a user's photos. Then the gate's own
comparison runs, and what it measured is the bundle's first verdict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.inputs.images import preprocess
from ...engine.model.bundle import Bundle, InputSpec
from ...engine.model.verdicts import Tolerances, add_verdict
from ...engine.runtimes.base import Session
from ...engine.runtimes.onnx_runtime import OnnxSession
from ...errors import GateError, SessionError
from .compare import GateImage, Side
from .judge import judge, require_pass

MAX_ERROR = 1e-3
"""Largest error allowed of a raw output, as a share of its largest magnitude (of 1, where that is smaller)."""

TOLERANCES = Tolerances(agreement=0.999, min_images=1, min_share=0.01)
"""What the verdict on an exported fp32 file asks for; on a small map a single tie is one pixel of a thousand."""

_BATCH = 4


def prove(bundle: Bundle, originals: Mapping[str, Session], images: Iterable[GateImage] | None = None) -> Bundle:
    """The bundle with verdicts on its fp32 files, from their comparison with ``originals`` (role → session).

    ``images`` are names and (H, W, 3) uint8 RGB pixels; smooth made-up pictures where None. Raises
    :class:`GateError` where the files do not give what the originals give.
    """
    from ...kernels.processors import usable_processors

    photos = made_up_photos(bundle.input) if images is None else images
    converted: dict[str, Session] = {
        role: OnnxSession(bundle, role=role, threads=usable_processors()) for role in originals
    }
    output_errors(bundle, originals, converted, list(islice(photos, _BATCH)))
    reference = Side(bundle=bundle, sessions=originals)
    verdicts = judge(reference, Side(bundle=bundle, sessions=converted), photos, tolerances=TOLERANCES)
    require_pass(*verdicts)
    for verdict in verdicts:
        bundle = add_verdict(bundle, verdict)
    return bundle


def output_errors(
    bundle: Bundle, originals: Mapping[str, Session], converted: Mapping[str, Session], photos: Sequence[GateImage]
) -> dict[str, float]:
    """Largest absolute error of each raw output, by its name, on at most four photos.

    Raises :class:`GateError` where the converted graph does not run, gives another shape, a value that is not finite,
    or an error beyond :data:`MAX_ERROR`.
    """
    worst: dict[str, float] = {}
    for role, original in originals.items():
        feeds = _prompts(bundle, originals, photos) if role == "decoder" else _batches(bundle.input, photos)
        for feed in feeds:
            expected = original.run(feed)
            try:
                got = converted[role].run(feed)
            except SessionError as error:
                raise GateError(f"the exported {role} does not run where the module does: {error}") from error
            for output, one, other in zip(bundle.outputs_of(role), expected, got, strict=True):
                error = _checked_error(f"output {output.name!r} of the exported {role}", one, other)
                worst[output.name] = max(worst.get(output.name, 0.0), error)
    return worst


def made_up_photos(spec: InputSpec, num: int = 2) -> list[GateImage]:
    """Smooth pictures of the input's size with something at every scale; always the same."""
    return [(f"made-up {seed}", _made_up(spec.height, spec.width, seed)) for seed in range(num)]


def _made_up(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    import cv2

    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for cells in (2, 5, 13, 31):
        noise = rng.random((cells, cells, 3), dtype=np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.5
    picture -= picture.min()
    return (picture * (255 / picture.max())).astype(np.uint8)


def _batches(spec: InputSpec, photos: Sequence[GateImage]) -> Iterator[NDArray[np.float32]]:
    """One image, a batch, and where the size is free a batch of another size."""
    chosen = [photos[index % len(photos)][1] for index in range(_BATCH)]
    yield preprocess(chosen[0], spec)[0][None]
    specs = [spec]
    if spec.dynamic:
        height, width = spec.height + 2 * spec.multiple, spec.width + spec.multiple
        specs.append(dataclasses.replace(spec, height=height, width=width))
    for each in specs:
        yield np.stack([preprocess(photo, each)[0] for photo in chosen])


def _prompts(
    bundle: Bundle, originals: Mapping[str, Session], photos: Sequence[GateImage]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """One point on an image, then several prompts of points on and off, boxes and padding."""
    spec, rng = bundle.input, np.random.default_rng(0)
    names = [output.name for output in bundle.outputs_of("encoder")]
    embeddings = originals["encoder"].run(preprocess(photos[0][1], spec)[0][None])
    for labels in ([(1,)], [(1, 0, 1), (2, 3, -1), (1, 2, 3), (1, -1, -1)]):
        points = rng.uniform(0, (spec.width, spec.height), (*np.shape(labels), 2))
        yield {
            **{name: np.repeat(array, len(labels), axis=0) for name, array in zip(names, embeddings, strict=True)},
            "points": points.astype(np.float32),
            "labels": np.array(labels, np.float32),
        }


def _checked_error(what: str, expected: NDArray[Any], got: NDArray[Any]) -> float:
    if expected.shape != got.shape:
        raise GateError(f"{what} has shape {got.shape}, the module's {expected.shape}; nothing was written")
    for maker, array in (("the module", expected), ("the graph", got)):
        if not np.isfinite(array).all():
            raise GateError(f"{what} holds values that are not finite, as {maker} computes it; nothing was written")
    error = float(np.abs(expected - got).max())
    allowed = MAX_ERROR * max(1.0, float(np.abs(expected).max()))
    if error > allowed:
        raise GateError(
            f"{what} differs from the module's by {error:.3g}, more than {allowed:.3g}; nothing was written"
        )
    return error
