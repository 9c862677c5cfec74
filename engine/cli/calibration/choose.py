"""The command that recommends how to select pixels."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ...predictors.open import ModelOptions, open_predictor
from ...predictors.texts import parse_texts
from ...reading.geotiff import cut_of
from ...report.terminal import say
from ..options import (
    AsStoredOption,
    BatchOption,
    BitDepthOption,
    BundleArgument,
    EndingOption,
    FormatOption,
    IdsOption,
    ImagesOption,
    JsonOption,
    LabelsOption,
    OverlapOption,
    PairingOption,
    PrecisionOption,
    ProviderOption,
    TaxonomyOption,
    TextOption,
    ThreadsOption,
    TileOption,
    UnverifiedOption,
    WindowOverlapOption,
    WindowsOption,
    WorkersOption,
    new_file,
    print_json,
    reads_urls,
)


@reads_urls
def choose_selection(
    bundle: BundleArgument,
    images: ImagesOption,
    labels: LabelsOption,
    goal: Annotated[
        str,
        typer.Option(
            metavar="GOAL",
            help='What matters: "accuracy 0.97" keeps as much as possible at that accuracy, "kept 0.9" is the best '
            'mIoU that keeps that share, "miou" the best mIoU.',
        ),
    ] = "kept 0.8",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Calibration (.json) of the recommendation to write."),
    ] = None,
    taxonomy: TaxonomyOption = None,
    text: TextOption = None,
    ids: IdsOption = None,
    pairing: PairingOption = None,
    labels_as_stored: AsStoredOption = False,
    labels_format: FormatOption = None,
    image_ending: EndingOption = None,
    bit_depth: BitDepthOption = None,
    provider: ProviderOption = "cpu",
    precision: PrecisionOption = None,
    allow_unverified: UnverifiedOption = False,
    threads: ThreadsOption = 1,
    batch: BatchOption = 1,
    tile: TileOption = None,
    overlap: OverlapOption = 0,
    windows: WindowsOption = None,
    window_overlap: WindowOverlapOption = 0,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every way to select pixels on labeled images, and recommend one for a goal.

    Every rule, grouping, unit and alpha, and constant confidences, are cross-validated. The table lists the selections
    that no other one beats in kept share and in the goal's figure, all measured on held-out images: kept, the share of
    pixels with a label; accuracy of these labels, with a 95 % interval; and their mIoU. An arrow marks the
    recommendation; of selections with the same figures only one is listed.
    """
    from ....kernels.processors import count_workers
    from ...calibration.choose import choose
    from ...calibration.goal import Goal
    from ...inputs.labels import open_labels
    from ...inputs.names import read_ids
    from ...inputs.sources import open_source
    from ...report import display

    aim = Goal.parse(goal)
    if output is not None:
        new_file(output, ".json")
    options = ModelOptions(
        provider=provider,
        precision=precision,
        threads=threads,
        batch=batch,
        tile=tile,
        overlap=overlap,
        bit_depth=bit_depth,
        allow_unverified=allow_unverified,
        text=() if text is None else parse_texts(text),
    )
    assert images is not None, "the option is required"
    assert labels is not None, "the option is required"
    predictor, classes = open_predictor(bundle, taxonomy, options=options, say=None if as_json else say)
    with display.counter("measuring", quiet=as_json) as progress:
        choice, calibration = choose(
            predictor,
            open_source(images, image_ending=image_ending, windows=cut_of(windows, window_overlap)),
            open_labels(labels, pairing=pairing, as_stored=labels_as_stored, format=labels_format),
            classes,
            goal=aim,
            ids=read_ids(ids) if ids else None,
            workers=count_workers(workers),
            progress=progress,
        )
    if output is not None and calibration is not None:
        calibration.save(output)
    if as_json:
        print_json(choice.to_json())
    else:
        values = {"--taxonomy": taxonomy, "--text": text}
        mapping = " ".join(f"{name} {shlex.quote(str(value))}" for name, value in values.items() if value is not None)
        display.print_choice(choice, output if calibration is not None else None, mapping)
