"""Segment everything: masks of a grid of points, filtered and without duplicates, as one map of segments.

::

    model = SegmentEverything(bundle, encoder_session, decoder_session)
    label = paint(model.run([model.prepare(image)])[0])      # (H, W) uint16, 0 where no segment is, then 1, 2, …

Where segments overlap the smaller one lies on top, as in S2C, which contrasts features of such segments. The filters
are those of Segment Anything: the model's own score of a mask, and its stability (the IoU of the mask at two thresholds
of its logits); of masks that overlap nearly whole the one with the highest score stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..export.bundle import Bundle
from .cams import bilinear_weights
from .decoder import PromptDecoder
from .embeddings import rounded
from .images import preprocess
from .place import HOST, Place
from .prompts import grid_prompts
from .select import Selected
from .session import Session

MAX_SEGMENTS = 65534
"""Segments that a map of 16 bits can hold beside 0 and the ignore index."""


@dataclass(frozen=True, kw_only=True)
class EverythingSettings:
    """Which masks become segments."""

    side: int = 16
    """Points a side of the grid."""
    min_score: float = 0.88
    """Masks that the model scores lower are dropped."""
    min_stability: float = 0.95
    """Masks whose IoU at logits above 1 and above -1 is lower are dropped."""
    max_overlap: float = 0.7
    """A mask whose IoU with a better one is higher is dropped."""
    min_area: float = 0.0005
    """Share of the image that a mask covers at least."""

    def __post_init__(self) -> None:
        if self.side < 1:
            raise UsageError(f"the grid needs at least one point a side, got {self.side}")
        for name in ("min_stability", "max_overlap", "min_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name.replace('_', ' ')} is a share from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, repr=False)
class SegmentMap:
    """The segments of one image, the largest first."""

    logits: NDArray[np.float16]
    """(n, rows, columns): a segment is where its logits are positive."""
    scores: NDArray[np.float32]
    """(n,): the model's scores."""
    size: tuple[int, int]
    """(height, width) of the image, in pixels."""
    extent: tuple[float, float]
    """Rows and columns of the logits, from the first, that the image covers."""


class SegmentEverything:
    """A promptable bundle that is asked for everything; prepares and runs as every predictor does."""

    def __init__(
        self, bundle: Bundle, encoder: Session, decoder: Session, *, settings: EverythingSettings | None = None
    ) -> None:
        self.bundle = bundle
        self._encoder = encoder
        self._decoder = PromptDecoder(bundle, decoder)
        self._options = settings or EverythingSettings()
        self._decoder_kind, self._decoder_artefact = decoder.kind, decoder.artefact

    @property
    def settings(self) -> dict[str, Any]:
        """Bundle, sessions, files and filters."""
        return {
            "bundle": self.bundle.fingerprint,
            "encoder": {"session": self._encoder.kind, "artefact": self._encoder.artefact},
            "decoder": {"session": self._decoder_kind, "artefact": self._decoder_artefact},
            "everything": {name: getattr(self._options, name) for name in EverythingSettings.__dataclass_fields__},
        }

    @property
    def batch(self) -> int:
        """Images in one ``run``."""
        return 1

    @property
    def threads(self) -> int:
        """Threads that one ``run`` uses on the host."""
        return self._encoder.threads

    @property
    def place(self) -> Place:
        """Images and segments lie on the host."""
        return HOST

    def prepare(self, image: Any, uri: str = "") -> tuple[NDArray[np.float32], tuple[float, float], tuple[int, int]]:
        """The encoder's input, the shares of it that the image covers, and the image's size."""
        tensor, covers = preprocess(image, self.bundle.input)
        return tensor, covers, (image.shape[0], image.shape[1])

    def run(self, prepared: Sequence[Any]) -> list[SegmentMap]:
        """The segments of prepared images."""
        return [self._segments(*one) for one in prepared]

    def _segments(self, tensor: NDArray[np.float32], covers: tuple[float, float], size: tuple[int, int]) -> SegmentMap:
        spec, mask, options = self.bundle.input, self._decoder.spec, self._options
        batch = np.repeat(tensor[None], self._encoder.max_batch or 1, axis=0)
        embeddings = rounded([np.asarray(output)[:1] for output in self._encoder.run(batch)])
        prompts = grid_prompts(options.side, covers[0] * spec.height, covers[1] * spec.width)
        logits, scores = self._decoder.run(embeddings, prompts)
        extent = mask.mask_height * covers[0], mask.mask_width * covers[1]
        rows, columns = max(1, int(np.ceil(extent[0]))), max(1, int(np.ceil(extent[1])))
        logits = logits[:, :, :rows, :columns].reshape(-1, rows, columns)
        scores = scores.reshape(-1)
        sound = scores >= options.min_score
        logits, scores = logits[sound], scores[sound]
        sound = (stability(logits) >= options.min_stability) & (
            (logits > 0).sum(axis=(1, 2)) >= max(1.0, options.min_area * rows * columns)
        )
        logits, scores = logits[sound], scores[sound]
        kept = without_duplicates(logits > 0, scores, options.max_overlap)[:MAX_SEGMENTS]
        logits, scores = logits[kept], scores[kept]
        largest_first = np.argsort(-(logits > 0).sum(axis=(1, 2)), kind="stable")
        return SegmentMap(
            logits=np.clip(logits[largest_first], -1e4, 1e4).astype(np.float16),
            scores=scores[largest_first],
            size=size,
            extent=extent,
        )


def stability(logits: NDArray[np.float32], offset: float = 1.0) -> NDArray[np.float64]:
    """(n,): IoU of each mask (n, rows, columns) at logits above ``offset`` and above its negative; 0 where empty."""
    inner = (logits > offset).sum(axis=(1, 2))
    outer = (logits > -offset).sum(axis=(1, 2))
    return inner / np.maximum(outer, 1)


def without_duplicates(masks: NDArray[np.bool_], scores: NDArray[np.float32], max_overlap: float) -> NDArray[np.int64]:
    """Indices of masks (n, rows, columns) by falling score, without those whose IoU with an earlier one is too high."""
    order = np.argsort(-scores, kind="stable")
    flat = masks[order].reshape(len(order), masks.shape[1] * masks.shape[2]).astype(np.float32)
    both = flat @ flat.T
    areas = np.diagonal(both)
    overlap = both / np.maximum(areas[:, None] + areas[None, :] - both, 1)
    kept: list[int] = []
    for index in range(len(order)):
        if not (overlap[index, kept] > max_overlap).any():
            kept.append(index)
    return order[kept]


def paint(segments: SegmentMap) -> NDArray[np.uint16]:
    """(H, W) uint16 at the image's size: 0 where no segment is, then 1 for the largest and so on, smaller on top."""
    height, width = segments.size
    label = np.zeros((height, width), np.uint16)
    rows, columns = (
        bilinear_weights(length, length, cells, extent / cells)
        for length, cells, extent in zip(segments.size, segments.logits.shape[1:], segments.extent, strict=True)
    )
    for number, logits in enumerate(segments.logits, start=1):
        label[rows @ logits.astype(np.float32) @ columns.T > 0] = number
    return label


def selected(segments: SegmentMap) -> Selected:
    """A map of segments as the store keeps it: every pixel of a segment has the weight 255, others 0."""
    label = paint(segments)
    inside = label > 0
    return Selected(
        label=label,
        weight=np.where(inside, np.uint8(255), np.uint8(0)),
        counts=np.array([inside.sum()], np.int64),
        kept=float(inside.mean()),
        confidence=float(np.clip(segments.scores.mean(), 0, 1)) if len(segments.scores) else 0.0,
    )
