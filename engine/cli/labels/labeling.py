"""Runs of the labeling commands: shared options, choice of the runner, summary and exit status."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import typer

from ....errors import UsageError
from ...cluster.job import Job, no_conditions
from ...cluster.runner import Runner
from ...cluster.status import published
from ...labeling.drift import OnDrift
from ...labeling.instances import InstanceSettings
from ...labeling.run_log import RunLog
from ...labeling.selection import Method, Weight
from ...model.storage import is_url
from ...model.taxonomy import Taxonomy
from ...reading.access import current_access, with_access
from ...reading.geotiff import Windows
from ...report.terminal import say
from ...runtimes.open import ON_GPU, Provider
from ..options import print_json
from ..runner_options import check_ray_options, reached, threads_of


@dataclass(frozen=True, kw_only=True)
class LabelingOptions:
    """Options that every labeling command shares, as given."""

    output: Path | None
    shard: str | None
    runner: Runner
    workers: str | None
    address: str | None
    cpus_per_worker: int | None
    gpus_per_worker: float | None
    limit: int | None
    retry_rejects: bool
    max_pixels: int | None
    image_ending: str | None
    provider: Provider
    device: str | None
    log: Path | None
    as_json: bool
    dry_run: bool = False
    windows: Windows | None = None

    @property
    def place(self) -> Path:
        """The store."""
        assert self.output is not None, "the command has checked that there is a store"
        return self.output

    @property
    def common(self) -> dict[str, Any]:
        """Keyword arguments of ``label``, ``segment`` and ``dry_run``."""
        return {
            "shard_of": _shard(self.shard),
            "workers": self.threads,
            "limit": self.limit,
            "max_pixels": self.max_pixels,
        }

    @property
    def opening(self) -> dict[str, Any]:
        """Keyword arguments of ``open_source``."""
        return {
            "image_ending": self.image_ending,
            "access": current_access(),
            "windows": self.windows,
        }

    @property
    def threads(self) -> int | None:
        """Number of images in progress at the same time in one process."""
        return threads_of(self.workers, self.runner)

    @overload
    def reached(self, path: Path) -> Path: ...
    @overload
    def reached(self, path: Path | None) -> Path | None: ...
    def reached(self, path: Path | None) -> Path | None:
        """Return a file or folder under a name that every worker reaches it by."""
        return path if path is None else reached(path, self.runner)

    @cached_property
    def run_log(self) -> RunLog:
        """Log of the run."""
        return RunLog(self.log)

    @property
    def say(self) -> Callable[[str], None] | None:
        """Printer of the line that states which runtime and backend are used."""
        return None if self.as_json else say


def run_label(
    run: LabelingOptions,
    opening: Callable[[], tuple[Any, Any]],
    conditions: Callable[[], Callable[[str], str]],
    classes_of: Callable[[], Taxonomy],
    source: str,
    select: Method,
    calibration: Path | None,
    threshold: float | None,
    weight: Weight,
    weight_levels: int,
    keep_scores: str | None,
    on_drift: OnDrift,
    instances: InstanceSettings | None = None,
    check_prompts: Callable[[Iterable[str]], list[str]] | None = None,
) -> None:
    """Label ``source`` with the predictor that ``opening`` makes.

    ``classes_of`` returns the class mapping and ``conditions`` the predictor's conditions, without opening it;
    ``check_prompts`` returns warnings about the images' prompts from their uris.
    """
    from ...calibration.calibration import Calibration
    from ...inputs.sources import open_source
    from ...labeling import label_run
    from ...labeling.selection import Selection
    from ...report import display

    if (calibration is not None) != (select == "conformal"):
        raise UsageError("--calibration FILE and --select conformal go together; give both or neither")
    if (threshold is not None) != (select == "threshold"):
        raise UsageError("--threshold SCORE and --select threshold go together; give both or neither")
    if keep_scores is not None and select != "conformal":
        raise UsageError(
            "--keep-scores ALPHA needs --select conformal with --calibration FILE; add them or leave it out"
        )
    if on_drift == "stop" and run.shard is not None:
        raise UsageError(
            "--on-drift stop watches a sample of the whole source, and a shard sees a part; use --runner array, or warn"
        )
    if on_drift == "stop" and calibration is None:
        raise UsageError("--on-drift stop compares with calibration images: give --calibration FILE, or leave it out")
    if run.output is None and not run.dry_run:
        raise UsageError("labels need a store: give -o STORE (or --dry-run)")
    common = run.common
    gpus = _devices(run)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    predictor: Any = None
    if gpus or run.runner != "local":  # each worker opens its own predictor; this process opens none
        classes = classes_of()
    else:
        predictor, classes = opening()
    thresholds = Calibration.load(calibration) if calibration else None
    options: dict[str, Any] = {"weight": weight, "weight_levels": weight_levels, "instances": instances}
    if thresholds is not None:
        selection = Selection.conformal(thresholds, keep_scores=keep_scores, **options)
    elif threshold is not None:
        selection = Selection.threshold(threshold, **options)
    else:
        selection = Selection.argmax(**options)
    if run.dry_run:
        images = open_source(source, **run.opening)
        progress, total = label_run.dry_run(predictor, images, classes, selection, **common)
        display.print_estimate(progress, total, as_json=run.as_json)
        return
    assert run.output is not None, "checked above"
    common |= {"retry_rejects": run.retry_rejects, "on_drift": on_drift, "log": run.run_log}
    images = open_source(source, **run.opening)
    with display.run_display(as_json=run.as_json) as observer:
        if predictor is None:
            warnings = [] if check_prompts is None else check_prompts(item.uri for item in images)
            warnings += selection.notes(images.windows)
            progress = _run_leases(run, gpus, opening, selection, conditions, images, observer, on_drift)
            progress.warnings += warnings
        else:
            with published(run.place) as publish:
                observing = partial(_observe, observer, publish)
                progress = label_run.label(
                    predictor, images, run.place, classes, selection, observer=observing, **common
                )
    finish_run(progress, classes, run.place, run.as_json, on_drift)


def run_segment(run: LabelingOptions, opening: Callable[[], Any], source: str) -> None:
    """Segment ``source`` with the predictor that ``opening`` makes, print the summary and exit with its status."""
    from ...inputs.sources import open_source
    from ...labeling.label_run import segment
    from ...model.taxonomy import Taxonomy
    from ...report import display

    assert run.output is not None, "the command requires a store"
    common = {**run.common, "retry_rejects": run.retry_rejects, "log": run.run_log}
    gpus = _devices(run)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    predictor = None if gpus or run.runner != "local" else opening()
    images = open_source(source, **run.opening)
    with display.run_display(as_json=run.as_json) as observer:
        if predictor is None:
            progress = _run_leases(run, gpus, opening, None, no_conditions, images, observer)
        else:
            with published(run.place) as publish:
                observing = partial(_observe, observer, publish)
                progress = segment(predictor, images, run.place, observer=observing, **common)
    finish_run(progress, Taxonomy(targets=("segment",), background=None, model=(0,)), run.place, run.as_json)


def _observe(display: Callable[[Any], None], publish: Callable[[Any], None], progress: Any) -> None:
    display(progress)
    publish(progress)


def _run_leases(
    run: LabelingOptions,
    gpus: tuple[int, ...],
    opening: Callable[[], Any],
    selection: Any,
    conditions: Callable[[], Callable[[str], str]],
    images: Any,
    observer: Any,
    on_drift: OnDrift = "warn",
) -> Any:
    """Run on several GPUs of this machine, as one process of an array, or on Ray."""
    from ...cluster.device_pool import DevicePool
    from ...cluster.ray_pool import RayPool, RaySettings, parse_workers
    from ...cluster.runner import run_array, run_on

    job = Job(
        opening=partial(with_access, current_access(), opening),
        selection=selection,
        source=images,
        store=str(run.output) if is_url(run.output) else os.path.abspath(str(run.output)),
        storage_options=current_access().storage_options,
        conditions=conditions,
        max_pixels=run.max_pixels,
    )
    options: dict[str, Any] = {
        "shard_of": _shard(run.shard),
        "limit": run.limit,
        "retry_rejects": run.retry_rejects,
        "on_drift": on_drift,
        "observer": observer,
        "log": run.run_log,
    }
    run.run_log.start(run.place, "several GPUs" if gpus else run.runner)
    if run.runner == "array":
        return run_array(job, threads=run.threads, **options)
    if run.runner == "local":
        return run_on(DevicePool(job, gpus, threads=run.threads), job, **options)
    low, high = parse_workers(run.workers)
    gpus_per_worker = float(run.provider in ON_GPU) if run.gpus_per_worker is None else run.gpus_per_worker
    pool = RayPool(
        job,
        RaySettings(
            address=run.address,
            min_workers=low,
            max_workers=high,
            cpus_per_worker=run.cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
        ),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has put its own in place
    return run_on(pool, job, **options)


def finish_run(progress: Any, classes: Any, store: Path, as_json: bool, on_drift: OnDrift = "warn") -> None:
    """Print the summary of a run, with signs of drift from its calibration, and exit with its status."""
    from ...labeling.drift import watch_store
    from ...report import display

    drift = watch_store(store)
    if as_json:
        report = {} if drift is None else {"drift": drift.to_json()}
        print_json({"event": "summary", **progress.to_json(classes), **report}, indent=None)
    else:
        display.print_summary(progress, classes, store)
        if drift is not None:
            display.say(f"{'warning: ' if drift.alarm else ''}{drift.sentence()}")
        if progress.drifted:
            display.say(
                "stopped by --on-drift stop: finished images are stored; the same command with --on-drift warn labels "
                "what is left"
            )
    if progress.drifted or (on_drift == "stop" and drift is not None and drift.alarm):
        raise typer.Exit(3)
    if progress.interrupted:
        raise typer.Exit(130)
    if progress.rejects or progress.earlier_rejects:
        raise typer.Exit(1)


def _devices(run: LabelingOptions) -> tuple[int, ...]:
    """GPU numbers of ``--device``; empty if the option was not given."""
    check_ray_options(run.runner, run.address, run.cpus_per_worker, run.gpus_per_worker)
    if run.dry_run and run.runner != "local":
        raise UsageError("--dry-run labels a sample in this process; leave --runner out")
    if run.device is None:
        return ()
    if run.runner != "local":
        raise UsageError(
            "--device applies to --runner local: a process of an array uses the GPU of CUDA_VISIBLE_DEVICES, and Ray "
            "chooses one for each worker"
        )
    if run.provider not in ON_GPU or run.dry_run:
        raise UsageError(
            f"--device applies to --provider {' or '.join(ON_GPU)}, and not to --dry-run; leave it out or change them"
        )
    parts = [part.strip().removeprefix("cuda:") for part in run.device.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"--device must list GPUs, such as cuda:0,cuda:1, got {run.device!r}")
    return tuple(int(part) for part in parts)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(f"--shard must be I/N with I from 0 to N-1, such as 0/8, got {text!r}")
    return int(index), int(count)
