"""Run a model on labeled images and collect all that calibration needs: exact scores, binned scores, pixel samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import CalibrationError, ImageError
from ....kernels.types import Activation, BackendArray
from ...backends.base import Backend
from ...inputs.identity import content_id
from ...inputs.images import unless_without_data
from ...inputs.labeled_source import LabeledSource
from ...inputs.ordered_map import ordered_map
from ...inputs.sources import Item, Source
from ...model.taxonomy import Taxonomy
from ...predictors.base import Predictor, ScoreMap
from ...predictors.resampling import resample_nearest
from ...reading.geotiff import split_window
from ..drift.statistics import describe_images, sample_picture
from .pixel_samples import Draw, PixelSamples, class_values, draw_pixels
from .score_counts import ScoreCounts, counts_of, queue_counts
from .score_spill import NO_CLASS, ScoreSpill

Progress = Callable[[int, int], None]

_BLOCKS, _BLOCK_BYTES = 16, 1 << 16  # hashed to identify a file of windows; the first block holds the header


@dataclass(frozen=True, eq=False)
class Observation:
    """Everything that an image adds to a calibration."""

    scores: Any
    """Nonconformity scores of the pixels' true classes, float32, on ``backend``."""
    classes: Any
    """True classes of these pixels, uint16, on ``backend``."""
    backend: Backend
    """Backend that holds scores and classes."""
    counts: ScoreCounts
    """Binned scores."""
    draw: Draw
    """Sampled pixels."""
    values: NDArray[np.float32]
    """(S, C): values of all model classes at the sampled pixels."""
    activation: Activation
    """Activation that turns the values into scores."""


