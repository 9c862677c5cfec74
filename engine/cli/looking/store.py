"""Commands that show and write the contents of a label store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....errors import UsageError
from ...model.storage import location_of
from ...predictors.open import PromptedOptions
from ...report.terminal import say
from ..options.prompts import CamOption, ImageLabelsOption, SamOption
from ..options.urls import reads_urls


@reads_urls
def show(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE...|BUNDLE [IMAGE]",
            help="Label stores (read as one) or a model bundle, by folder or URL; then, optionally, an image of the "
            "stores by uri, path or file name. For a bundle, any photo.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PNG", help="Picture to write.", show_default="IMAGE-labels.png"),
    ] = None,
    steps: Annotated[
        bool,
        typer.Option(
            "--steps", help="Draw the steps from activation maps and prompts to masks; needs --cam and --sam."
        ),
    ] = False,
    cam: CamOption = None,
    sam: SamOption = None,
    image_labels: ImageLabelsOption = None,
) -> None:
    """Print the contents of a store, or draw the labels of one image over its photo.

    For a model bundle, draw the labels that the model gives a photo.
    """
    from ...model.bundle import MANIFEST
    from ...report import display
    from ...report.show import write_overlay, write_steps
    from ...store.several.joined import open_stores

    names, uri = _split_image(paths)
    folder = location_of(names[0])
    if steps and (uri is None or cam is None or sam is None):
        raise UsageError("--steps needs an IMAGE of the store, --cam BUNDLE and --sam BUNDLE")
    if not steps and (cam or sam or image_labels):
        raise UsageError("--cam, --sam and --image-labels apply to --steps only; add it or leave them out")
    if uri is None and output is not None:
        raise UsageError("-o PNG needs an IMAGE of the store to draw")
    if len(names) == 1 and (folder / MANIFEST).is_file():
        if uri is None or steps:
            raise UsageError("a model needs an IMAGE to label and draw, and has no --steps")
        _draw_model(folder, uri, output)
        return
    label_store = open_stores(names)
    if uri is None:
        display.print_store(label_store)
    elif steps:
        assert sam is not None, "checked above"
        options = PromptedOptions(cam=cam, sam=sam, image_labels=image_labels)
        say(f"wrote {write_steps(label_store, uri, output, options)}")
    else:
        say(f"wrote {write_overlay(label_store, uri, output)}")


def _split_image(paths: list[str]) -> tuple[list[str], str | None]:
    """Split the arguments into stores and an image; the last of several is the image, unless it is a store."""
    from ...store.run_record import is_store

    return (paths, None) if len(paths) == 1 or is_store(paths[-1]) else (paths[:-1], paths[-1])


def _draw_model(folder: Path, image: str, output: Path | None) -> None:
    from ...inputs.names import image_id
    from ...model.bundle import Bundle
    from ...report.preview import read_photo, write_preview

    photo = read_photo(image)
    bundle = Bundle.load(folder)
    bundle.verify()
    picture = write_preview(bundle, photo, output or Path(f"{image_id(image)}-labels.png"))
    say(f"wrote {picture}")
