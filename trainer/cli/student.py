"""Commands that measure and use a trained student."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from ...engine.cli.options import OVERLAP, TILE

RUN = typer.Argument(..., metavar="RUN", help="Folder of the run.")
DEVICE = typer.Option("cpu", metavar="DEVICE", help="cpu, cuda or cuda:N.")


def evaluate_student(
    run: Path = RUN,
    images: str = typer.Option(..., metavar="SOURCE", help="Labeled images: a folder, list, glob, tar or URL."),
    labels: Path = typer.Option(..., metavar="DIR", help="Their label maps, under the same names."),
    ids: Path | None = typer.Option(None, "--ids", metavar="FILE", help="Names of the images to use, one a line."),
    taxonomy: Path | None = typer.Option(
        None, metavar="FILE", help="Class mapping, for other [labels] than those of the run's labeled folder."
    ),
    tile: int | None = TILE,
    overlap: int = OVERLAP,
    device: str = DEVICE,
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Measure a student against true labels: IoU of each class, mIoU and accuracy."""
    from ...engine.inputs.label_maps import read_ids
    from ...engine.report.display import counter
    from ..data.datasets import LabeledImages
    from ..evaluate import run_taxonomy, score_images
    from ..students.models import load_run
    from ..training_display import print_scores

    student = load_run(run)
    classes = run_taxonomy(student.run)
    if taxonomy is not None:
        classes = classes.with_labels_of(taxonomy)
    labeled = LabeledImages.pair(images, labels, classes, ids=read_ids(ids) if ids else None)
    with counter("measuring", quiet=as_json) as progress:
        scores = score_images(
            student.module.to(device),
            labeled,
            student.run,
            device=device,
            tile=tile,
            overlap=overlap,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(scores.to_json(), indent=2))
    else:
        print_scores(scores)


def predict_image(
    run: Path = RUN,
    image: Path = typer.Argument(..., metavar="IMAGE", help="The photo to label."),
    output: Path = typer.Option(..., "-o", "--output", metavar="PNG", help="Overlay to write."),
    tile: int | None = TILE,
    overlap: int = OVERLAP,
    device: str = DEVICE,
) -> None:
    """Label one photo with a student and write the labels over it."""
    from ...engine.inputs.images import decode_image
    from ...engine.report.overlay import overlay, save_picture
    from ...errors import UsageError
    from ..evaluate import label_image
    from ..students.models import load_run

    student = load_run(run)
    try:
        photo = decode_image(image.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {image}: {error}") from error
    label = label_image(student.module.to(device), photo, student.run, device=device, tile=tile, overlap=overlap)
    save_picture(overlay(photo, label, student.classes, background=student.background), output)
    typer.echo(f"wrote {output}")
