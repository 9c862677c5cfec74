"""The command that chooses the lowest scores of objects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...calibration.objects import Ranking
from ..options.common import JsonOption, StoresArgument, new_file, print_json
from ..options.urls import reads_urls


@reads_urls
def calibrate_object_scores(
    stores: StoresArgument,
    labels: Annotated[str, typer.Option("--labels", metavar="FILE", help="True objects of some images, a COCO file.")],
    alpha: Annotated[str, typer.Option(metavar="RATE", help="Largest mean share of wrong objects.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="File to write.")],
    iou: Annotated[
        float,
        typer.Option(
            "--iou", min=0.01, max=1, metavar="SHARE", help="Smallest IoU with a true object for an object to be right."
        ),
    ] = 0.5,
    by: Annotated[
        Ranking,
        typer.Option(
            metavar="NAME",
            help="Value that the threshold applies to: score, quality (of the mask), or both (their product).",
        ),
    ] = "both",
    splits: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Random splits into halves; thresholds of one half are measured on the other."
        ),
    ] = 20,
    as_json: JsonOption = False,
) -> None:
    """Choose the score and mask quality that an object of each class needs, so that few kept objects are wrong.

    Label the store with --instances and a low --min-score; export-labels --object-thresholds reads the written file.
    """
    from ...calibration.objects import calibrate_objects
    from ...report import display
    from ...store.several.joined import open_stores

    new_file(output, ".json")
    thresholds = calibrate_objects(open_stores(stores), labels, alpha=alpha, iou=iou, by=by, splits=splits)
    thresholds.save(output)
    if as_json:
        print_json(thresholds.to_json())
        return
    display.print_object_thresholds(thresholds, output)
