"""From an image to a :class:`ScoreMap`: preprocessing, the session, tiles.

A score map stays at the model's own resolution; decoding to the image's size happens in one fused kernel pass
(:mod:`maskmill.engine.labeling.selection`)::

    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    score_map = predictor.predict(image)          # image: HWC uint8 RGB
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import SessionError, UsageError
from ..model.bundle import Bundle
from ...kernels.types import Activation, Layout
from ..backends.base import HOST, Place
from ..runtimes.onnx_runtime import Session


@dataclass(frozen=True, kw_only=True, repr=False)
class ScoreMap:
    """Per-class scores of one image at the model's resolution."""

    scores: Any
    """(C, h, w) or (h, w, C), float32 or a 16-bit float: the stored values, before ``activation``."""
    layout: Layout
    """Order of the axes of ``scores``."""
    activation: Activation
    """What turns the values into scores."""
    size: tuple[int, int]
    """(height, width) of the image, in pixels."""
    region: tuple[float, float, float, float]
    """(y0, x0, y1, x1) in score-map pixels: the part that covers the image."""
    place: Place = HOST
    """Where ``scores`` lies."""

    def on_host(self) -> ScoreMap:
        """The same map with its scores in main memory."""
        with self.place.queue():
            (scores,) = self.place.download(self.scores)
        return replace(self, scores=scores, place=HOST)

    def __repr__(self) -> str:
        return (
            f"ScoreMap(scores={self.scores.dtype}{tuple(self.scores.shape)} {self.layout}, "
            f"activation={self.activation}, size={self.size}, region={self.region})"
        )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One image, ready for the session."""

    tensors: tuple[Any, ...]
    """Inputs without the batch axis, one a tile, float32, where the predictor's place is."""
    size: tuple[int, int]
    """(height, width) of the image."""
    covers: tuple[float, float]
    """Fractions of the input's height and width that the image (or tile) covers."""
    tile: tuple[int, int]
    """(height, width) of a tile in image pixels; the image's size where it was not cut."""
    corners: tuple[tuple[int, int], ...]
    """(top, left) of each tile, in image pixels."""


class Predictor(Protocol):
    """What the pipeline drives: ``prepare`` on decode threads, ``run`` on model threads."""

    @property
    def bundle(self) -> Bundle:
        """The model whose scores are thresholded; its verdicts may prove a calibration of another artefact."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the scores besides the bundle's files: recorded with labels and calibrations."""
        ...

    @property
    def batch(self) -> int:
        """How many prepared images one ``run`` should get."""
        ...

    @property
    def threads(self) -> int:
        """Threads that one ``run`` uses on the host."""
        ...

    @property
    def place(self) -> Place:
        """Where images are decoded and scores lie."""
        ...

    def prepare(self, image: Any, uri: str = "") -> Any:
        """HWC uint8 RGB, on the host or in ``place`` → what ``run`` takes; ``uri`` names the image."""
        ...

    def run(self, prepared: Sequence[Any]) -> list[ScoreMap]:
        """Score maps of the prepared images."""
        ...


