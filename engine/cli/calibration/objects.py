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
        float, typer.Option("--iou", min=0.01, max=1, metavar="SHARE", help="IoU from which an object is right.")
    ] = 0.5,
    by: Annotated[
        Ranking,
        typer.Option(
            metavar="NAME", help="Value that has a threshold: score, quality of the mask, or both, their product."
        ),
    ] = "both",
    splits: Annotated[
        int, typer.Option(min=0, metavar="N", help="Random halves on which thresholds of the others are measured.")
    ] = 20,
    as_json: JsonOption = False,
) -> None:
    """Choose the lowest score and mask quality of objects by class, so that few that are kept are wrong.

    The store is made with label --instances and a low --min-score; export-labels --object-thresholds reads the file.
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
