"""Make the labels of another selection from the kept scores of a store, without the model.

Usage::

    label(predictor, source, "labels", taxonomy, Selection.conformal(calibration, keep_scores="0.05"))
    reselect("labels", "labels-10", Reselection(alpha="0.10", weight="pcos"))

Labels equal those of a new run with the same selection, except for scores so close to a threshold that their
quantization matters (see :mod:`maskmill.engine.labeling.kept.levels`). The new store has the inputs, rejects and human
corrections of the old one, and names it in its run record.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ....checks import check_choice
from ....errors import CalibrationMismatch, StoreError, UsageError
from ....kernels.processors import count_workers
from ....kernels.types import Rule
from ...calibration.calibration import Calibration
from ...model.png import encode_png
from ...model.storage import location_of
from ...model.taxonomy import Taxonomy
from ...store.label_store import InputRow, LabelRow, LabelStore
from ...store.reviews import latest_reviews
from ...store.rows import ReviewRow
from ...store.table import REPAIR
from ...store.waiting.waiting_rows import WaitingRows, commit_waiting
from ..drift import StoredWatch, drift_record
from ..kept.encoding import decode_scores
from ..kept.keep import load_kept_calibration
from ..kept.levels import ScoreLevels
from ..progress import Progress
from ..selection import ALL_LEVELS, Method, Selection, Weight
from ..stages import run_pipeline
from ..thread_stages import Pipeline
from ..writer import Done, Writer
from .decide import KeptSelection

READ_ROWS = 32
"""Number of rows per read of a worker."""

_SELECTION_KEYS = (
    "select",
    "rule",
    "weight",
    "weight_levels",
    "threshold",
    "thresholds",
    "calibration",
    "kept_scores",
    "drift",
)


@dataclass(frozen=True, kw_only=True)
class Reselection:
    """Changes to the selection of a store; None keeps the option that the store was made with."""

    calibration: Calibration | None = None
    """Other thresholds."""
    alpha: str | float | None = None
    """Another alpha of the calibration."""
    select: Method | None = None
    """Another selection method."""
    threshold: float | None = None
    """Lowest confidence to keep (``threshold``)."""
    rule: Rule | None = None
    """Another rule."""
    weight: Weight | None = None
    """Another weight."""
    weight_levels: int | None = None
    """Another number of distinct weights."""

    def apply(self, store: LabelStore) -> Selection:
        """Return the new selection of a store's labels; raises :class:`UsageError` or :class:`CalibrationMismatch`."""
        run, kept_record = store.run, _kept_record(store)
        if self.select is not None:
            check_choice("select", self.select, Method)
        select = self.select or ("threshold" if self.threshold is not None else "conformal")
        weight = self.weight or run["weight"]
        levels = ALL_LEVELS if weight == "none" else run["weight_levels"]
        options: dict[str, Any] = {
            "weight": weight,
            "weight_levels": levels if self.weight_levels is None else self.weight_levels,
        }
        if (self.threshold is not None) != (select == "threshold"):
            raise UsageError("--threshold SCORE and --select threshold go together; give both or neither")
        if select != "conformal":
            if not self.calibration is self.alpha is self.rule is None:
                raise UsageError(
                    f"--calibration, --alpha and --rule belong to --select conformal, not to --select {select}; "
                    "leave them out"
                )
            if self.threshold is not None:
                return Selection.threshold(self.threshold, **options)
            return Selection.argmax(**options)
        calibration = self.calibration or load_kept_calibration(store.folders[0], kept_record["calibration"])
        if calibration is None:
            raise UsageError(
                f"{store.path} has lost the calibration that its scores were kept with; give --calibration FILE"
            )
        if self.calibration is not None:
            _check_conditions(self.calibration, store)
        if self.alpha is not None:
            calibration = calibration.at(self.alpha)
        rule = self.rule or (calibration.rule if self.calibration is not None else run["rule"])
        return Selection.conformal(calibration, rule=rule, **options)


