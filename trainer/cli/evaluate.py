"""The command that measures labels, a student or a model against true labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...engine.cli.command import needs
from ...engine.cli.options.common import JsonOption, WorkersOption, print_json
from ...engine.cli.options.inputs import ImageGroup, WindowGroup
from ...engine.cli.options.model import OverlapOption, PrecisionOption, ProviderOption, TextOption, TileOption
from ...engine.cli.options.truth import LabelsOption, TruthGroup
from ...engine.cli.options.urls import reads_urls
from ...engine.model.storage import location_of
from ...engine.predictors.texts import parse_texts
from ...errors import UsageError
from .options import AllowCodeOption, DeviceOption


@reads_urls
@needs(labels_format="labels", pairing="labels", labels_as_stored="labels")
def evaluate_target(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="STORE...|RUN|BUNDLE",
            parser=location_of,
            help="Label stores (read as one), a training run or a model bundle to measure.",
        ),
    ],
    truth: TruthGroup,
    files: ImageGroup,
    cut: WindowGroup,
    labels: LabelsOption = None,
    reviewed: Annotated[
        bool,
        typer.Option(
            "--reviewed",
            help="Measure a store's labels against those that people corrected in it (serve --review, import-labels).",
        ),
    ] = False,
    images: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Images to label and measure; needed for a run or a bundle."),
    ] = None,
    taxonomy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Class mapping; for a store or a run, only its \\[labels] table is used, to read --labels.",
            show_default="the target's own",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="With a bundle: calibration whose coverage and labels are measured.",
        ),
    ] = None,
    tile: TileOption = None,
    overlap: OverlapOption = 0,
    text: TextOption = None,
    provider: ProviderOption = "cpu",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    allow_code: AllowCodeOption = False,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure labels against true labels: IoU per class, mIoU and accuracy, with 95 % intervals over images.

    For a store, its labels are measured. For a run or a bundle, the student or the model first labels --images; every
    pixel gets its top class. With --calibration, the labels of a bundle are those that the calibration selects, and
    their coverage is measured, too.

    Columns: pixels, the true pixels of the class; kept, the share of them with a label; IoU of kept, over pixels with a
    label; IoU of all, over all pixels.

    For a run, the mean confidence and the expected calibration error follow. For recipes that select pseudo-labels
    there are three more figures per predicted class: sampling (share of the predictions that are selected), accuracy
    (share of the selected ones that are right) and recall (share of the right ones that are selected).
    """
    from ...engine.report.display import counter, print_quality
    from ..measure import StudentQuality, evaluate
    from ..training_display import print_reliability

    if reviewed == (labels is not None):
        raise UsageError("expected --labels LABELS to measure against, or --reviewed for a store without --labels")
    label_source = None if labels is None else truth.open(labels)
    with counter("measuring", quiet=as_json) as progress:
        quality = evaluate(
            targets[0] if len(targets) == 1 else targets,
            label_source,
            reviewed=reviewed,
            images=images,
            ids=truth.names,
            taxonomy=taxonomy,
            calibration=calibration,
            tile=tile,
            overlap=overlap,
            windows=cut.windows,
            window_overlap=cut.window_overlap,
            image_ending=files.image_ending,
            bit_depth=files.bit_depth,
            text=() if text is None else parse_texts(text),
            provider=provider,
            precision=precision,
            device=device,
            allow_code=allow_code,
            workers=workers,
            progress=progress,
        )
    if as_json:
        print_json(quality.to_json())
    else:
        print_quality(quality)
        if isinstance(quality, StudentQuality):
            print_reliability(quality.scores)
