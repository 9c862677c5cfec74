"""Run a model on labeled images and collect all that calibration needs: exact scores, binned scores, pixel samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import CalibrationError, ImageError
from ...inputs.identity import content_id
from ...inputs.labeled_source import LabeledSource
from ...inputs.ordered_map import ordered_map
from ...inputs.sources import Item, Source
from ...model.taxonomy import Taxonomy
from ...predictors.base import Predictor, ScoreMap
from ...predictors.resampling import resample_nearest
from .pixel_samples import PixelSamples
from .score_counts import ScoreCounts, count_scores
from .score_spill import NO_CLASS, ScoreSpill


@dataclass(frozen=True, eq=False)
class _Observation:
    score_map: ScoreMap
    truth: NDArray[Any]
    scores: NDArray[np.float32]
    counts: ScoreCounts


class Observations:
    """Scores of labeled images in files of ``folder``; use it as a context."""

    def __init__(self, folder: Path, taxonomy: Taxonomy, *, grid: tuple[int, int] | None = None) -> None:
        self.spill: ScoreSpill = ScoreSpill(folder, grid=grid)
        self.samples: PixelSamples = PixelSamples(folder, taxonomy)
        self.counts = ScoreCounts.empty()
        self._taxonomy = taxonomy

    def __enter__(self) -> Observations:
        return self

    def __exit__(self, *_: object) -> None:
        self.spill.__exit__()
        self.samples.__exit__()

    def collect(
        self,
        predictor: Predictor,
        source: Source,
        labeled: LabeledSource,
        *,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Run the model once per image, ``predictor.batch`` images per call."""
        size = max(predictor.batch, 1)
        items = labeled.items
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        parts = [self.counts]
        for observations in ordered_map(
            lambda chunk: list(self._observe(predictor, source, labeled, chunk)), chunks, workers
        ):
            for observation in observations:
                classes = observation.truth.ravel().astype(np.uint16)
                classes[observation.truth.ravel() == self._taxonomy.ignore_index] = NO_CLASS
                pixels = slice(None) if self.spill.grid else classes != NO_CLASS
                self.spill.append(observation.scores.ravel()[pixels], classes[pixels])
                self.samples.append(observation.score_map, observation.truth)
                parts.append(observation.counts)
                if progress is not None:
                    progress(len(parts) - 1, len(items))
        self.spill.finish()
        self.samples.finish()
        self.counts: ScoreCounts = ScoreCounts.merge(parts)

    def _observe(
        self, predictor: Predictor, source: Source, labeled: LabeledSource, chunk: Sequence[Item]
    ) -> Iterator[_Observation]:
        prepared, truths, names = [], [], []
        for item in chunk:
            try:
                data = source.read(item)
                image = predictor.backend.decode(data, warn=labeled.summary.warner(item.uri))
                prepared.append(predictor.prepare(image, item.uri))
            except ImageError as error:
                raise CalibrationError(f"cannot calibrate on {item.uri}: {error}; fix it or leave it out") from error
            truth = labeled.read(item.uri, data)
            if truth.shape != image.shape[:2]:
                raise CalibrationError(
                    f"{labeled.name_of(item.uri)} is {truth.shape[1]}x{truth.shape[0]} px and its image {item.uri} is "
                    f"{image.shape[1]}x{image.shape[0]} px; {labeled.size_hint(item.uri, data)}"
                )
            truths.append(truth if self.spill.grid is None else resample_nearest(truth, self.spill.grid))
            names.append(content_id(data))
        for score_map, truth, name in zip(predictor.run(prepared), truths, names, strict=True):
            scores = true_scores(score_map, truth, self._taxonomy)
            counts = count_scores(score_map, truth, scores, self._taxonomy, name)
            yield _Observation(score_map.on_host(), truth, scores, counts)


def true_scores(score_map: ScoreMap, truth: NDArray[Any], taxonomy: Taxonomy) -> NDArray[np.float32]:
    """Compute the nonconformity score of every pixel's true class, (H, W) float32; NaN for ignored pixels.

    ``truth`` (H, W) holds target indices or the ignore index; its shape decides the resolution.
    """
    backend = score_map.backend
    with backend.queue():
        stats = score_map.decode(taxonomy, size=(truth.shape[0], truth.shape[1]), truth=truth, outputs=("true_score",))
        return backend.download(stats.true_score)[0]
