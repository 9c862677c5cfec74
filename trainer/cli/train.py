"""The command that trains a student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from ...engine.cli.command import needs
from ...engine.cli.options.common import JsonOption
from ...engine.cli.options.truth import TruthGroup
from ...engine.cli.options.urls import reads_urls
from ...engine.model.storage import location_of
from ..recipes import RecipeName
from .options import AllowCodeOption, DeviceOption


@reads_urls
@needs(
    labeled_share="labeled",
    split_seed="labeled_share",
    ids="labeled",
    validation_ids="validation",
    labels_format="labeled validation",
    pairing="labeled validation",
    labels_as_stored="labeled validation",
    taxonomy="labeled validation",
    background="classes",
    image_labels="segments",
)
def train_student(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="RUN", help="Folder of the run to make or continue.")
    ],
    truth: TruthGroup,
    stores: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[STORE]...", parser=location_of, help="Label stores to train on.", show_default=False),
    ] = None,
    recipe: Annotated[
        RecipeName, typer.Option(metavar="NAME", help=f"Training recipe: {', '.join(get_args(RecipeName))}.")
    ] = "weighted",
    labeled: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with photos in images/, and true labels in labels/ or in files of another format.",
        ),
    ] = None,
    labeled_share: Annotated[
        str | None, typer.Option(metavar="1/N", help="Use a share of the labeled images.", show_default="all")
    ] = None,
    split_seed: Annotated[int, typer.Option(metavar="N", help="Seed of the images that --labeled-share draws.")] = 0,
    unlabeled: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Images without labels, for semi-supervised recipes.")
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with images/ and labels/ to measure on; the best student is kept."),
    ] = None,
    validation_ids: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=location_of, help="Names of the validation images to use.", show_default="all"
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Class names, one per line.",
            show_default="the label stores' classes",
        ),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The background class of --classes.", show_default="no background"),
    ] = None,
    taxonomy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Class mapping whose \\[labels] table reads --labeled.",
            show_default="the stores'",
        ),
    ] = None,
    segments: Annotated[
        Path | None,
        typer.Option(metavar="STORE|DIR", parser=location_of, help="Segment maps of the labeled images (recipe s2c)."),
    ] = None,
    image_labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Classes of each image (recipe s2c).",
            show_default="the classes in its label map",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run whose student is the start; it must have the same network and classes.",
            show_default="none",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Recipe setting, such as crop=256, model=tiny or method.cover=0.5; repeat for several.",
            show_default=False,
        ),
    ] = None,
    allow_code: AllowCodeOption = False,
    device: DeviceOption = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Processes that load images for each training process.")
    ] = 2,
    as_json: JsonOption = False,
) -> None:
    """Train a student. Run the same command again to continue an interrupted run; torchrun is supported.

    Exit status: 0 if trained, 130 if interrupted (the run is saved).
    """
    from ...engine.inputs.names import read_ids
    from ...engine.model.files import read_ordered_class_names
    from ..data.corpus import classes_taxonomy, open_corpus, refuse_unused
    from ..data.parts import Reading
    from ..recipes import RECIPES, with_settings
    from ..train import train
    from ..training_display import observing, print_plan, print_sources, print_summary

    settled_recipe = with_settings(RECIPES[recipe](), settings or (), allow_code=allow_code)
    refuse_unused(settled_recipe, unlabeled=unlabeled, segments=segments)
    names = None if classes is None else read_ordered_class_names(classes)
    corpus = open_corpus(
        stores=stores or (),
        labeled=labeled,
        ids=truth.names,
        unlabeled=unlabeled,
        validation=validation,
        validation_ids=read_ids(validation_ids) if validation_ids else None,
        taxonomy=None if names is None else classes_taxonomy(names, background),
        labels_of=taxonomy,
        segments=segments,
        image_labels=image_labels,
        labeled_share=labeled_share,
        split_seed=split_seed,
        reading=Reading(pairing=truth.pairing, as_stored=truth.labels_as_stored, format=truth.labels_format),
        run=output,
    )
    print_sources(
        {"labeled": corpus.labeled, "validation": corpus.validation, "unlabeled": corpus.plain}, as_json=as_json
    )
    print_plan(settled_recipe, device, as_json=as_json)
    with observing(as_json=as_json) as observer:
        progress = train(output, settled_recipe, corpus, init=init, device=device, workers=workers, observer=observer)
    print_summary(progress, output, as_json=as_json)
    if progress.interrupted:
        raise typer.Exit(130)
