"""Runs of the labeling commands: shared options, choice of the runner, summary and exit status."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ....errors import UsageError
from ...cluster.job import Job, no_conditions
from ...cluster.status import published
from ...inputs.identity import shard
from ...labeling.drift import OnDrift
from ...labeling.run_log import RunLog
from ...model.storage import is_url
from ...model.taxonomy import Taxonomy
from ...reading.access import current_access, with_access
from ...reading.geotiff import Windows
from ...report.terminal import say
from ...runtimes.open import Provider
from ..options.common import print_json
from .label_options import CorpusGroup, LabelingRunnerGroup, SelectionGroup

if TYPE_CHECKING:
    from ...inputs.sources import Source
    from ...labeling.progress import Progress


@dataclass(frozen=True, kw_only=True)
class LabelingRun:
    """Options that every labeling command shares, as given."""

    source: str
    output: Path | None
    corpus: CorpusGroup
    place: LabelingRunnerGroup
    provider: Provider
    """Runtime of the model."""
    as_json: bool
    dry_run: bool = False
    windows: Windows | None = None

    @property
    def store(self) -> Path:
        """The store."""
        assert self.output is not None, "the command has checked that there is a store"
        return self.output

    @property
    def common(self) -> dict[str, Any]:
        """Keyword arguments of ``label``, ``segment`` and ``dry_run``."""
        return {
            "shard_of": self.corpus.part,
            "workers": self.place.threads,
            "limit": self.corpus.limit,
            "max_pixels": self.corpus.max_pixels,
        }

    def open_source(self) -> Source:
        """Open the images."""
        from ...inputs.sources import open_source

        return open_source(
            self.source, image_ending=self.corpus.image_ending, access=current_access(), windows=self.windows
        )

    def empty_shard(self, progress: Progress) -> str | None:
        """Return the shard if no input of the source belongs to it, so that the run had nothing to do."""
        part = self.corpus.part
        if part is None or progress.planned or next(shard(self.open_source(), *part), None) is not None:
            return None
        return self.corpus.shard

    @cached_property
    def run_log(self) -> RunLog:
        """Log of the run."""
        return RunLog(self.place.log)

    @property
    def say(self) -> Callable[[str], None] | None:
        """Printer of the line that states which runtime and backend are used."""
        return None if self.as_json else say


def run_label(
    run: LabelingRun,
    selecting: SelectionGroup,
    opening: Callable[[], tuple[Any, Any]],
    conditions: Callable[[], Callable[[str], str]],
    classes_of: Callable[[], Taxonomy],
    check_prompts: Callable[[Iterable[str]], list[str]] | None = None,
) -> None:
    """Label the source with the predictor that ``opening`` makes, print the summary and exit with its status.

    ``classes_of`` returns the class mapping and ``conditions`` the predictor's conditions, without opening it;
    ``check_prompts`` returns warnings about the images' prompts from their uris.
    """
    from ...labeling import label_run
    from ...report import display

    selecting.check(run.corpus.shard, dry_run=run.dry_run)
    if run.output is None and not run.dry_run:
        raise UsageError("labels need a store: give -o STORE (or --dry-run)")
    if run.dry_run and (run.corpus.retry_rejects or run.place.log is not None):
        raise UsageError("--dry-run labels a sample without a store; leave --retry-rejects and --log out")
    common = run.common
    gpus = run.place.gpus(run.provider, dry_run=run.dry_run)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    predictor: Any = None
    if gpus or run.place.runner != "local":  # each worker opens its own predictor; this process opens none
        classes = classes_of()
    else:
        predictor, classes = opening()
    selection = selecting.load()
    if run.dry_run:
        images = run.open_source()
        progress, total = label_run.dry_run(predictor, images, classes, selection, **common)
        display.print_estimate(progress, total, as_json=run.as_json)
        return
    on_drift = selecting.on_drift
    common |= {"retry_rejects": run.corpus.retry_rejects, "on_drift": on_drift, "log": run.run_log}
    images = run.open_source()
    with display.run_display(as_json=run.as_json) as observer:
        if predictor is None:
            warnings = [] if check_prompts is None else check_prompts(item.uri for item in images)
            warnings += selection.notes(images.windows)
            progress = _run_leases(run, gpus, opening, selection, conditions, images, observer, on_drift)
            progress.warnings += warnings
        else:
            with published(run.store) as publish:
                observing = partial(_observe, observer, publish)
                progress = label_run.label(
                    predictor, images, run.store, classes, selection, observer=observing, **common
                )
    finish_run(progress, classes, run.store, run.as_json, on_drift, empty_shard=run.empty_shard(progress))


def run_segment(run: LabelingRun, opening: Callable[[], Any]) -> None:
    """Segment the source with the predictor that ``opening`` makes, print the summary and exit with its status."""
    from ...labeling.label_run import segment
    from ...model.taxonomy import Taxonomy
    from ...report import display

    common = {**run.common, "retry_rejects": run.corpus.retry_rejects, "log": run.run_log}
    gpus = run.place.gpus(run.provider, dry_run=run.dry_run)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    predictor = None if gpus or run.place.runner != "local" else opening()
    images = run.open_source()
    with display.run_display(as_json=run.as_json) as observer:
        if predictor is None:
            progress = _run_leases(run, gpus, opening, None, no_conditions, images, observer)
        else:
            with published(run.store) as publish:
                observing = partial(_observe, observer, publish)
                progress = segment(predictor, images, run.store, observer=observing, **common)
    classes = Taxonomy(targets=("segment",), background=None, model=(0,))
    finish_run(progress, classes, run.store, run.as_json, empty_shard=run.empty_shard(progress))


def _observe(display: Callable[[Any], None], publish: Callable[[Any], None], progress: Any) -> None:
    display(progress)
    publish(progress)


def _run_leases(
    run: LabelingRun,
    gpus: tuple[int, ...],
    opening: Callable[[], Any],
    selection: Any,
    conditions: Callable[[], Callable[[str], str]],
    images: Any,
    observer: Any,
    on_drift: OnDrift = "warn",
) -> Progress:
    """Run on several GPUs of this machine, as one process of an array, or on Ray."""
    from ...cluster.device_pool import DevicePool
    from ...cluster.ray_pool import RayPool
    from ...cluster.runner import run_array, run_on

    job = Job(
        opening=partial(with_access, current_access(), opening),
        selection=selection,
        source=images,
        store=str(run.store) if is_url(run.store) else os.path.abspath(str(run.store)),
        storage_options=current_access().storage_options,
        conditions=conditions,
        max_pixels=run.corpus.max_pixels,
    )
    options: dict[str, Any] = {
        "shard_of": run.corpus.part,
        "limit": run.corpus.limit,
        "retry_rejects": run.corpus.retry_rejects,
        "on_drift": on_drift,
        "observer": observer,
        "log": run.run_log,
    }
    run.run_log.start(run.store, "several GPUs" if gpus else run.place.runner)
    if run.place.runner == "array":
        return run_array(job, threads=run.place.threads, **options)
    if run.place.runner == "local":
        return run_on(DevicePool(job, gpus, threads=run.place.threads), job, **options)
    pool = RayPool(job, run.place.ray_settings(run.provider))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has installed its own handlers
    return run_on(pool, job, **options)


def finish_run(
    progress: Progress,
    classes: Taxonomy,
    store: Path,
    as_json: bool,
    on_drift: OnDrift = "warn",
    *,
    empty_shard: str | None = None,
) -> None:
    """Print the summary of a run, with signs of drift from its calibration, and exit with its status."""
    from ...labeling.drift import watch_store
    from ...report import display

    drift = watch_store(store)
    if as_json:
        report = {} if drift is None else {"drift": drift.to_json()}
        print_json({"event": "summary", **progress.to_json(classes), **report}, indent=None)
    else:
        display.print_summary(progress, classes, store, empty_shard=empty_shard)
        if drift is not None:
            display.say(f"{'warning: ' if drift.alarm else ''}{drift.sentence()}")
        if progress.drifted:
            display.say(
                "stopped by --on-drift stop: finished images are stored; run the same command with --on-drift warn to "
                "label the rest"
            )
    if progress.drifted or (on_drift == "stop" and drift is not None and drift.alarm):
        raise typer.Exit(3)
    if progress.interrupted:
        raise typer.Exit(130)
    if progress.rejects or progress.earlier_rejects:
        raise typer.Exit(1)
