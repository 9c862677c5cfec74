"""Label a corpus in this process: plan what the store lacks, run the stages, commit.

::

    summary = label(predictor, open_source("photos"), "labels", taxonomy, Selection.argmax(), observer=print)

Finished work is never lost: every few seconds finished images are committed, or written to a file that waits for a
commit. An interrupt commits them, and an error is raised only after the images finished before it are committed. The
same command resumes an incomplete run.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np

from ...checks import check_count
from ..calibration.calibration import conditions
from ..inputs.identity import shard
from ..inputs.sources import Item, Source
from ..model.taxonomy import Taxonomy
from ..predictors.base import Predictor
from ..predictors.prompted.given_predictor import GivenPredictor
from ..predictors.segment_everything import SegmentEverything
from ..store.label_store import SEGMENTS, LabelStore
from ..store.waiting.waiting_rows import WaitingRows, commit_waiting, drop_plan
from .drift import OnDrift, RunWatch, drift_record
from .history import add_run
from .progress import Progress
from .run_log import RunLog
from .selection import Selection
from .stages import Stages
from .writer import Done, Writer

DRY_RUN_IMAGES = 64
"""Number of images that a dry run labels."""


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
    on_drift: OnDrift = "warn",
    observer: Callable[[Progress], None] | None = None,
    log: RunLog | None = None,
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
    on_drift
        With a calibration: ``stop`` ends the run, with ``drifted`` set, as soon as the images do not look like those of
        the calibration; ``warn`` labels all of them.
    observer
        Called about twice per second and at the end with the counts so far.
    log
        Log of the run's events; None: no log.

    An interrupt (``KeyboardInterrupt`` in the calling thread) commits the images that finish within two seconds and
    returns with ``interrupted`` set. Raises :class:`StoreMismatch`, :class:`StoreError`, :class:`CalibrationMismatch`,
    :class:`SessionError`, :class:`SourceError`.
    """
    selection.check(predictor, taxonomy, source.windows)
    check_limit(limit)
    warnings = [*check_prompts(predictor, source), *selection.notes(source.windows)]
    stages = Stages.labeling(predictor, source, taxonomy, selection, workers=workers, max_pixels=max_pixels)
    store = LabelStore.open_or_create(store_path, run_record(predictor, taxonomy, selection, source))
    if selection.keeper is not None:
        selection.keeper.write(store.path)
    watch = RunWatch.of(store, on_drift)
    items, earlier, limited = _plan(store, predictor, source, shard_of, retry_rejects, limit, watch)
    progress = _execute(stages, items, earlier, taxonomy.num_targets, store, observer, watch, log, limited)
    progress.warnings += warnings
    return progress


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
    log: RunLog | None = None,
) -> Progress:
    """Segment every input of ``source`` that the store does not hold yet; parameters and errors as :func:`label`.

    The store's run record says ``maps: segments``: its maps hold segment numbers (uint16, 0 outside every segment)
    instead of classes.
    """
    check_limit(limit)
    stages = Stages.segmenting(predictor, source, workers=workers, max_pixels=max_pixels)
    store = LabelStore.open_or_create(store_path, segment_record(predictor, source))
    items, earlier, limited = _plan(store, predictor, source, shard_of, retry_rejects, limit)
    return _execute(stages, items, earlier, 1, store, observer, log=log, limited=limited)


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
    selection.check(predictor, taxonomy, source.windows)
    check_limit(limit)
    check_prompts(predictor, source)
    items = list(islice(_chosen(source, shard_of), limit))
    sample = items[:: max(1, len(items) // DRY_RUN_IMAGES)][:DRY_RUN_IMAGES]
    stages = Stages.labeling(predictor, source, taxonomy, selection, workers=workers, max_pixels=max_pixels)
    return _execute(stages, deque(sample), Counter(), taxonomy.num_targets, None, None), len(items)


def check_prompts(predictor: Predictor, source: Source) -> list[str]:
    """Return warnings about images without prompts, for a predictor whose prompts are in a file or a store.

    Raises :class:`UsageError` if no image of the source has any.
    """
    if not isinstance(predictor, GivenPredictor) or predictor.prompts is None:
        return []
    return predictor.prompts.check(item.uri for item in source)


def check_limit(limit: int | None) -> None:
    """Raise :class:`UsageError` unless a number of images is at least 1."""
    if limit is not None:
        check_count("limit", limit, least=1)


def run_record(predictor: Predictor, taxonomy: Taxonomy, selection: Selection, source: Source) -> dict[str, Any]:
    """Return everything that decides the labels of a store; runs with different records never share a store."""
    return {
        **conditions(predictor, taxonomy),
        "classes": taxonomy.to_json(),
        **selection.record(),
        **drift_record(selection),
        **_windows_record(source),
    }


def _windows_record(source: Source) -> dict[str, Any]:
    """Return the windows of large files, if they are cut into windows, since each window is an image of its own."""
    return {} if source.windows is None else {"windows": asdict(source.windows)}


def segment_record(predictor: SegmentEverything, source: Source) -> dict[str, Any]:
    """Return everything that decides the segments of a store."""
    return {
        "maps": SEGMENTS,
        **predictor.settings,
        "kernels": predictor.backend.form,
        "bit_depth": predictor.backend.bit_depth,
        **_windows_record(source),
    }


def _execute(
    stages: Stages,
    items: deque[Item],
    earlier_rejects: Counter[str],
    num_targets: int,
    store: LabelStore | None,
    observer: Callable[[Progress], None] | None,
    watch: RunWatch | None = None,
    log: RunLog | None = None,
    limited: bool = False,
) -> Progress:
    """Process items into a store, or only count them without one; ``watch`` may stop the run.

    ``items`` is emptied while it is processed, so that the plan of a long run does not stay in memory.
    """
    log = log or RunLog()
    progress = Progress(planned=len(items), kept=np.zeros(num_targets, np.int64), earlier_rejects=earlier_rejects)
    progress.limited = limited
    progress.source.skipped = stages.source.skipped
    progress.stored = 0 if store is None else store.num_inputs

    def commit(inputs: int, seconds: float) -> None:
        log.write("commit", inputs=inputs, seconds=round(seconds, 4))

    def report(done: Done) -> None:
        if watch is not None:
            watch.add(done)
        if done.input.error is not None:
            log.write("reject", uri=done.input.uri, kind=done.input.error, message=done.input.message)

    rows = None if store is None else WaitingRows(store, commit)
    writer = Writer(progress, rows, report)

    def inputs() -> Iterator[tuple[Item, Writer]]:
        while items and not (watch is not None and watch.stop.is_set()):
            yield items.popleft(), writer

    def observe(progress: Progress) -> None:
        if watch is not None:
            watch.poll()
        log.stall(progress.stalled)
        if observer is not None:
            observer(progress)

    def finish() -> None:
        if rows is not None:
            rows.is_ending = True
        writer.flush()
        if rows is not None:
            rows.flush()

    if store is not None:
        log.start(store.path, "local")
    state = "failed"
    try:
        stages.execute(inputs(), progress, idle=writer.idle, finish=finish, observer=observe)
        state = "interrupted" if progress.interrupted else "finished"
    finally:
        log.end(state, progress)
    progress.drifted = watch is not None and watch.stop.is_set()
    if store is not None:
        add_run(store.path, progress)
        if state == "finished" and not (limited or progress.drifted):
            drop_plan(store)
    return progress


def _plan(
    store: LabelStore,
    predictor: Predictor | SegmentEverything,
    source: Source,
    shard_of: tuple[int, int] | None,
    retry_rejects: bool,
    limit: int | None,
    watch: RunWatch | None = None,
) -> tuple[deque[Item], Counter[str], bool]:
    """Commit the finished rows of a killed run, and list the inputs to process, the sample of a drift watch first.

    Also returns the number of skipped rejects of earlier runs by kind of error, and whether the limit leaves inputs
    out.
    """
    commit_waiting(store)
    rejects = {} if retry_rejects else {row.uri: row.error or "" for row in store.rejects()}
    earlier: dict[str, str] = {}

    def watched(items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if item.uri in rejects:
                earlier[item.uri] = rejects[item.uri]
            yield item

    chosen_source = _chosen(source if watch is None else watch.observe(source), shard_of)
    plan = store.plan(watched(chosen_source), retry_rejects=retry_rejects, condition=predictor.condition)
    if watch is None:
        items = deque(islice(plan, limit))
        limited = limit is not None and next(plan, None) is not None
    else:
        unfinished = list(plan)
        items = deque(watch.order(unfinished, limit))
        limited = limit is not None and len(unfinished) > limit
    for item in items:  # a file that changed is processed again
        earlier.pop(item.uri, None)
    return items, Counter(earlier.values()), limited


def _chosen(source: Iterable[Item], shard_of: tuple[int, int] | None) -> Iterable[Item]:
    return source if shard_of is None else shard(source, *shard_of)
