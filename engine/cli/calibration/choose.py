"""The command that recommends how to select pixels."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ...predictors.open import open_predictor
from ...report.terminal import say
from ..options.common import BundleArgument, JsonOption, TaxonomyOption, WorkersOption, new_file, print_json
from ..options.inputs import ImageGroup, WindowGroup
from ..options.model import ModelGroup
from ..options.truth import ImagesOption, LabelsOption, TruthGroup
from ..options.urls import reads_urls


@reads_urls
def choose_selection(
    bundle: BundleArgument,
    images: ImagesOption,
    labels: LabelsOption,
    files: ImageGroup,
    windows: WindowGroup,
    truth: TruthGroup,
    model: ModelGroup,
    goal: Annotated[
        str,
        typer.Option(
            metavar="GOAL",
            help='"accuracy 0.97" keeps as many pixels as possible at that accuracy, "kept 0.9" gives the best mIoU '
            'that keeps that share of the pixels, "miou" the best mIoU.',
        ),
    ] = "kept 0.8",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="File (.json) to write the recommended calibration to."),
    ] = None,
    taxonomy: TaxonomyOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every way to select pixels on labeled images, and recommend one for a goal.

    All combinations of rule, grouping, unit and alpha, and constant confidence thresholds, are cross-validated. The
    table lists the selections that are not beaten in both kept share and the goal's figure: kept, the share of pixels
    with a label; accuracy of these labels, with a 95 % interval; and their mIoU. An arrow marks the recommendation.
    Selections with the same figures are listed once. All figures are measured on held-out images, on up to 1,024 pixels
    per image, drawn at random with equal shares of its classes.
    """
    from ....kernels.processors import count_workers
    from ...calibration.choose import choose
    from ...calibration.goal import Goal
    from ...inputs.sources import open_source
    from ...report import display

    aim = Goal.parse(goal)
    if output is not None:
        new_file(output, ".json")
    options = model.options(bundle, bit_depth=files.bit_depth, quiet=as_json)
    assert images is not None, "the option is required"
    assert labels is not None, "the option is required"
    predictor, classes = open_predictor(bundle, taxonomy, options=options, say=None if as_json else say)
    with display.counter("measuring", quiet=as_json) as progress:
        choice, calibration = choose(
            predictor,
            open_source(images, image_ending=files.image_ending, windows=windows.cut),
            truth.open(labels),
            classes,
            goal=aim,
            ids=truth.names,
            workers=count_workers(workers),
            progress=progress,
        )
    if output is not None and calibration is not None:
        calibration.save(output)
    if as_json:
        print_json(choice.to_json())
    else:
        values = {"--taxonomy": taxonomy, "--text": model.text}
        mapping = " ".join(f"{name} {shlex.quote(str(value))}" for name, value in values.items() if value is not None)
        display.print_choice(choice, output if calibration is not None else None, mapping)
