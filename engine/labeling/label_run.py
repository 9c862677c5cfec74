"""Label a corpus: this module alone decides the order of stages.

read and decode → predict → select, weight, encode → write. Each stage has its own threads, the queues between stages
are short, and only the last stage writes to the store::

    summary = label(predictor, open_source("photos"), "labels", taxonomy, Selection.argmax(), observer=print)

Finished work is never lost: the writer commits every few seconds, an interrupt finishes the images in progress, and an
error is raised only after the images finished before it are committed. The same command resumes an incomplete run.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from ...errors import ImageError, UsageError
from ...kernels.processors import usable_processors
from ..calibration.calibration import conditions
from ..inputs.identity import labels_id
from ..inputs.sources import Item, Source, shard
from ..model.png import encode_png
from ..model.taxonomy import Taxonomy
from ..predictors.base import Predictor, ScoreMap
from ..predictors.segment_everything import SegmentEverything, SegmentMap
from ..store.label_store import SEGMENTS, InputRow, LabelRow, LabelStore
from .progress import Progress
from .selection import Selected, Selection, select_batch, select_segments
from .thread_stages import Pipeline
from .writer import Done, Writer

DRY_RUN_IMAGES = 64
"""Number of images that a dry run labels."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """State of one input between two stages."""

    item: Item
    condition: str = ""
    id: str | None = None
    num_bytes: int = 0
    prepared: Any = None
    score_map: ScoreMap | SegmentMap | None = None
    error: ImageError | None = None


def label(
    predictor: Predictor,
    source: Source,
    store_path: str | os.PathLike[str],
    taxonomy: Taxonomy,
    selection: Selection,
    *,
    shard_of: tuple[int, int] | None = None,
    workers: int | None = None,
    limit: int | None = None,
    retry_rejects: bool = False,
    max_pixels: int | None = None,
    observer: Callable[[Progress], None] | None = None,
) -> Progress:
    """Label every input of ``source`` that the store does not hold yet.

    Parameters
    ----------
    predictor, taxonomy, selection
        The model, the target classes, and how pixels are selected and weighted.
    source
        Inputs; see :func:`maskmill.engine.inputs.sources.open_source`.
    store_path
        Folder of the label store, created if it does not exist. A store made with other options is refused.
    shard_of
        (I, N): label only the inputs of part I of N, counted from 0.
    workers
        Number of images processed at once; None: the number of usable processors.
    limit
        Largest number of inputs to label in this run.
    retry_rejects
        Retry inputs that were rejected before.
    max_pixels
        Largest image to accept, in pixels.
    observer
        Called about twice per second and at the end with the counts so far.

    An interrupt (``KeyboardInterrupt`` in the calling thread) finishes and commits the images in progress and returns
    with ``interrupted`` set. Raises :class:`StoreMismatch`, :class:`StoreError`, :class:`CalibrationMismatch`,
    :class:`SessionError`, :class:`SourceError`.
    """
    selection.check(predictor, taxonomy)
    store = LabelStore.open_or_create(store_path, run_record(predictor, taxonomy, selection))
    items, earlier = _plan(store, predictor, source, shard_of, retry_rejects, limit)
    run = _Run(predictor, source, partial(_select, taxonomy, selection), taxonomy.num_targets, workers, max_pixels)
    run.progress.earlier_rejects = earlier
    return run.execute(items, Writer(run.progress, store), observer)


def segment(
    predictor: SegmentEverything,
    source: Source,
    store_path: str | os.PathLike[str],
    *,
    shard_of: tuple[int, int] | None = None,
    workers: int | None = None,
    limit: int | None = None,
    retry_rejects: bool = False,
    max_pixels: int | None = None,
    observer: Callable[[Progress], None] | None = None,
) -> Progress:
    """Segment every input of ``source`` that the store does not hold yet; parameters and errors as :func:`label`.

    The store's run record says ``maps: segments``: its maps hold segment numbers (uint16, 0 outside every segment)
    instead of classes.
    """
    record = {
        "maps": SEGMENTS,
        **predictor.settings,
        "kernels": predictor.backend.form,
        "bit_depth": predictor.backend.bit_depth,
    }
    store = LabelStore.open_or_create(store_path, record)
    items, earlier = _plan(store, predictor, source, shard_of, retry_rejects, limit)
    run = _Run(predictor, source, select_segments, 1, workers, max_pixels)
    run.progress.earlier_rejects = earlier
    return run.execute(items, Writer(run.progress, store), observer)


def dry_run(
    predictor: Predictor,
    source: Source,
    taxonomy: Taxonomy,
    selection: Selection,
    *,
    shard_of: tuple[int, int] | None = None,
    workers: int | None = None,
    limit: int | None = None,
    max_pixels: int | None = None,
) -> tuple[Progress, int]:
    """Label an evenly spaced sample of the source without a store; returns (its counts and times, number of inputs)."""
    selection.check(predictor, taxonomy)
    items = list(islice(_chosen(source, shard_of), limit))
    step = max(1, len(items) // DRY_RUN_IMAGES)
    run = _Run(predictor, source, partial(_select, taxonomy, selection), taxonomy.num_targets, workers, max_pixels)
    progress = run.execute(items[::step][:DRY_RUN_IMAGES], Writer(run.progress, None), None)
    return progress, len(items)


def run_record(predictor: Predictor, taxonomy: Taxonomy, selection: Selection) -> dict[str, Any]:
    """Return everything that decides the labels of a store; runs with different records never share a store."""
    return {**conditions(predictor, taxonomy), "classes": taxonomy.to_json(), **selection.record()}


def _plan(
    store: LabelStore,
    predictor: Predictor | SegmentEverything,
    source: Source,
    shard_of: tuple[int, int] | None,
    retry_rejects: bool,
    limit: int | None,
) -> tuple[list[Item], Counter[str]]:
    """List the inputs to process, and count by kind of error the rejects of earlier runs that are passed over."""
    rejects = {} if retry_rejects else {row.uri: row.error or "" for row in store.rejects()}
    earlier: dict[str, str] = {}

    def watched(items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if item.uri in rejects:
                earlier[item.uri] = rejects[item.uri]
            yield item

    plan = store.plan(watched(_chosen(source, shard_of)), retry_rejects=retry_rejects, condition=predictor.condition)
    items = list(islice(plan, limit))
    for item in items:  # a file that changed is processed again
        earlier.pop(item.uri, None)
    return items, Counter(earlier.values())


def _chosen(source: Source, shard_of: tuple[int, int] | None) -> Iterable[Item]:
    return source if shard_of is None else shard(source, *shard_of)


def _select(taxonomy: Taxonomy, selection: Selection, score_maps: Sequence[ScoreMap]) -> list[Selected | ImageError]:
    return select_batch(score_maps, taxonomy, selection)


class _Run:
    """Functions of the stages and their shared state."""

    def __init__(
        self,
        predictor: Predictor | SegmentEverything,
        source: Source,
        select: Callable[[Sequence[Any]], list[Selected | ImageError]],
        num_targets: int,
        workers: int | None,
        max_pixels: int | None,
    ) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be at least 1, got {workers}")
        self._predictor = predictor
        self._source = source
        self._select_maps = select
        self._workers = workers or usable_processors()
        self._decode_options = {} if max_pixels is None else {"max_pixels": max_pixels}
        self._claimed: set[str] = set()
        self._claim_lock = threading.Lock()
        self.progress = Progress(kept=np.zeros(num_targets, np.int64))

    def execute(self, items: Sequence[Item], writer: Writer, observer: Callable[[Progress], None] | None) -> Progress:
        progress = self.progress
        progress.planned = len(items)
        progress.source.skipped = self._source.skipped
        pipeline = Pipeline(items, ahead=2 * self._predictor.backend.decode_size)
        self._known = writer.knows
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
        pipeline.add_stage(("write", writer.write), threads=1, finish=writer.flush, idle=writer.idle)
        progress.stages = pipeline.times
        started = time.perf_counter()
        pipeline.start()
        while True:
            try:
                ended = pipeline.wait(0.5)
                progress.seconds = time.perf_counter() - started
                if observer is not None:
                    observer(progress)
                if ended:
                    break
            except KeyboardInterrupt:
                if progress.interrupted:
                    raise  # a second interrupt gives up the images in progress
                progress.interrupted = True
                pipeline.stop()
        try:
            pipeline.join()
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                writer.flush()
            raise
        return progress

    def _decode(self, items: list[Item]) -> list[_Job]:
        jobs = [self._read(item) for item in items]
        new = [(job, data) for job, data in jobs if data is not None]

        def warn(index: int, text: str) -> None:
            self.progress.source.warner(new[index][0].item.uri)(text)

        files = [data for _, data in new]
        images = iter(self._predictor.backend.decode_batch(files, warn=warn, **self._decode_options) if new else ())
        return [job if data is None else self._prepare(job, next(images)) for job, data in jobs]

    def _read(self, item: Item) -> tuple[_Job, bytes | None]:
        """Read an input; returns None for its bytes if they are labeled already or cannot be read."""
        job = _Job(item=item, condition=self._predictor.condition(item.uri))
        try:
            data = self._source.read(item)
        except ImageError as error:
            return replace(job, error=error), None
        id = labels_id(data, job.condition)
        job = replace(job, id=id, num_bytes=len(data))
        with self._claim_lock:
            known = id in self._claimed or self._known(id)
            self._claimed.add(id)
        return job, None if known else data

    def _prepare(self, job: _Job, image: Any) -> _Job:
        if isinstance(image, ImageError):
            return replace(job, error=image)
        try:
            return replace(job, prepared=self._predictor.prepare(image, job.item.uri))
        except ImageError as error:
            return replace(job, error=error)

    def _predict(self, jobs: list[_Job]) -> list[_Job]:
        ready = [job for job in jobs if job.prepared is not None]
        try:
            maps = iter(self._predictor.run([job.prepared for job in ready]) if ready else ())
        except ImageError as error:
            if len(jobs) > 1:  # one image of a batch has no scores: find out which
                return [result for job in jobs for result in self._predict([job])]
            return [replace(job, prepared=None, error=error) for job in jobs]
        return [job if job.prepared is None else replace(job, prepared=None, score_map=next(maps)) for job in jobs]

    def _select(self, jobs: list[_Job]) -> list[Done]:
        maps = [job.score_map for job in jobs if job.score_map is not None]
        selected = iter(self._select_maps(maps) if maps else ())
        return [self._finish(job, None if job.score_map is None else next(selected)) for job in jobs]

    def _finish(self, job: _Job, selected: Selected | ImageError | None) -> Done:
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
            drift=selected.drift,
        )
        return Done(input=row, num_bytes=job.num_bytes, id=job.id, label=labels)
