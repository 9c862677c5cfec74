"""The command that selects the labels of a store again, from its kept scores."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from ....kernels.types import Rule
from ...labeling.selection import Method, Weight
from ...model.storage import location_of
from ..options.common import JsonOption, StoresArgument, WorkersOption
from ..options.urls import reads_stores
from .label_options import RequiredOutput
from .labeling import finish_run


@reads_stores
def reselect_labels(
    stores: StoresArgument,
    output: RequiredOutput,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=location_of, help="Another calibration.", show_default="the one of the store"
        ),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Another alpha of the calibration.", show_default="that of the calibration"),
    ] = None,
    select: Annotated[
        Method | None,
        typer.Option(
            metavar="METHOD",
            help="Another selection: argmax, threshold or conformal.",
            show_default="conformal; threshold with --threshold",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="SCORE", help="Lowest confidence to keep (--select threshold).", show_default=False),
    ] = None,
    rule: Annotated[
        Rule | None,
        typer.Option(
            metavar="NAME",
            help="How the prediction set decides the label: argmax, foreground, single or agree.",
            show_default="that of --calibration, or of the store",
        ),
    ] = None,
    weight: Annotated[
        Weight | None,
        typer.Option(
            metavar="NAME",
            help="Weight of each kept pixel: none, confidence, pcos or pcos-supplement.",
            show_default="that of the store",
        ),
    ] = None,
    weight_levels: Annotated[
        int | None,
        typer.Option(
            min=3, max=256, metavar="N", help="Number of distinct weights.", show_default="those of the store"
        ),
    ] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Select the pixels again with other settings, without the model, from a store labeled with --keep-scores.

    Several stores made with the same options give one new store. Run the same command again to continue an interrupted
    run. A selection that needs scores that were not kept is refused.

    Exit status: 0 if every input is labeled, 1 if some were rejected, 130 if interrupted.
    """
    from ...calibration.calibration import Calibration
    from ...labeling.reselection.reselect import Reselection, reselect
    from ...model.taxonomy import Taxonomy
    from ...report import display
    from ...store.several.joined import open_stores

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    source = open_stores(stores)
    change = Reselection(
        calibration=None if calibration is None else Calibration.load(calibration),
        alpha=alpha,
        select=select,
        threshold=threshold,
        rule=rule,
        weight=weight,
        weight_levels=weight_levels,
    )
    with display.run_display(as_json=as_json) as observer:
        progress = reselect(source, output, change, workers=workers, observer=observer)
    finish_run(progress, Taxonomy.from_json(source.classes), output, as_json)
