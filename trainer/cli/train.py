"""Commands that train, measure and use students."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from ...errors import UsageError
from .student import evaluate_student, predict_image


class RecipeName(StrEnum):
    """What is trained, and how."""

    supervised = "supervised"
    weighted = "weighted"
    conformalsam = "conformalsam"
    csl = "csl"
    s2c = "s2c"


DEVICE = typer.Option(None, metavar="DEVICE", help="cpu, cuda or cuda:N.  [default: a CUDA device where there is one]")


def add_commands(app: typer.Typer) -> None:
    """Add the trainer's commands to the application."""
    app.command("train", rich_help_panel="Students")(train_student)
    app.command("evaluate", rich_help_panel="Students")(evaluate_student)
    app.command("predict", rich_help_panel="Students")(predict_image)


def train_student(
    stores: list[Path] | None = typer.Argument(None, metavar="[STORE]...", help="Label stores to train on."),
    recipe: RecipeName = typer.Option(RecipeName.weighted, help="What is trained, and how."),
    output: Path = typer.Option(..., "-o", "--output", metavar="RUN", help="Folder of the run, made or gone on with."),
    labeled: Path | None = typer.Option(
        None, metavar="DIR", help="Folder with images/ and labels/: photos with true labels."
    ),
    ids: Path | None = typer.Option(None, metavar="FILE", help="Names of the labeled images to use, one a line."),
    unlabeled: str | None = typer.Option(None, metavar="SOURCE", help="Images without labels (csl, conformalsam)."),
    validation: Path | None = typer.Option(
        None, metavar="DIR", help="Folder with images/ and labels/ to measure on; the best student is kept."
    ),
    validation_ids: Path | None = typer.Option(None, metavar="FILE", help="Names of the validation images to use."),
    classes: Path | None = typer.Option(None, metavar="FILE", help="Class names, one a line, where there is no store."),
    background: str | None = typer.Option(None, metavar="NAME", help="The background class of --classes."),
    taxonomy: Path | None = typer.Option(
        None, metavar="FILE", help="Class mapping, for other [labels] than those the stores were made with."
    ),
    segments: Path | None = typer.Option(
        None, metavar="STORE|DIR", help="Segment maps of the images with labels (s2c)."
    ),
    image_labels: Path | None = typer.Option(
        None, metavar="FILE", help="Classes of each image (s2c).  [default: those in its label map]"
    ),
    settings: list[str] | None = typer.Option(
        None, "--set", metavar="KEY=VALUE", help="A setting of the recipe, e.g. crop=256, model=tiny, method.cover=0.5."
    ),
    device: str | None = DEVICE,
    workers: int = typer.Option(2, min=0, help="Processes that load images, for each training process."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON lines instead of a progress bar."),
) -> None:
    """Train a student. Running the same command again goes on where it stopped; so does torchrun with it.

    Exit status: 0 trained, 130 interrupted (the run is saved).
    """
    from ...engine.inputs.label_maps import read_ids
    from ...engine.model.files import read_class_names
    from ..data.corpus import classes_taxonomy, open_corpus
    from ..recipes import RECIPES, with_settings
    from ..train import train
    from ..training_display import observing, print_summary

    if background is not None and classes is None:
        raise UsageError("--background NAME goes with --classes FILE")
    chosen = with_settings(RECIPES[recipe.value](), settings or ())
    names = None if classes is None else read_class_names(classes)
    if names is not None and sorted(names) != list(range(len(names))):
        raise UsageError(f"{classes} must name every class from 0 on, without a gap")
    corpus = open_corpus(
        stores=stores or (),
        labeled=labeled,
        ids=read_ids(ids) if ids else None,
        unlabeled=unlabeled,
        validation=validation,
        validation_ids=read_ids(validation_ids) if validation_ids else None,
        taxonomy=None if names is None else classes_taxonomy([names[index] for index in sorted(names)], background),
        labels_of=taxonomy,
        segments=segments,
        image_labels=image_labels,
    )
    with observing(as_json=as_json) as observer:
        progress = train(output, chosen, corpus, device=device, workers=workers, observer=observer)
    print_summary(progress, output, as_json=as_json)
    if progress.interrupted:
        raise typer.Exit(130)