def reselect(
    store: str | os.PathLike[str] | LabelStore,
    output: str | os.PathLike[str],
    change: Reselection,
    *,
    workers: int | None = None,
    observer: Callable[[Progress], None] | None = None,
) -> Progress:
    """Write the labels of another selection to the store ``output``; calling it again continues an incomplete run.

    Parameters
    ----------
    store
        Label store with kept scores, or several that are read as one.
    output
        Folder of the new label store. A store made with other options is refused.
    change
        The differences from the selection of ``store``.
    workers
        Number of threads; None: the number of usable processors.
    observer
        Called about twice per second and at the end with the counts so far.

    An interrupt finishes and commits the images in progress and returns with ``interrupted`` set. Raises
    :class:`UsageError` for a store without kept scores and for a selection that needs scores that were not kept,
    :class:`CalibrationMismatch`, :class:`StoreMismatch`, :class:`StoreError`.
    """
    source = store if isinstance(store, LabelStore) else LabelStore.open(store)
    threads = count_workers(workers)
    if str(location_of(output).absolute()) in {str(folder.absolute()) for folder in source.folders}:
        raise UsageError(f"{output} is one of the stores to read; choose another folder for the new labels")
    selection = change.apply(source)
    decide = _decide(source, selection)
    target = LabelStore.open_or_create(output, run_record(source, selection))
    progress = Progress(kept=np.zeros(len(source.classes["targets"]), np.int64))
    commit_waiting(target)
    items = list(_unfinished(source, target))
    progress.planned = len(items)
    target.commit_reviews(_corrections(source, target))
    rows = WaitingRows(target)
    writer = Writer(progress, rows)
    work = _Worker(source, decide, writer, StoredWatch.of(target.run))
    pipeline = Pipeline(items, ahead=2 * READ_ROWS)
    pipeline.add_stage(("read", work.read), ("select", work.select), threads=threads, batch=READ_ROWS)

    def finish() -> None:
        rows.is_ending = True
        writer.flush()
        rows.flush()

    pipeline.add_stage(("write", work.write), threads=1, finish=finish, idle=writer.idle)
    run_pipeline(pipeline, progress, finish=finish, observer=observer)
    return progress


def run_record(source: LabelStore, selection: Selection) -> dict[str, Any]:
    """Return the run record of the new store: that of ``source`` with another selection, and naming ``source``."""
    made_with = {name: value for name, value in source.run.items() if name not in _SELECTION_KEYS}
    before = {
        name: source.run[name]
        for name in _SELECTION_KEYS
        if name in source.run and name not in ("kept_scores", "drift")
    }
    origin = {
        "store": ", ".join(str(folder.absolute()) for folder in source.folders),
        "selection": before,
        "kept_scores": source.run["kept_scores"]["alpha"],
    }
    return {**made_with, **selection.record(), **drift_record(selection), "reselected_from": origin}


def _kept_record(store: LabelStore) -> Mapping[str, Any]:
    record = store.run.get("kept_scores")
    if record is None:
        origin = store.run.get("reselected_from")
        advice = (
            f"reselect from {origin['store']}, where its scores are"
            if origin
            else "label its images with --keep-scores ALPHA into a new folder"
        )
        raise UsageError(f"{store.path} keeps no scores, so its labels cannot be selected again; {advice}")
    return record


def _check_conditions(calibration: Calibration, store: LabelStore) -> None:
    """Raise :class:`CalibrationMismatch` unless the calibration holds for the scores of a store."""
    made_with = {name: value for name, value in calibration.made_with.items() if name != "batch"}
    run = {**store.run, "windows": (store.run.get("windows") or {}).get("side")}
    different = [name for name, value in sorted(made_with.items()) if run.get(name) != value]
    if not different:
        return
    kept_calibration = load_kept_calibration(store.folders[0], store.run["kept_scores"]["calibration"])
    if kept_calibration is None or dict(kept_calibration.made_with) != dict(calibration.made_with):
        raise CalibrationMismatch(
            f"the calibration was made under other conditions than the scores of {store.path} "
            f"({', '.join(different)}); calibrate again with the model and class mapping of the store"
        )


