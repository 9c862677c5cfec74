"""Commands that exchange labels with other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...formats.base import Ignored, ImageMode
from ...formats.open import OutputFormat
from ...model.storage import location_of
from ...report.terminal import say
from ..options.common import JsonOption, StoresArgument, WorkersOption, print_json
from ..options.truth import IdsOption
from ..options.urls import reads_urls


@reads_urls
def export_labels(
    stores: StoresArgument,
    format: Annotated[
        OutputFormat, typer.Option("--format", metavar="FORMAT", help="Format to write; docs/formats.md lists them.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="New folder for the files.")],
    images: Annotated[
        ImageMode | None,
        typer.Option(
            "--images", metavar="MODE", help="Photos beside the labels: copy, link or none.", show_default="by format"
        ),
    ] = None,
    min_kept: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Leave out images with fewer labeled pixels.")
    ] = 0.0,
    weights: Annotated[bool, typer.Option("--weights", help="Write the weight maps as well.")] = False,
    ignored: Annotated[
        Ignored | None,
        typer.Option(
            metavar="FATE",
            help="What becomes of pixels without a label in formats that cannot mark them: drop (no shape), "
            "background, or class (a class named ignore).",
            show_default=False,
        ),
    ] = None,
    ids: IdsOption = None,
    instances: Annotated[
        bool, typer.Option("--instances", help="Write single objects instead of one mask per class (coco formats).")
    ] = False,
    object_thresholds: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Lowest score of an object by class, from calibrate-objects.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Calibration of the labels; its report is added to the certificate.",
            show_default=False,
        ),
    ] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write labels as COCO, VOC, YOLO, CVAT, Label Studio or other files, with a certificate.

    Run the same command again to continue an interrupted export. `maskmill verify DIR` checks the files against the
    certificate.
    """
    from ...calibration.calibration import Calibration
    from ...calibration.objects import ObjectThresholds
    from ...inputs.names import read_ids
    from ...labeling.export_labels import export_labels as export
    from ...report import display
    from ...store.several.joined import open_stores

    with display.counter("exporting", quiet=as_json) as progress:
        summary = export(
            open_stores(stores),
            output,
            format,
            images=images,
            min_kept=min_kept,
            weights=weights,
            ignored=ignored,
            ids=read_ids(ids) if ids else None,
            instances=instances,
            object_thresholds=None if object_thresholds is None else ObjectThresholds.load(object_thresholds),
            calibration=Calibration.load(calibration) if calibration else None,
            workers=workers,
            progress=progress,
        )
    if as_json:
        print_json({"images": summary.num_images, "before": summary.num_before, "skipped": dict(summary.skipped)})
        return
    before = f" ({summary.num_before} of them before an interruption)" if summary.num_before else ""
    if summary.num_objects == 0 and object_thresholds is not None:
        say(f"warning: no object of these images reaches the thresholds of {object_thresholds}, so none is written")
    amount = f"{summary.num_images} image{'s' * (summary.num_images != 1)}"
    if summary.num_files is not None and summary.num_files != summary.num_images:
        amount += f" (windows of {summary.num_files} file{'s' * (summary.num_files != 1)})"
    say(f"{output}: labels of {amount} written as {format}{before}")
    for reason, number in sorted(summary.skipped.items()):
        say(f"left out, {reason}: {number}")
