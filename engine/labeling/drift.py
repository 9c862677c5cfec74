"""Watch a labeling run for images that differ from those of its calibration.

A sample of the plan, the inputs with the smallest hashes of their uris, is labeled first and watched in that order, so
that the result depends neither on the order of a folder nor on the number of workers. The run record holds the
statistics of the calibration images, and each label row those of its image, so the state of the watch can be computed
from the store alone.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...checks import check_choice
from ...errors import CalibrationMismatch, StoreError, UsageError
from ..calibration.calibration import Calibration
from ..calibration.drift.report import Distance, DriftReport, survey, watch_images
from ..calibration.drift.statistics import STATISTICS, describe_images, pack_statistics, unpack_statistics
from ..calibration.drift.watch import LEVEL, SAMPLE, DriftWatch, Sample
from ..calibration.sharing import Group
from ..calibration.thresholds import Unit
from ..inputs.sources import Item
from ..model.taxonomy import Taxonomy
from ..predictors.base import ScoreMap
from ..store.label_store import LabelStore
from ..store.rows import read_statistics
from .selection import Selection
from .writer import Done

OnDrift = Literal["warn", "stop"]
"""Behavior of a run at an alarm: report it at the end, or stop and keep the labels so far."""

POLL_SECONDS = 10.0
"""Shortest time between two readings of the store for results of other processes."""


def drift_record(selection: Selection) -> dict[str, Any]:
    """Return the entry of the run record for the watch of a selection, ``drift``; none without a calibration."""
    statistics = selection.drift_reference()
    if statistics is None:
        return {}
    settings = {"level": LEVEL, "sample": SAMPLE, "statistics": list(STATISTICS)}
    return {"drift": {**settings, "calibration": pack_statistics(statistics)}}


class StoredWatch:
    """The settings of a watch, from the run record of a store."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.names = list(record["statistics"])
        self.level, self.size = float(record["level"]), int(record["sample"])
        self.calibration = unpack_statistics(record["calibration"])

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> StoredWatch | None:
        """Read a run record; None if the run has no watch."""
        record = run.get("drift")
        return None if not record or record["statistics"] != list(STATISTICS) else cls(record)

    @cached_property
    def distance(self) -> Distance:
        """Distance from the calibration images."""
        return Distance(self.calibration)

    def distance_of(self, text: str | None) -> float | None:
        """Return the distance of an image from the calibration images, given its statistics as stored."""
        return None if text is None else self.distance.of(self.read(text))

    def read(self, text: str) -> list[float]:
        """Read the statistics (J,) of a label row; raises :class:`StoreError` if they are damaged."""
        values = read_statistics(text)
        if missing := [name for name in self.names if name not in values]:
            raise StoreError(f"the statistics of an image lack {missing[0]!r}; run `maskmill verify STORE --repair`")
        return [values[name] for name in self.names]


def watch_store(store: LabelStore | str | os.PathLike[str]) -> DriftReport | None:
    """Watch the images of a store for drift from its calibration images; None if it was labeled without calibration."""
    store = store if isinstance(store, LabelStore) else LabelStore.open(store)
    settings = StoredWatch.of(store.run)
    if settings is None:
        return None
    inputs = _labeled_inputs(store)
    report = watch_images(settings.calibration, _sample(store, settings, inputs), level=settings.level)
    return None if report is None else _with_surroundings(report, store, settings, inputs)


