"""The command that writes the report of a label store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...model.storage import location_of
from ...report.page.gallery import PICTURES
from ...report.terminal import say
from ..command import needs
from ..options.common import StoresArgument, WorkersOption, replacement, writable_file
from ..options.model import ProviderOption
from ..options.truth import LabelGroup, LabelsOption
from ..options.urls import reads_urls


@reads_urls
@needs(provider="model", labels_format="labels", pairing="labels", labels_as_stored="labels", taxonomy="labels")
def report(
    stores: StoresArgument,
    truth: LabelGroup,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Page (.html) to write.")] = Path(
        "report.html"
    ),
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Calibration of the labels; adds coverage per class, risk and drift.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            parser=location_of,
            help="Model that made the labels, to run again on a sample; adds labels before selection, set sizes and "
            "the PCOS plane.",
            show_default=False,
        ),
    ] = None,
    labels: LabelsOption = None,
    taxonomy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Class mapping with the \\[labels] table for --labels.",
            show_default="the store's own",
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, metavar="N", help="Images of each kind in the gallery.")] = PICTURES,
    provider: ProviderOption = "cpu",
    workers: WorkersOption = None,
) -> None:
    """Write one HTML page that shows if the labels of a store are good enough, and which are not.

    The page summarizes the run in words, figures and charts, and has a gallery of photos with their labels. It loads
    nothing from the network, so you can send it to others; it contains the photos that it shows.
    """
    from ...labels_api import report as write

    writable_file(output, ".html")
    note = replacement(output)
    label_source = None if labels is None else truth.open(labels)
    path = write(
        stores,
        output,
        labels=label_source,
        calibration=calibration,
        model=model,
        taxonomy=taxonomy,
        pictures=pictures,
        provider=provider,
        workers=workers,
        progress=True,
    )
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB){note}")
