"""Label a corpus: the one place where the order of stages is decided.

read and decode → predict → select, weight, encode → write. Each stage has its threads, queues between them are short,
and only the last one touches the store::

    summary = label(predictor, open_source("photos"), "labels", taxonomy, Selection(), observer=print)

Work that is finished is never lost: the writer commits every few seconds, an interrupt finishes what is under way, and
an error elsewhere still commits what was done before it is raised. Running the same command again goes on from there.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError, UsageError
from .calibrate import Calibration, conditions
from .flow import Flow, StageTime
from .images import decode_image
from .png import encode_png
from .predict import Predictor, ScoreMap
from .select import Selection, select
from .sources import Item, Source, shard
from .store import InputRow, LabelRow, LabelStore, content_id
from .taxonomy import Taxonomy

COMMIT_ROWS = 512
"""A commit holds at least this many rows …"""
COMMIT_SECONDS = 10.0
"""… or this much time, in seconds."""
DRY_RUN_IMAGES = 64
"""Images that a dry run labels."""


@dataclass
class Progress:
    """Counts of a run so far, and the times of its stages."""

    planned: int = 0
    """Inputs that this run is to deal with."""
    images: int = 0
    """Images labelled, duplicates not counted."""
    duplicates: int = 0
    """Inputs whose bytes another input had already."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Inputs that could not be decoded, by kind."""
    pixels: int = 0
    """Pixels of the labelled images."""
    kept: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(K,): pixels that carry a label of each target."""
    input_bytes: int = 0
    """Bytes read."""
    label_bytes: int = 0
    """Bytes of label maps written."""
    weight_bytes: int = 0
    """Bytes of weight maps written."""
    seconds: float = 0.0
    """Time since the first image was asked for."""
    stages: list[StageTime] = field(default_factory=list)
    """What each stage has done."""
    interrupted: bool = False
    """The run was stopped before its end."""

    @property
    def inputs(self) -> int:
        """Inputs dealt with: labelled, duplicates and rejects."""
        return self.images + self.duplicates + sum(self.rejects.values())

    @property
    def rate(self) -> float:
        """Images labelled a second."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def kept_share(self) -> float:
        """Share of pixels that carry a label."""
        return float(self.kept.sum() / self.pixels) if self.pixels else 0.0

    @property
    def bottleneck(self) -> str:
        """The stage whose threads were busy for the largest share of the time."""
        return max(self.stages, key=lambda stage: stage.busy / stage.threads).name if self.stages else ""

    def to_json(self, taxonomy: Taxonomy) -> dict[str, Any]:
        """Plain data."""
        busy = sum(stage.busy for stage in self.stages)
        labelled = max(int(self.kept.sum()), 1)
        return {
            "images": self.images,
            "duplicates": self.duplicates,
            "rejects": dict(self.rejects),
            "interrupted": self.interrupted,
            "seconds": self.seconds,
            "images_per_second": self.rate,
            "kept": self.kept_share,
            "classes": {
                name: {"pixels": int(count), "share_of_kept": int(count) / labelled}
                for name, count in zip(taxonomy.targets, self.kept, strict=True)
            },
            "bytes": {"read": self.input_bytes, "label_png": self.label_bytes, "weight_png": self.weight_bytes},
            "stages": {
                stage.name: {
                    "threads": stage.threads,
                    "items": stage.items,
                    "ms_an_item": 1000 * stage.busy / max(stage.items, 1),
                    "cpu_ms_an_item": 1000 * stage.cpu / max(stage.items, 1),
                    "share": stage.busy / busy if busy else 0.0,
                }
                for stage in self.stages
            },
            "bottleneck": self.bottleneck,
        }


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One input on its way through the stages."""

    item: Item
    id: str | None
    num_bytes: int
    prepared: Any = None
    score_map: ScoreMap | None = None
    error: ImageError | None = None


@dataclass(frozen=True, kw_only=True)
class _Done:
    """One input, ready for the store."""

    input: InputRow
    num_bytes: int
    id: str | None = None
    label: LabelRow | None = None


def label(
    predictor: Predictor,
    source: Source,
    store_path: str | os.PathLike[str],
    taxonomy: Taxonomy,
    selection: Selection,
    *,
    calibration: Calibration | None = None,
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
        Inputs; see :func:`maskmill.engine.sources.open_source`.
    store_path
        The label store, made if it does not exist. One that was made with other options is refused.
    calibration
        Where the thresholds came from; checked against predictor and taxonomy.
    shard_of
        (I, N): take only the inputs that fall into part I of N, from 0.
    workers
        Images in work at once; the number of processors where None.
    limit
        Label at most so many inputs.
    retry_rejects
        Try inputs again that could not be decoded before.
    max_pixels
        Refuse larger images.
    observer
        Called about twice a second, and at the end, with the counts so far.

    An interrupt (``KeyboardInterrupt`` in the calling thread) finishes and commits what is under way and returns with
    ``interrupted`` set. Raises :class:`StoreMismatch`, :class:`StoreError`, :class:`CalibrationMismatch`,
    :class:`SessionError`, :class:`SourceError`.
    """
    if calibration is not None:
        calibration.check(predictor, taxonomy)
    store = LabelStore.open_or_create(store_path, run_record(predictor, taxonomy, selection, calibration))
    items = list(islice(store.plan(_chosen(source, shard_of), retry_rejects=retry_rejects), limit))
    run = _Run(predictor, source, taxonomy, selection, workers, max_pixels)
    return run.execute(items, _Writer(run.progress, store), observer)


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
    """Label a sample spread over the source without a store; returns (what it took, inputs in the whole source)."""
    items = list(islice(_chosen(source, shard_of), limit))
    step = max(1, len(items) // DRY_RUN_IMAGES)
    run = _Run(predictor, source, taxonomy, selection, workers, max_pixels)
    progress = run.execute(items[::step][:DRY_RUN_IMAGES], _Writer(run.progress, None), None)
    return progress, len(items)


def run_record(
    predictor: Predictor, taxonomy: Taxonomy, selection: Selection, calibration: Calibration | None
) -> dict[str, Any]:
    """What decides the labels of a store; two runs with different records are never mixed."""
    record: dict[str, Any] = {
        **conditions(predictor, taxonomy),
        "classes": taxonomy.to_json(),
        "select": selection.method,
        "rule": selection.rule,
        "weight": selection.weight,
        "weight_levels": selection.weight_levels,
    }
    if calibration is not None:
        record["calibration"] = {key: getattr(calibration, key) for key in ("alpha", "group", "unit", "rule")} | {
            "thresholds": content_id(np.ascontiguousarray(calibration.thresholds).tobytes())
        }
    elif selection.thresholds is not None:
        record["threshold"] = float(1 - selection.thresholds[0])
    return record


def default_workers() -> int:
    """Images in work at once: one a processor that this process may use."""
    return len(os.sched_getaffinity(0))


def _chosen(source: Source, shard_of: tuple[int, int] | None) -> Iterable[Item]:
    return source if shard_of is None else shard(source, *shard_of)


class _Run:
    """The stages' functions and what they share."""

    def __init__(
        self,
        predictor: Predictor,
        source: Source,
        taxonomy: Taxonomy,
        selection: Selection,
        workers: int | None,
        max_pixels: int | None,
    ) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be at least 1, got {workers}")
        self._predictor = predictor
        self._source = source
        self._taxonomy = taxonomy
        self._selection = selection
        self._workers = workers or default_workers()
        self._decode_options = {} if max_pixels is None else {"max_pixels": max_pixels}
        self._claimed: set[str] = set()
        self._claim_lock = threading.Lock()
        self.progress = Progress(kept=np.zeros(taxonomy.num_targets, np.int64))

    def execute(self, items: Iterable[Item], writer: _Writer, observer: Callable[[Progress], None] | None) -> Progress:
        progress = self.progress
        progress.planned = len(items)
        flow = Flow(items)
        self._known = writer.knows
        session_threads = getattr(getattr(self._predictor, "session", None), "threads", 1)
        model_threads = max(1, self._workers // session_threads)
        flow.stage("decode", self._decode, threads=self._workers)
        flow.stage("predict", self._predict, threads=model_threads, batch=self._predictor.batch)
        flow.stage("select", self._select, threads=self._workers)
        flow.stage("write", writer.write, threads=1, finish=writer.flush, idle=writer.idle)
        progress.stages = flow.times
        started = time.perf_counter()
        flow.start()
        while True:
            try:
                ended = flow.wait(0.5)
                progress.seconds = time.perf_counter() - started
                if observer is not None:
                    observer(progress)
                if ended:
                    break
            except KeyboardInterrupt:
                if progress.interrupted:
                    raise  # asked twice: give up what is under way
                progress.interrupted = True
                flow.stop()
        try:
            flow.join()
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                writer.flush()
            raise
        return progress

    def _decode(self, items: list[Item]) -> list[_Job]:
        return [self._open(item) for item in items]

    def _open(self, item: Item) -> _Job:
        id, num_bytes = None, 0
        try:
            data = self._source.read(item)
            id, num_bytes = content_id(data), len(data)
            with self._claim_lock:
                known = id in self._claimed or self._known(id)
                self._claimed.add(id)
            if known:
                return _Job(item=item, id=id, num_bytes=num_bytes)
            prepared = self._predictor.prepare(decode_image(data, **self._decode_options))
        except ImageError as error:
            return _Job(item=item, id=id, num_bytes=num_bytes, error=error)
        return _Job(item=item, id=id, num_bytes=num_bytes, prepared=prepared)

    def _predict(self, jobs: list[_Job]) -> list[_Job]:
        ready = [job for job in jobs if job.prepared is not None]
        maps = iter(self._predictor.run([job.prepared for job in ready])) if ready else iter(())
        return [
            job
            if job.prepared is None
            else _Job(item=job.item, id=job.id, num_bytes=job.num_bytes, score_map=next(maps))
            for job in jobs
        ]

    def _select(self, jobs: list[_Job]) -> list[_Done]:
        return [self._finish(job) for job in jobs]

    def _finish(self, job: _Job) -> _Done:
        row = InputRow(uri=job.item.uri, size=job.item.size, stamp=job.item.stamp, id=job.id, error=None, message=None)
        if job.error is not None:
            row = replace(row, id=None, error=job.error.kind, message=str(job.error))
        if job.score_map is None or job.id is None:
            return _Done(input=row, num_bytes=job.num_bytes, id=job.id)
        selected = select(job.score_map, self._taxonomy, self._selection)
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
        )
        return _Done(input=row, num_bytes=job.num_bytes, id=job.id, label=labels)


class _Writer:
    """Counts what arrives and commits it in batches, every label before the inputs that point to it.

    Without a store it only counts.
    """

    def __init__(self, progress: Progress, store: LabelStore | None) -> None:
        self._progress = progress
        self._store = store
        self._labels: list[LabelRow] = []
        self._inputs: list[InputRow] = []
        self._labelled: set[str] = set()
        self._rejected: dict[str, InputRow] = {}
        self._waiting: dict[str, list[InputRow]] = {}
        self._since: float | None = None

    def knows(self, id: str) -> bool:
        """Whether the store holds labels for these bytes already."""
        return self._store is not None and self._store.has_id(id)

    def write(self, jobs: list[_Done]) -> list[Any]:
        """Take finished inputs."""
        for done in jobs:
            self._progress.input_bytes += done.num_bytes
            if done.label is not None:
                self._add_label(done.label, done.input)
            elif done.input.error is not None:
                self._reject(done.input, done.id)
            elif done.id in self._rejected:
                self._reject(_rejected_like(done.input, self._rejected[done.id]), None)
            elif done.id in self._labelled or self.knows(done.id or ""):
                self._add_duplicate(done.input)
            else:
                # It overtook the image it repeats: its row must not point to labels that are not there.
                self._waiting.setdefault(done.id or "", []).append(done.input)
        if len(self._inputs) >= COMMIT_ROWS:
            self.flush()
        self.idle()
        return []

    def idle(self) -> None:
        """Commit what has waited long enough."""
        if self._since is not None and time.monotonic() - self._since >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit everything that arrived."""
        if self._store is not None and self._inputs:
            self._store.commit(self._labels, self._inputs)
        self._labels, self._inputs, self._since = [], [], None

    def _add_label(self, label: LabelRow, row: InputRow) -> None:
        progress = self._progress
        progress.images += 1
        progress.pixels += label.width * label.height
        progress.kept += label.counts
        progress.label_bytes += len(label.label)
        progress.weight_bytes += len(label.weight)
        self._labels.append(label)
        self._labelled.add(label.id)
        self._append(row)
        for repeated in self._waiting.pop(label.id, []):
            self._add_duplicate(repeated)

    def _add_duplicate(self, row: InputRow) -> None:
        self._progress.duplicates += 1
        self._append(row)

    def _reject(self, row: InputRow, id: str | None) -> None:
        self._progress.rejects[row.error or ""] += 1
        self._append(row)
        if id is not None:
            self._rejected[id] = row
            for repeated in self._waiting.pop(id, []):
                self._reject(_rejected_like(repeated, row), None)

    def _append(self, row: InputRow) -> None:
        self._inputs.append(row)
        if self._since is None:
            self._since = time.monotonic()


def _rejected_like(row: InputRow, example: InputRow) -> InputRow:
    return replace(row, id=None, error=example.error, message=example.message)