class SemanticPredictor:
    """Per-class scores from a ``semantic`` bundle, for whole images or for overlapping tiles.

    Parameters
    ----------
    bundle, session
        The model and what runs it.
    tile, overlap
        Side of a square tile and how much neighbours share, in image pixels. Images no larger than a tile are not cut.
        Tiles are blended with weights that fall linearly across the overlap, on a grid as fine as the model's output.
    batch
        Images that the pipeline hands over together (a bundle with a fixed batch of 1 runs them one by one).
    place
        Where images and scores lie; the session must take arrays from there.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        *,
        tile: int | None = None,
        overlap: int = 0,
        batch: int = 1,
        place: Place = HOST,
    ) -> None:
        if bundle.task != "semantic":
            raise UsageError(f"{bundle.path} is a {bundle.task} bundle; labelling by class scores needs a semantic one")
        if tile is not None and not 0 <= overlap < tile:
            raise UsageError(f"the overlap must be at least 0 and less than the tile, got {overlap} for {tile} px")
        if batch < 1:
            raise UsageError(f"the batch must be at least 1, got {batch}")
        self.bundle = bundle
        self.session = session
        self.tile = tile
        self.overlap = overlap if tile is not None else 0
        self._batch = batch
        self._place = place

    @property
    def settings(self) -> dict[str, Any]:
        """Bundle, session kind, the file it runs and tiling."""
        return {
            "bundle": self.bundle.fingerprint,
            "session": self.session.kind,
            "artefact": self.session.artefact,
            "tile": self.tile,
            "overlap": self.overlap,
        }

    @property
    def batch(self) -> int:
        """How many prepared images one ``run`` should get."""
        return self._batch

    @property
    def threads(self) -> int:
        """Threads that one ``run`` uses on the host: the session's."""
        return self.session.threads

    @property
    def place(self) -> Place:
        """Where images are decoded and scores lie."""
        return self._place

    def predict(self, image: NDArray[np.uint8]) -> ScoreMap:
        """Scores of one image, HWC uint8 RGB."""
        return self.run([self.prepare(image)])[0]

    def prepare(self, image: Any, uri: str = "") -> Prepared:
        """Cut, resize and normalise one image, HWC uint8 RGB, on the host or in ``place``; its name does not matter."""
        height, width = image.shape[:2]
        tile = (height, width) if self.tile is None else (min(height, self.tile), min(width, self.tile))
        corners = [
            (top, left)
            for top in _starts(height, tile[0], self.overlap)
            for left in _starts(width, tile[1], self.overlap)
        ]
        tensors, covers = [], (1.0, 1.0)
        with self.place.queue():
            for top, left in corners:
                window = image[top : top + tile[0], left : left + tile[1]]
                tensor, covers = self.place.preprocess(window, self.bundle.input)
                tensors.append(tensor)
        return Prepared(tensors=tuple(tensors), size=(height, width), covers=covers, tile=tile, corners=tuple(corners))

    def run(self, prepared: Sequence[Prepared]) -> list[ScoreMap]:
        """Score maps of prepared images; every tile of every image goes through the session once."""
        tensors = [tensor for image in prepared for tensor in image.tensors]
        limit = self.session.max_batch or max(self._batch, 1)
        scores: list[Any] = []
        with self.place.queue():
            for start in range(0, len(tensors), limit):
                chunk = tensors[start : start + limit]
                batch = chunk[0][None] if len(chunk) == 1 else self.place.xp.stack(chunk)
                scores.extend(self._scores(batch))
            maps, start = [], 0
            for image in prepared:
                end = start + len(image.tensors)
                maps.append(self._assemble(image, scores[start:end]))
                start = end
        return maps

    def _scores(self, batch: Any) -> list[Any]:
        num, xp = len(batch), self.place.xp
        if (fixed := self.session.max_batch) and num < fixed:
            batch = xp.concatenate([batch, xp.zeros((fixed - num, *batch.shape[1:]), batch.dtype)])
        output = self.session.run(batch)[0]
        classes = output.shape[self.bundle.outputs[0].class_axis] if output.ndim == 4 else None
        if classes != len(self.bundle.classes):
            raise SessionError(
                f"the model gave an output of shape {tuple(output.shape)}; expected four axes with "
                f"{len(self.bundle.classes)} classes on axis {self.bundle.outputs[0].class_axis}"
            )
        return list(output[:num])

    def _assemble(self, image: Prepared, scores: list[Any]) -> ScoreMap:
        output = self.bundle.outputs[0]
        if len(scores) == 1:
            blended = scores[0]
            height, width = blended.shape[:2] if output.layout == "HWC" else blended.shape[1:]
            region = (0.0, 0.0, height * image.covers[0], width * image.covers[1])
        else:
            blended = _blend(image, scores, output.layout, self.overlap, self.place.xp)
            region = (0.0, 0.0, float(blended.shape[0]), float(blended.shape[1]))
        return ScoreMap(
            scores=blended,
            layout=output.layout if len(scores) == 1 else "HWC",
            activation=output.activation,
            size=image.size,
            region=region,
            place=self.place,
        )


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the fewest tiles that cover ``length`` with at least ``overlap`` in common, evenly spaced."""
    if length <= tile:
        return [0]
    num = -(-(length - overlap) // (tile - overlap))
    return [round(index * (length - tile) / (num - 1)) for index in range(num)]


def _blend(image: Prepared, scores: list[Any], layout: str, overlap: int, xp: Any) -> Any:
    """Tiles' score maps → one (h, w, C) float32 map over the whole image, as fine as the tiles' own.

    ``xp`` is the array library of the scores.
    """
    tiles = [xp.asarray(tile, np.float32) if layout == "HWC" else xp.moveaxis(tile, 0, -1) for tile in scores]
    num_y, num_x = tiles[0].shape[0] * image.covers[0], tiles[0].shape[1] * image.covers[1]
    height = max(1, round(image.size[0] / image.tile[0] * num_y))
    width = max(1, round(image.size[1] / image.tile[1] * num_x))
    total = xp.zeros((height, width, tiles[0].shape[2]), np.float32)
    weights = xp.zeros((height, width, 1), np.float32)
    for (top, left), tile in zip(image.corners, tiles, strict=True):
        rows, row_weights, row_matrix = _placement(height, image.size[0], top, image.tile[0], num_y, len(tile), overlap)
        columns, column_weights, column_matrix = _placement(
            width, image.size[1], left, image.tile[1], num_x, tile.shape[1], overlap
        )
        resampled = xp.einsum("yh,hwc->ywc", xp.asarray(row_matrix), tile, optimize=True)
        resampled = xp.einsum("xw,ywc->yxc", xp.asarray(column_matrix), resampled, optimize=True)
        weight = xp.asarray(row_weights[:, None, None] * column_weights[None, :, None])
        total[rows, columns] += weight * resampled
        weights[rows, columns] += weight
    return total / weights


def _placement(
    cells: int, length: int, start: int, tile: int, covered: float, samples: int, overlap: int
) -> tuple[slice, NDArray[np.float32], NDArray[np.float32]]:
    """Along one axis: the cells of the whole map that a tile covers, their blend weights, and the interpolation matrix.

    ``cells`` of the whole map cover ``length`` pixels; the tile covers ``tile`` pixels from ``start`` with the first
    ``covered`` of its ``samples``. Weights fall linearly over ``overlap`` pixels towards inner edges.
    """
    centers = (np.arange(cells) + 0.5) * length / cells
    inside = np.flatnonzero((centers >= start) & (centers < start + tile))
    chosen = slice(int(inside[0]), int(inside[-1]) + 1)
    offset = centers[chosen] - start
    weights = np.ones(len(offset))
    ramp = max(overlap, 1)
    if start > 0:
        weights = np.minimum(weights, offset / ramp)
    if start + tile < length:
        weights = np.minimum(weights, (tile - offset) / ramp)
    position = np.clip(offset / tile * covered - 0.5, 0, samples - 1)
    below = np.minimum(position.astype(np.int64), max(samples - 2, 0))
    fraction = position - below
    matrix = np.zeros((len(offset), samples), np.float32)
    row = np.arange(len(offset))
    matrix[row, below] = 1 - fraction
    matrix[row, np.minimum(below + 1, samples - 1)] += fraction
    return chosen, np.maximum(weights, 1e-3).astype(np.float32), matrix
