"""The command that computes conformal thresholds of pixels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ....errors import UsageError
from ...calibration.calibration import Control, RuleChoice
from ...calibration.sharing import Fallback, Group, Unseen
from ...calibration.thresholds import SmallSample, Unit
from ...labeling.run_log import RunLog
from ...model.bundle import Bundle
from ...model.storage import location_of
from ...predictors.open import ModelOptions, PromptedOptions, open_predictor, open_prompted
from ...predictors.texts import parse_texts
from ...reading.geotiff import cut_of
from ...report.terminal import say
from ...runtimes.tuned import resolve
from ..options import (
    AsStoredOption,
    BatchOption,
    BitDepthOption,
    BoxesOption,
    CamOption,
    DetectorOption,
    EndingOption,
    FormatOption,
    IdsOption,
    ImageLabelsOption,
    ImagesOption,
    JsonOption,
    LabelsOption,
    MasksOption,
    OverlapOption,
    PairingOption,
    PointsOption,
    PrecisionOption,
    PromptSettings,
    ProviderOrAutoOption,
    SamOption,
    TaxonomyOption,
    TextOption,
    ThreadsOption,
    TileOption,
    UnverifiedOption,
    WindowOverlapOption,
    WindowsOption,
    new_file,
    options_of_call,
    print_json,
    reads_urls,
)
from ..runner_options import (
    AddressOption,
    CpusOption,
    GpusOption,
    LogOption,
    RunnerOption,
    RunWorkersOption,
    check_ray_options,
    reached,
    threads_of,
)
from .recalibrate import recalibrate, weigh
from .runners import CalibrationImages, calibrate_with


@reads_urls
def calibrate_thresholds(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Calibration (.json) to write.")],
    alpha: Annotated[
        str,
        typer.Option(
            metavar="RATE",
            help="Error rate to aim for: with 0.05, the true class is ruled out on up to 5 % of the pixels.",
        ),
    ],
    images: ImagesOption = None,
    labels: LabelsOption = None,
    reviewed: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="STORE",
            parser=location_of,
            help="Calibrate on the labels that people corrected in this store, instead of --labels; repeat for "
            "several.",
            show_default=False,
        ),
    ] = None,
    calibrations: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            parser=location_of,
            help="Take the images of this calibration, without the model, instead of --images; repeat to merge them.",
            show_default=False,
        ),
    ] = None,
    like: Annotated[
        list[Path] | None,
        typer.Option(
            "--like",
            metavar="STORE",
            parser=location_of,
            help="Weigh the calibration images so that they resemble the images of this label store; repeat for "
            "several.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", parser=location_of, help="The model, unless --sam is given."),
    ] = None,
    group: Annotated[
        Group | None,
        typer.Option(
            metavar="NAME",
            help="Pixels that share a threshold: all (pooled), a class, a cluster of similar classes, a class, moved "
            "toward a constant threshold (shrunk), or a position.",
            show_default="class; pooled for --unit image",
        ),
    ] = None,
    unit: Annotated[
        Unit | None,
        typer.Option(
            metavar="NAME",
            show_default="pixel, or that of --calibration",
            help="What is promised: with pixel nothing, coverage is measured; with image, on average over new images "
            "like these, at most RATE of an image's pixels (pooled) or of a class's pixels (class) miss their class.",
        ),
    ] = None,
    rule: Annotated[
        RuleChoice | None,
        typer.Option(
            metavar="NAME",
            help="How the prediction set decides the label: argmax, foreground, single or agree; auto takes the best "
            "of them on held-out images.",
            show_default="agree; argmax for another --control",
        ),
    ] = None,
    control: Annotated[
        Control,
        typer.Option(
            metavar="NAME",
            help="Error whose rate is controlled: pixels whose set misses their class (miscoverage), or, on average "
            "over new images like these, an image's labeled pixels that are wrong (false-label-rate) or a class's "
            "pixels that are not labeled as it (miss-rate).",
        ),
    ] = "miscoverage",
    delta: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="With --control false-label-rate: the rate holds except with this probability.",
            show_default="it holds on average",
        ),
    ] = None,
    taxonomy: TaxonomyOption = None,
    text: TextOption = None,
    ids: IdsOption = None,
    pairing: PairingOption = None,
    labels_as_stored: AsStoredOption = False,
    labels_format: FormatOption = None,
    image_ending: EndingOption = None,
    bit_depth: BitDepthOption = None,
    min_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Fewest images for a threshold of a class's own.",
            show_default="ceil(1/alpha) - 1",
        ),
    ] = None,
    fallback: Annotated[
        Fallback,
        typer.Option(
            metavar="NAME",
            help="Threshold of a class with fewer images: of all foreground classes together, or of all (pooled).",
        ),
    ] = "foreground",
    unseen: Annotated[
        Unseen,
        typer.Option(
            metavar="NAME",
            help="Classes without a calibration pixel: never emitted, emitted if as confident as a constant threshold "
            "would demand to keep as many pixels (confident), or at the pooled threshold.",
        ),
    ] = "never",
    on_small_n: Annotated[
        SmallSample,
        typer.Option(
            metavar="NAME",
            help="If there are too few images for RATE: refuse, take the largest score (max), or let every set hold "
            "every class (inf).",
        ),
    ] = "refuse",
    grid: Annotated[
        int | None,
        typer.Option(min=1, metavar="CELLS", help="Side of the grid of --group position.", show_default="512"),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Groups of similar cells (k-means), with --group position."),
    ] = None,
    provider: ProviderOrAutoOption = "cpu",
    precision: PrecisionOption = None,
    allow_unverified: UnverifiedOption = False,
    threads: ThreadsOption = 1,
    batch: BatchOption = 1,
    tile: TileOption = None,
    overlap: OverlapOption = 0,
    windows: WindowsOption = None,
    window_overlap: WindowOverlapOption = 0,
    cam: CamOption = None,
    detector: DetectorOption = None,
    boxes: BoxesOption = None,
    points: PointsOption = None,
    coarse_masks: MasksOption = None,
    sam: SamOption = None,
    image_labels: ImageLabelsOption = None,
    settings: PromptSettings = None,
    runner: RunnerOption = "local",
    workers: RunWorkersOption = None,
    address: AddressOption = None,
    cpus_per_worker: CpusOption = None,
    gpus_per_worker: GpusOption = None,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute conformal thresholds from labeled images, and report how well they hold.

    Columns of the report: img, images that show the class; thresh, the largest nonconformity score in the prediction
    set; and, on images that were held out: cover, the share of pixels whose true class is in the set, with a 95 %
    interval for as many new images (! marks a class below its target by more than the interval); set, the mean number
    of classes in the set; kept, acc and IoU, kept share, accuracy and IoU of the labels that the rule makes; raw, the
    IoU of the top class of every pixel. Accuracy and IoU are over the pixels with a label.

    With --calibration or --like thresholds are read from binned scores, and the report gives sample sizes alone.
    """
    from ....kernels.processors import count_workers
    from ...calibration.calibrate import calibrate
    from ...labeling import label_run
    from ...report import display

    new_file(output, ".json")
    if calibrations:
        others = options_of_call(context) - {
            "calibrations",
            "like",
            "output",
            "alpha",
            "group",
            "unit",
            "as_json",
            "storage_option",
        }
        if others:
            names = sorted("BUNDLE" if name == "bundle" else f"--{name.replace('_', '-')}" for name in others)
            raise UsageError(
                "--calibration FILE takes the images, the model and all settings but --alpha, --group and --unit from "
                f"that calibration; leave out {', '.join(names)}"
            )
        recalibrate(calibrations, like, output, alpha, group, unit, as_json)
        return
    if (labels is None) == (not reviewed) or (labels is not None and images is None):
        raise UsageError("expected labeled images: give --images SOURCE with --labels LABELS, or --reviewed STORE")
    if (cam or detector or boxes or points or coarse_masks) is not None and sam is None:
        raise UsageError(
            "--cam, --detector, --boxes, --points and --coarse-masks give prompts for --sam BUNDLE; add it"
        )
    if (bundle is None) != (sam is not None):
        raise UsageError("expected a model: give BUNDLE, or --sam BUNDLE together with a source of prompts")
    if sam is None and (image_labels or settings):
        raise UsageError("--image-labels and --set apply to --cam and --sam only; leave them out")
    if group != "position" and (grid is not None or clusters is not None):
        raise UsageError("--grid and --clusters apply to --group position only; leave them out")
    if bundle is None and (tile is not None or overlap):
        raise UsageError("--tile and --overlap do not apply to --cam and --sam; leave them out")
    if like and runner != "local":
        raise UsageError(
            "--like weighs the images in one process: calibrate first, then weigh with --calibration FILE --like STORE"
        )
    check_ray_options(runner, address, cpus_per_worker, gpus_per_worker)
    run_log = RunLog(log)
    threads_per_process = count_workers(threads_of(workers, runner))
    if bundle is not None:
        runtime, precision = resolve(Bundle.load(bundle), provider, precision)
    elif provider != "auto":
        runtime = provider
    else:
        raise UsageError("--provider auto reads what maskmill tune chose for BUNDLE; name the runtime for --sam")
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
    opening: Any
    if bundle is not None:
        opening = partial(open_predictor, reached(bundle, runner), reached(taxonomy, runner), options=options)
    else:
        assert sam is not None, "checked above"
        prompted = PromptedOptions(
            cam=reached(cam, runner),
            sam=reached(sam, runner),
            detector=reached(detector, runner),
            boxes=reached(boxes, runner),
            points=reached(points, runner),
            masks=reached(coarse_masks, runner),
            image_labels=reached(image_labels, runner),
            prompt=tuple(settings or ()),
        )
        opening = partial(open_prompted, prompted, reached(taxonomy, runner), options=options)
    predictor, model_classes = opening(say=None if as_json else say)
    labeled = CalibrationImages(
        images=reached(images, runner),
        labels=reached(labels, runner),
        reviewed=[reached(store, runner) for store in reviewed or ()],
        pairing=pairing,
        as_stored=labels_as_stored,
        format=labels_format,
        image_ending=image_ending,
        ids=reached(ids, runner),
        windows=cut_of(windows, window_overlap),
    )
    source, truth, classes = labeled.open(model_classes)
    for note in label_run.check_prompts(predictor, source):
        say(f"warning: {note}", stderr=as_json)
    with display.counter("calibrating", quiet=as_json) as progress:
        fit = partial(
            calibrate,
            predictor,
            source,
            truth,
            classes,
            alpha=alpha,
            group=group,
            unit=unit or "pixel",
            rule=rule,
            control=control,
            delta=delta,
            ids=labeled.names,
            min_images=min_images,
            fallback=fallback,
            unseen=unseen,
            on_small_n=on_small_n,
            grid=(grid or 512, grid or 512),
            clusters=clusters,
            workers=threads_per_process,
            progress=progress,
        )
        with run_log.noted(output, runner) as counts:
            calibration = calibrate_with(
                runner,
                fit,
                output,
                opening=opening,
                labeled=labeled,
                grid=(grid or 512, grid or 512) if group == "position" else None,
                workers=workers,
                address=address,
                cpus_per_worker=cpus_per_worker,
                gpus_per_worker=gpus_per_worker,
                provider=runtime,
                log=run_log,
            )
            counts.images = calibration.counts.num_images
    if like:
        weigh(calibration, like, output, as_json)
        return
    if runner == "local":
        calibration.save(output)
    if as_json:
        print_json(dict(calibration.report))
    else:
        display.print_calibration(calibration, output)
