"""Segment everything: masks from a grid of points, filtered and without duplicates, as one map of segments.

::

    model = SegmentEverything(bundle, encoder_session, decoder_session)
    label = paint(model.run([model.prepare(image)])[0])      # (H, W) uint16: 0 outside all segments, then 1, 2, …

Smaller segments are painted over larger ones, as in S2C, which contrasts features of such segments. The filters are
those of Segment Anything: the model's own score of a mask, and its stability (the IoU of the mask at two thresholds of
its logits); of several masks that cover nearly the same pixels the one with the highest score stays.

With ``backend=CudaBackend()`` images, embeddings, logits and the painting stay on the device. Scores, stabilities,
areas and overlaps are downloaded, since they decide which masks stay, and finally the map of segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...checks import check_choice, check_count, check_number
from ...kernels.types import BackendArray
from ..backends.base import Backend
from ..backends.host import HOST
from ..model.bundle import Bundle
from ..runtimes.base import Session
from .prompted.embedding_cache import rounded
from .prompted.mask_decoder import PromptDecoder
from .prompted.prompts import grid_prompts
from .resampling import bilinear_weights

MAX_SEGMENTS = 65534
"""Most segments of a 16-bit map, which also holds 0 and the ignore index."""


Filters = Literal["masks", "boxes"]


@dataclass(frozen=True, kw_only=True)
class EverythingSettings:
    """Filters that decide which masks become segments."""

    side: int = 16
    """Grid points per side; 32 in Segment Anything."""
    filters: Filters = "masks"
    """``masks``: drop masks by the IoU of masks, paint the smaller segment on top; ``boxes``: as Segment Anything's own
    generator, which S2C's authors use, by the IoU of bounding boxes, without a smallest area, with the better score on
    top."""
    min_score: float = 0.88
    """Smallest score of a mask that is kept."""
    min_stability: float = 0.95
    """Smallest stability of a mask that is kept: the IoU of its areas at logits above 1 and above -1."""
    max_overlap: float = 0.7
    """Largest IoU of a mask with a better one."""
    min_area: float = 0.0005
    """Smallest share of the image that a mask covers (``masks`` only)."""

    def __post_init__(self) -> None:
        check_choice("filters", self.filters, Filters)
        check_count("side", self.side, least=1)
        for name in ("min_stability", "max_overlap", "min_area"):
            check_number(name, getattr(self, name), least=0, most=1)


@dataclass(frozen=True, kw_only=True, repr=False)
class SegmentMap:
    """The segments of one image, in the order of painting: later ones are on top."""

    logits: Any
    """(n, rows, columns) float16, on ``backend``; positive inside a segment."""
    scores: NDArray[np.float32]
    """(n,): the model's scores."""
    size: tuple[int, int]
    """(height, width) of the image, in pixels."""
    extent: tuple[float, float]
    """Rows and columns of the logits, from the first, that the image covers."""
    backend: Backend = HOST
    """Device that holds the logits."""
    finite: bool = True
    """False if the model's scores are not finite, so that there are no segments."""