def _decide(store: LabelStore, selection: Selection) -> KeptSelection:
    kept_record, classes = store.run["kept_scores"], Taxonomy.from_json(store.classes)
    return KeptSelection(
        selection,
        ScoreLevels(np.array([float(value) for value in kept_record["splits"]], np.float32)),
        np.array([float(value) for value in kept_record["limits"]], np.float32),
        background=classes.background,
        ignore=classes.ignore_index,
        names=classes.targets,
    )


def _unfinished(source: LabelStore, target: LabelStore) -> Iterator[InputRow]:
    """Yield the inputs of ``source`` that ``target`` does not hold; rejects are copied again."""
    conditions: dict[str, str] = {}

    def rows() -> Iterator[Any]:
        for row in source.inputs():
            conditions[row.uri] = row.condition
            yield row

    # an input row has the uri, stamp and size of a source's item
    return target.plan(rows(), retry_rejects=True, condition=conditions.pop)  # type: ignore[return-value]


def _corrections(source: LabelStore, target: LabelStore) -> list[ReviewRow]:
    """Return the reviews that do not depend on the labels: corrected maps, rejected images, and withdrawals of both.

    A review that an earlier call copied ends in ``target`` if a later one of ``source`` withdraws or replaces it.
    """
    latest = latest_reviews(source.reviews())
    rows = [row for row in latest.values() if row.verdict in ("corrected", "rejected")]
    ends = (latest[id] for id, row in target.current_reviews().items() if id in latest and latest[id].time > row.time)
    return rows + [
        replace(row, verdict="withdrawn", label=None, region=None, instances=None)
        for row in ends
        if row.verdict in ("accepted", "withdrawn")
    ]


class _Worker:
    """Holds the functions of the stages."""

    def __init__(self, source: LabelStore, decide: KeptSelection, writer: Writer, watch: StoredWatch | None) -> None:
        self._source = source
        self._decide = decide
        self._writer = writer
        self._watch = watch

    def read(self, inputs: list[InputRow]) -> list[tuple[InputRow, LabelRow | None]]:
        """Read the rows of inputs whose labels the new store does not hold yet."""
        new = [row.id for row in inputs if row.id is not None and self._writer.claim(row.id)]
        labels = {row.id: row for row in self._source.take(new, extras=True)} if new else {}
        return [(replace(row, time=0), labels.pop(row.id or "", None)) for row in inputs]

    def write(self, results: list[Done]) -> list[Any]:
        """Pass finished inputs to the writer."""
        for done in results:
            self._writer.write(done)
        return []

    def select(self, rows: Sequence[tuple[InputRow, LabelRow | None]]) -> list[Done]:
        """Select and encode."""
        return [
            Done(input=row, num_bytes=0, id=row.id, label=None if label is None else self._labels(label))
            for row, label in rows
        ]

    def _labels(self, row: LabelRow) -> LabelRow:
        if row.scores is None:
            raise StoreError(
                f"the labels of {row.id} in {self._source.path} have no kept scores; label the image again"
            )
        try:
            kept_scores = decode_scores(row.scores, (row.height, row.width), self._decide.num_classes)
        except ValueError as error:
            text = f"the scores of {row.id} in {self._source.path} cannot be read: {error}"
            raise StoreError(f"{text}; {REPAIR}") from error
        selected = self._decide.select(kept_scores)
        return replace(
            row,
            label=encode_png(selected.label),
            weight=encode_png(selected.weight),
            counts=selected.counts,
            kept=selected.kept,
            confidence=selected.confidence,
            scores=None,
            drift=None if self._watch is None else self._watch.distance_of(row.statistics),
        )
