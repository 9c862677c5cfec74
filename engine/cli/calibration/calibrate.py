"""The command that computes conformal thresholds of pixels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ....errors import UsageError
from ...labeling.run_log import RunLog
from ...model.storage import location_of
from ...predictors.open import open_predictor, open_prompted
from ...report.terminal import say
from ..command import needs
from ..options.common import JsonOption, TaxonomyOption, new_file, options_of_call, print_json
from ..options.inputs import ImageGroup, WindowGroup
from ..options.model import ModelGroup
from ..options.prompts import PromptGroup, SamOption
from ..options.runner import RunnerGroup
from ..options.truth import ImagesOption, LabelsOption, TruthGroup
from ..options.urls import reads_urls
from .recalibrate import recalibrate, weigh
from .runners import CalibrationImages, calibrate_with
from .threshold_options import ThresholdGroup


@reads_urls
@needs(
    labels_format="labels calibrations",
    pairing="labels calibrations",
    labels_as_stored="labels calibrations",
    image_ending="images calibrations",
    windows="images calibrations",
)
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
    thresholds: ThresholdGroup,
    files: ImageGroup,
    windows: WindowGroup,
    truth: TruthGroup,
    model: ModelGroup,
    prompting: PromptGroup,
    place: RunnerGroup,
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
            help="Use the scores stored in this calibration instead of --images and the model; repeat to merge "
            "several.",
            show_default=False,
        ),
    ] = None,
    like: Annotated[
        list[Path] | None,
        typer.Option(
            "--like",
            metavar="STORE",
            parser=location_of,
            help="Weight the calibration images to resemble the images of this label store; repeat for several.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", parser=location_of, help="The model, unless --sam is given."),
    ] = None,
    taxonomy: TaxonomyOption = None,
    sam: SamOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute conformal thresholds from labeled images, and report how well they hold.

    Columns of the report: img, the images that show the class; thresh, its threshold: the largest nonconformity score
    in a prediction set. The other columns are measured on held-out images: cover, the coverage (share of pixels whose
    prediction set contains the true class) with a 95 % interval for as many new images (! marks a class whose whole
    interval is below the target); set, the mean number of classes in a set; kept, acc and IoU, the kept share of the
    pixels, and accuracy and IoU of their labels; raw, the IoU if every pixel gets its top class. All columns except
    img, thresh and cover use up to 1,024 pixels per image, drawn at random with equal shares of its classes.

    With --calibration or --like, thresholds are computed from binned scores, and the report gives only sample sizes.
    """
    from ....kernels.processors import count_workers
    from ...calibration.calibrate import calibrate
    from ...labeling import label_run
    from ...report import display

    new_file(output, ".json")
    if calibrations:
        names = options_of_call(context)
        foreign_options = names.keys() - {
            "calibrations",
            "like",
            "output",
            "alpha",
            "group",
            "unit",
            "as_json",
            "storage_option",
        }
        if foreign_options:
            raise UsageError(
                "--calibration FILE takes the images, the model and all settings but --alpha, --group and --unit from "
                f"that calibration; leave out {', '.join(sorted(names[name] for name in foreign_options))}"
            )
        recalibrate(calibrations, like, output, alpha, thresholds.group, thresholds.unit, as_json)
        return
    if (labels is None) == (not reviewed) or (labels is not None and images is None):
        raise UsageError("expected labeled images: give --images SOURCE with --labels LABELS, or --reviewed STORE")
    if prompting.source is not None and sam is None:
        raise UsageError(
            "--cam, --detector, --boxes, --points and --coarse-masks give prompts for --sam BUNDLE; add it"
        )
    if (bundle is None) != (sam is not None):
        raise UsageError("expected a model: give BUNDLE, or --sam BUNDLE together with a source of prompts")
    if sam is None and (prompting.image_labels or prompting.settings):
        raise UsageError("--image-labels and --set apply to --cam and --sam only; leave them out")
    thresholds.check()
    prompting.check_windows(windows.cut)
    if bundle is None and (model.tile is not None or model.overlap or model.text is not None):
        raise UsageError("--text, --tile and --overlap apply to BUNDLE, not to --sam; leave them out")
    if like and place.runner != "local":
        raise UsageError(
            "--like runs in one process only: calibrate first, then add weights with --calibration FILE --like STORE"
        )
    place.check()
    settings = thresholds.settings
    run_log = RunLog(place.log)
    options = model.options(bundle, bit_depth=files.bit_depth, quiet=as_json)
    opening: Any
    if bundle is not None:
        opening = partial(open_predictor, place.reached(bundle), place.reached(taxonomy), options=options)
    else:
        assert sam is not None, "checked above"
        prompted = prompting.reached(sam, place)
        opening = partial(open_prompted, prompted, place.reached(taxonomy), options=options)
    predictor, model_classes = opening(say=None if as_json else say)
    labeled_images = CalibrationImages(
        images=place.reached(images),
        labels=place.reached(labels),
        reviewed=[place.reached(store) for store in reviewed or ()],
        truth=replace(truth, ids=place.reached(truth.ids)),
        image_ending=files.image_ending,
        windows=windows.cut,
    )
    source, label_source, classes = labeled_images.open(model_classes)
    for note in label_run.check_prompts(predictor, source):
        say(f"warning: {note}", stderr=as_json)
    with display.counter("calibrating", quiet=as_json) as progress:
        fit = partial(
            calibrate,
            predictor,
            source,
            label_source,
            classes,
            alpha=alpha,
            ids=truth.names,
            **settings,
            workers=count_workers(place.threads),
            progress=progress,
        )
        with run_log.noted(output, place.runner) as counts:
            calibration = calibrate_with(
                place,
                fit,
                output,
                opening=opening,
                labeled=labeled_images,
                grid=settings["grid"] if thresholds.group == "position" else None,
                provider=options.provider,
                log=run_log,
            )
            counts.images = calibration.counts.num_images
    if like:
        weigh(calibration, like, output, as_json)
        return
    if place.runner == "local":
        calibration.save(output)
    if as_json:
        print_json(dict(calibration.report))
    else:
        display.print_calibration(calibration, output)
