"""Commands that measure, show and write what a label store holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from ...errors import UsageError
from .prompted_options import CAM, IMAGE_LABELS, SAM, prompted_options

STORE = typer.Argument(..., metavar="STORE", help="Folder of the label store.")
WORKERS = typer.Option(None, min=1, help="Images in work at once.  [default: one a processor]")
IDS = typer.Option(None, "--ids", metavar="FILE", help="Names of the images to use, one a line.")
JSON = typer.Option(False, "--json", help="Print JSON instead of a table.")


def evaluate_labels(
    store: Path = STORE,
    labels: Path = typer.Option(..., metavar="DIR", help="Label maps, under the same names as the images."),
    taxonomy: Path | None = typer.Option(
        None, metavar="FILE", help="Class mapping, for other [labels] than those the store was made with."
    ),
    ids: Path | None = IDS,
    workers: int | None = WORKERS,
    as_json: bool = JSON,
) -> None:
    """Measure labels against the truth: IoU, accuracy, kept share."""
    from ...kernels.processors import usable_processors
    from ..inputs.label_maps import LabelFolder, read_ids
    from ..model.taxonomy import Taxonomy
    from ..report import display
    from ..report.evaluate import evaluate
    from ..store.label_store import LabelStore

    opened = LabelStore.open(store)
    classes = Taxonomy.from_json(opened.classes)
    if taxonomy is not None:
        classes = classes.with_labels_of(taxonomy)
    quality = evaluate(
        opened,
        LabelFolder(labels),
        classes,
        ids=read_ids(ids) if ids else None,
        workers=workers or usable_processors(),
    )
    if as_json:
        print_json(quality.to_json())
    else:
        display.print_quality(quality)


def show(
    store: Path = STORE,
    uri: str | None = typer.Argument(None, metavar="[URI]", help="An image of the store: its uri or file name."),
    output: Path | None = typer.Option(None, "-o", "--output", metavar="PNG", help="Picture to write."),
    steps: bool = typer.Option(
        False,
        "--steps",
        help="Draw how the image got its labels: maps, prompts, masks; needs --cam and --sam.",
    ),
    cam: Path | None = CAM,
    sam: Path | None = SAM,
    image_labels: Path | None = IMAGE_LABELS,
) -> None:
    """Print what a store holds; with an image, write its labels over the photo, or every stage of how it got them."""
    from ..report import display
    from ..report.show import write_overlay, write_steps
    from ..store.label_store import LabelStore

    if steps and (uri is None or cam is None or sam is None):
        raise UsageError("--steps goes with an image of the store, --cam BUNDLE and --sam BUNDLE")
    opened = LabelStore.open(store)
    if steps and uri is not None:
        options = prompted_options(cam, sam, image_labels)
        assert options is not None, "checked above"
        typer.echo(f"wrote {write_steps(opened, uri, output, options)}")
        return
    if uri is None:
        display.print_store(opened)
        return
    typer.echo(f"wrote {write_overlay(opened, uri, output)}")


def dump(
    store: Path = STORE,
    output: Path = typer.Argument(..., metavar="DIR", help="Folder for the files."),
    as_json: bool = JSON,
) -> None:
    """Write ordinary files: labels/*.png, weights/*.png and index.csv (uri, id, kept). Goes on where it stopped."""
    from ..report import display
    from ..store.dump import dump_store
    from ..store.label_store import LabelStore

    with display.counter("writing", quiet=as_json) as progress:
        written, present = dump_store(LabelStore.open(store), output, progress=progress)
    if as_json:
        print_json({"written": written, "already_there": present})
    else:
        typer.echo(f"{output}: {written} label and weight maps written, {present} there already")


def print_json(raw: dict[str, Any], indent: int | None = 2) -> None:
    """Print plain data."""
    typer.echo(json.dumps(raw, indent=indent))
