"""Predict a :class:`ScoreMap` from an image: preprocessing, session, tiles.

A score map stays at the model's own resolution; decoding to the image's size happens in one fused kernel pass
(:mod:`maskmill.engine.labeling.selection`)::

    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    score_map = predictor.predict(image)          # image: HWC uint8 RGB
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import SessionError, UsageError
from ..backends.base import Backend
from ..backends.host import HOST, HostBackend
from ..inputs.rasters.bands import pixels_with_data
from ..model.bundle import OBJECT_KINDS, Bundle
from ..runtimes.base import Session
from .base import Objects, ScoreMap, SessionPredictor
from .tiling import Prepared, blend_tiles, check_tiles, tile_starts


class SemanticPredictor(SessionPredictor):
    """Per-class scores from a ``semantic`` bundle, for whole images or for overlapping tiles.

    Parameters
    ----------
    bundle, session
        The model and its session.
    tile, overlap
        Side of a square tile and overlap of neighbors, in image pixels. Images no larger than a tile are not cut.
        Tiles are blended with weights that fall linearly across the overlap, at the resolution of the model's output.
    batch
        Images per call of the model (a bundle with a fixed batch of 1 runs them one by one).
    backend
        Device that holds images and scores; the session must accept its arrays.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        *,
        tile: int | None = None,
        overlap: int = 0,
        batch: int = 1,
        backend: Backend = HOST,
    ) -> None:
        if bundle.task != "semantic":
            raise UsageError(
                f"{bundle.location} is a {bundle.task} bundle; labeling by class scores needs a semantic one"
            )
        check_tiles(tile, overlap)
        bands = bundle.input.bands
        if backend is HOST and bands is not None:
            backend = HostBackend(bands=bands)
        if backend.bands != bands:
            raise UsageError(f"{bundle.location} takes {bands or 'photos'}, and the backend decodes {backend.bands}")
        super().__init__(session, batch=batch, backend=backend)
        self.bundle = bundle
        self.session = session
        self.tile = tile
        self.overlap: int = overlap
        kinds = [output.kind for output in bundle.outputs]
        self._objects_at = [kinds.index(kind) for kind in OBJECT_KINDS] if bundle.has_objects else []

    @property
    def settings(self) -> dict[str, Any]:
        """Bundle, session kind, artifact and tiling."""
        return {
            "bundle": self.bundle.fingerprint,
            "session": self.session.kind,
            "artifact": self.session.artifact,
            "tile": self.tile,
            "overlap": self.overlap,
        }

    def prepare(self, image: Any, uri: str = "") -> Prepared:
        """Cut, resize and normalize one image, HWC uint8 RGB, on the host or on ``backend``; ``uri`` is not used.

        Of a model with bands the image is (H, W, C) in their sample type.
        """
        height, width = image.shape[:2]
        tile = (height, width) if self.tile is None else (min(height, self.tile), min(width, self.tile))
        corners = [
            (top, left)
            for top in tile_starts(height, tile[0], self.overlap)
            for left in tile_starts(width, tile[1], self.overlap)
        ]
        tensors, covers = [], (1.0, 1.0)
        for top, left in corners:
            window = image[top : top + tile[0], left : left + tile[1]]
            tensor, covers = self.backend.preprocess(window, self.bundle.input)
            tensors.append(tensor)
        return Prepared(
            tensors=tuple(tensors),
            size=(height, width),
            covers=covers,
            tile=tile,
            corners=tuple(corners),
            with_data=None if self.bundle.input.bands is None else pixels_with_data(image),
        )

    def run(self, prepared: Sequence[Prepared]) -> list[ScoreMap]:
        """Compute the score maps of prepared images; every tile goes through the session once."""
        tensors = [tensor for image in prepared for tensor in image.tensors]
        limit = self.batch
        scores: list[tuple[Any, Objects | None]] = []
        with self.backend.queue():
            for start in range(0, len(tensors), limit):
                chunk = tensors[start : start + limit]
                batch = chunk[0][None] if len(chunk) == 1 else self.backend.xp.stack(chunk)
                scores.extend(self._scores(batch))
            maps, start = [], 0
            for image in prepared:
                end = start + len(image.tensors)
                maps.append(self._assemble(image, scores[start:end]))
                start = end
        return maps

    def _scores(self, batch: Any) -> list[tuple[Any, Objects | None]]:
        num, xp = len(batch), self.backend.xp
        if (fixed := self.session.max_batch) and num < fixed:
            batch = xp.concatenate([batch, xp.zeros((fixed - num, *batch.shape[1:]), batch.dtype)])
        outputs = self.session.run(batch)
        output = outputs[0]
        classes = output.shape[self.bundle.outputs[0].class_axis] if output.ndim == 4 else None
        if classes != len(self.bundle.classes) or len(output) != len(batch) or 0 in output.shape:
            raise SessionError(
                f"the model gave an output of shape {tuple(output.shape)} for {len(batch)} image(s); expected four "
                f"axes with {len(self.bundle.classes)} classes on axis {self.bundle.outputs[0].class_axis}"
            )
        if not self._objects_at:
            return [(scores, None) for scores in output[:num]]
        values, classes, masks = (outputs[index] for index in self._objects_at)
        return [
            (scores, Objects(scores=values[row], classes=classes[row], masks=masks[row]))
            for row, scores in enumerate(output[:num])
        ]

    def _assemble(self, image: Prepared, parts: list[tuple[Any, Objects | None]]) -> ScoreMap:
        output, scores = self.bundle.outputs[0], [part[0] for part in parts]
        if len(scores) == 1:
            blended = scores[0]
            height, width = blended.shape[:2] if output.layout == "HWC" else blended.shape[1:]
            region = (0.0, 0.0, height * image.covers[0], width * image.covers[1])
        else:
            blended = blend_tiles(image, scores, output.layout, self.overlap, self.backend.xp)
            region = (0.0, 0.0, float(blended.shape[0]), float(blended.shape[1]))
        return ScoreMap(
            scores=blended,
            layout=output.layout if len(scores) == 1 else "HWC",
            activation=output.activation,
            size=image.size,
            region=region,
            backend=self.backend,
            with_data=image.with_data,
            # an object that several tiles show would be several
            objects=parts[0][1] if len(parts) == 1 else None,
        )
