"""Commands that label a corpus: by a model's class scores, by prompts, or into segments without classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ....errors import UsageError
from ...labeling.instances import InstanceSettings
from ...predictors.open import (
    ModelOptions,
    PromptedOptions,
    bundle_conditions,
    check_prompts,
    load_taxonomy,
    open_everything,
    open_predictor,
    open_prompted,
    prompted_conditions,
    prompted_taxonomy,
)
from ...predictors.texts import parse_texts
from ...reading.geotiff import cut_of
from ...report.terminal import say
from ...runtimes.open import Provider, ProviderChoice
from ..options import (
    BatchOption,
    BitDepthOption,
    BoxesOption,
    BundleArgument,
    DetectorOption,
    DevicesOption,
    EndingOption,
    ImageLabelsOption,
    JsonOption,
    MasksOption,
    OverlapOption,
    PointsOption,
    PrecisionOption,
    PromptSettings,
    ProviderOption,
    ProviderOrAutoOption,
    SourceArgument,
    TaxonomyOption,
    TextOption,
    ThreadsOption,
    TileOption,
    UnverifiedOption,
    WindowOverlapOption,
    WindowsOption,
    reads_urls,
)
from ..runner_options import AddressOption, CpusOption, GpusOption, LogOption, RunnerOption, RunWorkersOption
from .label_options import (
    CalibrationOption,
    DryRunOption,
    EmbeddingCacheOption,
    InstancesOption,
    KeepScoresOption,
    LevelsOption,
    LimitOption,
    MaxPixelsOption,
    MinScoreOption,
    OnDriftOption,
    OutputOption,
    PromptCam,
    RequiredOutput,
    RequiredSam,
    RetryOption,
    SelectOption,
    ShardOption,
    ThresholdOption,
    WeightOption,
)
from .labeling import LabelingOptions, run_label, run_segment


@reads_urls
def label_corpus(
    bundle: BundleArgument,
    source: SourceArgument,
    output: OutputOption = None,
    select: SelectOption = "argmax",
    calibration: CalibrationOption = None,
    threshold: ThresholdOption = None,
    on_drift: OnDriftOption = "warn",
    taxonomy: TaxonomyOption = None,
    text: TextOption = None,
    weight: WeightOption = "none",
    weight_levels: LevelsOption = 256,
    keep_scores: KeepScoresOption = None,
    instances: InstancesOption = False,
    min_score: MinScoreOption = 0.5,
    tile: TileOption = None,
    overlap: OverlapOption = 0,
    windows: WindowsOption = None,
    window_overlap: WindowOverlapOption = 0,
    shard: ShardOption = None,
    runner: RunnerOption = "local",
    workers: RunWorkersOption = None,
    address: AddressOption = None,
    cpus_per_worker: CpusOption = None,
    gpus_per_worker: GpusOption = None,
    limit: LimitOption = None,
    retry_rejects: RetryOption = False,
    max_pixels: MaxPixelsOption = None,
    bit_depth: BitDepthOption = None,
    image_ending: EndingOption = None,
    provider: ProviderOrAutoOption = "cpu",
    device: DevicesOption = None,
    precision: PrecisionOption = None,
    allow_unverified: UnverifiedOption = False,
    threads: ThreadsOption = 1,
    batch: BatchOption = 1,
    dry_run: DryRunOption = False,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label a corpus with a model. The same command again continues where the run stopped.

    Exit status: 0 if every input is labeled, 1 if some were rejected by this run or an earlier one, 3 at a drift
    alarm with --on-drift stop, 130 if interrupted.
    """
    runtime, precision = _runtime(bundle, provider, precision, as_json)
    run = LabelingOptions(
        output=output,
        shard=shard,
        runner=runner,
        workers=workers,
        address=address,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        limit=limit,
        retry_rejects=retry_rejects,
        max_pixels=max_pixels,
        image_ending=image_ending,
        windows=cut_of(windows, window_overlap),
        provider=runtime,
        device=device,
        log=log,
        as_json=as_json,
        dry_run=dry_run,
    )
    options = ModelOptions(
        provider=runtime,
        precision=precision,
        threads=threads,
        batch=batch,
        tile=tile,
        overlap=overlap,
        bit_depth=bit_depth,
        allow_unverified=allow_unverified,
        text=() if text is None else parse_texts(text),
    )
    if instances and tile is not None:
        raise UsageError("--instances does not go with --tile: an object that several tiles show would be several")
    bundle, taxonomy = run.reached(bundle), run.reached(taxonomy)
    opening = partial(open_predictor, bundle, taxonomy, options=options, say=run.say)
    settings = InstanceSettings(min_score=min_score) if instances else None
    conditions = partial(bundle_conditions, bundle)
    run_label(
        run,
        opening,
        conditions,
        partial(load_taxonomy, bundle, taxonomy, options.text),
        source,
        select,
        calibration,
        threshold,
        weight,
        weight_levels,
        keep_scores,
        on_drift,
        settings,
    )


def _runtime(
    bundle: Path, provider: ProviderChoice, precision: str | None, as_json: bool
) -> tuple[Provider, str | None]:
    """Return runtime and precision: those given, or for ``auto`` those that ``maskmill tune`` chose."""
    from ...model.bundle import Bundle
    from ...runtimes.tuned import read_choice, resolve

    if provider != "auto":
        return provider, precision
    model = Bundle.load(bundle)
    runtime = resolve(model, provider, precision)
    if not as_json:
        choice = read_choice(model)
        say(f"tuned for this machine: {choice.provider} in {choice.precision}, {choice.ratio:.2f}x the original")
    return runtime