class SegmentEverything:
    """Segments all objects of an image with a promptable bundle.

    ``backend`` holds images and logits; the sessions must accept its arrays.
    """

    def __init__(
        self,
        bundle: Bundle,
        encoder: Session,
        decoder: Session,
        *,
        settings: EverythingSettings | None = None,
        backend: Backend = HOST,
    ) -> None:
        self.bundle = bundle
        self._encoder = encoder
        self._decoder = PromptDecoder(bundle, decoder, backend=backend)
        self._backend = backend
        self._options = settings or EverythingSettings()
        self._decoder_kind, self._decoder_artifact = decoder.kind, decoder.artifact

    @property
    def settings(self) -> dict[str, Any]:
        """Bundle, sessions, files and filters."""
        return {
            "bundle": self.bundle.fingerprint,
            "encoder": {"session": self._encoder.kind, "artifact": self._encoder.artifact},
            "decoder": {"session": self._decoder_kind, "artifact": self._decoder_artifact},
            "everything": {name: getattr(self._options, name) for name in EverythingSettings.__dataclass_fields__},
        }

    @property
    def batch(self) -> int:
        """Number of images per call of ``run``."""
        return 1

    @property
    def threads(self) -> int:
        """Number of host threads that one call of ``run`` uses."""
        return self._encoder.threads

    @property
    def backend(self) -> Backend:
        """Device that decodes images and holds segments."""
        return self._backend

    def condition(self, uri: str) -> str:
        """Return "": only the pixels decide."""
        return ""

    def prepare(self, image: Any, uri: str = "") -> tuple[Any, tuple[float, float], tuple[int, int]]:
        """Return the encoder's input, the shares of it that the image covers, and the image's size."""
        tensor, covers = self.backend.preprocess(image, self.bundle.input)
        return tensor, covers, (image.shape[0], image.shape[1])

    def run(self, prepared: Sequence[Any]) -> list[SegmentMap]:
        """Segment prepared images."""
        with self.backend.queue():
            return [self._segments(*image) for image in prepared]

    def _segments(self, tensor: Any, covers: tuple[float, float], size: tuple[int, int]) -> SegmentMap:
        spec, options = self.bundle.input, self._options
        backend, xp = self.backend, self.backend.xp
        batch = xp.repeat(tensor[None], self._encoder.max_batch or 1, axis=0)
        embeddings = rounded([output[:1] for output in self._encoder.run(batch)], xp)
        prompts = grid_prompts(options.side, covers[0] * spec.height, covers[1] * spec.width, xp)
        logits, scores = self._decoder.run(embeddings, prompts)
        (rows, columns), extent = self._decoder.grid(covers)
        logits = logits[:, :, :rows, :columns].reshape(-1, rows, columns)
        (host_scores,) = backend.download(scores.reshape(-1))
        survivors = self._kept(logits, host_scores)
        return SegmentMap(
            logits=xp.clip(logits[xp.asarray(survivors)], -1e4, 1e4).astype(np.float16),
            scores=host_scores[survivors],
            size=size,
            extent=extent,
            backend=backend,
            finite=bool(np.isfinite(host_scores).all()),
        )

    def _kept(self, logits: Any, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return indices of the masks (n, rows, columns) that become segments, in the order of painting."""
        options, backend, xp = self._options, self.backend, self.backend.xp
        sound = np.flatnonzero(scores >= options.min_score)
        if len(sound) == 0:
            return sound
        logits = logits[xp.asarray(sound)]
        stable, areas = backend.download(stability(logits, xp=xp), (logits > 0).sum(axis=(1, 2)))
        by_boxes = options.filters == "boxes"
        least = 1.0 if by_boxes else max(1.0, options.min_area * logits.shape[1] * logits.shape[2])
        good = np.flatnonzero((stable >= options.min_stability) & (areas >= least))
        masks = logits[xp.asarray(good)] > 0
        if by_boxes:
            boxes = bounding_boxes(*backend.download(masks.any(axis=2), masks.any(axis=1)))
            best = without_overlapping_boxes(boxes, scores[sound[good]], options.max_overlap)[:MAX_SEGMENTS]
            return sound[good[best[::-1]]]
        good = good[without_duplicates(masks, scores[sound[good]], options.max_overlap, backend)[:MAX_SEGMENTS]]
        return sound[good[np.argsort(-areas[good], kind="stable")]]


def stability(logits: Any, offset: float = 1.0, xp: Any = np) -> BackendArray:
    """Compute (n,) float64: IoU of each mask at logits (n, rows, columns) above ``offset`` and above its negative.

    It is 0 for an empty mask. ``xp`` is the library of the logits.
    """
    inner = (logits > offset).sum(axis=(1, 2))
    outer = (logits > -offset).sum(axis=(1, 2))
    return inner / xp.maximum(outer, 1)


def without_duplicates(
    masks: Any, scores: NDArray[np.float32], max_overlap: float, backend: Backend = HOST
) -> NDArray[np.int64]:
    """Return indices of masks (n, rows, columns) by falling score, without those that overlap an earlier one too much.

    The masks, bool, are on ``backend``, scores and indices on the host. The overlap is the IoU.
    """
    order, xp = np.argsort(-scores, kind="stable"), backend.xp
    if len(order) == 0:
        return order
    flat = masks[xp.asarray(order)].reshape(len(order), -1).astype(np.float32)
    intersection = flat @ flat.T
    areas = xp.diagonal(intersection)
    overlap = intersection / xp.maximum(areas[:, None] + areas[None, :] - intersection, 1)
    (is_duplicate,) = backend.download(overlap > max_overlap)
    survivors: list[int] = []
    for index in range(len(order)):
        if not is_duplicate[index, survivors].any():
            survivors.append(index)
    return order[survivors]


def bounding_boxes(rows: NDArray[np.bool_], columns: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return boxes (n, 4) of (top, left, bottom, right), the last two exclusive.

    ``rows`` (n, H) and ``columns`` (n, W) tell which rows and columns of a mask hold one of its pixels; none is empty.
    """
    edges = [(used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)) for used in (rows, columns)]
    (top, bottom), (left, right) = edges
    return np.stack([top, left, bottom, right], axis=1).astype(np.int64)


def without_overlapping_boxes(
    boxes: NDArray[np.int64], scores: NDArray[np.float32], max_overlap: float
) -> NDArray[np.int64]:
    """Return indices of boxes (n, 4) by falling score, without those whose IoU with an earlier one is higher."""
    order = np.argsort(-scores, kind="stable")
    corners = boxes[order].astype(np.float64)
    sizes = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    survivors: list[int] = []
    for index, box in enumerate(corners):
        other_corners = corners[survivors]
        sides = np.minimum(other_corners[:, 2:], box[2:]) - np.maximum(other_corners[:, :2], box[:2])
        intersection = np.maximum(sides, 0).prod(axis=1)
        if not (intersection > max_overlap * (sizes[survivors] + sizes[index] - intersection)).any():
            survivors.append(index)
    return order[survivors]


def paint(segments: SegmentMap) -> NDArray[np.uint16]:
    """Paint segments at the image's size, (H, W) uint16: 0 outside all segments, then 1, 2, … in the order of painting.

    The painting runs on the segments' device; the result is on the host.
    """
    xp = segments.backend.xp
    with segments.backend.queue():
        label = xp.zeros(segments.size, np.uint16)
        rows, columns = (
            xp.asarray(bilinear_weights(length, length, cells, extent / cells))
            for length, cells, extent in zip(segments.size, segments.logits.shape[1:], segments.extent, strict=True)
        )
        for number, logits in enumerate(segments.logits, start=1):
            label[rows @ logits.astype(np.float32) @ columns.T > 0] = number
        (painted,) = segments.backend.download(label)
    return painted