def weigh_like(
    calibration: Calibration,
    store: LabelStore | str | os.PathLike[str],
    *,
    alpha: str | float | None = None,
    group: Group | None = None,
    unit: Unit | None = None,
) -> Calibration:
    """Weigh the images of a calibration so that they resemble a corpus, without labels of it.

    ``alpha``, ``group`` and ``unit`` are the calibration's if None.

    The corpus is represented by a label store that was labeled with a calibration of the same model. Raises
    :class:`UsageError` for another store, :class:`CalibrationMismatch` for another model, and :class:`CalibrationError`
    if too few images remain after weighting.
    """
    store = store if isinstance(store, LabelStore) else LabelStore.open(store)
    settings = StoredWatch.of(store.run)
    if settings is None:
        raise UsageError(
            f"{store.path} has no statistics of its images, which --like compares: label them with --calibration FILE"
        )
    names = ("bundle", "artifact", "taxonomy")
    different = [name for name in names if store.run.get(name) != calibration.made_with.get(name)]
    if different:
        raise CalibrationMismatch(
            f"{store.path} was labeled with another {different[0]} than the calibration's, so their statistics cannot "
            "be compared; label the corpus with the same model and taxonomy"
        )
    rows = [statistics for _, statistics in _sample(store, settings, _labeled_inputs(store))]
    if not rows:
        raise UsageError(f"{store.path} holds no labeled image, so there is no corpus to resemble; label some first")
    return calibration.resembling(np.array(rows), str(store.path), alpha=alpha, group=group, unit=unit)


def _labeled_inputs(store: LabelStore) -> pa.Table:
    inputs = store.table(["uri", "id"], "inputs")
    return inputs.filter(pc.is_valid(inputs["id"]))


def _sample(store: LabelStore, settings: StoredWatch, inputs: pa.Table) -> list[tuple[str, list[float]]]:
    """Return (uri, statistics) of the distinct images of the sample, in its order."""
    sample = Sample(settings.size)
    for batch in inputs.to_batches(max_chunksize=1 << 16):
        for uri in batch["uri"].to_pylist():
            sample.add(uri)
    uris = sample.uris()
    ids = _ids(inputs, uris)
    statistics = _statistics(store, settings, ids.values())
    first = {ids[uri]: uri for uri in reversed(uris)}
    return [(uri, statistics[ids[uri]]) for uri in uris if first[ids[uri]] == uri and ids[uri] in statistics]


def _with_surroundings(report: DriftReport, store: LabelStore, settings: StoredWatch, inputs: pa.Table) -> DriftReport:
    labels = store.table(["id", "drift"])
    inputs = inputs.take(pc.sort_indices(inputs["uri"]))
    rows = pc.index_in(inputs["id"], value_set=labels["id"].combine_chunks())
    distances = labels["drift"].combine_chunks().take(rows.combine_chunks()).to_numpy(zero_copy_only=False)
    finite_rows = np.flatnonzero(np.isfinite(distances))
    names = inputs["uri"].take(pa.array(finite_rows)).to_pylist()
    surroundings = survey(names, distances[finite_rows], settings.distance.usual)
    return replace(report, surroundings=surroundings)


def _ids(inputs: pa.Table, uris: list[str]) -> dict[str, Any]:
    """Return the image of each of ``uris`` that is in ``inputs``, None for a reject."""
    rows = inputs.filter(pc.is_in(inputs["uri"], value_set=pa.array(uris, pa.string())))
    return dict(zip(rows["uri"].to_pylist(), rows["id"].to_pylist(), strict=True))


def _statistics(store: LabelStore, settings: StoredWatch, ids: Iterable[str | None]) -> dict[str, list[float]]:
    names = list({id for id in ids if id is not None})
    labels = store.table(["id", "statistics"])
    rows = labels.filter(pc.is_in(labels["id"], value_set=pa.array(names, pa.string())))
    texts = zip(rows["id"].to_pylist(), rows["statistics"].to_pylist(), strict=True)
    return {id: settings.read(text) for id, text in texts if text is not None}


class Describer:
    """Statistics of a run's images, as columns of their label rows."""

    def __init__(self, calibration: NDArray[np.float64], taxonomy: Taxonomy) -> None:
        self._distance = Distance(calibration)
        self._taxonomy = taxonomy

    def columns(self, score_maps: Sequence[ScoreMap], pictures: Sequence[Any]) -> list[dict[str, Any]]:
        """Return ``drift`` and ``statistics`` of each image; ``pictures`` are those of ``sample_picture``."""
        return [
            {
                "drift": self._distance.of(statistics),
                "statistics": json.dumps(dict(zip(STATISTICS, statistics.tolist(), strict=True))),
            }
            for statistics in describe_images(score_maps, pictures, self._taxonomy)
        ]