class Observations:
    """Scores of labeled images in files of ``folder``; use it as a context."""

    def __init__(
        self,
        folder: Path,
        taxonomy: Taxonomy,
        *,
        grid: tuple[int, int] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.options: dict[str, Any] = dict(options or {})
        """Options of the fit, plain data, on which processes that share the work must agree."""
        self._folder = folder
        self.spill: ScoreSpill = ScoreSpill(folder, grid=grid)
        self.samples: PixelSamples = PixelSamples(folder, taxonomy)
        self.counts = ScoreCounts.empty()
        self._taxonomy = taxonomy
        self._parts = [ScoreCounts.empty()]

    def __enter__(self) -> Observations:
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self.spill, self.samples):
            with suppress(OSError):  # buffers that a full disk did not accept are not needed any more
                part.__exit__()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CalibrationError(
                f"cannot write scores to the temporary folder {self._folder.parent}: {error.strerror or error}; free "
                "space there, or set TMPDIR to a folder with more"
            ) from error

    @property
    def taxonomy(self) -> Taxonomy:
        """Target classes."""
        return self._taxonomy

    def collect(
        self,
        predictor: Predictor,
        source: Source,
        labeled: LabeledSource,
        *,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> None:
        """Run the model once per image, ``predictor.batch`` images per call."""
        items = labeled.items
        results = observe(
            predictor, source, labeled, self._taxonomy, items, grid=self.spill.grid, workers=workers, first=0
        )
        for number, observation in enumerate(results, start=1):
            self.add(observation)
            if progress is not None:
                progress(number + labeled.summary.without_data, len(items))
        self.finish()

    def add(self, observation: Observation) -> None:
        """Add the next image, in the order of the numbers; raises :class:`CalibrationError` if the folder is full."""
        with self._writing():
            scenes = observation.counts.scenes
            is_same_scene = bool(scenes) and scenes == self._parts[-1].scenes
            self.spill.append(observation.scores, observation.classes, observation.backend, joined=is_same_scene)
            self.samples.append(observation.draw, observation.values, observation.activation, joined=is_same_scene)
        self._parts.append(observation.counts)

    def finish(self) -> None:
        """End adding; scores and samples may be read from now on. Raises :class:`CalibrationError` without images."""
        with self._writing():
            self.spill.finish()
            self.samples.finish()
        if len(self._parts) == 1:  # the empty counts that the sum starts with
            raise CalibrationError("no pixel of the labeled images has data; calibrate on other images")
        self.counts: ScoreCounts = ScoreCounts.merge(self._parts)


def observe(
    predictor: Predictor,
    source: Source,
    labeled: LabeledSource,
    taxonomy: Taxonomy,
    items: Sequence[Item],
    *,
    first: int,
    grid: tuple[int, int] | None,
    workers: int,
) -> Iterator[Observation]:
    """Run the model on labeled images, ``predictor.batch`` per call; yields the observation of each image, in order.

    Images without data add nothing, and the summary of ``labeled`` counts them.
    ``first`` is the number of the first of ``items`` in the whole sample. Raises :class:`CalibrationError` for an image
    that cannot be decoded or whose label map has another size.
    """
    size = max(predictor.batch, 1)
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    batches = ordered_map(
        lambda number: _observe(predictor, source, labeled, taxonomy, chunks[number], first + number * size, grid),
        range(len(chunks)),
        workers,
    )
    for number, batch in enumerate(batches):
        labeled.summary.without_data += len(chunks[number]) - len(batch)
        yield from batch


def _observe(
    predictor: Predictor,
    source: Source,
    labeled_source: LabeledSource,
    taxonomy: Taxonomy,
    chunk: Sequence[Item],
    first: int,
    grid: tuple[int, int] | None,
) -> list[Observation]:
    """Run the model on a batch, the first of whose images has the number ``first``, and download its results.

    Images without data are left out.
    """
    prepared, pictures, truths, names, numbers = [], [], [], [], []
    for number, item in enumerate(chunk, start=first):
        try:
            data = source.read(item)
            image = predictor.backend.decode(data, warn=labeled_source.summary.warner(item.uri))
            picture = sample_picture(image, predictor.backend)
            prepared.append(predictor.prepare(image, item.uri))
        except ImageError as error:
            if error.kind == "no-data":
                continue
            raise CalibrationError(f"cannot calibrate on {item.uri}: {error}; fix it or leave it out") from error
        truth = labeled_source.read(item.uri, data)
        if truth.shape != image.shape[:2]:
            raise CalibrationError(
                f"{labeled_source.name_of(item.uri)} is {truth.shape[1]}x{truth.shape[0]} px and its image {item.uri} "
                f"is {image.shape[1]}x{image.shape[0]} px; {labeled_source.size_hint(item.uri, data)}"
            )
        pictures.append(picture)
        truths.append(truth)
        numbers.append(number)
        part = split_window(item.uri)
        names.append((content_id(data), "" if part is None else _scene_id(item.path or part[0])))
    if not prepared:
        return []
    maps = predictor.run(prepared)
    backend, queued, results = predictor.backend, [], []
    with backend.queue():
        for number, score_map, image_truth in zip(numbers, maps, truths, strict=True):
            truth = labeled_source.on_data(image_truth, score_map.with_data)
            truth = truth if grid is None else resample_nearest(truth, grid)
            draw = draw_pixels(truth, taxonomy.ignore_index, number)
            truth_there = backend.xp.asarray(truth)
            ignored = truth_there == taxonomy.ignore_index
            classes = backend.xp.where(ignored, np.uint16(NO_CLASS), truth_there.astype(np.uint16))
            scores = _queue_true_scores(score_map, truth_there, taxonomy)
            queued.append((scores, classes, draw, score_map.activation))
            results.append(queue_counts(score_map, truth_there, scores, taxonomy))
            results.append(class_values(score_map, truth.shape, draw))
        downloads = backend.download(*results)
    statistics = describe_images(maps, pictures, taxonomy)
    observations = []
    for index, ((name, scene), (scores, classes, draw, activation)) in enumerate(zip(names, queued, strict=True)):
        tables, values = downloads[2 * index : 2 * index + 2]
        counts = counts_of(name, tables, statistics[index], scene=scene)
        observations.append(Observation(scores, classes, backend, counts, draw, values, activation))
    return observations


def decode_labeled(predictor: Predictor, labeled: LabeledSource, item: Item, data: bytes) -> BackendArray | None:
    """Decode a labeled image; None if no pixel of it has data. Raises :class:`ImageError` with the image's name."""
    decode = partial(predictor.backend.decode, data, warn=labeled.summary.warner(item.uri))
    return unless_without_data(decode, item.uri)


def _scene_id(path: str) -> str:
    """Return a hash of a file's size and of 16 of its blocks, so that copies of a scene have the same name."""
    status = os.stat(path)
    return _sampled_id(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sampled_id(path: str, size: int, _: int) -> str:
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        for number in range(_BLOCKS):
            file.seek(max(size - _BLOCK_BYTES, 0) * number // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _queue_true_scores(score_map: ScoreMap, truth: Any, taxonomy: Taxonomy) -> BackendArray:
    size = (truth.shape[0], truth.shape[1])
    return score_map.decode(taxonomy, size=size, truth=truth, outputs=("true_score",)).true_score


def true_scores(score_map: ScoreMap, truth: NDArray[Any], taxonomy: Taxonomy) -> NDArray[np.float32]:
    """Compute the nonconformity score of every pixel's true class, (H, W) float32; NaN for ignored pixels.

    ``truth`` (H, W) holds target indices or the ignore index; its shape decides the resolution.
    """
    backend = score_map.backend
    with backend.queue():
        return backend.download(_queue_true_scores(score_map, backend.xp.asarray(truth), taxonomy))[0]
