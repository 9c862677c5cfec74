"""Stages of a labeling run: this module alone decides their order.

read and decode → predict → select, weight, encode → write. Each stage has its own threads, the queues between stages
are short, and only the last stage calls the writers.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from types import MappingProxyType
from typing import Any

from ...checks import check_count
from ...errors import ImageError, SessionError
from ...kernels.processors import count_workers
from ..calibration.drift.statistics import sample_picture
from ..inputs.identity import labels_id
from ..inputs.sources import Item, Source
from ..model.png import encode_png
from ..model.taxonomy import Taxonomy
from ..predictors.base import Predictor, ScoreMap
from ..predictors.segment_everything import SegmentEverything, SegmentMap
from ..reading.access import Cancelled
from ..store.label_store import InputRow, LabelRow
from .drift import Describer
from .progress import STALL_SECONDS, Progress
from .selection import Selected, Selection, select_batch, select_segments
from .thread_stages import Pipeline
from .writer import Done, Writer

GRACE_SECONDS = 1.5
"""Time that images in progress have after an interrupt, in seconds."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """State of one input between two stages."""

    item: Item
    writer: Writer
    condition: str = ""
    id: str | None = None
    num_bytes: int = 0
    prepared: Any = None
    picture: Any = None
    score_map: ScoreMap | SegmentMap | None = None
    error: ImageError | None = None


class Stages:
    """Functions of the stages and their shared state; one object processes inputs for any number of writers."""

    def __init__(
        self,
        predictor: Predictor | SegmentEverything,
        source: Source,
        select: Callable[[Sequence[Any]], list[Selected | ImageError]],
        workers: int | None,
        max_pixels: int | None,
        describer: Describer | None = None,
    ) -> None:
        if max_pixels is not None:
            check_count("max_pixels", max_pixels, least=1)
        self.source = source
        """Images that the stages read."""
        self._predictor = predictor
        self._select_maps = select
        self._describer = describer
        self._workers = count_workers(workers)
        self._decode_options = {} if max_pixels is None else {"max_pixels": max_pixels}

    @classmethod
    def labeling(
        cls,
        predictor: Predictor,
        source: Source,
        taxonomy: Taxonomy,
        selection: Selection,
        *,
        workers: int | None = None,
        max_pixels: int | None = None,
    ) -> Stages:
        """Return the stages that label by classes; parameters as in :func:`label`."""
        statistics = selection.drift_reference()
        describer = None if statistics is None else Describer(statistics, taxonomy)
        return cls(predictor, source, partial(_select, taxonomy, selection), workers, max_pixels, describer)

    @classmethod
    def segmenting(
        cls,
        predictor: SegmentEverything,
        source: Source,
        *,
        workers: int | None = None,
        max_pixels: int | None = None,
    ) -> Stages:
        """Return the stages that segment without classes; parameters as in :func:`segment`."""
        return cls(predictor, source, select_segments, workers, max_pixels)

    def execute(
        self,
        inputs: Iterable[tuple[Item, Writer]],
        progress: Progress,
        *,
        idle: Callable[[], None] | None = None,
        finish: Callable[[], None] | None = None,
        observer: Callable[[Progress], None] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """Process inputs and give each result to its writer; ``inputs`` is read as the stages need it.

        ``progress`` receives the times of the stages. ``idle`` runs while the last stage waits, ``finish`` after the
        last input. ``stop`` or an interrupt sets ``progress.interrupted`` and ends the run after the images in progress
        or :data:`GRACE_SECONDS`; images that are not finished by then are dropped. ``stop`` is also set when a stage
        fails, so that ``inputs`` may wait for it.
        """
        pipeline = Pipeline(inputs, ahead=2 * self._predictor.backend.decode_size)
        decode, predict, select = ("decode", self._decode), ("predict", self._predict), ("select", self._select)
        if self._predictor.threads == 1 and self._predictor.batch == 1:
            # one thread does all steps of an image, so its scores stay in one core's cache
            pipeline.add_stage(decode, predict, select, threads=self._workers)
        else:
            # one thread keeps a device's queue full; several would split batches
            calls = 1 if self._predictor.backend.queued else max(1, self._workers // self._predictor.threads)
            pipeline.add_stage(decode, threads=self._workers, batch=self._predictor.backend.decode_size)
            pipeline.add_stage(predict, threads=calls, batch=self._predictor.batch)
            # a device is waited for once per batch
            together = self._predictor.batch if self._predictor.backend.queued else 1
            pipeline.add_stage(select, threads=self._workers, batch=together)
        pipeline.add_stage(("write", _write), threads=1, finish=finish, idle=idle)
        run_pipeline(pipeline, progress, finish=finish, observer=observer, stop=stop, cancel=self.source.cancel)

    def _decode(self, inputs: list[tuple[Item, Writer]]) -> list[_Job]:
        try:
            jobs = [self._read(item, writer) for item, writer in inputs]
        except Cancelled:
            return []
        new = [(job, data) for job, data in jobs if data is not None]

        def warn(index: int, text: str) -> None:
            job = new[index][0]
            job.writer.progress.source.warner(job.item.uri)(text)

        files = [data for _, data in new]
        images = iter(self._predictor.backend.decode_batch(files, warn=warn, **self._decode_options) if new else ())
        return [job if data is None else self._prepare(job, next(images)) for job, data in jobs]

    def _read(self, item: Item, writer: Writer) -> tuple[_Job, bytes | None]:
        """Read an input; returns None for its bytes if they are labeled already or cannot be read."""
        job = _Job(item=item, writer=writer, condition=self._predictor.condition(item.uri))
        try:
            data = self.source.read(item)
        except ImageError as error:
            return replace(job, error=error), None
        id = labels_id(data, job.condition)
        return replace(job, id=id, num_bytes=len(data)), data if writer.claim(id) else None

    def _prepare(self, job: _Job, image: Any) -> _Job:
        if isinstance(image, ImageError):
            return replace(job, error=image)
        picture = None if self._describer is None else sample_picture(image, self._predictor.backend)
        try:
            return replace(job, prepared=self._predictor.prepare(image, job.item.uri), picture=picture)
        except ImageError as error:
            return replace(job, error=error)

    def _predict(self, jobs: list[_Job]) -> list[_Job]:
        ready = [job for job in jobs if job.prepared is not None]
        try:
            maps = iter(self._predictor.run([job.prepared for job in ready]) if ready else ())
        except ImageError as error:
            if len(jobs) > 1:  # one image of the batch has no finite scores: find it
                return [result for job in jobs for result in self._predict([job])]
            return [replace(job, prepared=None, error=error) for job in jobs]
        except SessionError as error:
            other_images = f" and {len(ready) - 1} other images" if len(ready) > 1 else ""
            raise SessionError(f"{ready[0].item.uri}{other_images}: {error}") from error
        return [job if job.prepared is None else replace(job, prepared=None, score_map=next(maps)) for job in jobs]

    def _select(self, jobs: list[_Job]) -> list[tuple[Writer, Done]]:
        maps = [job.score_map for job in jobs if job.score_map is not None]
        selected = iter(self._select_maps(maps) if maps else ())
        columns: Iterator[Mapping[str, Any]] = repeat({})
        if self._describer is not None:
            pictures = [job.picture for job in jobs if job.score_map is not None]
            score_maps = [score_map for score_map in maps if isinstance(score_map, ScoreMap)]
            columns = iter(self._describer.columns(score_maps, pictures))
        return [
            (job.writer, _finished(job) if job.score_map is None else _finished(job, next(selected), next(columns)))
            for job in jobs
        ]


def run_pipeline(
    pipeline: Pipeline,
    progress: Progress,
    *,
    finish: Callable[[], None] | None = None,
    observer: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    cancel: Callable[[], None] | None = None,
) -> None:
    """Run a pipeline to its end, as :meth:`Stages.execute` describes; after an error ``finish`` runs once more.

    ``cancel`` runs if items in progress are dropped.
    """
    stop = stop or threading.Event()
    progress.stages = pipeline.times
    started = time.perf_counter()
    pipeline.start()
    deadline = math.inf
    ended = False
    while not ended and time.perf_counter() < deadline:
        try:
            ended = pipeline.wait(min(0.5, max(0.0, deadline - time.perf_counter())))
            progress.seconds = time.perf_counter() - started
            progress.stalled = pipeline.stalled(STALL_SECONDS)
            if observer is not None:
                observer(progress)
            if pipeline.failed:
                stop.set()
            elif stop.is_set() and not ended and not progress.interrupted:
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            if progress.interrupted:
                raise  # a second interrupt drops the images in progress
            progress.interrupted = True
            pipeline.stop()
            deadline = time.perf_counter() + GRACE_SECONDS
            stop.set()
    try:
        if ended:
            pipeline.join()
            return
        # a server that does not answer, or a model that does not end
        pipeline.abandon("write")
    except BaseException:
        with suppress(Exception):  # the first error is the one to report
            if finish is not None:
                finish()
        raise
    if cancel is not None:
        cancel()
    if finish is not None:
        finish()


def _write(results: list[tuple[Writer, Done]]) -> list[Any]:
    for writer, done in results:
        writer.write(done)
    return []


def _finished(
    job: _Job, selected: Selected | ImageError | None = None, columns: Mapping[str, Any] = MappingProxyType({})
) -> Done:
    item, error = job.item, job.error
    if isinstance(selected, ImageError):
        error, selected = selected, None
    row = InputRow(
        uri=item.uri,
        size=item.size,
        stamp=item.stamp,
        condition=job.condition,
        id=job.id if error is None else None,
        error=None if error is None else error.kind,
        message=None if error is None else str(error),
    )
    if selected is None or job.id is None:
        return Done(input=row, num_bytes=job.num_bytes, id=job.id)
    height, width = selected.label.shape
    labels = LabelRow(
        id=job.id,
        width=width,
        height=height,
        label=encode_png(selected.label),
        weight=encode_png(selected.weight),
        counts=selected.counts,
        kept=selected.kept,
        confidence=selected.confidence,
        scores=selected.scores,
        instances=selected.instances,
        **columns,
    )
    return Done(input=row, num_bytes=job.num_bytes, id=job.id, label=labels)


def _select(taxonomy: Taxonomy, selection: Selection, score_maps: Sequence[ScoreMap]) -> list[Selected | ImageError]:
    return select_batch(score_maps, taxonomy, selection)