class RunWatch:
    """Watch of a run in progress: orders its plan, and tells it to stop.

    Results come in any order; the watch advances as far as the sample is known without a gap. Inputs that other
    processes label are read from the store from time to time.
    """

    def __init__(self, store: LabelStore, settings: StoredWatch, on_drift: OnDrift) -> None:
        self._settings = settings
        self._store = store
        self._stops = on_drift == "stop"
        self._sample = Sample(settings.size)
        self._watch = DriftWatch(settings.calibration, level=settings.level)
        self._places: dict[str, int] = {}
        self._waiting: list[str] = []
        self._own: set[str] = set()
        self._polled = 0.0
        self._ids: dict[str, str | None] = {}
        self._statistics: dict[str, list[float]] = {}
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self.stop = threading.Event()
        """Set as soon as an alarm stops the run."""

    @classmethod
    def of(cls, store: LabelStore, on_drift: OnDrift) -> RunWatch | None:
        """Return the watch of a run into a store; None if the run has no calibration to compare with."""
        check_choice("on_drift", on_drift, OnDrift)
        settings = StoredWatch.of(store.run)
        return None if settings is None else cls(store, settings, on_drift)

    def observe(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the inputs of the whole source, and note which of them belong to the sample."""
        for item in items:
            self._sample.add(item.uri)
            yield item

    @property
    def is_waiting(self) -> bool:
        """True until the whole sample is known."""
        return bool(self._waiting)

    def order(self, items: list[Item], limit: int | None, *, own: bool = True) -> list[Item]:
        """Return the plan with the sample first, cut to ``limit``; an alarm on earlier results empties it.

        Without ``own``, other processes label the plan, and their results are read from the store.
        """
        uris = self._sample.uris()
        self._places = {uri: index for index, uri in enumerate(uris)}
        items = sorted(items, key=lambda item: self._places.get(item.uri, len(uris)))[:limit]
        self._own = {item.uri for item in items} if own else set()
        self._waiting = uris[::-1]
        self._refresh()
        return [] if self.stop.is_set() else items

    def add(self, done: Done) -> None:
        """Add a finished input."""
        if done.input.uri not in self._places:
            return
        with self._lock:
            if done.label is not None and done.label.statistics is not None:
                self._statistics[done.label.id] = self._settings.read(done.label.statistics)
            if done.input.error is not None and done.id is not None:
                self._seen.add(done.id)  # other inputs with the same content are rejected as well
            self._ids[done.input.uri] = None if done.input.error is not None else done.id
            self._advance()

    def poll(self) -> None:
        """Read results of other processes, if the watch waits for one."""
        with self._lock:
            if not self._waiting or time.monotonic() - self._polled < POLL_SECONDS:
                return
            uri = self._waiting[-1]
            is_elsewhere = uri not in self._own or self._ids.get(uri) is not None
        if is_elsewhere:
            self._refresh()

    def _refresh(self) -> None:
        """Read the stored results of inputs that this run does not label, and of images labeled as another input."""
        with self._lock:
            missing_uris = [uri for uri in self._waiting if uri not in self._own and uri not in self._ids]
            if missing_uris:
                self._ids |= _ids(self._store.table(["uri", "id"], "inputs"), missing_uris)
            images = {id for id in self._ids.values() if id is not None and id not in self._statistics}
            if images - self._seen:
                self._statistics |= _statistics(self._store, self._settings, images)
            self._polled = time.monotonic()
            self._advance()

    def _advance(self) -> None:
        while self._waiting and (uri := self._waiting[-1]) in self._ids:
            id = self._ids[uri]
            if id is not None and id not in self._seen:
                if id not in self._statistics:
                    break  # a duplicate finished before its original
                self._watch.update(self._statistics[id], uri)
                self._seen.add(id)
            self._waiting.pop()
        if self._stops and self._watch.alarm is not None:
            self.stop.set()
        if not self._waiting:
            self._places, self._ids, self._statistics, self._seen = {}, {}, {}, set()