@reads_urls
def label_prompted(
    source: SourceArgument,
    sam: RequiredSam,
    cam: PromptCam = None,
    detector: DetectorOption = None,
    boxes: BoxesOption = None,
    points: PointsOption = None,
    coarse_masks: MasksOption = None,
    output: OutputOption = None,
    image_labels: ImageLabelsOption = None,
    settings: PromptSettings = None,
    embedding_cache: EmbeddingCacheOption = None,
    select: SelectOption = "argmax",
    calibration: CalibrationOption = None,
    threshold: ThresholdOption = None,
    on_drift: OnDriftOption = "warn",
    taxonomy: TaxonomyOption = None,
    weight: WeightOption = "none",
    weight_levels: LevelsOption = 256,
    keep_scores: KeepScoresOption = None,
    instances: InstancesOption = False,
    min_score: MinScoreOption = 0.5,
    shard: ShardOption = None,
    runner: RunnerOption = "local",
    workers: RunWorkersOption = None,
    address: AddressOption = None,
    cpus_per_worker: CpusOption = None,
    gpus_per_worker: GpusOption = None,
    limit: LimitOption = None,
    retry_rejects: RetryOption = False,
    max_pixels: MaxPixelsOption = None,
    bit_depth: BitDepthOption = None,
    image_ending: EndingOption = None,
    provider: ProviderOption = "cpu",
    device: DevicesOption = None,
    precision: PrecisionOption = None,
    allow_unverified: UnverifiedOption = False,
    threads: ThreadsOption = 1,
    batch: BatchOption = 1,
    dry_run: DryRunOption = False,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label a corpus with a promptable model, such as Segment Anything, and prompts from one source.

    Sources: a classifier, whose activation maps give points; a detector; files of boxes or points; coarse masks to
    refine.

    The same command again continues where the run stopped. Exit status: 0 if every input is labeled, 1 if some were
    rejected by this run or an earlier one, 3 at a drift alarm with --on-drift stop, 130 if interrupted.
    """
    run = LabelingOptions(
        output=output,
        shard=shard,
        runner=runner,
        workers=workers,
        address=address,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        limit=limit,
        retry_rejects=retry_rejects,
        max_pixels=max_pixels,
        image_ending=image_ending,
        provider=provider,
        device=device,
        log=log,
        as_json=as_json,
        dry_run=dry_run,
    )
    prompts = PromptedOptions(
        cam=run.reached(cam),
        sam=run.reached(sam),
        detector=run.reached(detector),
        boxes=run.reached(boxes),
        points=run.reached(points),
        masks=run.reached(coarse_masks),
        image_labels=run.reached(image_labels),
        prompt=tuple(settings or ()),
        embedding_cache=embedding_cache,
    )
    if instances and cam is not None:
        raise UsageError("prompts from a classifier give classes, no single objects; leave --instances out")
    options = ModelOptions(
        provider=provider,
        precision=precision,
        threads=threads,
        batch=batch,
        bit_depth=bit_depth,
        allow_unverified=allow_unverified,
    )
    taxonomy = run.reached(taxonomy)
    opening = partial(open_prompted, prompts, taxonomy, options=options, store=output, say=run.say)
    conditions = partial(prompted_conditions, prompts)
    run_label(
        run,
        opening,
        conditions,
        partial(prompted_taxonomy, prompts, taxonomy),
        source,
        select,
        calibration,
        threshold,
        weight,
        weight_levels,
        keep_scores,
        on_drift,
        InstanceSettings(min_score=min_score) if instances else None,
        partial(check_prompts, prompts),
    )


@reads_urls
def segment_corpus(
    source: SourceArgument,
    sam: RequiredSam,
    output: RequiredOutput,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Setting; repeat for several: side, min_score, min_stability, max_overlap, min_area.",
            show_default=False,
        ),
    ] = None,
    shard: ShardOption = None,
    runner: RunnerOption = "local",
    workers: RunWorkersOption = None,
    address: AddressOption = None,
    cpus_per_worker: CpusOption = None,
    gpus_per_worker: GpusOption = None,
    limit: LimitOption = None,
    retry_rejects: RetryOption = False,
    max_pixels: MaxPixelsOption = None,
    bit_depth: BitDepthOption = None,
    image_ending: EndingOption = None,
    provider: ProviderOption = "cpu",
    device: DevicesOption = None,
    precision: PrecisionOption = None,
    allow_unverified: UnverifiedOption = False,
    threads: ThreadsOption = 1,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut every image into segments without classes, with a promptable model and a grid of points.

    The same command again continues where the run stopped. Exit status: 0 if every input is segmented, 1 if some were
    rejected by this run or an earlier one, 130 if interrupted.
    """
    run = LabelingOptions(
        output=output,
        shard=shard,
        runner=runner,
        workers=workers,
        address=address,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        limit=limit,
        retry_rejects=retry_rejects,
        max_pixels=max_pixels,
        image_ending=image_ending,
        provider=provider,
        device=device,
        log=log,
        as_json=as_json,
    )
    prompts = PromptedOptions(sam=run.reached(sam), prompt=tuple(settings or ()))
    options = ModelOptions(
        provider=provider,
        precision=precision,
        threads=threads,
        bit_depth=bit_depth,
        allow_unverified=allow_unverified,
    )
    run_segment(run, partial(open_everything, prompts, options=options, say=run.say), source)
